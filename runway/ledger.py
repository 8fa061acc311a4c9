# SPDX-License-Identifier: Apache-2.0
"""The ledger: one SQL table that knows every generation that was or may have been bought.

It is the truth; Prefect's results are only a fast path beside it. Each change is one statement
that names the states it may follow, so two processes that change one generation at once do not
overwrite each other, and a change that was made twice because its answer was lost is the same
change. Whoever works on a generation holds a lease on it, which is renewed while the work goes on.
"""

import asyncio
import os
import threading
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from pydantic import ValidationError
from sqlalchemy import ColumnElement, and_, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite

from . import holders
from .background import in_background
from .database import PATIENCE, RESTORE, Database, ledger_url
from .entries import MAY_FOLLOW, Entry, Intent, Kind, State
from .errors import GenerationCancelled, GenerationError, LedgerUnavailable
from .generation import Finished, StoredVideo, Submission
from .redact import scrub
from .schema import database_time, generations

LEASE = 60.0
"""Seconds after which a holder that renews no more counts as gone; it renews four times in it."""

_MANY = 500
"""Values in one statement; databases limit them."""

_table = generations.c
_NOW = database_time()
_LEASE_LEFT = (_table.leased_until - _NOW).label("lease_left")
_ENTRIES = select(generations, _LEASE_LEFT)


@dataclass
class _Hold:
    """What a ledger knows of a key: how many blocks hold it, and the entry as last seen."""

    blocks: Counter[str] = field(default_factory=Counter[str])
    entry: Entry | None = None


