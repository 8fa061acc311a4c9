# SPDX-License-Identifier: Apache-2.0
"""What this process holds in a ledger, how that is kept, and until when it is sure.

Whoever works on a generation holds a lease on it, which is renewed while the work goes on.
"""

import asyncio
import os
import threading
import weakref
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import and_, select, update

from . import holders
from .background import in_background
from .database import Database
from .entries import Entry, is_another_purchase
from .errors import LedgerUnavailable
from .holders import Worker
from .moment import Moment
from .schema import database_time, generations

LEASE = 60.0
"""Seconds after which a holder that renews no more counts as gone; it renews four times in it."""

MANY = 500
"""Values in one statement; databases limit them."""

NOW = database_time()
LEASE_LEFT = (generations.c.leased_until - NOW).label("lease_left")


@dataclass
class _Hold:
    """What is known of a key here: the blocks that hold it, until when, and its entry as seen."""

    blocks: defaultdict[str, list[Worker]] = field(default_factory=lambda: defaultdict(list))
    lapses: dict[str, Moment] = field(default_factory=dict[str, Moment])
    entry: Entry | None = None

    def has_in_hand_besides(self, entry: Entry) -> bool:
        """Return whether a block works on another purchase than the one that has the key now."""
        if self.entry is None or not is_another_purchase(entry, self.entry):
            return False
        in_hand, theirs = self.entry.holder or "", entry.holder or ""
        return bool(self.blocks.get(in_hand)) and not self.blocks.get(theirs)

    def see_lease(self, holder: str | None, left: float | None, asked: Moment) -> None:
        """Note how long a holder's lease lasted at a moment, if the holder is one of these."""
        if holder and left is not None and self.blocks.get(holder):
            self.lapses[holder] = asked.later(left)


class Leases(ABC):
    """The leases that this process holds in one database.

    Args:
        database: Where they are written.
        lease: Seconds after which a holder that does not renew counts as gone.
    """

    def __init__(self, database: Database, lease: float) -> None:
        self.database = database
        self.lease = lease
        self._held: defaultdict[str, _Hold] = defaultdict(_Hold)
        self._counting = threading.Lock()
        self._renewing = False
        _all_leases.add(self)

    def forget_all(self) -> None:
        """Forget the leases of the parent, in a child that was forked: it has none of them."""
        self._counting = threading.Lock()
        self._held = defaultdict(_Hold)
        self._renewing = False

    @contextmanager
    def holding(self, key: str, holder: str) -> Iterator[None]:
        """Renew a holder's lease of a key while the block runs."""
        with holders.at_work(key, holder) as worker:
            with self._counting:
                self._held[key].blocks[holder].append(worker)
                begins, self._renewing = not self._renewing, True
            if begins:
                in_background(self._renew_until_nothing_is_held())
            try:
                yield
            finally:
                self._leave(key, holder, worker)

    def _leave(self, key: str, holder: str, worker: Worker) -> None:
        with self._counting:
            hold = self._held.get(key)
            if hold is None:  # this is a child that was forked within the block
                return
            hold.blocks[holder] = [one for one in hold.blocks[holder] if one is not worker]
            if not any(hold.blocks.values()):
                del self._held[key]

    def times_held_here(self, key: str, holder: str | None) -> int:
        """How many blocks of this process hold a key under this name just now."""
        with self._counting:
            hold = self._held.get(key)
            there = hold.blocks.get(holder or "", ()) if hold else ()
            return sum(1 for worker in there if worker.is_running)

    def holders_here(self) -> list[str]:
        """Under which names this process holds something just now."""
        with self._counting:
            return sorted(
                {
                    holder
                    for hold in self._held.values()
                    for holder, workers in hold.blocks.items()
                    if any(worker.is_running for worker in workers)
                }
            )

    def last_seen(self, key: str) -> Entry | None:
        """The entry of a key that this process holds, as it was when it was last read or changed.

        While a lease is held nobody else works on it, so the steps of one run need not look again.
        """
        hold = self._held.get(key)
        return hold.entry if hold else None

    def is_surely_held(self, key: str, holder: str) -> bool:
        """Whether nobody can have taken this holder for gone, as far as clocks here can tell.

        A process that stood still, with a machine that slept say, cannot know that any more.
        """
        hold = self._held.get(key)
        lapses = hold.lapses.get(holder) if hold else None
        return lapses is not None and not lapses.has_passed()

    def _leased_to(self, holder: str | None) -> dict[str, Any]:
        """The columns of a lease that begins now, or of none."""
        return {"holder": holder, "leased_until": NOW + self.lease if holder else None}

    def _see(self, entry: Entry, asked: Moment) -> None:
        """Remember an entry that a question of that moment was answered with."""
        if hold := self._held.get(entry.key):
            if not hold.has_in_hand_besides(entry):
                hold.entry = entry
            hold.see_lease(entry.holder, entry.lease_left, asked)

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
            for key, hold in list(self._held.items()):
                if not any(
                    worker.is_running or worker.is_stopped
                    for workers in hold.blocks.values()
                    for worker in workers
                ):
                    del self._held[key]  # its loop was closed with the block inside
            self._renewing = bool(self._held)
            return self._renewing

    async def _renew(self) -> None:
        held = self.holders_here()
        before = self._entries_held(held)
        renewed: set[str] = set()
        for start in range(0, len(held), MANY):
            some = generations.c.holder.in_(held[start : start + MANY])
            # a row that somebody has locked keeps no other from being renewed
            free = select(generations.c.key).where(some).with_for_update(skip_locked=True)
            ours = and_(some, generations.c.key.in_(free))
            renewal = update(generations).where(ours).values(leased_until=NOW + self.lease)
            asked = Moment.now()
            returned = renewal.returning(generations.c.key, generations.c.holder, LEASE_LEFT)
            for row in await self.database.execute(returned):
                renewed.add(row["key"])
                if hold := self._held.get(row["key"]):
                    hold.see_lease(row["holder"], row["lease_left"], asked)
        await self._restore_lost([entry for entry in before if entry.key not in renewed])

    def _entries_held(self, holders_here: Sequence[str]) -> list[Entry]:
        """Return the entries, as last read, on which one of these holders has a lease."""
        with self._counting:
            entries = [hold.entry for hold in self._held.values()]
        names = set(holders_here)
        return [entry for entry in entries if entry and entry.holder in names]

    async def _restore_lost(self, missing: Sequence[Entry]) -> None:
        """Write again what a run works on and the ledger does not know any more.

        Another run may have bought the key meanwhile; then the purchase is written beside it.
        """
        for start in range(0, len(missing), MANY):
            some = missing[start : start + MANY]
            there = select(generations.c.key, generations.c.task_id).where(
                generations.c.key.in_([entry.key for entry in some])
            )
            known = {row["key"]: row["task_id"] for row in await self.database.execute(there)}
            for entry in some:
                hold = self._held.get(entry.key)
                still_held = hold is not None and hold.entry is entry
                is_known = entry.key in known and known[entry.key] == entry.task_id
                if still_held and not is_known:
                    await self.restore(entry)

    @abstractmethod
    async def restore(self, entry: Entry) -> Entry | None:
        """Write an entry again that the ledger has lost; None where it was not lost."""
        ...


_all_leases: weakref.WeakSet[Leases] = weakref.WeakSet()


def _forget_leases() -> None:
    for leases in list(_all_leases):
        leases.forget_all()


with suppress(AttributeError):  # Windows does not fork
    os.register_at_fork(after_in_child=_forget_leases)
