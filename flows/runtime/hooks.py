# SPDX-License-Identifier: Apache-2.0
"""Hooks that release leases when a run is cancelled or crashes.

Prefect calls a hook in the process of the flow. If a worker has killed that process, Prefect calls
it in a new process without any state. The arguments come by position or by keyword.

The hooks only log and release leases. Nothing depends on them, because a lease expires by itself.
CometAPI cannot cancel a generation, so a bought one continues at the service.
"""

from typing import Any

from prefect import Flow
from prefect.client.schemas.objects import FlowRun, State
from prefect.logging.loggers import flow_run_logger

from ...runway.errors import LedgerUnavailable
from .ledger_access import open_ledger
from .sync import run_sync


def release_leases(flow: Flow[Any, Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Release the leases of a run that has ended, so that ``collect`` can continue at once."""
    log = flow_run_logger(flow_run, flow)
    # The process of a cancelled run is certainly over, because a worker has killed it.
    cancelled = state.is_cancelled() or state.is_cancelling()
    try:
        left = run_sync(_release(str(flow_run.id), state.name or "ended", cancelled))
    except LedgerUnavailable as error:
        log.warning("%s; the leases of this run expire by themselves", error.message)
        return
    for task_id in left:
        log.warning(
            "Generation %s is paid for and continues at CometAPI. Finish it with "
            "`prefect-cometapi collect`, or give it up with `prefect-cometapi ledger abandon`",
            task_id,
        )


async def _release(run: str, how: str, certainly_over: bool) -> list[str]:
    """Release the leases of a run, and return the task ids that it bought but did not deliver.

    Args:
        run: Id of the flow run.
        how: Name of the final state, for the note in the ledger.
        certainly_over: Whether the process of the run is certainly gone. If not, leases whose owner
            still seems active are kept.
    """
    from ...runway.ledger.entry import UNFINISHED
    from ...runway.ledger.entry import State as EntryState
    from ...runway.ledger.purchase import resolve_dead_claim

    ledger = await open_ledger()
    for entry in await ledger.leases.entries_of_run(run):
        if not certainly_over and await ledger.leases.is_active(entry):
            continue  # Prefect may report a crash although the process is alive.
        if entry.state is EntryState.CLAIMED:
            await resolve_dead_claim(ledger, entry)
        elif entry.owner:
            note = f"its run ended: {how}"
            await ledger.leases.release(entry.idempotency_key, entry.owner, note)
    left = await ledger.entries(states=UNFINISHED, flow_run_id=run)
    return [str(entry.task_id) for entry in left]
