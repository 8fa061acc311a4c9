# SPDX-License-Identifier: Apache-2.0
"""Ledger of paid generations: one SQL table with every generation that was or may have been bought.

The ledger is the source of truth; Prefect's results are only a fast path beside it. Each change is
one statement that names the states that it may follow. So two processes that change a generation at
the same time do not overwrite each other, and a change that is repeated because its answer was lost
has no further effect. Leases record which run works on a generation (leases.py).
"""

import asyncio
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Select,
    and_,
    delete,
    exists,
    or_,
    select,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite

from ..errors import BudgetExceeded, GenerationCancelled, GenerationError, LedgerCorrupted
from ..models.generation import Finished, StoredVideo, Submission
from ..models.prices import Price
from ..processes import is_alive, is_dead, process_of
from ..redact import scrub
from . import owners
from .budget import Budget, Spent
from .claim_history import ClaimHistory
from .conditions import (
    has_id_of_other_request,
    has_lease_of,
    has_unconfirmed_id,
    is_unchanged_since,
)
from .database import PATIENCE, Database, ledger_url
from .entry import (
    ALLOWED_PREDECESSORS,
    Entry,
    Intent,
    Kind,
    State,
    is_another_purchase,
    is_outdated,
)
from .entry_rows import as_columns, as_select, columns_of, read_entries
from .leases import LEASE, LEASE_LEFT, MAX_BIND_VALUES, Leases
from .schema import generations, last_serial
from .spending import is_within, total_spent

_logger = logging.getLogger(__name__)
_table = generations.c
_ENTRIES = select(generations, LEASE_LEFT)


