# SPDX-License-Identifier: Apache-2.0
"""Ledger of paid generations: one SQL table with every generation that was or may have been bought.

The ledger is the source of truth; Prefect's results are only a fast path beside it. Each change is
one statement that names the states that it may follow. So two processes that change a generation at
the same time do not overwrite each other, and a change that is repeated because its answer was lost
has no further effect.
"""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from ..errors import BudgetExceeded, GenerationCancelled, GenerationError, LedgerCorrupted
from ..models.generation import CompletedGeneration, StoredVideo, Submission
from ..models.prices import Price
from .budget import Budget, Spent
from .claim_history import ClaimHistory
from .conditions import (
    has_claim,
    has_id_of_other_request,
    has_key,
    has_or_lacks_id,
    has_task_id,
    has_unconfirmed_id,
    is_unchanged_since,
    no_other_request_has,
)
from .costs import BILLED_CURRENCY, stored_cost
from .database import RETRY_TIMEOUT
from .duration_query import durations_of
from .entry import ALLOWED_PREDECESSORS, UNFINISHED, Entry, GenerationKind, Intent, State
from .entry_rows import read_time
from .held_leases import HeldLeases
from .leases import LEASE, Leases
from .listing import listing
from .open_database import ledger_url, open_database
from .restore import restore_entry
from .resubmission import claim_times, earlier_unresolved
from .schema import GENERATIONS, NEXT_SERIAL
from .spending import is_within, total_spent
from .statement import Sql, all_of, texts_in
from .table import MAX_VALUES, EntryTable, entries_where

_logger = logging.getLogger(__name__)


