# SPDX-License-Identifier: Apache-2.0
"""Runs that leave their process while their generation renders, and that go on when it is stored.

It is Prefect's own suspension: the run holds no worker and no memory. ``collect`` finishes the
generation and resumes the run, which begins anew, finds its generation in the ledger, and hands its
result on.
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

from ...runway.errors import LedgerDamaged
from ...runway.models.generation import Submission
from ...runway.models.keys import step_key
from . import log
from .run_context import settings_now

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun

    from ...runway.ledger.store import Ledger

_DAY = 24 * 3600
_WAIT = "cometapi-wait-"
"""What the keys of our suspensions begin with."""
_MANY = 200
"""Flow runs in one answer of Prefect's server."""


async def leave_until_ended(ledger: "Ledger", submission: Submission) -> None:
    """End this process here, and have the run begin anew once its generation has ended.

    It returns where the generation has ended already, and where the run cannot be suspended: a
    subflow, or a run that no worker could start again.

    Raises:
        Pause: Prefect's signal that the run is suspended.
    """
    entry = await ledger.get(submission.key)
    if entry and entry.has_ended:
        return
    if reason := _why_not():
        log.logger().warning("%s, so it waits here for the generation", reason)
        return
    log.logger().info("The flow collect finishes the generation and resumes this run")
    pause = step_key("wait", f"{submission.key}\n{submission.task_id}")
    await asuspend_flow_run(timeout=int(settings_now().deadline) + _DAY, key=pause)


def _why_not() -> str | None:
    context = FlowRunContext.get()
    if context is None or context.flow_run is None or TaskRunContext.get():
        return "Only a flow run can be suspended"
    if context.flow_run.parent_task_run_id:
        return "A subflow cannot be suspended"
    if not context.flow_run.deployment_id:
        return "A run without a deployment cannot be started again"
    return None


@log.harmless
async def resume_waiting(ledger: "Ledger", run: str | None = None) -> None:
    """Resume a run, or every run, that we suspended and whose generations have ended.

    One of whose generations a row is damaged waits on: nobody knows what became of that.
    """
    for waiting in await _suspended(run):
        damaged: list[LedgerDamaged] = []
        entries = await ledger.entries(flow_run_id=str(waiting.id), tell=damaged.append)
        if entries and not damaged and all(entry.has_ended for entry in entries):
            await _resume(waiting.id)


async def _suspended(run: str | None) -> "list[FlowRun]":
    named = FlowRunFilterState(name=FlowRunFilterStateName(any_=["Suspended"]))
    this = FlowRunFilterId(any_=[UUID(run)]) if run else None
    found: list[FlowRun] = []
    async with get_client() as client:
        while True:
            some = await client.read_flow_runs(
                flow_run_filter=FlowRunFilter(state=named, id=this),
                sort=FlowRunSort.ID_DESC,
                limit=_MANY,
                offset=len(found),
            )
            found += some
            if len(some) < _MANY:
                return [one for one in found if _is_ours(one)]


def _is_ours(run: "FlowRun") -> bool:
    """Whether it was this package that suspended it, and not somebody in the UI."""
    key = run.state.state_details.pause_key if run.state else None
    return bool(key and key.startswith(_WAIT))


async def _resume(run: UUID) -> None:
    try:
        await aresume_flow_run(run)
    except RuntimeError as error:  # another collector was quicker
        log.logger().debug("Run %s was not resumed: %s", run, error)