class Ledger(Leases):
    """Ledger in one database, which any event loop of this process can use.

    Every method may raise ``LedgerUnavailable``.

    Args:
        url: SQLAlchemy URL of a SQLite file (absolute path) or a PostgreSQL database.
        lease: Seconds after which an owner that does not renew counts as gone.
        patience: Maximum seconds to wait for a database that is locked or unreachable.
    """

    def __init__(self, url: str, *, lease: float = LEASE, patience: float = PATIENCE) -> None:
        super().__init__(Database(url, patience=patience), lease)
        self.history = ClaimHistory(self.database)

    # Queries

    async def get(self, key: str) -> Entry | None:
        """Return the entry of a key, or None."""
        return await self._one(_ENTRIES.where(_table.idempotency_key == key))

    async def find(self, task_id: str, base_url: str, besides: str = "") -> Entry | None:
        """Return the oldest entry with a task id of the service at a base URL, or None.

        Args:
            task_id: Task id.
            base_url: Root of the service.
            besides: Key whose entry is left out.
        """
        same = and_(
            _table.task_id == task_id,
            _table.base_url == base_url,
            _table.idempotency_key != besides,
        )
        return await self._first(_ENTRIES.where(same).order_by(_table.created_at))

    async def of_another_request(self, task_id: str, claimed: Entry) -> Entry | None:
        """Return an entry that has this task id for another request than the claimed one."""
        return await self._first(
            _ENTRIES.where(has_id_of_other_request(generations, task_id, claimed))
        )

    async def entries(
        self,
        *,
        states: Sequence[State] = (),
        since: datetime | None = None,
        flow_run_id: str | None = None,
        limit: int | None = None,
        tell: Callable[[LedgerCorrupted], None] | None = None,
    ) -> list[Entry]:
        """Return the entries that match all given filters, newest first.

        Args:
            states: States of the entries; empty for all states.
            since: Earliest creation time.
            flow_run_id: Flow run of the entries.
            limit: Maximum number of entries.
            tell: Called with the error of each corrupted row, which is then skipped. Rows with an
                invalid state are included in this.
        """
        query = _ENTRIES.order_by(_table.created_at.desc()).limit(limit)
        if states:
            wanted = _table.state.in_([str(state) for state in states])
            unknown = _table.state.not_in([str(state) for state in State])
            query = query.where(or_(wanted, unknown) if tell else wanted)
        if since:
            query = query.where(_table.created_at >= since)
        if flow_run_id:
            query = query.where(_table.flow_run_id == flow_run_id)
        return await self._rows(query, tell)

    async def get_many(self, keys: Sequence[str]) -> dict[str, Entry]:
        """Return the entries of the given keys, by key; keys without an entry are left out."""
        found: dict[str, Entry] = {}
        for start in range(0, len(keys), MAX_BIND_VALUES):
            some = _ENTRIES.where(_table.idempotency_key.in_(keys[start : start + MAX_BIND_VALUES]))
            found |= {entry.idempotency_key: entry for entry in await self._rows(some)}
        return found

    async def known_ids(self, task_ids: Sequence[str]) -> set[tuple[str, str]]:
        """Return the given task ids that the ledger has, each with the base URL of its service."""
        found: set[tuple[str, str]] = set()
        for start in range(0, len(task_ids), MAX_BIND_VALUES):
            some = _table.task_id.in_(task_ids[start : start + MAX_BIND_VALUES])
            rows = await self.database.rows(select(_table.task_id, _table.base_url).where(some))
            found |= {(row["task_id"], row["base_url"]) for row in rows}
        return found

    async def durations(self, kind: Kind, limit: int) -> list[tuple[float, int]]:
        """Return the duration and the number of polls of succeeded generations of a kind.

        A duration is the time from the submission to the detected end, in seconds. The newest
        submission comes first.
        """
        query = (
            select(_table.submitted_at, _table.finished_at, _table.polls)
            .where(
                _table.base_url == kind.base_url,
                _table.route == kind.route,
                _table.model == kind.model,
                _table.state.in_([str(State.SUCCEEDED), str(State.STORED)]),
                _table.submitted_at.is_not(None),
                _table.finished_at.is_not(None),
            )
            .order_by(_table.submitted_at.desc())
            .limit(limit)
        )
        if kind.seconds is not None:
            query = query.where(_table.billed_seconds == kind.seconds)
        rows = await self.database.rows(query)
        return [
            ((row["finished_at"] - row["submitted_at"]).total_seconds(), row["polls"])
            for row in rows
            if isinstance(row["finished_at"], datetime)
            and isinstance(row["submitted_at"], datetime)
        ]

    async def spent(self, prefix: str, prices: Mapping[str, Price]) -> Spent:
        """Return the certain and possible charges under all keys with a prefix.

        Args:
            prefix: Prefix of the keys; ``batch_prefix`` returns the one of a batch.
            prices: Prices by model, for submissions without a recorded cost.
        """
        (row,) = await self.database.rows(total_spent(prefix, prices))
        return Spent.model_validate(dict(row))

    async def held_by_run(self, run: str) -> list[Entry]:
        """Return the entries on which a run holds a lease, in any process."""
        names = _table.holder.contains(f"|{run}", autoescape=True)
        return await self._rows(_ENTRIES.where(names))

    # Purchases

    async def add(
        self,
        intent: Intent,
        state: State,
        claim: str,
        *,
        budget: Budget | None = None,
        **values: Any,
    ) -> Entry | None:
        """Insert a new entry, or return None if the key has an entry of another claim.

        Raises:
            BudgetExceeded: The entry would exceed the limits of the budget.
        """
        now = datetime.now(UTC)
        wanted = {
            **intent.wanted(),
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
            "charges": 0,
            "resubmitted_by": [],
            "task_id_checked": True,
            "serial": last_serial + 1,
            **self._leased_to(values.pop("holder", None)),
            **values,
        }
        row = as_columns(wanted)
        within = is_within(budget, intent.idempotency_key, row) if budget else None
        statement = self._insert(row, within).returning(generations, LEASE_LEFT)
        added = await self._one(statement, budget)
        if added:
            return added
        there = await self.get(intent.idempotency_key)  # ours, if only the answer was lost
        if there is None and budget:
            await self._check_budget(budget, intent.idempotency_key, row)
        return there if there and there.claim == claim and there.state is state else None

    def _insert(
        self,
        rows: dict[str, Any] | list[dict[str, Any]],
        where: ColumnElement[bool] | None = None,
    ) -> Any:
        """Return the statement that inserts the rows whose keys are new.

        A single row is inserted only if the condition holds.
        """
        dialect = postgresql if self.database.is_shared else sqlite
        statement = dialect.insert(generations)
        if where is None or isinstance(rows, list):
            return statement.values(rows).on_conflict_do_nothing()
        return statement.from_select([*rows], as_select(rows).where(where)).on_conflict_do_nothing()

    async def restore(
        self, entry: Entry, warn: Callable[[str], None] = _logger.warning
    ) -> Entry | None:
        """Write an entry again that a run works on and the ledger has lost.

        Entries are lost when a standby server takes over too early, when an older copy replaces the
        ledger, or when a person deletes a row. The key may belong to another purchase by now. Then
        the entry replaces a row that is outdated or free, or it is written under a new key, so that
        no purchase is lost.

        Args:
            entry: Entry as the run last read it.
            warn: Called with a warning that describes the loss.

        Returns:
            The entry as recorded now, possibly under a new key, or None if it was not lost.
        """
        key = scrub(entry.idempotency_key)
        if restored := (await self.insert([entry]) or [None])[0]:
            warn(
                f"The ledger at {self.database.place} had lost the row of key "
                f"{key!r} (id {entry.task_id or 'not known'}), and the run "
                "that works on it wrote it again; an older copy of the ledger may have been put in "
                "its place"
            )
            return restored
        there = await self.get(entry.idempotency_key)
        if there is None or not is_another_purchase(there, entry):
            return None
        if entry.task_id and (known := await self.find(entry.task_id, entry.base_url)):
            return known
        if is_outdated(there, entry) and (replaced := await self._replace(there, entry)):
            warn(
                f"the ledger had forgotten that key {key!r} was being bought; "
                f"its id is {entry.task_id or 'not known'}"
            )
            return replaced
        name = f"{entry.idempotency_key}+{entry.task_id or entry.claim[:8]}"
        beside = await self.insert([entry.model_copy(update={"idempotency_key": name})])
        attempt = entry.task_id or "the attempt without an answer"
        warn(f"key {key!r} was submitted twice; {attempt} is recorded as {name}")
        return beside[0] if beside else await self.get(name)

    async def insert(self, entries: Sequence[Entry]) -> list[Entry]:
        """Write complete entries whose keys the ledger lacks, and return the written ones."""
        written: list[Entry] = []
        for start in range(0, len(entries), MAX_BIND_VALUES):
            some = entries[start : start + MAX_BIND_VALUES]
            rows = [as_columns(self._row(entry)) for entry in some]
            statement = self._insert(rows).returning(generations, LEASE_LEFT)
            asked, found = await self.database.asked(statement)
            for entry in self._read(found):
                self._see(entry, asked)
                written.append(entry)
        return written

    async def _replace(self, there: Entry, entry: Entry) -> Entry | None:
        """Replace an outdated row with an entry of its key; return None if the row has changed."""
        row = self._row(entry) | {
            "attempts": max(entry.attempts, there.attempts + 1),
            "charges": max(entry.charges, there.charges + 1),
            "serial": last_serial + 1,
        }
        return await self._update(
            [_table.idempotency_key == entry.idempotency_key, *is_unchanged_since(there)], row
        )

    def _row(self, entry: Entry) -> dict[str, Any]:
        return columns_of(entry) | self._leased_to(entry.holder)

    async def change(
        self,
        key: str,
        state: State,
        *,
        seen: Entry | None = None,
        of: Entry | None = None,
        bought: str | None = None,
        bought_by: str | None = None,
        budget: Budget | None = None,
        **values: Any,
    ) -> Entry | None:
        """Change the state of an entry, or return None if the present state does not allow it.

        Args:
            key: Key of the entry.
            state: New state.
            seen: Entry on which the decision is based; the row must not have changed since.
            of: Entry as claimed. Its claim must still be the one in the ledger, and a ``task_id``
                among the values must not belong to another request.
            bought: Task id that the entry must have, or receives if it has none.
            bought_by: Claim that received this task id. An entry without an id and with another
                claim belongs to another purchase.
            budget: Limits for the changed entry; ``values`` must contain all columns that determine
                its cost.
            values: Other columns to change. A value for ``holder`` starts a lease; None ends it.

        Raises:
            BudgetExceeded: The entry would exceed the limits of the budget.
        """
        allowed = [str(before) for before in ALLOWED_PREDECESSORS[state]]
        where = [_table.idempotency_key == key, _table.state.in_(allowed)]
        where += is_unchanged_since(seen) if seen else []
        if of:
            where.append(_table.claim == of.claim)
        if of and (task_id := values.get("task_id")):
            where.append(~exists().where(has_id_of_other_request(generations.alias(), task_id, of)))
        if bought:
            open_claim = and_(_table.task_id.is_(None), _table.claim == bought_by)
            where.append(or_(_table.task_id == bought, open_claim))
            values["task_id"] = bought
        changes = dict(values, state=str(state), changed_at=datetime.now(UTC))
        if "holder" in changes:
            changes |= self._leased_to(changes["holder"])
        if budget:
            where.append(is_within(budget, key, changes))
        changed = await self._update(where, changes, budget)
        if changed:
            return changed
        there = await self.get(key)  # changed already, if only the answer was lost
        if budget and seen and there and (there.claim, there.state) == (seen.claim, seen.state):
            await self._check_budget(budget, key, changes)
        is_so = there and there.state is state and there.claim == values.get("claim")
        return there if is_so else None

    # Task ids entered by hand

    async def confirm(self, key: str, task_id: str) -> Entry | None:
        """Record that the service has confirmed the task id of an entry."""
        same = [_table.idempotency_key == key, _table.task_id == task_id]
        return await self._update(same, {"task_id_checked": True})

    async def withdraw_id(self, entry: Entry) -> Entry | None:
        """Make an entry uncertain again and remove its task id, unless it was confirmed since."""
        changes = {"state": str(State.UNCERTAIN), "task_id": None, "task_id_checked": True}
        changes |= {"changed_at": datetime.now(UTC), "holder": None, "leased_until": None}
        changes["note"] = f"the id {entry.task_id} was not confirmed, and withdrawn by hand"
        return await self._update(has_unconfirmed_id(entry), changes)

    async def forget(self, entry: Entry) -> None:
        """Delete an entry that contains only a task id that the service never confirmed.

        Its serial is not used again. Otherwise the ledger would look like an older copy of itself.
        """
        await self.history.skip_to(entry.serial or 0)
        only_an_id = [_table.attempts == 0, _table.fingerprint.is_(None)]
        gone = delete(generations).where(*has_unconfirmed_id(entry), *only_an_id)
        await self.database.rows(gone.returning(_table.idempotency_key))

    # Leases and progress

    async def acquire(self, key: str, holder: str) -> Entry | None:
        """Acquire the lease of an entry for an owner; return None if another active owner has it.

        The result is also None if the key has no entry.
        """
        free = or_(_table.holder.is_(None), _table.holder == holder)
        taken = await self._update([_table.idempotency_key == key, free], self._leased_to(holder))
        if taken:
            return taken
        entry = await self.get(key)
        if entry is None or entry.holder is None or await self.is_living(entry):
            return None
        left = [_table.idempotency_key == key, _table.holder == entry.holder, has_lease_of(entry)]
        return await self._update(left, self._leased_to(holder))

    async def release_lease(self, key: str, holder: str, note: str | None = None) -> Entry | None:
        """Release a lease, so that the next owner need not wait until it expires.

        Returns:
            The entry, or None if the owner has no lease on it.
        """
        changes: dict[str, Any] = {"holder": None, "leased_until": None}
        if note is not None:
            changes["note"] = note
        return await self._update([_table.idempotency_key == key, _table.holder == holder], changes)

    async def finished(self, submission: Submission, finished: Finished) -> Entry | None:
        """Record that a generation succeeded upstream."""
        return await self.change(
            submission.idempotency_key,
            State.SUCCEEDED,
            bought=submission.task_id,
            bought_by=submission.claim,
            submitted_at=submission.submitted_at,  # not recorded yet if the ledger was unavailable
            finished_at=submission.submitted_at + timedelta(seconds=finished.waited),
            polls=finished.polls,
            outputs=[str(output) for output in finished.generation.outputs],
            failure_code="",
            note="",
        )

    async def failed(self, submission: Submission, error: GenerationError) -> Entry | None:
        """Record that a generation failed or was cancelled upstream."""
        return await self.change(
            submission.idempotency_key,
            State.CANCELLED if isinstance(error, GenerationCancelled) else State.FAILED,
            bought=submission.task_id,
            bought_by=submission.claim,
            finished_at=datetime.now(UTC),
            failure_code=error.code,
            note=error.message,
        )

    async def stored(
        self,
        entry: Entry,
        task_id: str,
        place: str,
        videos: Sequence[StoredVideo],
        *,
        price: Price | None = None,
    ) -> Entry | None:
        """Record that the videos of a generation are in a storage, and release its lease.

        The videos in other storages stay recorded.

        Args:
            entry: Entry as last read.
            task_id: Task id of the generation.
            place: Location of the storage.
            videos: Videos in this storage.
            price: Price of its model. A price per second is applied to the length of the videos if
                the billed seconds were unknown before.
        """
        delivered = {**entry.videos, place: tuple(videos)}
        billed = entry.billed_seconds or sum(video.duration for video in videos)
        is_estimate = price and price.per_second and entry.billed_seconds is None
        costs: dict[str, Any] = (
            {"cost": round(price.of(billed), 6)} if price and is_estimate else {}
        )
        return await self.change(
            entry.idempotency_key,
            State.STORED,
            bought=task_id,
            bought_by=entry.claim,
            stored_at=datetime.now(UTC),
            videos={
                where: [video.model_dump(mode="json") for video in kept]
                for where, kept in delivered.items()
            },
            billed_seconds=round(billed, 3),
            holder=None,
            failure_code="",
            note="",
            **costs,
        )

    # Activity of owners

    async def is_living(self, entry: Entry) -> bool:
        """Return True if the owner of an entry is still active.

        A lease may have expired although its process is alive, or may end much later than any lease
        can. Then a clock was set or the machine was suspended. In these cases, this waits for half
        the duration of a lease: an active owner has renewed the lease by then.
        """
        if entry.holder is None or entry.lease_left is None:
            return False
        if process_of(entry.holder) == process_of(owners.holder_name("")):
            workers = owners.workers_of(entry.idempotency_key, entry.holder)
            return any(one.is_running for one in workers) or bool(workers and entry.lease_left > 0)
        if is_dead(entry.holder):
            return False
        if 0 <= entry.lease_left <= 2 * self.lease:
            return True
        if entry.lease_left < 0 and not is_alive(entry.holder):
            return False
        await asyncio.sleep(self.lease / 2)
        later = await self.get(entry.idempotency_key)
        return later is not None and later.leased_until not in {None, entry.leased_until}

    async def _first(self, query: Select[Any]) -> Entry | None:
        found = await self._rows(query.limit(1))
        return found[0] if found else None

    async def _rows(
        self, statement: Any, tell: Callable[[LedgerCorrupted], None] | None = None
    ) -> list[Entry]:
        return self._read(await self.database.rows(statement), tell)

    def _read(
        self, rows: Sequence[Any], tell: Callable[[LedgerCorrupted], None] | None = None
    ) -> list[Entry]:
        return read_entries(rows, self.database.place, tell)

    async def _check_budget(self, budget: Budget, key: str, row: Mapping[str, Any]) -> None:
        """Check that a row with these values would keep the budget, given the present spending.

        Raises:
            BudgetExceeded: The row would exceed a limit.
        """
        left_out = total_spent(budget.prefix, budget.prices, without=key)
        (found,) = await self.database.rows(left_out)
        if why := budget.objection(Spent.model_validate(dict(found)), *budget.cost_of(row)):
            raise BudgetExceeded(why).with_context(idempotency_key=key)

    async def _one(self, statement: Any, budget: Budget | None = None) -> Entry | None:
        """Return the entry that a statement for one key returns, or None.

        With a budget, the statement runs under the lock of the batch.
        """
        if budget:
            asked, rows = await self.database.asked_alone(budget.prefix, statement)
        else:
            asked, rows = await self.database.asked(statement)
        found = self._read(rows)
        if not found:
            return None
        self._see(found[0], asked)
        return found[0]

    async def _update(
        self,
        where: Sequence[ColumnElement[bool]],
        changes: dict[str, Any],
        budget: Budget | None = None,
    ) -> Entry | None:
        statement = update(generations).where(*where).values(as_columns(changes))
        return await self._one(statement.returning(generations, LEASE_LEFT), budget)


_ledgers: dict[tuple[int, str], Ledger] = {}


def get_ledger(url: str) -> Ledger:
    """Return the ledger at a URL, which all callers in the process share.

    Raises:
        LedgerUnavailable: The URL is not valid for a ledger.
    """
    checked = ledger_url(url)
    return _ledgers.setdefault((os.getpid(), checked), Ledger(checked))
