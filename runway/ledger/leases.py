# SPDX-License-Identifier: Apache-2.0
"""Leases that this process holds in a ledger: renewal and local expiry.

A lease is the time-limited right to work on a generation. Its owner renews it while the work
continues.
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

from ..errors import LedgerUnavailable
from . import owners
from .clock import Moment
from .database import Database
from .entry import Entry, is_another_purchase
from .loop_thread import in_background
from .owners import Worker
from .schema import database_time, generations

LEASE = 60.0
"""Seconds after which an owner that stops renewing counts as gone; renewals run every quarter."""

MAX_BIND_VALUES = 500
"""Maximum number of values in one statement; databases limit it."""

NOW = database_time()
LEASE_LEFT = (generations.c.leased_until - NOW).label("lease_left")


@dataclass
class _Hold:
    """State of a key in this process.

    Attributes:
        blocks: Workers that run a block with a lease on the key, by owner.
        lapses: Time at which each owner's lease expires, as known here.
        entry: Entry of the key as last read.
    """

    blocks: defaultdict[str, list[Worker]] = field(default_factory=lambda: defaultdict(list))
    lapses: dict[str, Moment] = field(default_factory=dict[str, Moment])
    entry: Entry | None = None

    def has_in_hand_besides(self, entry: Entry) -> bool:
        """Return True if a block works on another purchase than the given entry of the key."""
        if self.entry is None or not is_another_purchase(entry, self.entry):
            return False
        in_hand, theirs = self.entry.holder or "", entry.holder or ""
        return bool(self.blocks.get(in_hand)) and not self.blocks.get(theirs)

    def see_lease(self, holder: str | None, left: float | None, asked: Moment) -> None:
        """Record when an owner's lease expires, if the owner runs a block here.

        Args:
            holder: Owner of the lease.
            left: Seconds that were left of the lease at that time.
            asked: Time at which the query started.
        """
        if holder and left is not None and self.blocks.get(holder):
            self.lapses[holder] = asked.later(left)


class Leases(ABC):
    """Leases that this process holds in one database.

    Args:
        database: Database of the leases.
        lease: Seconds after which an owner that does not renew counts as gone.
    """

    def __init__(self, database: Database, lease: float) -> None:
        self.database = database
        self.lease = lease
        self._held: defaultdict[str, _Hold] = defaultdict(_Hold)
        self._counting = threading.Lock()
        self._renewing = False
        _all_leases.add(self)

    def forget_all(self) -> None:
        """Forget the leases of the parent process, in a forked child, which owns none of them."""
        self._counting = threading.Lock()
        self._held = defaultdict(_Hold)
        self._renewing = False

    @contextmanager
    def holding(self, key: str, holder: str) -> Iterator[None]:
        """Renew an owner's lease on a key while the block runs."""
        with owners.register_owner(key, holder) as worker:
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
            if hold is None:  # a child that was forked inside the block
                return
            hold.blocks[holder] = [one for one in hold.blocks[holder] if one is not worker]
            if not any(hold.blocks.values()):
                del self._held[key]

    def hold_count(self, key: str, holder: str | None) -> int:
        """Return the number of running blocks of this process that hold a key for this owner."""
        with self._counting:
            hold = self._held.get(key)
            there = hold.blocks.get(holder or "", ()) if hold else ()
            return sum(1 for worker in there if worker.is_running)

    def holders_here(self) -> list[str]:
        """Return the owners for which this process is running a block, sorted."""
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
        """Return the entry of a key that this process holds, as last read or changed, or None.

        While the lease is held, no other run changes the entry. So the steps of one run need not
        read it again.
        """
        hold = self._held.get(key)
        return hold.entry if hold else None

    def lease_is_valid(self, key: str, holder: str) -> bool:
        """Return True if the owner's lease has certainly not expired, by the clocks here.

        After a suspension of the process or of its machine, other runs may have seen the lease
        expire. Then this returns False.
        """
        hold = self._held.get(key)
        lapses = hold.lapses.get(holder) if hold else None
        return lapses is not None and not lapses.has_passed()

    def _leased_to(self, holder: str | None) -> dict[str, Any]:
        """Return the columns of a lease that starts now, or of no lease if there is no owner."""
        return {"holder": holder, "leased_until": NOW + self.lease if holder else None}

    def _see(self, entry: Entry, asked: Moment) -> None:
        """Remember an entry that a query returned; the query started at ``asked``."""
        if hold := self._held.get(entry.idempotency_key):
            if not hold.has_in_hand_besides(entry):
                hold.entry = entry
            hold.see_lease(entry.holder, entry.lease_left, asked)

    async def _renew_until_nothing_is_held(self) -> None:
        try:
            while self._something_is_held():
                with suppress(LedgerUnavailable):  # if this lasts, the leases expire, which is safe
                    await asyncio.sleep(self.lease / 4)
                    await self._renew()
        except BaseException:
            self._renewing = False  # so that the next block starts the renewal again
            raise

    def _something_is_held(self) -> bool:
        with self._counting:
            for key, hold in list(self._held.items()):
                if not any(
                    worker.is_running or worker.is_stopped
                    for workers in hold.blocks.values()
                    for worker in workers
                ):
                    del self._held[key]  # its event loop was closed inside the block
            self._renewing = bool(self._held)
            return self._renewing

    async def _renew(self) -> None:
        held = self.holders_here()
        before = self._entries_held(held)
        renewed: set[str] = set()
        for start in range(0, len(held), MAX_BIND_VALUES):
            some = generations.c.holder.in_(held[start : start + MAX_BIND_VALUES])
            # Locked rows are skipped, so that one of them does not block all other renewals.
            free = (
                select(generations.c.idempotency_key).where(some).with_for_update(skip_locked=True)
            )
            ours = and_(some, generations.c.idempotency_key.in_(free))
            renewal = update(generations).where(ours).values(leased_until=NOW + self.lease)
            asked = Moment.now()
            returned = renewal.returning(
                generations.c.idempotency_key, generations.c.holder, LEASE_LEFT
            )
            for row in await self.database.execute(returned):
                renewed.add(row["idempotency_key"])
                if hold := self._held.get(row["idempotency_key"]):
                    hold.see_lease(row["holder"], row["lease_left"], asked)
        await self._restore_lost(
            [entry for entry in before if entry.idempotency_key not in renewed]
        )

    def _entries_held(self, holders_here: Sequence[str]) -> list[Entry]:
        """Return the entries, as last read, on which one of these owners has a lease."""
        with self._counting:
            entries = [hold.entry for hold in self._held.values()]
        names = set(holders_here)
        return [entry for entry in entries if entry and entry.holder in names]

    async def _restore_lost(self, missing: Sequence[Entry]) -> None:
        """Restore entries that a run works on and the ledger has lost.

        Another run may have bought the key in the meantime. Then the entry is written under another
        key.
        """
        for start in range(0, len(missing), MAX_BIND_VALUES):
            some = missing[start : start + MAX_BIND_VALUES]
            there = select(generations.c.idempotency_key, generations.c.task_id).where(
                generations.c.idempotency_key.in_([entry.idempotency_key for entry in some])
            )
            known = {
                row["idempotency_key"]: row["task_id"] for row in await self.database.execute(there)
            }
            for entry in some:
                hold = self._held.get(entry.idempotency_key)
                still_held = hold is not None and hold.entry is entry
                is_known = (
                    entry.idempotency_key in known and known[entry.idempotency_key] == entry.task_id
                )
                if still_held and not is_known:
                    await self.restore(entry)

    @abstractmethod
    async def restore(self, entry: Entry) -> Entry | None:
        """Write a lost entry to the ledger again; return None if the entry is not lost."""
        ...


_all_leases: weakref.WeakSet[Leases] = weakref.WeakSet()


def _forget_leases() -> None:
    for leases in list(_all_leases):
        leases.forget_all()


with suppress(AttributeError):  # Windows does not fork
    os.register_at_fork(after_in_child=_forget_leases)
