# SPDX-License-Identifier: Apache-2.0
"""Reconciliation of uncertain submissions with the account that may have accepted them.

The account is asked first, and the ledger is read after that. A task is adopted only after the
service has confirmed to the API key that it knows the id. Every failure leaves the entry as it is.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from ..errors import LedgerUnavailable
from ..ledger.entry import Entry, State
from ..ledger.purchase import resolve_dead_claim
from ..ledger.reconciliation import Account, Action, Decision, Tolerance, action_of
from ..ledger.resubmission import may_arrive_until
from ..ledger.store import Ledger
from ..ledger.unresolved import (
    adopt_task,
    allow_resubmission,
    decide,
    models_in_use,
    period_to_list,
    record_evidence,
    unresolved_entries,
)
from ..models.account import AccountTasks
from ..models.model_limits import known_models
from ..models.requests import ROUTES
from .adoption import check_task
from .client import RunwayClient

ListTasks = Callable[[datetime, datetime], Awaitable[AccountTasks]]
"""Function that returns the account's tasks in a period."""


@dataclass(frozen=True)
class Reconciled:
    """Uncertain submission with its decision, and what was done about it.

    Attributes:
        entry: Entry of the key, as it is now.
        decision: Decision from the account's list.
        done: Change that was made: adopt, resubmit or none.
        why_not: Reason why a decision was not carried out.
    """

    entry: Entry
    decision: Decision
    done: Action = Action.NONE
    why_not: str = ""


async def resolve_dead_claims(ledger: Ledger, base_url: str) -> None:
    """Make claims uncertain whose owner no longer submits them."""
    for entry in await unresolved_entries(ledger, base_url):
        if entry.state is State.CLAIMED and not await ledger.leases.is_active(entry):
            await resolve_dead_claim(ledger, entry)


async def examine(
    ledger: Ledger, ask: ListTasks, entries: Sequence[Entry], tolerance: Tolerance
) -> list[Reconciled]:
    """Return the decisions about uncertain entries of one account; changes nothing.

    Args:
        ledger: Ledger of the entries.
        ask: Lists the tasks of the account that may have accepted them.
        entries: Uncertain entries with the same service and the same credentials.
        tolerance: Tolerance of the comparison of times.
    """
    if not entries:
        return []
    base_url, wanted = entries[0].base_url, {entry.idempotency_key for entry in entries}
    now = datetime.now(UTC)
    (start, end), purchases = await period_to_list(ledger, entries, tolerance, now)
    listed = await ask(start, end)
    seen = Account(
        listed=listed,
        known_ids=(),
        purchases=purchases,
        models={
            *known_models(),
            *await models_in_use(ledger, base_url),
        },
        routes=tuple(ROUTES),
    )
    return [
        Reconciled(entry, decision)
        for entry, decision in await decide(ledger, base_url, seen, tolerance)
        if entry.idempotency_key in wanted
    ]


async def carry_out(ledger: Ledger, client: RunwayClient, found: Reconciled) -> Reconciled:
    """Make the change that a decision justifies, and record the evidence.

    Args:
        ledger: Ledger of the entry.
        client: Client with the API key of the account.
        found: Result of ``examine``.
    """
    entry, decision, now = found.entry, found.decision, datetime.now(UTC)
    action = action_of(entry, decision, now)
    if action is Action.ADOPT and decision.task:
        check = await check_task(client, decision.task.task_id)
        if not check.known:
            return await _left(ledger, found, f"the API key does not confirm it: {check.why}")
        adopted = await adopt_task(ledger, entry, decision.task, decision)
        return _done(found, adopted, Action.ADOPT)
    if action is Action.RESUBMIT:
        return _done(found, await allow_resubmission(ledger, entry, decision), Action.RESUBMIT)
    until = may_arrive_until(entry, now) if action is Action.WAIT else None
    return await _left(
        ledger,
        found,
        f"it may still be accepted until {until:%Y-%m-%d %H:%M:%S} UTC" if until else "",
    )


async def _left(ledger: Ledger, found: Reconciled, why_not: str) -> Reconciled:
    try:
        await record_evidence(ledger, found.entry, found.decision)
    except LedgerUnavailable:
        return replace(found, why_not=why_not)
    entry = found.entry.model_copy(update={"evidence": found.decision.in_words()})
    return replace(found, entry=entry, why_not=why_not)


def _done(found: Reconciled, changed: Entry | None, action: Action) -> Reconciled:
    if changed is None:
        return replace(found, why_not="the entry, or the owner of the task, changed meanwhile")
    return replace(found, entry=changed, done=action)


def nothing_listed(problem: str) -> ListTasks:
    """Return a function that lists nothing, since the account cannot be asked.

    Args:
        problem: Reason.
    """

    async def ask(_start: datetime, _end: datetime) -> AccountTasks:
        return AccountTasks(is_complete=False, asked_at=datetime.now(UTC), problem=problem)

    return ask
