# SPDX-License-Identifier: Apache-2.0
"""Faulty stand-in for CometAPI, and the decisions of a user who looks into its records."""

import asyncio
from collections.abc import Collection
from typing import Any, get_args

from prefect_cometapi.runway.ledger.entry import State
from prefect_cometapi.runway.ledger.purchase import attach
from prefect_cometapi.runway.ledger.store import Ledger
from prefect_cometapi.sandbox import FaultKind, FaultPlan, ReplyShape, Sandbox

from .fault_profile import SHARE, fault_profile
from .sources import key_of

IDLE_TIMEOUT = 240.0
"""Seconds within which the service must have processed every request."""


def faulty_service(
    share: float = SHARE, *, without: Collection[FaultKind] = (), **config: Any
) -> Sandbox:
    """Return a sandbox with all reply shapes in turn, and with all faults but those left out."""
    return Sandbox(shapes=get_args(ReplyShape), faults=fault_profile(share, without), **config)


def end_faults(sandbox: Sandbox) -> None:
    """Let all further requests meet no fault."""
    app = sandbox._app
    app.plan = FaultPlan((), app.plan.seed)


async def wait_until_idle(sandbox: Sandbox) -> None:
    """Wait until the service has processed every request, so that its records are complete."""
    state = sandbox._server.server_state
    async with asyncio.timeout(IDLE_TIMEOUT):
        while state.connections or state.tasks:  # noqa: ASYNC110 -- another thread
            await asyncio.sleep(0.005)


async def settle_uncertain(ledger: Ledger, sandbox: Sandbox) -> tuple[list[str], list[str]]:
    """Settle uncertain generations as a user does who looks into CometAPI's console.

    Returns:
        The keys whose ids were found and adopted, and those that may be submitted again.
    """
    accepted = {key_of(job): job.task_id for job in sandbox.accepted}
    adopted: list[str] = []
    resubmitted: list[str] = []
    for entry in await ledger.entries(states=[State.UNCERTAIN]):
        if task_id := accepted.get(entry.idempotency_key):
            await attach(ledger, entry, task_id)
            adopted.append(entry.idempotency_key)
        else:
            await ledger.mark_resubmit_allowed(entry, "not accepted")
            resubmitted.append(entry.idempotency_key)
    return adopted, resubmitted
