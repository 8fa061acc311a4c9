# SPDX-License-Identifier: Apache-2.0
"""The ledger: one SQL table that knows every generation that was or may have been bought.

It is the truth; Prefect's results are only a fast path beside it. Each change is one statement
that names the states it may follow, so two processes that change one generation at once do not
overwrite each other, and a change that was made twice because its answer was lost is the same
change. Who works on which generation is told by leases (leases.py).
"""

import asyncio
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import (
    ColumnElement,
    FromClause,
    Select,
    and_,
    delete,
    exists,
    literal,
    or_,
    select,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite

from . import holders
from .budget import Budget, Spent
from .claim_history import ClaimHistory
from .database import PATIENCE, Database, ledger_url
from .entries import (
    MAY_FOLLOW,
    Entry,
    Intent,
    Kind,
    State,
    is_another_purchase,
    is_outdated,
)
from .entry_rows import as_columns, columns_of, read_entries
from .errors import (
    BudgetExceeded,
    GenerationCancelled,
    GenerationError,
    LedgerDamaged,
)
from .generation import Finished, StoredVideo, Submission
from .leases import LEASE, LEASE_LEFT, MANY, Leases
from .prices import Price
from .redact import scrub
from .schema import generations, last_serial
from .spending import is_within, total_spent

_logger = logging.getLogger(__name__)
_table = generations.c
_ENTRIES = select(generations, LEASE_LEFT)


class Ledger(Leases):
    """The generations in one database, for any event loop of this process.

    Every method may raise ``LedgerUnavailable``.

    Args:
        url: SQLAlchemy URL of a SQLite file (absolute path) or a PostgreSQL database.
        lease: Seconds after which a holder that does not renew counts as gone.
        patience: Seconds for which a database that is locked or out of reach is waited for.
    """

    def __init__(self, url: str, *, lease: float = LEASE, patience: float = PATIENCE) -> None:
        super().__init__(Database(url, patience=patience), lease)
        self.history = ClaimHistory(self.database)

    # Looking

    async def get(self, key: str) -> Entry | None:
        """The entry of a key."""
        return await self._one(_ENTRIES.where(_table.key == key))

    async def find(self, task_id: str, base_url: str, besides: str = "") -> Entry | None:
        """Return the first entry of an id that the service at a base URL gave.

        Args:
            task_id: The id.
            base_url: Root of the service.
            besides: A key whose own entry does not count.
        """
        same = and_(_table.task_id == task_id, _table.base_url == base_url, _table.key != besides)
        return await self._first(_ENTRIES.where(same).order_by(_table.created_at))

    async def of_another_request(self, task_id: str, claimed: Entry) -> Entry | None:
        """An entry to which the service gave an id for a request that was not the claimed one."""
        return await self._first(_ENTRIES.where(_given_for_another(generations, task_id, claimed)))

    async def entries(
        self,
        *,
        states: Sequence[State] = (),
        since: datetime | None = None,
        flow_run_id: str | None = None,
        limit: int | None = None,
        tell: Callable[[LedgerDamaged], None] | None = None,
    ) -> list[Entry]:
        """Entries, the newest first, filtered by whatever is given.

        Args:
            states: Only those in one of these.
            since: Only those that are newer.
            flow_run_id: Only those of this flow run.
            limit: At most so many.
            tell: Is told of each row that is damaged, also where its state is none, in place of
                an error.
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

    async def of_keys(self, keys: Sequence[str]) -> dict[str, Entry]:
        """The entries of those keys that have one."""
        found: dict[str, Entry] = {}
        for start in range(0, len(keys), MANY):
            some = _ENTRIES.where(_table.key.in_(keys[start : start + MANY]))
            found |= {entry.key: entry for entry in await self._rows(some)}
        return found

    async def known_ids(self, task_ids: Sequence[str]) -> set[tuple[str, str]]:
        """Return those of some ids that it knows, each with the base URL of its service."""
        found: set[tuple[str, str]] = set()
        for start in range(0, len(task_ids), MANY):
            some = _table.task_id.in_(task_ids[start : start + MANY])
            rows = await self.database.rows(select(_table.task_id, _table.base_url).where(some))
            found |= {(row["task_id"], row["base_url"]) for row in rows}
        return found

    async def durations(self, kind: Kind, limit: int) -> list[tuple[float, int]]:
        """Seconds until the end was seen, and polls, of generations of a kind that succeeded.

        The newest submission comes first.
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
        """Return what was, or may have been, bought under all keys that begin with a prefix.

        Args:
            prefix: What the keys begin with; ``batch_prefix`` gives that of a batch.
            prices: Prices by model, for submissions whose cost was not recorded.
        """
        (row,) = await self.database.rows(total_spent(prefix, prices))
        return Spent.model_validate(dict(row))

    async def held_by_run(self, run: str) -> list[Entry]:
        """Entries on which a run holds a lease, in whichever process."""
        names = _table.holder.contains(f"|{run}", autoescape=True)
        return await self._rows(_ENTRIES.where(names))

    # Buying

    async def add(
        self,
        intent: Intent,
        state: State,
        claim: str,
        *,
        budget: Budget | None = None,
        **values: Any,
    ) -> Entry | None:
        """A new entry, or None where the key has one already that is not of this claim.

        Raises:
            BudgetExceeded: It would pass the limits of the budget.
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
            "serial": last_serial + 1,
            **self._leased_to(values.pop("holder", None)),
            **values,
        }
        row = as_columns(wanted)
        within = is_within(budget, intent.key, row) if budget else None
        statement = self._insert(row, within).returning(generations, LEASE_LEFT)
        added = await self._one(statement, budget)
        if added:
            return added
        there = await self.get(intent.key)  # its own, where the answer to the insert was lost
        if there is None and budget:
            await self._check_budget(budget, intent.key, row)
        return there if there and there.claim == claim and there.state is state else None

    def _insert(
        self,
        rows: dict[str, Any] | list[dict[str, Any]],
        where: ColumnElement[bool] | None = None,
    ) -> Any:
        """Return the statement that adds rows whose keys have none, or one row where that holds."""
        dialect = postgresql if self.database.is_shared else sqlite
        statement = dialect.insert(generations)
        if where is None or isinstance(rows, list):
            return statement.values(rows).on_conflict_do_nothing()
        return statement.from_select([*rows], _selected(rows).where(where)).on_conflict_do_nothing()

    async def restore(
        self, entry: Entry, warn: Callable[[str], None] = _logger.warning
    ) -> Entry | None:
        """Write an entry again that a run has in hand and the ledger has lost.

        A standby that took over too early, an older copy that was put in place, or a person may
        have lost it. The key may stand for another purchase by now: then the entry replaces a row
        that is older or free, or is written under a key of its own, so that no purchase is lost.

        Args:
            entry: As the run last read it.
            warn: Told in words what was lost.

        Returns:
            The entry as it is recorded now, under whichever key; None where it was not lost.
        """
        if restored := (await self.insert([entry]) or [None])[0]:
            warn(
                f"The ledger at {self.database.place} had lost the row of key "
                f"{scrub(entry.key)!r} (id {entry.task_id or 'not known'}), and the run that works "
                "on it wrote it again; an older copy of the ledger may have been put in its place"
            )
            return restored
        there = await self.get(entry.key)
        if there is None or not is_another_purchase(there, entry):
            return None
        if entry.task_id and (known := await self.find(entry.task_id, entry.base_url)):
            return known
        if is_outdated(there, entry) and (replaced := await self._replace(there, entry)):
            warn(
                f"the ledger had forgotten that key {scrub(entry.key)!r} was being bought; its id "
                f"is {entry.task_id or 'not known'}"
            )
            return replaced
        name = f"{entry.key}+{entry.task_id or entry.claim[:8]}"
        beside = await self.insert([entry.model_copy(update={"key": name})])
        attempt = entry.task_id or "the attempt without an answer"
        warn(f"key {scrub(entry.key)!r} was submitted twice; {attempt} is recorded as {name}")
        return beside[0] if beside else await self.get(name)

    async def insert(self, entries: Sequence[Entry]) -> list[Entry]:
        """Write whole entries where the ledger does not have their keys; return those."""
        written: list[Entry] = []
        for start in range(0, len(entries), MANY):
            rows = [as_columns(self._row(entry)) for entry in entries[start : start + MANY]]
            statement = self._insert(rows).returning(generations, LEASE_LEFT)
            asked, found = await self.database.asked(statement)
            for entry in self._read(found):
                self._see(entry, asked)
                written.append(entry)
        return written

    async def _replace(self, there: Entry, entry: Entry) -> Entry | None:
        """Return an entry in place of an outdated row of its key, or None if that has changed."""
        row = self._row(entry) | {
            "attempts": max(entry.attempts, there.attempts + 1),
            "charges": max(entry.charges, there.charges + 1),
            "serial": last_serial + 1,
        }
        return await self._update([_table.key == entry.key, *_unchanged_since(there)], row)

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
        """The entry in a new state, or None where its present state does not allow it.

        Args:
            key: Which entry.
            state: The new state.
            seen: The entry that the decision is based on; it must not have changed since.
            of: The entry as claimed, whose claim must still own the submission; a ``task_id`` among
                the values must not be one that the service gave for another request.
            bought: The task id that the entry must have, or gets where it has none.
            bought_by: The claim that got this id: an entry without an id that was claimed anew
                since belongs to another purchase.
            budget: Limits that the entry must keep to with all columns that cost money.
            values: Columns that change with it; ``holder`` gets a lease, None ends it.

        Raises:
            BudgetExceeded: It would pass the limits of the budget.
        """
        allowed = [str(before) for before in MAY_FOLLOW[state]]
        where = [_table.key == key, _table.state.in_(allowed)]
        where += _unchanged_since(seen) if seen else []
        if of:
            where.append(_table.claim == of.claim)
        if of and (task_id := values.get("task_id")):
            where.append(~exists().where(_given_for_another(generations.alias(), task_id, of)))
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
        there = await self.get(key)  # as it should be, where the answer to the update was lost
        if budget and seen and there and (there.claim, there.state) == (seen.claim, seen.state):
            await self._check_budget(budget, key, changes)
        is_so = there and there.state is state and there.claim == values.get("claim")
        return there if is_so else None

    # Ids that were given by hand

    async def confirm(self, key: str, task_id: str) -> Entry | None:
        """Record that the service knows the id of an entry."""
        same = [_table.key == key, _table.task_id == task_id]
        return await self._update(same, {"task_id_checked": True})

    async def withdraw_id(self, entry: Entry) -> Entry | None:
        """Make an entry uncertain again, without its id, where nobody has confirmed that since."""
        changes = {"state": str(State.UNCERTAIN), "task_id": None, "task_id_checked": True}
        changes |= {"changed_at": datetime.now(UTC), "holder": None, "leased_until": None}
        changes["note"] = f"the id {entry.task_id} was not confirmed, and withdrawn by hand"
        return await self._update(_unconfirmed(entry), changes)

    async def forget(self, entry: Entry) -> None:
        """Delete an entry that is nothing but an id that the service never knew.

        Its number is not given again, or the ledger would look like an older copy of itself.
        """
        await self.history.skip_to(entry.serial or 0)
        only_an_id = [_table.attempts == 0, _table.fingerprint.is_(None)]
        gone = delete(generations).where(*_unconfirmed(entry), *only_an_id)
        await self.database.rows(gone.returning(_table.key))

    # Working on it

    async def take(self, key: str, holder: str) -> Entry | None:
        """The entry, leased to a holder; None where another one that is not gone works on it."""
        free = or_(_table.holder.is_(None), _table.holder == holder)
        taken = await self._update([_table.key == key, free], self._leased_to(holder))
        if taken:
            return taken
        entry = await self.get(key)
        if entry is None or entry.holder is None or await self.is_living(entry):
            return None
        left = [_table.key == key, _table.holder == entry.holder, _lease_of(entry)]
        return await self._update(left, self._leased_to(holder))

    async def let_go(self, key: str, holder: str, note: str | None = None) -> Entry | None:
        """End a lease, so that whoever comes next need not wait for it to lapse.

        Returns:
            The entry, or None where the holder has no lease on it.
        """
        changes: dict[str, Any] = {"holder": None, "leased_until": None}
        if note is not None:
            changes["note"] = note
        return await self._update([_table.key == key, _table.holder == holder], changes)

    async def finished(self, submission: Submission, finished: Finished) -> Entry | None:
        """Record that it succeeded upstream."""
        return await self.change(
            submission.key,
            State.SUCCEEDED,
            bought=submission.task_id,
            bought_by=submission.claim,
            submitted_at=submission.submitted_at,  # again, where it could not be recorded then
            finished_at=submission.submitted_at + timedelta(seconds=finished.waited),
            polls=finished.polls,
            outputs=[str(output) for output in finished.generation.outputs],
            failure_code="",
            note="",
        )

    async def failed(self, submission: Submission, error: GenerationError) -> Entry | None:
        """Record that upstream gave it up, or that somebody cancelled it there."""
        return await self.change(
            submission.key,
            State.CANCELLED if isinstance(error, GenerationCancelled) else State.FAILED,
            bought=submission.task_id,
            bought_by=submission.claim,
            finished_at=datetime.now(UTC),
            failure_code=error.code,
            note=error.what,
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
        """Record that its videos are in a storage, beside others that have them; the work ends.

        Args:
            entry: As last read.
            task_id: Its id.
            place: The storage.
            videos: What is stored there.
            price: Price of its model; one of a second is applied to the length that is known now.
        """
        delivered = {**entry.videos, place: tuple(videos)}
        billed = entry.billed_seconds or sum(video.duration for video in videos)
        is_estimate = price and price.per_second and entry.billed_seconds is None
        costs: dict[str, Any] = (
            {"cost": round(price.of(billed), 6)} if price and is_estimate else {}
        )
        return await self.change(
            entry.key,
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

    # Who is at work

    async def is_living(self, entry: Entry) -> bool:
        """Whether somebody works on it.

        A lease that lapsed while its process lives, or is far longer than any, tells that a clock
        was set or the machine slept; half a lease later it is renewed, or nobody works there.
        """
        if entry.holder is None or entry.lease_left is None:
            return False
        if holders.process_of(entry.holder) == holders.process_of(holders.holder_name("")):
            workers = holders.workers_of(entry.key, entry.holder)
            return any(one.is_running for one in workers) or bool(workers and entry.lease_left > 0)
        if holders.is_certainly_gone(entry.holder):
            return False
        if 0 <= entry.lease_left <= 2 * self.lease:
            return True
        if entry.lease_left < 0 and not holders.is_certainly_there(entry.holder):
            return False
        await asyncio.sleep(self.lease / 2)
        later = await self.get(entry.key)
        return later is not None and later.leased_until not in {None, entry.leased_until}

    async def _first(self, query: Select[Any]) -> Entry | None:
        found = await self._rows(query.limit(1))
        return found[0] if found else None

    async def _rows(
        self, statement: Any, tell: Callable[[LedgerDamaged], None] | None = None
    ) -> list[Entry]:
        return self._read(await self.database.rows(statement), tell)

    def _read(
        self, rows: Sequence[Any], tell: Callable[[LedgerDamaged], None] | None = None
    ) -> list[Entry]:
        return read_entries(rows, self.database.place, tell)

    async def _check_budget(self, budget: Budget, key: str, row: Mapping[str, Any]) -> None:
        """See that a row of these values would keep to a budget, as it is now.

        Raises:
            BudgetExceeded: It would not.
        """
        left_out = total_spent(budget.prefix, budget.prices, without=key)
        (found,) = await self.database.rows(left_out)
        if why := budget.objection(Spent.model_validate(dict(found)), *budget.cost_of(row)):
            raise BudgetExceeded(why).about(key=key)

    async def _one(self, statement: Any, budget: Budget | None = None) -> Entry | None:
        """The entry that a statement about one key gives, which may have to keep to a budget."""
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


def _given_for_another(table: FromClause, task_id: str, claimed: Entry) -> ColumnElement[bool]:
    """Unequal to none is unknown, so an id that was adopted without its request may be ours."""
    same = and_(table.c.task_id == task_id, table.c.base_url == claimed.base_url)
    other = and_(table.c.key != claimed.key, table.c.fingerprint != claimed.fingerprint)
    return and_(same, other)


def _unconfirmed(entry: Entry) -> list[ColumnElement[bool]]:
    """Conditions under which an entry still has the id that the service has not confirmed."""
    bought = _table.state.in_([str(State.SUBMITTED), str(State.ABANDONED)])
    same = [_table.key == entry.key, _table.claim == entry.claim, bought]
    return [*same, _table.task_id == entry.task_id, _table.task_id_checked.is_(False)]


def _unchanged_since(seen: Entry) -> list[ColumnElement[bool]]:
    """Return the conditions that an entry is still as it was when a decision was made."""
    where = [_table.state == str(seen.state), _table.claim == seen.claim]
    if not seen.task_id_checked:  # an id that was confirmed since is not replaced
        where.append(_table.task_id_checked.is_(False))
    if seen.state is State.INTENDED:  # a lease that was renewed since is held
        where.append(_lease_of(seen))
    return where


def _lease_of(entry: Entry) -> ColumnElement[bool]:
    return _table.leased_until.is_not_distinct_from(entry.leased_until)


def _selected(row: Mapping[str, Any]) -> Select[Any]:
    return select(
        *[
            value if isinstance(value, ColumnElement) else literal(value, generations.c[name].type)
            for name, value in row.items()
        ]
    )


_ledgers: dict[tuple[int, str], Ledger] = {}


def ledger_at(url: str) -> Ledger:
    """The ledger at a URL; one for the whole process.

    Raises:
        LedgerUnavailable: The URL names no database that can be a ledger.
    """
    checked = ledger_url(url)
    return _ledgers.setdefault((os.getpid(), checked), Ledger(checked))
