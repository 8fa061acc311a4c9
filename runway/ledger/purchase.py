# SPDX-License-Identifier: Apache-2.0
"""Purchase of a generation, at most once: claim, check, POST, record.

``next_step`` decides what to do with an idempotency key. It is a pure function of the key's ledger
entry. The rest of this module calls the ledger and the service in the right order. CometAPI has no
idempotency keys of its own, so a client cannot guarantee exactly one purchase. It guarantees at
most one, and the ledger records every outcome.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum, auto
from shlex import quote
from time import monotonic
from typing import Any, ClassVar
from uuid import uuid4

from ..errors import (
    BudgetExceeded,
    CometAPIError,
    LedgerUnavailable,
    ServiceUnavailable,
    SubmissionUncertain,
)
from .budget import Budget
from .entry import CostSource, Entry, Intent, State, key_conflict
from .owners import describe_owner, owner_name
from .store import Ledger

CLAIM_POLL_INTERVAL = 0.25
"""Seconds between two reads of an entry that another owner submits, and between two attempts to
record a task id."""

Check = Callable[[], None]
"""Callback that raises an error if the request must no longer be sent."""

Warn = Callable[[str], None]
"""Callback for warnings that do not stop the purchase."""

_NO_ANSWER = "it sent the request, or was about to, and left no answer"


class Step(Enum):
    """Next step for an idempotency key."""

    BUY = auto()
    ADOPT = auto()
    ATTACH = auto()
    WAIT = auto()
    RESOLVE_DEAD_CLAIM = auto()


def next_step(
    entry: Entry | None,
    intent: Intent,
    *,
    is_active: bool,
    resubmit_as: str | None = None,
    task_id: str | None = None,
) -> Step | CometAPIError:
    """Return the next step for a key, or the error that it results in; pure.

    Args:
        entry: Entry of the key in the ledger, or None.
        intent: Requested generation.
        is_active: True if the attempt that claimed the key may still be running.
        resubmit_as: Id of the run, if the user allows each run to send the request once more after
            an unknown outcome; otherwise None.
        task_id: Task id of a generation that was bought elsewhere and is to be adopted, or None.
    """
    if entry is None:
        return Step.ADOPT if task_id else Step.BUY
    if clash := key_conflict(entry, intent, task_id):
        return clash.with_context(idempotency_key=entry.idempotency_key, task_id=entry.task_id)
    if entry.state is State.CLAIMED:
        return Step.WAIT if is_active else Step.RESOLVE_DEAD_CLAIM
    if task_id and entry.task_id != task_id and not entry.task_id_checked:
        return Step.ADOPT
    if entry.is_free() or (entry.task_id is None and task_id):
        return Step.ADOPT if task_id else Step.BUY
    if entry.task_id:
        return Step.ATTACH
    if entry.state is State.UNCERTAIN and _may_resubmit(entry, resubmit_as):
        return Step.BUY
    return _still_uncertain(entry)


def _may_resubmit(entry: Entry, run: str | None) -> bool:
    return run is not None and run not in entry.resubmitted_by


def _still_uncertain(entry: Entry, why_not_again: str = "") -> CometAPIError:
    reasons = [f"an earlier attempt is uncertain: {entry.note}", why_not_again]
    return SubmissionUncertain("; ".join(filter(None, reasons))).with_context(
        idempotency_key=entry.idempotency_key, request_id=entry.request_id
    )


@dataclass
class _Purchase:
    """One attempt to buy a generation.

    Attributes:
        intent: Requested generation.
        owner: Owner of the lease that starts with the claim.
        resubmit_as: Id of the run that may send the request again after an unknown outcome.
        budget: Spending limits, or None.
        claim: Random id of the claim.
        before: Entry that the claim replaced, or was about to; None if the key had none.
    """

    intent: Intent
    owner: str
    resubmit_as: str | None
    budget: Budget | None
    claim: str
    before: Entry | None = None
    task_id: ClassVar[None] = None

    async def insert(self, ledger: Ledger) -> Entry | None:
        """Claim a key without an entry, or return None if it has one."""
        self.before = None
        return await ledger.insert_claim(self.intent, self.claim, self.owner, budget=self.budget)

    async def update(self, ledger: Ledger, entry: Entry) -> Entry | None:
        """Claim a key again, or return None if its entry has changed since it was read."""
        self.before = entry
        is_open = entry.state is State.UNCERTAIN
        runs = [self.resubmit_as] if self.resubmit_as and is_open else []
        columns = {
            **_columns_of(self.intent.columns(), entry),
            **_costs(entry, self.intent),
            "resubmitted_by": [*entry.resubmitted_by, *runs],
            "attempts": entry.attempts + 1,
            "charges": entry.charges + 1,
            "note": entry.note if is_open else "",
            "request_id": entry.request_id if is_open else None,
        }
        try:
            return await ledger.mark_claimed(
                entry, self.claim, self.owner, columns, budget=self.budget
            )
        except BudgetExceeded as error:
            if is_open:  # the first submission stays uncertain
                raise _still_uncertain(entry, f"sent again, {error.message}") from error
            raise


@dataclass(frozen=True)
class _Adoption:
    """One attempt to record a generation that was bought elsewhere.

    Attributes:
        intent: Key of the generation, and the known parts of its request.
        task_id: Task id of the generation.
        checked: True if the service has confirmed the id.
        claim: Random id of the adoption.
    """

    intent: Intent
    task_id: str
    checked: bool
    claim: str
    resubmit_as: ClassVar[None] = None

    async def insert(self, ledger: Ledger) -> Entry | None:
        """Record the id under a key without an entry, or return None if it has one."""
        return await ledger.insert_adopted(
            self.intent, self.claim, self.task_id, checked=self.checked
        )

    async def update(self, ledger: Ledger, entry: Entry) -> Entry | None:
        """Record the id in an entry, or return None if it has changed since it was read."""
        columns = {
            **_columns_of(self.intent.columns(only_known=True), entry),
            "charges": max(1, entry.charges),
            "note": "",
        }
        return await ledger.mark_adopted(
            entry, self.claim, self.task_id, columns, checked=self.checked
        )


async def buy_once(
    ledger: Ledger,
    intent: Intent,
    post: Callable[[Check], Awaitable[str]],
    *,
    run: str,
    resubmit_as: str | None = None,
    budget: Budget | None = None,
    request_id: Callable[[], str | None] = lambda: None,
    warn: Warn = lambda _text: None,
) -> Entry:
    """Return the generation of a key: an earlier purchase, or one that is bought now with ``post``.

    Args:
        ledger: Ledger of the purchase.
        intent: Requested generation.
        post: Sends the request and returns the task id. It receives a check, which it must call
            immediately before it sends.
        run: Name of the run, which waiting runs see.
        resubmit_as: Id of the run, the same for all its retries, if the user allows each run to
            send the request once more after an unknown outcome. The ledger records that it did.
        budget: Spending limits of the key's batch, or None.
        request_id: Returns the service's id of the call that ``post`` made, once it is known.
        warn: Called with warnings that do not stop the purchase.

    Raises:
        IdempotencyKeyConflict: The key belongs to another request.
        BudgetExceeded: The purchase would exceed a limit of the budget; nothing was sent.
        SubmissionUncertain: The generation was possibly charged, now or in an earlier attempt.
        LedgerUnavailable: The claim could not be recorded; nothing was sent.
        LedgerOutdated: The ledger is an older copy, which may lack this purchase.
        ServiceUnavailable: This process or its ledger was suspended for so long that other runs may
            consider it dead; nothing was sent.
        CometAPIError: An error of ``post``; nothing was bought.
    """
    await ledger.history.check_once()
    newest_before = ledger.history.newest
    key, claim, run_owner = intent.idempotency_key, uuid4().hex, owner_name(run)
    owner = f"{run_owner}#{claim}"
    with ledger.leases.renewing(key, owner):
        purchase = _Purchase(intent, owner, resubmit_as, budget, claim)
        entry = await _claim(ledger, purchase, warn)
        if entry.claim != claim:
            return entry
        try:
            ledger.history.check_claim(entry, newest_before)
            task_id = await post(lambda: _check_lease(ledger, key, owner))
        except BaseException as error:
            await _record_failed_post(
                ledger, entry, error, request_id(), warn, before=purchase.before
            )
            if isinstance(error, SubmissionUncertain):
                error.may_resubmit = _may_resubmit(entry, resubmit_as)
            raise
        entry = entry.model_copy(update={"request_id": request_id()})
        stays = ledger.leases.held.count(key, run_owner) > 0
        return await _finish_despite_cancellation(
            _record_task_id(ledger, entry, task_id, run_owner if stays else None, warn)
        )


async def attach(ledger: Ledger, intent: Intent, task_id: str, *, checked: bool = True) -> Entry:
    """Record a generation that was bought elsewhere, and return its entry.

    A key without an entry gets a new one.

    Args:
        ledger: Ledger that records the generation.
        intent: Key of the generation, and the known parts of its request.
        task_id: Task id of the generation. It replaces an id that the service has not confirmed.
        checked: True if the service has confirmed the id.

    Raises:
        IdempotencyKeyConflict: The key belongs to another generation.
        LedgerUnavailable: The ledger cannot be used.
    """
    adoption = _Adoption(intent, task_id, checked, uuid4().hex)
    return await _take_key(ledger, adoption, lambda _text: None)


async def adopt_into(ledger: Ledger, seen: Entry, task_id: str, claim: str) -> Entry | None:
    """Record an unconfirmed task id in an entry; return None if the entry has changed.

    Args:
        ledger: Ledger that records the generation.
        seen: Entry as read for the decision; it must not have changed since.
        task_id: Task id of the generation.
        claim: Random id of the adoption.
    """
    return await _Adoption(seen, task_id, checked=False, claim=claim).update(ledger, seen)


# Claim


async def _claim(ledger: Ledger, purchase: _Purchase, warn: Warn) -> Entry:
    """Return the entry of a key with this claim, or an existing purchase of the key.

    If this fails, the claim may have been written all the same, but nothing is sent for it.
    """
    try:
        return await _take_key(ledger, purchase, warn)
    except LedgerUnavailable:
        _unsent[purchase.claim] = purchase.before
        raise
    except asyncio.CancelledError:
        _unsent[purchase.claim] = purchase.before
        with suppress(LedgerUnavailable):
            entry = await ledger.get(purchase.intent.idempotency_key)
            if entry and entry.claim == purchase.claim:
                await resolve_dead_claim(ledger, entry, ours=True)
        raise


async def _take_key(ledger: Ledger, wanted: _Purchase | _Adoption, warn: Warn) -> Entry:
    """Return the entry of a key with this claim, or an existing purchase of the key.

    This waits while another owner submits the key.
    """
    has_warned = False
    while True:
        if inserted := await wanted.insert(ledger):
            return inserted
        entry = await ledger.get(wanted.intent.idempotency_key)
        if entry is None:  # deleted since the insert
            continue
        is_active = entry.state is State.CLAIMED and await ledger.leases.is_active(entry)
        step = next_step(
            entry,
            wanted.intent,
            is_active=is_active,
            resubmit_as=wanted.resubmit_as,
            task_id=wanted.task_id,
        )
        if isinstance(step, CometAPIError):
            raise step
        if step is Step.ATTACH:
            return await _resumed(ledger, entry)
        if step is Step.RESOLVE_DEAD_CLAIM:
            await resolve_dead_claim(ledger, entry)
        elif step is Step.WAIT:
            if entry.owner and not has_warned:
                warn(f"waiting for {describe_owner(entry.owner)}, which submits this key")
            has_warned = True
            await asyncio.sleep(CLAIM_POLL_INTERVAL)
        elif updated := await wanted.update(ledger, entry):
            return updated


def _columns_of(wanted: dict[str, Any], entry: Entry) -> dict[str, Any]:
    """Return the columns of an entry that a new claim resets, and those that are wanted."""
    return {
        **{name: value for name, value in wanted.items() if name != "idempotency_key"},
        "resubmitted_by": list(entry.resubmitted_by),
        "attempts": entry.attempts,
        "finished_at": None,
        "polls": 0,
        "failure_code": "",
        "outputs": [],
        "task_id_checked": True,
    }


def _costs(entry: Entry, intent: Intent) -> dict[str, Any]:
    """Return the cost of one submission under an entry, such that the sum covers all charges.

    A key whose earlier submissions may have been charged can be used for another request. All of
    its submissions count at the same cost. So each counts as the most expensive one, and the sum is
    never less than the money that was spent.
    """
    earlier = entry if entry.charges else intent
    pairs = {name: (getattr(earlier, name), getattr(intent, name)) for name in _PER_SUBMISSION}
    if earlier.currency != intent.currency or earlier.cost_source is CostSource.LISTED:
        pairs["cost"] = (None, None)  # counts at the present price
    return {name: None if None in pair else max(pair) for name, pair in pairs.items()}


_PER_SUBMISSION = ("cost", "billed_seconds")


async def _resumed(ledger: Ledger, entry: Entry) -> Entry:
    """Return the entry; if it was abandoned, resume it, since a run requests it again."""
    if entry.state is not State.ABANDONED:
        return entry
    return await ledger.mark_resumed(entry) or entry


_unsent: dict[str, Entry | None] = {}
"""Claims of this process for which nothing was sent, even if the ledger could not record that, with
the entries that they replaced."""


async def resolve_dead_claim(ledger: Ledger, entry: Entry, *, ours: bool = False) -> None:
    """Resolve a claim whose owner no longer submits it.

    The entry becomes uncertain, that is possibly charged. If nothing was sent for this claim and no
    earlier submission was uncertain, it becomes rejected, and the key is free.

    Args:
        ledger: Ledger of the claim.
        entry: Entry as last read. If its lease was renewed since, it stays unchanged.
        ours: True if the claim is the caller's own, whose lease may be renewed at the same time.
    """
    unsent = entry.claim in _unsent
    refund = _refund(entry, _unsent[entry.claim]) if unsent else {}
    if unsent and not entry.note:
        await ledger.mark_rejected(entry, "nothing was sent", unchanged=not ours, **refund)
    else:
        note = entry.note or _NO_ANSWER
        await ledger.mark_uncertain(entry, note, unchanged=not ours, **refund)


_OF_CHARGE = {
    "cost",
    "currency",
    "cost_source",
    "billed_seconds",
    "list_cost",
    "list_currency",
    "flow_run_id",
    "deployment_id",
    "deployment",
    "tags",
}
"""Columns that describe the charges of an entry: their cost, and what they were bought for."""


def _refund(claimed: Entry, before: Entry | None) -> dict[str, Any]:
    """Return the changed columns of an entry whose latest submission was certainly not charged.

    If that was a resubmission, it does not count: its run may resubmit the request again. The
    charges before it keep their cost and their time, as if it had not been tried. An entry whose
    earlier charges are of another request keeps what describes the latest one.

    Args:
        claimed: Entry as claimed for the submission.
        before: Entry that the claim replaced, or None.
    """
    runs = claimed.resubmitted_by[:-1] if claimed.note else claimed.resubmitted_by
    refund = {"charges": claimed.charges - 1, "resubmitted_by": list(runs)}
    if before is None or not before.charges or before.fingerprint != claimed.fingerprint:
        return refund
    return {
        **before.model_dump(mode="json", include=_OF_CHARGE),
        "claimed_at": before.claimed_at,
        "unresolved_since": before.unresolved_since,
        **refund,
    }


# Check


def _check_lease(ledger: Ledger, key: str, owner: str) -> None:
    """Check that no other run can have considered this one dead.

    Raises:
        ServiceUnavailable: The lease may have expired.
    """
    if not ledger.leases.held.is_valid(key, owner):
        raise ServiceUnavailable(
            "this process, or its ledger, stood still for longer than the lease of the claim "
            "lasts, so nothing was sent"
        ).with_context(idempotency_key=key)


# Record


async def _finish_despite_cancellation(recording: Awaitable[Entry]) -> Entry:
    """Return the result of a record; a cancellation takes effect only after it is written."""
    writing = asyncio.ensure_future(recording)
    try:
        return await asyncio.shield(writing)
    except asyncio.CancelledError:
        await asyncio.wait([writing])
        raise


async def _record_task_id(
    ledger: Ledger, claimed: Entry, task_id: str, next_owner: str | None, warn: Warn
) -> Entry:
    """Record the task id of a claimed entry before anything else, and return the entry."""
    now = datetime.now(UTC)
    bought = claimed.model_copy(
        update={
            "state": State.SUBMITTED,
            "changed_at": now,
            "submitted_at": now,
            "task_id": task_id,
            "owner": next_owner,
            "note": "",
        }
    )

    async def record() -> Entry:
        if recorded := await ledger.mark_submitted(claimed, task_id, now, next_owner):
            return recorded
        if other := await ledger.find_other_request(task_id, claimed):
            raise _id_of_other_request(task_id, other)
        restored = await ledger.restore(bought, warn)
        return restored or await ledger.get(claimed.idempotency_key) or bought

    try:
        return await _retry_until(record, ledger.database.retry_timeout)
    except LedgerUnavailable as error:
        by_hand = f"prefect-cometapi ledger adopt {quote(claimed.idempotency_key)} {quote(task_id)}"
        warn(
            f"{error.message}; this run continues with its purchase, id {task_id}. If the run ends "
            f"before the id is recorded: {by_hand}"
        )
        return bought
    except SubmissionUncertain as error:
        error.with_context(request_id=claimed.request_id)
        await _record_failed_post(ledger, claimed, error, claimed.request_id, warn)
        raise


def _id_of_other_request(task_id: str, other: Entry) -> SubmissionUncertain:
    return SubmissionUncertain(
        f"CometAPI answered the submission with the id {task_id}, which already belongs to the "
        f"other request of key {other.idempotency_key!r}, so the id of this one is not known"
    )


async def _retry_until(change: Callable[[], Awaitable[Entry]], seconds: float) -> Entry:
    """Retry a change that money depends on, since even a full disk may soon have room again."""
    end = monotonic() + seconds
    while True:
        try:
            return await change()
        except LedgerUnavailable:
            if monotonic() + CLAIM_POLL_INTERVAL > end:
                raise
        await asyncio.sleep(CLAIM_POLL_INTERVAL)


async def _record_failed_post(
    ledger: Ledger,
    claimed: Entry,
    error: BaseException,
    request_id: str | None,
    warn: Warn,
    *,
    before: Entry | None = None,
) -> None:
    """Record the outcome of a failed POST.

    A certain refusal frees the key, unless an earlier submission has an unknown outcome. If the
    ledger is unavailable, the claim stays. That is safe, since nothing is sent again.

    Args:
        ledger: Ledger of the claim.
        claimed: Entry as claimed.
        error: Error of the POST.
        request_id: CometAPI's id of the call, or None.
        warn: Called with warnings.
        before: Entry that the claim replaced, or None. It is used for a certain refusal only.
    """
    refused = isinstance(error, CometAPIError) and not isinstance(error, SubmissionUncertain)
    note = error.message if isinstance(error, CometAPIError) else _NO_ANSWER
    refund = _refund(claimed, before) if refused else {}
    # A refusal after an uncertain submission leaves the id of the uncertain one.
    known = {"request_id": request_id} if request_id and not (refused and claimed.note) else {}
    refund |= known
    try:
        if refused and not claimed.note:
            await ledger.mark_rejected(claimed, note, **refund)
            return
        if refused:
            note = f"{claimed.note}; another one was refused: {note}"
        if await ledger.mark_uncertain(claimed, note, **refund) is None:
            uncertain = {"state": State.UNCERTAIN, "owner": None, "note": note, **known}
            lost = claimed.model_copy(update={**uncertain, "changed_at": datetime.now(UTC)})
            await ledger.restore(lost, warn)
    except LedgerUnavailable as trouble:
        warn(f"{trouble.message}; another attempt with this key will end as SubmissionUncertain")