class Ledger:
    """Ledger in one database, which any event loop of this process can use.

    Every method may raise ``LedgerUnavailable``. A method ``mark_…`` records a decision: it returns
    the changed entry, or None if the present state of the entry does not allow the decision.

    Args:
        url: URL of a SQLite file (absolute path) or of a PostgreSQL database.
        lease: Seconds after which an owner that does not renew counts as gone.
        retry_timeout: Maximum seconds to wait for a database that is locked or unreachable.

    Attributes:
        database: Database of the ledger.
        table: Table of the entries.
        leases: Leases of the generations.
        history: Record of the claims, which reveals an older copy.
    """

    def __init__(
        self, url: str, *, lease: float = LEASE, retry_timeout: float = RETRY_TIMEOUT
    ) -> None:
        held = HeldLeases()
        self.database = open_database(url, retry_timeout)
        self.table = EntryTable(self.database, lease, held.observe)
        self.leases = Leases(self.table, held)
        self.history = ClaimHistory(self.database)

    # Queries

    async def get(self, key: str) -> Entry | None:
        """Return the entry of a key, or None."""
        return await self.table.get(key)

    async def get_many(self, keys: Sequence[str]) -> dict[str, Entry]:
        """Return the entries of the given keys, by key; keys without an entry are left out."""
        found: dict[str, Entry] = {}
        for start in range(0, len(keys), MAX_VALUES):
            some = Sql("idempotency_key {any:keys}", {"keys": keys[start : start + MAX_VALUES]})
            entries = await self.table.fetch(entries_where(some))
            found |= {entry.idempotency_key: entry for entry in entries}
        return found

    async def find_by_task_id(
        self, task_id: str, base_url: str, *, except_key: str = ""
    ) -> Entry | None:
        """Return the oldest entry with a task id of the service at a base URL, or None.

        Args:
            task_id: Task id.
            base_url: Root of the service.
            except_key: Key whose entry is left out.
        """
        other = Sql("idempotency_key <> :except_key", {"except_key": except_key})
        same = entries_where(has_task_id(task_id, base_url), other)
        return await self.table.first(same + " ORDER BY created_at")

    async def find_other_request(self, task_id: str, claimed: Entry) -> Entry | None:
        """Return an entry that has this task id for another request than the claimed one."""
        return await self.table.first(entries_where(has_id_of_other_request(task_id, claimed)))

    async def entries(
        self,
        *,
        states: Sequence[State] = (),
        since: datetime | None = None,
        flow_run_id: str | None = None,
        limit: int | None = None,
        on_corrupted: Callable[[LedgerCorrupted], None] | None = None,
    ) -> list[Entry]:
        """Return the entries that match all given filters, newest first.

        Args:
            states: States of the entries; empty for all states.
            since: Earliest creation time.
            flow_run_id: Flow run of the entries.
            limit: Maximum number of entries.
            on_corrupted: Called with the error of each corrupted row, which is then skipped. Rows
                with an invalid state are included in this.
        """
        query = listing(
            states=states,
            since=since,
            flow_run_id=flow_run_id,
            limit=limit,
            with_unknown_states=on_corrupted is not None,
        )
        return await self.table.fetch(query, on_corrupted)

    async def known_ids(self, task_ids: Sequence[str]) -> set[tuple[str, str]]:
        """Return the given task ids that the ledger has, each with the base URL of its service."""
        found: set[tuple[str, str]] = set()
        query = f"SELECT task_id, base_url FROM {GENERATIONS} WHERE task_id {{any:ids}}"
        for start in range(0, len(task_ids), MAX_VALUES):
            some = {"ids": task_ids[start : start + MAX_VALUES]}
            rows = await self.database.rows(Sql(query, some))
            found |= {(row["task_id"], row["base_url"]) for row in rows}
        return found

    async def durations(self, kind: GenerationKind, limit: int) -> list[tuple[float, int]]:
        """Return the duration and the number of polls of succeeded generations of a kind.

        A duration is the time from the submission to the detected end, in seconds. The newest
        submission comes first.
        """
        rows = await self.database.rows(durations_of(kind, limit))
        times = [(read_time(row["submitted_at"]), read_time(row["finished_at"])) for row in rows]
        return [
            ((finished - submitted).total_seconds(), row["polls"])
            for (submitted, finished), row in zip(times, rows, strict=True)
            if isinstance(submitted, datetime) and isinstance(finished, datetime)
        ]

    async def spent(
        self, prefix: str, prices: Mapping[str, Price], currency: str = BILLED_CURRENCY
    ) -> Spent:
        """Return the certain and possible charges under all keys with a prefix.

        Args:
            prefix: Prefix of the keys; ``batch_prefix`` returns the one of a batch.
            prices: Prices by model, for submissions without a recorded cost in the currency.
            currency: Currency of the prices.
        """
        (row,) = await self.database.rows(total_spent(prefix, prices, currency))
        return Spent.model_validate(dict(row))

    # Claims and adoptions

    async def insert_claim(
        self, intent: Intent, claim: str, owner: str, *, budget: Budget | None = None
    ) -> Entry | None:
        """Write a new entry with a claim, or return None if the key has another entry.

        Args:
            intent: Generation that is about to be bought.
            claim: Random id of the claim.
            owner: Owner of the lease that starts with the claim.
            budget: Spending limits for the entry, or None.

        Raises:
            BudgetExceeded: The entry would exceed the limits of the budget.
        """
        values = {"owner": owner, "attempts": 1, "charges": 1, **claim_times()}
        return await self._insert(intent, State.CLAIMED, claim, budget=budget, **values)

    async def insert_adopted(
        self, intent: Intent, claim: str, task_id: str, *, checked: bool
    ) -> Entry | None:
        """Write a new entry for an adopted task id, or return None if the key has another entry.

        Args:
            intent: Key of the generation, and the known parts of its request.
            claim: Random id of the adoption.
            task_id: Task id that was bought elsewhere.
            checked: True if the service has confirmed the id.
        """
        values = {
            "task_id": task_id,
            "task_id_checked": checked,
            "submitted_at": datetime.now(UTC),
            "charges": 1,
        }
        return await self._insert(intent, State.SUBMITTED, claim, **values)

    async def mark_claimed(
        self,
        seen: Entry,
        claim: str,
        owner: str,
        columns: Mapping[str, Any],
        *,
        budget: Budget | None = None,
    ) -> Entry | None:
        """Record a new claim for an existing entry; after rejected, resubmit_allowed or uncertain.

        Args:
            seen: Entry as read for the decision; it must not have changed since.
            claim: Random id of the claim.
            owner: Owner of the lease that starts with the claim.
            columns: Other columns of the entry; with a budget, those that determine its cost.
            budget: Spending limits for the entry, or None.

        Raises:
            BudgetExceeded: The entry would exceed the limits of the budget.
        """
        values = {**columns, **claim_times(seen), "owner": owner, "task_id": None}
        return await self._renew_claim(seen, State.CLAIMED, claim, values, budget)

    async def mark_adopted(
        self,
        seen: Entry,
        claim: str,
        task_id: str,
        columns: Mapping[str, Any],
        *,
        checked: bool,
    ) -> Entry | None:
        """Record an adopted task id for an existing entry that is not finished.

        Args:
            seen: Entry as read for the decision; it must not have changed since.
            claim: Random id of the adoption.
            task_id: Task id that was bought elsewhere.
            columns: Other columns of the entry.
            checked: True if the service has confirmed the id.
        """
        values = {
            **columns,
            "task_id": task_id,
            "task_id_checked": checked,
            "submitted_at": datetime.now(UTC),
            "unresolved_since": earlier_unresolved(seen),
        }
        return await self._renew_claim(seen, State.SUBMITTED, claim, values)

    # Outcome of a submission

    async def mark_submitted(
        self, claimed: Entry, task_id: str, submitted_at: datetime, owner: str | None
    ) -> Entry | None:
        """Record the task id that a claimed request received; after any state without a task id.

        Args:
            claimed: Entry as claimed, with the request id of the call. Its claim must still be
                the one in the ledger, and no entry of another request may have the task id.
            task_id: Task id that the service returned.
            submitted_at: Time of the answer.
            owner: Owner of the lease from now on, or None.
        """
        return await self._change(
            claimed.idempotency_key,
            State.SUBMITTED,
            [*has_claim(claimed), no_other_request_has(task_id, claimed)],
            task_id=task_id,
            submitted_at=submitted_at,
            unresolved_since=earlier_unresolved(claimed),
            owner=owner,
            note="",
            request_id=claimed.request_id,
        )

    async def mark_rejected(
        self, claimed: Entry, note: str, *, unchanged: bool = False, **refund: Any
    ) -> Entry | None:
        """Record that a claim was certainly not charged, which frees its key; after claimed.

        Args:
            claimed: Entry as claimed. Its claim must still be the one in the ledger.
            note: Reason.
            unchanged: True if the lease must not have been renewed since the entry was read.
            refund: Columns that take back the charge.
        """
        values = {**refund, "unresolved_since": earlier_unresolved(claimed)}
        return await self._end_claim(claimed, State.REJECTED, note, unchanged, values)

    async def mark_uncertain(
        self, claimed: Entry, note: str, *, unchanged: bool = False, **refund: Any
    ) -> Entry | None:
        """Record that a claim was possibly charged; after claimed.

        Args:
            claimed: Entry as claimed. Its claim must still be the one in the ledger.
            note: Reason.
            unchanged: True if the lease must not have been renewed since the entry was read.
            refund: Columns that take back the charge of the latest of several submissions.
        """
        return await self._end_claim(claimed, State.UNCERTAIN, note, unchanged, refund)

    # Progress of a bought generation

    async def mark_succeeded(
        self, submission: Submission, finished: CompletedGeneration
    ) -> Entry | None:
        """Record that a generation succeeded upstream; after any state in which it may be bought.

        Failed and cancelled may precede it, too, since upstream may correct itself.
        """
        return await self._change(
            submission.idempotency_key,
            State.SUCCEEDED,
            has_or_lacks_id(submission.idempotency_key, submission.task_id, submission.claim),
            task_id=submission.task_id,
            submitted_at=submission.submitted_at,  # not recorded yet if the ledger was unavailable
            finished_at=submission.submitted_at + timedelta(seconds=finished.waited),
            polls=finished.polls,
            outputs=[str(output) for output in finished.generation.outputs],
            failure_code="",
            note="",
        )

    async def mark_withheld(self, entry: Entry, note: str) -> Entry | None:
        """Record why the files of a finished generation are not published."""
        return await self._decide(entry, State.SUCCEEDED, note)

    async def mark_failed(self, submission: Submission, error: GenerationError) -> Entry | None:
        """Record that a generation failed or was cancelled upstream; not after stored."""
        return await self._change(
            submission.idempotency_key,
            State.CANCELLED if isinstance(error, GenerationCancelled) else State.FAILED,
            has_or_lacks_id(submission.idempotency_key, submission.task_id, submission.claim),
            task_id=submission.task_id,
            finished_at=datetime.now(UTC),
            failure_code=error.code,
            note=error.message,
        )

    async def mark_stored(
        self,
        entry: Entry,
        task_id: str,
        location: str,
        videos: Sequence[StoredVideo],
        *,
        price: Price | None = None,
        currency: str = BILLED_CURRENCY,
    ) -> Entry | None:
        """Record that the videos of a generation are in a storage, and release its lease.

        It may follow any state in which the generation may be bought. The videos in other storages
        stay recorded.

        Args:
            entry: Entry as last read.
            task_id: Task id of the generation.
            location: Location of the storage.
            videos: Videos in this storage.
            price: Price of its model, for its cost if the length was not known before.
            currency: Currency of the price.
        """
        delivered = {**entry.videos, location: tuple(videos)}
        billed = entry.billed_seconds or sum(video.duration for video in videos)
        return await self._change(
            entry.idempotency_key,
            State.STORED,
            has_or_lacks_id(entry.idempotency_key, task_id, entry.claim),
            task_id=task_id,
            stored_at=datetime.now(UTC),
            videos={
                where: [video.model_dump(mode="json") for video in kept]
                for where, kept in delivered.items()
            },
            billed_seconds=round(billed, 3),
            owner=None,
            failure_code="",
            note="",
            **stored_cost(entry, billed, price, currency),
        )

    async def restore(
        self, entry: Entry, warn: Callable[[str], None] = _logger.warning
    ) -> Entry | None:
        """Write an entry again that a run works on and the ledger has lost.

        Args:
            entry: Entry as the run last read it.
            warn: Called with a warning that describes the loss.

        Returns:
            The entry as recorded now, possibly under a new key, or None if it was not lost.
        """
        return await restore_entry(self.table, entry, warn)

    # Decisions of the user

    async def mark_resumed(self, entry: Entry) -> Entry | None:
        """Record that an abandoned generation is wanted again; after abandoned."""
        return await self._decide(entry, State.SUBMITTED, "")

    async def mark_abandoned(self, entry: Entry, note: str) -> Entry | None:
        """Record that ``collect`` is to leave a generation alone; after submitted or succeeded."""
        return await self._decide(entry, State.ABANDONED, note)

    async def mark_written_off(self, entry: Entry, note: str) -> Entry | None:
        """Record that a submission counts as not accepted; after uncertain."""
        return await self._decide(entry, State.WRITTEN_OFF, note)

    async def mark_resubmit_allowed(self, entry: Entry, note: str) -> Entry | None:
        """Allow one more submission; after uncertain, written_off, failed or cancelled."""
        return await self._decide(entry, State.RESUBMIT_ALLOWED, note)

    async def mark_adopted_elsewhere(self, entry: Entry) -> Entry | None:
        """Record that another key has adopted the task id of an entry.

        The other entry counts the charge, and ``collect`` delivers only the other one. It may
        follow any state of a bought generation.
        """
        state = State.ABANDONED if entry.state in UNFINISHED else entry.state
        return await self._change(
            entry.idempotency_key, state, is_unchanged_since(entry), charges=0
        )

    # Task ids entered by hand

    async def confirm_id(self, key: str, task_id: str) -> Entry | None:
        """Record that the service has confirmed the task id of an entry."""
        return await self.table.update(
            [has_key(key), Sql("task_id = :task_id", {"task_id": task_id})],
            {"task_id_checked": True},
        )

    async def withdraw_id(self, entry: Entry) -> Entry | None:
        """Make an entry uncertain again and remove its task id, unless it was confirmed since."""
        changes = {
            "state": str(State.UNCERTAIN),
            "task_id": None,
            "task_id_checked": True,
            "changed_at": datetime.now(UTC),
            "owner": None,
            "note": f"the id {entry.task_id} was not confirmed, and was withdrawn by hand",
        }
        return await self.table.update(has_unconfirmed_id(entry), changes)

    async def forget(self, entry: Entry) -> None:
        """Delete an entry that contains only a task id that the service never confirmed.

        Its serial is not used again. Otherwise the ledger would look like an older copy of itself.
        """
        await self.history.skip_to(entry.serial or 0)
        only_an_id = Sql("attempts = 0 AND fingerprint IS NULL")
        gone = Sql(f"DELETE FROM {GENERATIONS} WHERE ")
        await self.database.rows(gone + all_of([*has_unconfirmed_id(entry), only_an_id]))

    # Statements

    async def _insert(
        self,
        intent: Intent,
        state: State,
        claim: str,
        *,
        budget: Budget | None = None,
        **values: Any,
    ) -> Entry | None:
        """Write a new entry, or return None if the key has an entry of another claim."""
        now = datetime.now(UTC)
        row = {
            **intent.columns(),
            "state": str(state),
            "claim": claim,
            "attempts": 0,
            "created_at": now,
            "changed_at": now,
            "polls": 0,
            "outputs": [],
            "videos": {},
            "failure_code": "",
            "note": "",
            "evidence": "",
            "charges": 0,
            "resubmitted_by": [],
            "task_id_checked": True,
            "serial": NEXT_SERIAL,
            "owner": None,
            **values,
        }
        key = intent.idempotency_key
        within = is_within(budget, key, row) if budget else None
        if inserted := await self.table.insert_if(row, within, budget.prefix if budget else None):
            return inserted
        there = await self.get(key)  # ours, if only the answer was lost
        if there is None and budget:
            await self._check_budget(budget, key, row)
        return there if there and there.claim == claim and there.state is state else None

    async def _renew_claim(
        self,
        seen: Entry,
        state: State,
        claim: str,
        values: dict[str, Any],
        budget: Budget | None = None,
    ) -> Entry | None:
        """Give an entry a new claim, or return None if it has changed since it was read."""
        key = seen.idempotency_key
        values = {**values, "claim": claim, "serial": NEXT_SERIAL}
        where = is_unchanged_since(seen)
        if budget:
            where.append(is_within(budget, key, values))
        if changed := await self._change(
            key, state, where, lock=budget.prefix if budget else None, **values
        ):
            return changed
        there = await self.get(key)  # changed already, if only the answer was lost
        if budget and there and (there.claim, there.state) == (seen.claim, seen.state):
            await self._check_budget(budget, key, values)
        return there if there and there.claim == claim and there.state is state else None

    async def _end_claim(
        self, claimed: Entry, state: State, note: str, unchanged: bool, refund: Mapping[str, Any]
    ) -> Entry | None:
        where = [*has_claim(claimed), *(is_unchanged_since(claimed) if unchanged else [])]
        return await self._change(
            claimed.idempotency_key, state, where, owner=None, note=note, **refund
        )

    async def _decide(self, entry: Entry, state: State, note: str) -> Entry | None:
        """Change the state of an entry that has not changed since it was read."""
        return await self._change(
            entry.idempotency_key, state, is_unchanged_since(entry), note=note
        )

    async def _change(
        self,
        key: str,
        state: State,
        where: Sequence[Sql] = (),
        *,
        lock: str | None = None,
        **values: Any,
    ) -> Entry | None:
        """Change the state of an entry, or return None if its present state does not allow it.

        Args:
            key: Key of the entry.
            state: New state.
            where: Conditions that the entry must satisfy.
            lock: Name of the lock under which the statement runs, or None.
            values: Other columns to change. A value for ``owner`` starts a lease; None ends it.
        """
        changes = {**values, "state": str(state), "changed_at": datetime.now(UTC)}
        return await self.table.update([has_key(key), _MAY_BECOME[state], *where], changes, lock)

    async def _check_budget(self, budget: Budget, key: str, row: Mapping[str, Any]) -> None:
        """Check that a row with these values would keep the budget, given the present spending.

        Raises:
            BudgetExceeded: The row would exceed a limit.
        """
        left_out = total_spent(budget.prefix, budget.prices, budget.currency, without=key)
        (found,) = await self.database.rows(left_out)
        if why := budget.objection(Spent.model_validate(dict(found)), *budget.cost_of(row)):
            raise BudgetExceeded(why).with_context(idempotency_key=key)


_MAY_BECOME = {
    state: Sql(f"state IN {texts_in(before)}") for state, before in ALLOWED_PREDECESSORS.items()
}
"""Condition that an entry may get a state."""

_ledgers: dict[tuple[int, str], Ledger] = {}
"""Ledgers by process and URL. Of the process, since its threads share leases and connections."""


def get_ledger(url: str) -> Ledger:
    """Return the ledger at a URL, which all callers in the process share.

    Raises:
        LedgerUnavailable: The URL is not valid for a ledger.
    """
    checked = ledger_url(url)
    here = os.getpid(), checked
    return _ledgers.get(here) or _ledgers.setdefault(here, Ledger(checked))