class Ledger:
    """The generations in one database, for any event loop of this process.

    Every method may raise ``LedgerUnavailable``.

    Args:
        url: SQLAlchemy URL of a SQLite file (absolute path) or a PostgreSQL database.
        lease: Seconds after which a holder that does not renew counts as gone.
        patience: Seconds for which a database that is locked or out of reach is waited for.
    """

    def __init__(self, url: str, *, lease: float = LEASE, patience: float = PATIENCE) -> None:
        self.database = Database(url, patience=patience)
        self.lease = lease
        self._held: defaultdict[str, _Hold] = defaultdict(_Hold)
        self._counting = threading.Lock()
        self._renewing = False

    # Looking

    async def get(self, key: str) -> Entry | None:
        """The entry of a key."""
        return await self._one(_ENTRIES.where(_table.key == key))

    async def find(self, task_id: str, base_url: str) -> Entry | None:
        """The first entry of an id that the service at a base URL gave."""
        same = and_(_table.task_id == task_id, _table.base_url == base_url)
        found = await self._rows(_ENTRIES.where(same).order_by(_table.created_at).limit(1))
        return found[0] if found else None

    async def entries(
        self,
        *,
        states: Sequence[State] = (),
        since: datetime | None = None,
        flow_run_id: str | None = None,
        limit: int | None = None,
    ) -> list[Entry]:
        """Entries, the newest first, filtered by whatever is given."""
        query = _ENTRIES.order_by(_table.created_at.desc()).limit(limit)
        if states:
            query = query.where(_table.state.in_([str(state) for state in states]))
        if since:
            query = query.where(_table.created_at >= since)
        if flow_run_id:
            query = query.where(_table.flow_run_id == flow_run_id)
        return await self._rows(query)

    async def of_keys(self, keys: Sequence[str]) -> dict[str, Entry]:
        """The entries of those keys that have one."""
        found: dict[str, Entry] = {}
        for start in range(0, len(keys), _MANY):
            some = _ENTRIES.where(_table.key.in_(keys[start : start + _MANY]))
            found |= {entry.key: entry for entry in await self._rows(some)}
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
        ]

    async def held_by_run(self, run: str) -> list[Entry]:
        """Entries on which a run holds a lease, in whichever process."""
        names = _table.holder.contains(f"|{run}", autoescape=True)
        return await self._rows(_ENTRIES.where(names))

    # Buying

    async def add(self, intent: Intent, state: State, claim: str, **values: Any) -> Entry | None:
        """A new entry, or None where the key has one already that is not of this claim."""
        now = datetime.now(UTC)
        row = {
            **_columns(intent.wanted()),
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
            **self._leased_to(values.pop("holder", None)),
            **_columns(values),
        }
        dialect = postgresql if self.database.is_shared else sqlite
        statement = dialect.insert(generations).values(row).on_conflict_do_nothing()
        added = await self._one(statement.returning(generations, _LEASE_LEFT))
        if added:
            return added
        there = await self.get(intent.key)  # its own, where the answer to the insert was lost
        return there if there and there.claim == claim and there.state is state else None

    async def change(
        self,
        key: str,
        state: State,
        *,
        seen: Entry | None = None,
        of: str | None = None,
        bought: str | None = None,
        **values: Any,
    ) -> Entry | None:
        """The entry in a new state, or None where its present state does not allow it.

        Args:
            key: Which entry.
            state: The new state.
            seen: The entry that the decision is based on; it must not have changed since.
            of: The claim that must still own the submission.
            bought: The task id that the entry must have, or gets where it has none.
            values: Columns that change with it; ``holder`` gets a lease, None ends it.
        """
        allowed = [str(before) for before in MAY_FOLLOW[state]]
        where = [_table.key == key, _table.state.in_(allowed)]
        if seen:
            where += [_table.state == str(seen.state), _table.claim == seen.claim]
        if of:
            where.append(_table.claim == of)
        if bought:
            where.append(or_(_table.task_id == bought, _table.task_id.is_(None)))
            values["task_id"] = bought
        changes = dict(_columns(values), state=str(state), changed_at=datetime.now(UTC))
        if "holder" in changes:
            changes |= self._leased_to(changes["holder"])
        changed = await self._update(where, changes)
        if changed:
            return changed
        there = await self.get(key)  # as it should be, where the answer to the update was lost
        is_so = there and there.state is state and there.claim == values.get("claim")
        return there if is_so else None

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
        until = _table.leased_until.is_not_distinct_from(entry.leased_until)
        left = [_table.key == key, _table.holder == entry.holder, until]
        return await self._update(left, self._leased_to(holder))

    async def let_go(self, key: str, holder: str, note: str | None = None) -> None:
        """End a lease, so that whoever comes next need not wait for it to lapse."""
        changes: dict[str, Any] = {"holder": None, "leased_until": None}
        if note is not None:
            changes["note"] = note
        await self._update([_table.key == key, _table.holder == holder], _columns(changes))

    async def finished(self, submission: Submission, finished: Finished) -> Entry | None:
        """Record that it succeeded upstream."""
        return await self.change(
            submission.key,
            State.SUCCEEDED,
            bought=submission.task_id,
            submitted_at=submission.submitted_at,  # again, where it could not be recorded then
            finished_at=submission.submitted_at + timedelta(seconds=finished.waited),
            polls=finished.polls,
            outputs=[str(output) for output in finished.generation.outputs],
            note="",
        )

    async def failed(self, key: str, task_id: str, error: GenerationError) -> Entry | None:
        """Record that upstream gave it up, or that somebody cancelled it there."""
        return await self.change(
            key,
            State.CANCELLED if isinstance(error, GenerationCancelled) else State.FAILED,
            bought=task_id,
            finished_at=datetime.now(UTC),
            failure_code=error.code,
            note=error.what,
        )

    async def stored(
        self, entry: Entry, task_id: str, place: str, videos: Sequence[StoredVideo]
    ) -> Entry | None:
        """Record that its videos are in a storage, beside others that have them; the work ends."""
        delivered = {**entry.videos, place: tuple(videos)}
        billed = entry.billed_seconds or sum(video.duration for video in videos)
        return await self.change(
            entry.key,
            State.STORED,
            bought=task_id,
            stored_at=datetime.now(UTC),
            videos={
                where: [video.model_dump(mode="json") for video in kept]
                for where, kept in delivered.items()
            },
            billed_seconds=round(billed, 3),
            holder=None,
            note="",
        )

    # Who is at work

    @contextmanager
    def holding(self, key: str, holder: str) -> Iterator[None]:
        """Renew a holder's lease of a key while the block runs."""
        with self._counting:
            self._held[key].blocks[holder] += 1
            begins, self._renewing = not self._renewing, True
        if begins:
            in_background(self._renew_until_nothing_is_held())
        try:
            with holders.at_work(key, holder):
                yield
        finally:
            with self._counting:
                hold = self._held[key]
                hold.blocks[holder] -= 1
                if not hold.blocks.total():
                    del self._held[key]

    def times_held_here(self, key: str, holder: str | None) -> int:
        """How many blocks of this process hold a key under this name just now."""
        hold = self._held.get(key)
        return hold.blocks[holder or ""] if hold else 0

    def last_seen(self, key: str) -> Entry | None:
        """The entry of a key that this process holds, as it was when it was last read or changed.

        While a lease is held nobody else works on it, so the steps of one run need not look again.
        """
        hold = self._held.get(key)
        return hold.entry if hold else None

    async def is_living(self, entry: Entry) -> bool:
        """Whether somebody works on it.

        A lease that lapsed while its process lives, or is far longer than any, tells that a clock
        was set or the machine slept; half a lease later it is renewed, or nobody works there.
        """
        if entry.holder is None or entry.lease_left is None:
            return False
        if holders.process_of(entry.holder) == holders.process_of(holders.holder_name("")):
            return holders.is_at_work(entry.key, entry.holder)
        if holders.is_certainly_gone(entry.holder):
            return False
        if 0 <= entry.lease_left <= 2 * self.lease:
            return True
        if entry.lease_left < 0 and not holders.is_certainly_there(entry.holder):
            return False
        await asyncio.sleep(self.lease / 2)
        later = await self.get(entry.key)
        return later is not None and later.leased_until not in {None, entry.leased_until}

    async def _renew_until_nothing_is_held(self) -> None:
        try:
            while self._something_is_held():
                with suppress(LedgerUnavailable):  # if it lasts the leases lapse, which is safe
                    await asyncio.sleep(self.lease / 4)
                    await self._renew()
        except BaseException:
            self._renewing = False  # the next block begins anew
            raise

    def _something_is_held(self) -> bool:
        with self._counting:
            self._renewing = bool(self._held)
            return self._renewing

    async def _renew(self) -> None:
        held = sorted({who for hold in list(self._held.values()) for who in +hold.blocks})
        changes = {"leased_until": _NOW + self.lease}
        for start in range(0, len(held), _MANY):
            some = _table.holder.in_(held[start : start + _MANY])
            await self.database.execute(update(generations).where(some).values(changes))

    def _leased_to(self, holder: str | None) -> dict[str, Any]:
        until = _NOW + self.lease if holder else None
        return {**_columns({"holder": holder}), "leased_until": until}

    async def _rows(self, statement: Any) -> list[Entry]:
        return [self._entry(dict(row)) for row in await self.database.rows(statement)]

    def _entry(self, row: dict[str, Any]) -> Entry:
        """A row as it is read; what cannot be read might be bought, so nothing goes on without."""
        try:
            return Entry.model_validate(row)
        except ValidationError as error:
            wrong = ", ".join(sorted({str(problem["loc"][0]) for problem in error.errors()}))
            where = f"in the ledger at {self.database.place} the row of key {scrub(row['key'])!r}"
            raise LedgerUnavailable(f"{where} is damaged: {wrong}{RESTORE}") from None

    async def _one(self, statement: Any) -> Entry | None:
        """The entry that a statement about one key gives."""
        found = await self._rows(statement)
        if not found:
            return None
        if hold := self._held.get(found[0].key):
            hold.entry = found[0]
        return found[0]

    async def _update(
        self, where: Sequence[ColumnElement[bool]], changes: dict[str, Any]
    ) -> Entry | None:
        statement = update(generations).where(*where).values(changes)
        return await self._one(statement.returning(generations, _LEASE_LEFT))


def _columns(values: dict[str, Any]) -> dict[str, Any]:
    """Values as columns take them: text that every database can hold."""
    return {
        name: value.encode("utf-8", "replace").decode().replace("\0", "")
        if isinstance(value, str)
        else value
        for name, value in values.items()
    }


_ledgers: dict[tuple[int, str], Ledger] = {}


def ledger_at(url: str) -> Ledger:
    """The ledger at a URL; one for the whole process.

    Raises:
        LedgerUnavailable: The URL names no database that can be a ledger.
    """
    checked = ledger_url(url)
    return _ledgers.setdefault((os.getpid(), checked), Ledger(checked))
