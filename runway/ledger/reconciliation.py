# SPDX-License-Identifier: Apache-2.0
"""Decision about uncertain submissions, from the account's own list of tasks; pure functions.

A row of the list has a time, and perhaps a model and an action. It does not have the request. So a
row belongs to a submission only by its time and its kind, and this module decides only where one
explanation is left:

- one unknown row fits the submission, and the row fits no other one: probably this;
- no unknown row fits it, and the list can be trusted to be final: not accepted;
- anything else: undecided.

A row of another client of the account looks like a row of ours. If it is the only row that fits, it
cannot be told apart. So nothing here changes the ledger.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from ..models.account import AccountTask, AccountTasks
from .entry import Entry, State
from .resubmission import last_arrival, may_arrive_until

CLOCK_SLACK = timedelta(seconds=5)
"""Difference between two clocks that is allowed for. Machines that synchronise their clocks differ
by less than a second. A larger difference shows in the known purchases, and then nothing is
decided."""


class Verdict(StrEnum):
    """Conclusion about an uncertain submission."""

    PROBABLY_THIS = "probably this"
    NOT_ACCEPTED = "not accepted"
    UNDECIDED = "undecided"


@dataclass(frozen=True)
class Window:
    """Period in which the service may have accepted the submissions of a key.

    Attributes:
        start: Time before which nothing was sent, less the tolerance.
        end: End of the attempt, plus the tolerance; None while the attempt may be in progress.
        latest: Time until which a submission may still have arrived.
    """

    start: datetime
    end: datetime | None
    latest: datetime

    def contains(self, moment: datetime | None) -> bool:
        """Return False only if a known time, rounded down to a second, is outside."""
        if moment is None:
            return True
        started = self.start.replace(microsecond=0) <= moment
        return started and (self.end is None or moment <= self.end)

    def may_have_arrived_late(self, moment: datetime | None) -> bool:
        """Return True if a time is after the end of the attempt, but not too late to be of it."""
        return bool(moment and self.end and self.end < moment <= self.latest)


@dataclass(frozen=True)
class Tolerance:
    """Tolerance of the comparison of times.

    Attributes:
        slack: Allowed difference between two clocks.
        delay: Time after which the account's list contains what was accepted.
    """

    slack: timedelta = CLOCK_SLACK
    delay: timedelta = timedelta(seconds=120)


@dataclass(frozen=True)
class Decision:
    """Verdict about the uncertain submission of a key, with its evidence.

    Attributes:
        idempotency_key: Key of the generation.
        verdict: Conclusion.
        reason: Reason in words.
        window: Period in which the service may have accepted the submission.
        asked_at: Time at which the account was asked.
        candidates: Rows that may belong to the submission.
    """

    idempotency_key: str
    verdict: Verdict
    reason: str
    window: Window
    asked_at: datetime
    candidates: tuple[AccountTask, ...] = ()

    @property
    def task(self) -> AccountTask | None:
        """Row that is probably the generation, or None."""
        return self.candidates[0] if self.verdict is Verdict.PROBABLY_THIS else None

    def in_words(self) -> str:
        """Return the evidence in one line, for the ledger."""
        seen = ", ".join(candidate.task_id for candidate in self.candidates[:5]) or "none"
        return (
            f"{self.verdict}: {self.reason}; account asked at {self.asked_at:%Y-%m-%d %H:%M:%S} "
            f"UTC for {self.window.start:%H:%M:%S} to {shown_end(self.window)}; unknown tasks "
            f"that fit: {seen}"
        )


class Action(StrEnum):
    """Change of the ledger that a decision justifies."""

    ADOPT = "adopt"
    RESUBMIT = "resubmit"
    WAIT = "wait"
    NONE = "none"


def action_of(entry: Entry, decision: Decision, now: datetime) -> Action:
    """Return the change that a decision justifies at a time; pure.

    A submission that was not accepted so far may still arrive for some minutes, as after ``ledger
    resubmit``. Until then, its key is not freed.
    """
    if decision.verdict is Verdict.PROBABLY_THIS:
        return Action.ADOPT
    if decision.verdict is Verdict.UNDECIDED:
        return Action.NONE
    return Action.WAIT if may_arrive_until(entry, now) else Action.RESUBMIT


def shown_end(window: Window) -> str:
    """Return the end of a window as a text."""
    return f"{window.end:%H:%M:%S}" if window.end else "now"


def window_of(entry: Entry, slack: timedelta = CLOCK_SLACK) -> Window:
    """Return the period in which submissions with an unknown outcome may have been accepted; pure.

    The start is the claim of the earliest of them, by the clock of the machine that sent it. The
    end is the time at which the outcome became unknown, possibly by the clock of another machine.
    For an entry that was decided about later, it is at the latest the time after which nothing can
    arrive any more. An entry that has a task id by now, but also an earlier submission without an
    answer, has the window of that one.
    """
    sent = entry.unresolved_since or entry.claimed_at or entry.created_at
    claimed = max(entry.claimed_at or entry.changed_at, sent)
    is_bought = entry.task_id is not None and entry.task_id_checked
    ended = claimed if is_bought else max(entry.changed_at, claimed)
    if entry.state is not State.UNCERTAIN:
        ended = min(ended, last_arrival(claimed))
    return Window(
        start=sent - slack,
        end=None if entry.state is State.CLAIMED else ended + slack,
        latest=max(ended, last_arrival(claimed)) + slack,
    )


@dataclass(frozen=True)
class Account:
    """List of an account's tasks, and what the ledger knows about the same account.

    Attributes:
        listed: Tasks that the account has, as CometAPI listed them.
        known_ids: Task ids that the ledger has.
        purchases: Purchases whose ids are known and whose times are within the list's period. They
            prove that the list is of this account, and that the clocks agree.
        models: Ids of models. A row with another word in place of a model says nothing.
        routes: Routes of the service, likewise.
    """

    listed: AccountTasks
    known_ids: Collection[str]
    purchases: Sequence[Entry] = ()
    models: Collection[str] = ()
    routes: Collection[str] = ()


def reconcile(
    entries: Sequence[Entry], account: Account, tolerance: Tolerance
) -> tuple[Decision, ...]:
    """Return a decision about each uncertain entry; pure.

    Args:
        entries: All entries with a submission whose outcome is unknown, also those in progress and
            those that were written off. A row may belong to any of them.
        account: List of the account's tasks.
        tolerance: Tolerance of the comparison of times.
    """
    windows = {entry.idempotency_key: window_of(entry, tolerance.slack) for entry in entries}
    problem = _problem(account, tolerance)
    is_of_kind = _kind_filter(account)
    unknown = [task for task in account.listed.tasks if task.task_id not in account.known_ids]
    fits = {
        entry.idempotency_key: [
            task
            for task in unknown
            if windows[entry.idempotency_key].contains(task.submitted_at)
            and is_of_kind(task, entry)
        ]
        for entry in entries
    }
    owners: dict[str, list[str]] = {}
    for key, tasks in fits.items():
        for task in tasks:
            owners.setdefault(task.task_id, []).append(key)

    def explained(task: AccountTask) -> bool:
        """Return True if a row is the only one of exactly one other submission."""
        keys = owners.get(task.task_id, [])
        return len(keys) == 1 and len(fits[keys[0]]) == 1

    decisions: list[Decision] = []
    for entry in entries:
        if entry.state is not State.UNCERTAIN:
            continue
        key, window = entry.idempotency_key, windows[entry.idempotency_key]
        late = [
            task
            for task in unknown
            if window.may_have_arrived_late(task.submitted_at)
            and is_of_kind(task, entry)
            and not explained(task)
        ]
        verdict, reason = _conclude(
            fits[key], late, owners, problem, _not_final(window, account, tolerance)
        )
        decisions.append(
            Decision(
                idempotency_key=key,
                verdict=verdict,
                reason=reason,
                window=window,
                asked_at=account.listed.asked_at,
                candidates=tuple(fits[key] or late),
            )
        )
    return tuple(decisions)


def _conclude(
    fitting: Sequence[AccountTask],
    late: Sequence[AccountTask],
    owners: Mapping[str, Sequence[str]],
    problem: str | None,
    not_final: str | None,
) -> tuple[Verdict, str]:
    if problem:
        return Verdict.UNDECIDED, problem
    if len(fitting) > 1:
        return Verdict.UNDECIDED, f"{len(fitting)} tasks that the ledger does not know fit it"
    if fitting:
        others = len(owners[fitting[0].task_id]) - 1
        if others:
            return Verdict.UNDECIDED, f"the only task that fits it also fits {others} other keys"
        return Verdict.PROBABLY_THIS, "it is the only task that fits, and it fits no other key"
    if late:
        return Verdict.UNDECIDED, "no task fits it, but one was accepted shortly after its attempt"
    if not_final:
        return Verdict.UNDECIDED, not_final
    return Verdict.NOT_ACCEPTED, "the complete list of the account has no task that fits it"


def _not_final(window: Window, account: Account, tolerance: Tolerance) -> str | None:
    """Return the reason why the absence of a task proves nothing yet, or None."""
    final_from = (window.end or window.latest) + tolerance.delay
    if account.listed.asked_at < final_from:
        return f"CometAPI may list it later; ask again after {final_from:%Y-%m-%d %H:%M:%S} UTC"
    if not account.purchases:
        return (
            "the list has no purchase that the ledger knows, so it is not certain that the access "
            "token and the API key belong to the same account"
        )
    return None


def _problem(account: Account, tolerance: Tolerance) -> str | None:
    """Return the reason why a list decides nothing, or None."""
    if not account.listed.is_complete:
        return f"the account's list is incomplete: {account.listed.problem or 'no reason given'}"
    rows = {task.task_id: task for task in account.listed.tasks}
    for entry in account.purchases:
        row = rows.get(entry.task_id or "")
        if row is None:
            return (
                f"the account's list lacks {entry.task_id}, which the ledger knows; the access "
                "token may belong to another account"
            )
        if not _window_of_purchase(entry, tolerance.slack).contains(row.submitted_at):
            return (
                f"CometAPI dates {entry.task_id} outside of its own submission, so the clocks "
                "disagree"
            )
    return None


def _window_of_purchase(entry: Entry, slack: timedelta) -> Window:
    sent = entry.claimed_at or entry.created_at
    end = max(entry.submitted_at or sent, sent) + slack
    return Window(start=sent - slack, end=end, latest=end)


def _kind_filter(account: Account) -> Callable[[AccountTask, Entry], bool]:
    """Return a function that is False only if a row is certainly of another model or route.

    The words of the list are not documented. A known purchase whose row has another model or route
    than the ledger proves that they cannot be compared.
    """
    rows = {task.task_id: task for task in account.listed.tasks}

    def said(text: str, words: Collection[str]) -> str | None:
        word = text.strip().lower().replace("-", "_")
        return word if word in {other.lower().replace("-", "_") for other in words} else None

    def differs(text: str, wanted: str | None, words: Collection[str]) -> bool:
        word = said(text, words)
        return bool(word and wanted and word != wanted.lower().replace("-", "_"))

    known = [
        (rows[entry.task_id], entry)
        for entry in account.purchases
        if entry.task_id and entry.task_id in rows
    ]
    by_model = not any(differs(row.model, entry.model, account.models) for row, entry in known)
    by_route = not any(differs(row.action, entry.route, account.routes) for row, entry in known)

    def may_be(task: AccountTask, entry: Entry) -> bool:
        other_model = by_model and differs(task.model, entry.model, account.models)
        other_route = by_route and differs(task.action, entry.route, account.routes)
        return not (other_model or other_route)

    return may_be


def period_of(
    entries: Sequence[Entry], purchases: Sequence[Entry], slack: timedelta, now: datetime
) -> tuple[datetime, datetime]:
    """Return the period for which to list the account's tasks; pure.

    It covers every window of the uncertain entries and every purchase, plus the time of one clock
    difference.
    """
    starts = [window_of(entry, slack).start for entry in entries if entry.state is State.UNCERTAIN]
    starts += [_window_of_purchase(entry, slack).start for entry in purchases]
    return min([*starts, now]) - slack, now + slack + timedelta(minutes=5)
