# SPDX-License-Identifier: Apache-2.0
"""Suspension of runs while their generation renders.

This is Prefect's own suspension: a suspended run uses no worker and no memory. ``collect`` finishes
the generation and resumes the run. The run then starts again from the beginning, finds its
generation in the ledger, and returns the result.
"""

from typing import TYPE_CHECKING
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterState,
    FlowRunFilterStateName,
)
from prefect.client.schemas.sorting import FlowRunSort
from prefect.context import FlowRunContext, TaskRunContext
from prefect.flow_runs import aresume_flow_run, asuspend_flow_run

from ...runway.errors import LedgerCorrupted
from ...runway.models.generation import Submission
from ...runway.models.keys import step_key
from . import log
from .pages import read_pages
from .run_context import RunContext

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun

    from ...runway.ledger.store import Ledger

_DAY = 24 * 3600
_WAIT = "cometapi-wait-"
"""Prefix of the pause keys that this package uses."""


async def suspend_until_finished(context: RunContext, submission: Submission) -> None:
    """Suspend the run until its generation has ended.

    A suspended run leaves its process and later starts again from the beginning. The function
    returns without a suspension if the generation has already ended, or if the run cannot be
    suspended: a subflow, or a run that no worker could start again.

    Raises:
        Pause: Prefect's signal that the run is suspended.
    """
    entry = await (await context.ledger()).get(submission.idempotency_key)
    if entry and entry.has_ended:
        return
    if reason := _why_not():
        log.logger().warning("%s, so this run waits for the generation", reason)
        return
    log.logger().info("The flow collect finishes the generation and resumes this run")
    pause = step_key("wait", f"{submission.idempotency_key}\n{submission.task_id}")
    await asuspend_flow_run(timeout=int(context.settings.generation_timeout) + _DAY, key=pause)


def _why_not() -> str | None:
    context = FlowRunContext.get()
    if context is None or context.flow_run is None or TaskRunContext.get():
        return "Only a flow run can be suspended"
    if context.flow_run.parent_task_run_id:
        return "A subflow cannot be suspended"
    if not context.flow_run.deployment_id:
        return "A run without a deployment cannot be started again"
    return None


@log.best_effort
async def resume_waiting(ledger: "Ledger", run: str | None = None) -> None:
    """Resume the runs that this package suspended and whose generations have all ended.

    A run with a corrupted ledger row stays suspended, because the outcome of that generation is
    not known.

    Args:
        ledger: Ledger with the generations.
        run: Id of the only run to consider; all runs if None.
    """
    for waiting in await _suspended(run):
        corrupted: list[LedgerCorrupted] = []
        entries = await ledger.entries(flow_run_id=str(waiting.id), on_corrupted=corrupted.append)
        if entries and not corrupted and all(entry.has_ended for entry in entries):
            await _resume(waiting.id)


async def _suspended(run: str | None) -> "list[FlowRun]":
    named = FlowRunFilterState(name=FlowRunFilterStateName(any_=["Suspended"]))
    this = FlowRunFilterId(any_=[UUID(run)]) if run else None
    async with get_client() as client:
        found = await read_pages(
            lambda limit, offset: client.read_flow_runs(
                flow_run_filter=FlowRunFilter(state=named, id=this),
                sort=FlowRunSort.ID_DESC,
                limit=limit,
                offset=offset,
            )
        )
    return [one for one in found if _is_ours(one)]


def _is_ours(run: "FlowRun") -> bool:
    """Return whether this package suspended the run, and not a user in the UI."""
    key = run.state.state_details.pause_key if run.state else None
    return bool(key and key.startswith(_WAIT))


async def _resume(run: UUID) -> None:
    try:
        await aresume_flow_run(run)
    except RuntimeError as error:  # Another collector may have resumed the run already.
        log.logger().debug("Run %s was not resumed: %s", run, error)
