# SPDX-License-Identifier: Apache-2.0
"""Purchase of a generation, at most once: claim before the POST, task id right after it.

``next_step`` decides what to do with an idempotency key. It is a pure function of the key's ledger
entry. The rest of this module calls the ledger and the service in the right order. CometAPI has no
idempotency keys of its own, so a client cannot guarantee exactly one purchase. It guarantees at
most one, and the ledger records every outcome.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from enum import Enum, auto
from shlex import quote
from time import monotonic
from typing import Any
from uuid import uuid4

from ..errors import (
    BudgetExceeded,
    CometAPIError,
    LedgerUnavailable,
    ServiceUnavailable,
    SubmissionUncertain,
)
from .budget import Budget
from .entry import Entry, Intent, State, conflict
from .owners import holder_name, shown_holder
from .schema import last_serial
from .store import Ledger

CLAIM_POLL_INTERVAL = 0.25
"""Seconds between two reads of an entry that another owner works on."""


class Step(Enum):
    """Next step for an idempotency key."""

    BUY = auto()
    ATTACH = auto()
    ADOPT = auto()
    WAIT = auto()
    GIVE_UP = auto()


def next_step(
    entry: Entry | None,
    intent: Intent,
    *,
    living: bool,
    resubmit_as: str | None = None,
    task_id: str | None = None,
) -> Step | CometAPIError:
    """Return the next step for a key, or the error that it results in; pure.

    Args:
        entry: Entry of the key in the ledger, or None.
        intent: Requested generation.
        living: True if the attempt that claimed the key may still be running.
        resubmit_as: Id of the run, if the user allows each run to send the request once more after
            an unknown outcome; otherwise None.
        task_id: Task id of a generation that was bought elsewhere and is to be adopted, or None.
    """
    if entry is None:
        return Step.ADOPT if task_id else Step.BUY
    if clash := conflict(entry, intent, task_id):
        return clash.with_context(idempotency_key=entry.idempotency_key, task_id=entry.task_id)
    if entry.state is State.CLAIMED:
        return Step.WAIT if living else Step.GIVE_UP
    if task_id and entry.task_id != task_id and not entry.task_id_checked:
        return Step.ADOPT
    if entry.is_free() or (entry.task_id is None and task_id):
        return Step.ADOPT if task_id else Step.BUY
    if entry.task_id:
        return Step.ATTACH
    if entry.state is State.UNCERTAIN and _may_resubmit(entry, resubmit_as):
        return Step.BUY
    return _still_open(entry)


def _may_resubmit(entry: Entry, run: str | None) -> bool:
    return run is not None and run not in entry.resubmitted_by


def _still_open(entry: Entry, why_not_again: str = "") -> CometAPIError:
    told = [f"an earlier attempt is open: {entry.note}", why_not_again]
    return SubmissionUncertain("; ".join(filter(None, told))).with_context(
        idempotency_key=entry.idempotency_key
    )


Check = Callable[[], None]
"""Callback that raises an error if the request must no longer be sent."""

_NO_ANSWER = "it sent the request, or was about to, and left no answer"


async def buy_once(
    ledger: Ledger,
    intent: Intent,
    post: Callable[[Check], Awaitable[str]],
    *,
    run: str,
    resubmit_as: str | None = None,
    budget: Budget | None = None,
    warn: Callable[[str], None] = lambda _text: None,
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

    def check_lease() -> None:
        if not ledger.lease_is_valid(intent.idempotency_key, holder):
            raise ServiceUnavailable(
                "by the clocks here this process, or its ledger, stood still for longer than the "
                "claim of the key lasts, so nothing was sent"
            ).with_context(idempotency_key=intent.idempotency_key)

    await ledger.history.check_once()
    newest_before = ledger.history.newest
    claim = uuid4().hex
    runs_name = holder_name(run)
    holder = f"{runs_name}#{claim}"
    with ledger.holding(intent.idempotency_key, holder):
        try:
            entry = await _claimed(
                ledger,
                intent,
                State.CLAIMED,
                claim,
                resubmit_as=resubmit_as,
                budget=budget,
                tell=warn,
                holder=holder,
                claimed_at=datetime.now(UTC),
            )
        except LedgerUnavailable:
            _unsent.add(claim)  # the claim may have been written all the same
            raise
        except asyncio.CancelledError:
            _unsent.add(claim)
            with suppress(LedgerUnavailable):
                await _withdraw(ledger, intent.idempotency_key, claim)
            raise
        if entry.claim != claim:
            return entry
        try:
            ledger.history.check_claim(entry, newest_before)
            task_id = await post(check_lease)
        except BaseException as error:
            await _note_outcome(ledger, entry, error, warn)
            if isinstance(error, SubmissionUncertain):
                error.may_resubmit = _may_resubmit(entry, resubmit_as)
            raise
        stays = ledger.hold_count(intent.idempotency_key, runs_name) > 0
        next_owner = runs_name if stays else None
        recording = asyncio.ensure_future(_accepted(ledger, entry, task_id, next_owner, warn))
        try:
            return await asyncio.shield(recording)
        except asyncio.CancelledError:
            await asyncio.wait([recording])  # the id must be recorded first
            raise


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
    now = datetime.now(UTC)
    return await _claimed(
        ledger,
        intent,
        State.SUBMITTED,
        uuid4().hex,
        task_id=task_id,
        submitted_at=now,
        task_id_checked=checked,
    )


async def _claimed(
    ledger: Ledger,
    intent: Intent,
    state: State,
    claim: str,
    *,
    resubmit_as: str | None = None,
    budget: Budget | None = None,
    tell: Callable[[str], None] = lambda _text: None,
    task_id: str | None = None,
    **values: Any,
) -> Entry:
    """Return the entry of a key with this claim and state, or an existing purchase of the key.

    This waits while another owner submits the key.
    """
    values["task_id"] = task_id
    buys = int(state is State.CLAIMED)
    told = False
    while True:
        mine = await ledger.add(
            intent, state, claim, budget=budget, attempts=buys, charges=1, **values
        )
        if mine:
            return mine
        entry = await ledger.get(intent.idempotency_key)
        if entry is None:
            continue
        living = entry.state is State.CLAIMED and await ledger.is_living(entry)
        step = next_step(entry, intent, living=living, resubmit_as=resubmit_as, task_id=task_id)
        if isinstance(step, CometAPIError):
            raise step
        if step is Step.ATTACH:
            return await _taken_up_again(ledger, entry)
        if step is Step.GIVE_UP:
            await resolve_dead_claim(ledger, entry)
        elif step is Step.WAIT:
            if not told and entry.holder:
                tell(f"waiting for {shown_holder(entry.holder)}, which submits this key")
            told = True
            await asyncio.sleep(CLAIM_POLL_INTERVAL)
        else:
            changes = _new_claim(entry, intent, claim, resubmit_as, buys=bool(buys)) | values
            mine = await _claim_again(ledger, entry, state, changes, budget)
            if mine:
                return mine


async def _claim_again(
    ledger: Ledger, entry: Entry, state: State, changes: dict[str, Any], budget: Budget | None
) -> Entry | None:
    """Return an entry with its new claim, or None if it has changed since it was read."""
    try:
        key = entry.idempotency_key
        return await ledger.change(key, state, seen=entry, budget=budget, **changes)
    except BudgetExceeded as error:
        if entry.state is State.UNCERTAIN:  # the first submission stays uncertain
            raise _still_open(entry, f"sent again, {error.message}") from error
        raise


def _new_claim(
    entry: Entry, intent: Intent, claim: str, run: str | None, *, buys: bool
) -> dict[str, Any]:
    """Return the changed columns of an entry with a new claim, for a purchase or a task id."""
    open_outcome = buys and entry.state is State.UNCERTAIN
    return {
        **intent.wanted(only_known=not buys),
        **(_costs(entry, intent) if buys else {}),
        "resubmitted_by": [*entry.resubmitted_by, *([run] if run and open_outcome else [])],
        "claim": claim,
        "attempts": entry.attempts + buys,
        "charges": entry.charges + 1 if buys else max(1, entry.charges),
        "serial": last_serial + 1,
        "note": entry.note if open_outcome else "",
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
    return {name: None if None in pair else max(pair) for name, pair in pairs.items()}


_PER_SUBMISSION = ("cost", "billed_seconds")


_unsent: set[str] = set()
"""Claims of this process for which nothing was sent, even if the ledger could not record that."""


async def _taken_up_again(ledger: Ledger, entry: Entry) -> Entry:
    """Return the entry; if it was abandoned, reactivate it, since a run requests it again."""
    if entry.state is not State.ABANDONED:
        return entry
    return await ledger.change(entry.idempotency_key, State.SUBMITTED, seen=entry, note="") or entry


async def _withdraw(ledger: Ledger, key: str, claim: str) -> None:
    entry = await ledger.get(key)
    if entry and entry.claim == claim:
        await resolve_dead_claim(ledger, entry, ours=True)


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
    free = unsent and not entry.note
    state = State.REJECTED if free else State.UNCERTAIN
    note = "nothing was sent" if free else entry.note or _NO_ANSWER
    seen = None if ours else entry
    refunded = _refund(entry) if unsent else {}
    await ledger.change(
        entry.idempotency_key, state, seen=seen, of=entry, holder=None, note=note, **refunded
    )


def _refund(claimed: Entry) -> dict[str, Any]:
    """Return the changed columns of an entry whose latest submission was certainly not charged.

    If that was a resubmission, it does not count: its run may resubmit the request again.
    """
    runs = claimed.resubmitted_by[:-1] if claimed.note else claimed.resubmitted_by
    return {"charges": claimed.charges - 1, "resubmitted_by": list(runs)}


async def _accepted(
    ledger: Ledger,
    claimed: Entry,
    task_id: str,
    next_owner: str | None,
    warn: Callable[[str], None],
) -> Entry:
    """Record the task id of a claimed entry before anything else, and return the entry."""
    now = datetime.now(UTC)
    news: dict[str, Any] = {
        "task_id": task_id,
        "submitted_at": now,
        "holder": next_owner,
        "note": "",
    }
    bought = claimed.model_copy(update={"state": State.SUBMITTED, "changed_at": now, **news})

    async def recorded() -> Entry:
        kept = await ledger.change(claimed.idempotency_key, State.SUBMITTED, of=claimed, **news)
        if kept:
            return kept
        if given := await ledger.of_another_request(task_id, claimed):
            raise _no_receipt(task_id, given)
        return (
            await ledger.restore(bought, warn)
            or await ledger.get(claimed.idempotency_key)
            or bought
        )

    try:
        return await _retry_until(recorded, ledger.database.patience)
    except LedgerUnavailable as error:
        goes_on = f"this run goes on with what it bought, id {task_id}; should it end before it is"
        by_hand = f"prefect-cometapi ledger adopt {quote(claimed.idempotency_key)} {quote(task_id)}"
        warn(f"{error.message}; {goes_on} recorded: {by_hand}")
        return bought
    except SubmissionUncertain as error:
        await _note_outcome(ledger, claimed, error, warn)
        raise


def _no_receipt(task_id: str, given: Entry) -> SubmissionUncertain:
    return SubmissionUncertain(
        f"CometAPI answered the submission with the id {task_id}, which it gave for the other "
        f"request of key {given.idempotency_key!r} already, so this one's is not known"
    )


async def _retry_until(change: Callable[[], Awaitable[Entry]], patience: float) -> Entry:
    """Retry a change that money depends on, since even a full disk may soon have room again."""
    end = monotonic() + patience
    while True:
        try:
            return await change()
        except LedgerUnavailable:
            if monotonic() + CLAIM_POLL_INTERVAL > end:
                raise
        await asyncio.sleep(CLAIM_POLL_INTERVAL)


async def _note_outcome(
    ledger: Ledger, claimed: Entry, error: BaseException, warn: Callable[[str], None]
) -> None:
    """Record the outcome of a failed POST.

    A certain refusal frees the key, unless an earlier submission has an unknown outcome. If the
    ledger is unavailable, the claim stays. That is safe, since nothing is sent again.
    """
    refused = isinstance(error, CometAPIError) and not isinstance(error, SubmissionUncertain)
    state = State.REJECTED if refused and not claimed.note else State.UNCERTAIN
    note = error.message if isinstance(error, CometAPIError) else _NO_ANSWER
    if refused and claimed.note:
        note = f"{claimed.note}; another one was refused: {note}"
    refunded = _refund(claimed) if refused else {}
    try:
        changed = await ledger.change(
            claimed.idempotency_key, state, of=claimed, holder=None, note=note, **refunded
        )
        if changed is None and state is State.UNCERTAIN:
            doubt = {"state": state, "holder": None, "note": note, "changed_at": datetime.now(UTC)}
            await ledger.restore(claimed.model_copy(update=doubt), warn)
    except LedgerUnavailable as trouble:
        warn(f"{trouble.message}; another attempt with this key will end as SubmissionUncertain")


@asynccontextmanager
async def hold_lease(ledger: Ledger, key: str, run: str) -> AsyncIterator[str]:
    """Renew the lease of a generation while the block runs, and release it afterwards.

    Yields the owner's name of the run. After a crash, the lease does not last: it expires, or other
    runs see that the process is dead. If the ledger has lost the row by the end of the block, the
    run writes it again, since no other record of the purchase exists.
    """
    holder = holder_name(run)
    with ledger.holding(key, holder):
        note: str | None = None
        try:
            yield holder
        except BaseException as error:
            note = _last_words(error)
            raise
        finally:
            last = ledger.last_seen(key)
            alone = ledger.hold_count(key, holder) == 1
            if alone and last and last.holder == holder:
                with suppress(LedgerUnavailable):
                    if await ledger.release_lease(key, holder, note) is None:
                        await ledger.restore(last.model_copy(update={"holder": None}))


@asynccontextmanager
async def acquire_exclusive(
    ledger: Ledger,
    key: str,
    run: str,
    *,
    tell: Callable[[str], None] = lambda _text: None,
    enough: Callable[[Entry], bool] = lambda entry: entry.has_ended,
) -> AsyncIterator[Entry | None]:
    """Acquire the exclusive lease of a generation while the block runs.

    This waits while another run works on the generation. It stops waiting, without the lease, when
    the entry satisfies ``enough``. Yields the entry, or None if the ledger does not have the key.
    Several blocks of one run may share the lease.

    Args:
        ledger: Ledger of the generation.
        key: Idempotency key of the generation.
        run: Name of the run, which waiting runs see.
        tell: Called with a message about the owner that this waits for.
        enough: Returns True if an entry needs no more work by this run, even if another run has the
            lease.

    Raises:
        LedgerUnavailable: The ledger cannot be used.
    """
    async with hold_lease(ledger, key, run) as holder:
        yield await _taken(ledger, key, holder, tell, enough)


async def _taken(
    ledger: Ledger,
    key: str,
    holder: str,
    tell: Callable[[str], None],
    enough: Callable[[Entry], bool],
) -> Entry | None:
    told = False
    while True:
        if ledger.hold_count(key, holder) > 1:
            entry = ledger.last_seen(key)
            if entry and entry.holder == holder:  # this is a step of a flow that has the lease
                return entry
        entry = await ledger.acquire(key, holder)
        if entry:
            return entry
        entry = await ledger.get(key)
        if entry is None or enough(entry):
            return entry
        if not told and entry.holder:
            tell(f"waiting for {shown_holder(entry.holder)}, which works on this generation")
            told = True
        await asyncio.sleep(CLAIM_POLL_INTERVAL)


def _last_words(error: BaseException) -> str:
    if isinstance(error, CometAPIError):
        return error.message
    return f"the run ended ({type(error).__name__}); the generation goes on upstream"
