# SPDX-License-Identifier: Apache-2.0
"""What the ledger is told when a run is cancelled or crashes.

Prefect calls these in the flow's own process, or, once a worker killed that, in a fresh one that
remembers nothing; by position or by keyword. They only tell and let go: nothing depends on them,
since a lease lapses by itself. CometAPI has no way to cancel, so what was bought goes on upstream.
"""

from typing import Any

from prefect import Flow
from prefect.client.schemas.objects import FlowRun, State
from prefect.logging.loggers import flow_run_logger

from ...runway.errors import LedgerUnavailable
from .ledger_access import open_ledger
from .sync import run_sync


def leave_to_collect(flow: Flow[Any, Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Let go of what a run worked on when it ended, so that ``collect`` can take it at once."""
    log = flow_run_logger(flow_run, flow)
    cancelled = state.is_cancelled() or state.is_cancelling()  # then a worker has killed it
    try:
        left = run_sync(_let_go(str(flow_run.id), state.name or "ended", cancelled))
    except LedgerUnavailable as error:
        log.warning("%s; the leases of this run lapse by themselves", error.what)
        return
    for task_id in left:
        log.warning(
            "Generation %s is paid for and goes on upstream: `prefect-cometapi collect` finishes "
            "it, `prefect-cometapi ledger abandon` leaves it",
            task_id,
        )


async def _let_go(run: str, how: str, certainly_over: bool) -> list[str]:
    """End the leases of a run; gives the ids of what it bought and did not deliver."""
    from ...runway.ledger.entry import UNFINISHED
    from ...runway.ledger.entry import State as Standing
    from ...runway.ledger.purchase import give_up

    ledger = await open_ledger()
    for entry in await ledger.held_by_run(run):
        if not certainly_over and await ledger.is_living(entry):
            continue  # a crash may be a false alarm
        if entry.state is Standing.INTENDED:
            await give_up(ledger, entry)
        elif entry.holder:
            await ledger.let_go(entry.key, entry.holder, f"its run ended: {how}")
    left = await ledger.entries(states=UNFINISHED, flow_run_id=run)
    return [str(entry.task_id) for entry in left]
