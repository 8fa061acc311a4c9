# SPDX-License-Identifier: Apache-2.0
"""Leases that this process holds: who works on which key, until when, and the entry as last read.

This is the memory of one process about one ledger. Nothing here asks the database.
"""

import os
import threading
import weakref
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass, field

from .clock import Instant
from .entry import Entry, is_another_purchase
from .owners import Worker


@dataclass
class HeldLease:
    """State of a key in this process.

    Attributes:
        workers: Workers that run a block with a lease on the key, by owner.
        expires_at: Time at which each owner's lease expires, as known here.
        entry: Entry of the key as last read.
    """

    workers: defaultdict[str, list[Worker]] = field(default_factory=lambda: defaultdict(list))
    expires_at: dict[str, Instant] = field(default_factory=dict[str, Instant])
    entry: Entry | None = None

    def works_on_another(self, entry: Entry) -> bool:
        """Return True if a block works on another purchase than the given entry of the key."""
        if self.entry is None or not is_another_purchase(entry, self.entry):
            return False
        return bool(self.workers.get(self.entry.owner or "")) and not self.workers.get(
            entry.owner or ""
        )

    def observe_lease(self, owner: str | None, left: float | None, started: Instant) -> None:
        """Record when an owner's lease expires, if the owner runs a block here.

        Args:
            owner: Owner of the lease.
            left: Seconds that were left of the lease when the query ran.
            started: Time at which the query started.
        """
        if owner and left is not None and self.workers.get(owner):
            self.expires_at[owner] = started.later(left)


class HeldLeases:
    """Leases that this process holds in one ledger."""

    def __init__(self) -> None:
        self._held: defaultdict[str, HeldLease] = defaultdict(HeldLease)
        self._lock = threading.Lock()
        self._renewing = False
        _all_held.add(self)

    def forget(self) -> None:
        """Forget the leases of the parent process, in a forked child, which owns none of them."""
        self._lock = threading.Lock()
        self._held = defaultdict(HeldLease)
        self._renewing = False

    def enter(self, key: str, owner: str, worker: Worker) -> bool:
        """Record that a block begins, and return True if the caller must start the renewals."""
        with self._lock:
            self._held[key].workers[owner].append(worker)
            must_start, self._renewing = not self._renewing, True
        return must_start

    def leave(self, key: str, owner: str, worker: Worker) -> None:
        """Record that a block has ended."""
        with self._lock:
            held = self._held.get(key)
            if held is None:  # a child that was forked inside the block
                return
            held.workers[owner] = [one for one in held.workers[owner] if one is not worker]
            if not any(held.workers.values()):
                del self._held[key]

    def count(self, key: str, owner: str) -> int:
        """Return the number of running blocks of this process that hold a key for this owner."""
        with self._lock:
            held = self._held.get(key)
            workers = held.workers.get(owner, ()) if held else ()
            return sum(1 for worker in workers if worker.is_running)

    def owners(self) -> list[str]:
        """Return the owners for which this process is running a block, sorted."""
        with self._lock:
            return sorted(
                {
                    owner
                    for held in self._held.values()
                    for owner, workers in held.workers.items()
                    if any(worker.is_running for worker in workers)
                }
            )

    def entry(self, key: str) -> Entry | None:
        """Return the entry of a key that this process holds, as last read or changed, or None.

        While the lease is held, no other run changes the entry. So the steps of one run need not
        read it again.
        """
        held = self._held.get(key)
        return held.entry if held else None

    def entries_of(self, owners: list[str]) -> list[Entry]:
        """Return the entries, as last read, on which one of these owners has a lease."""
        with self._lock:
            entries = [held.entry for held in self._held.values()]
        names = set(owners)
        return [entry for entry in entries if entry and entry.owner in names]

    def is_valid(self, key: str, owner: str) -> bool:
        """Return True if the owner's lease has certainly not expired, by the clocks here.

        After a suspension of the process or of its machine, other runs may have seen the lease
        expire. Then this returns False.
        """
        held = self._held.get(key)
        expires_at = held.expires_at.get(owner) if held else None
        return expires_at is not None and not expires_at.has_passed()

    def observe(self, entry: Entry, started: Instant) -> None:
        """Remember an entry that a query returned; the query began at ``started``."""
        if held := self._held.get(entry.idempotency_key):
            if not held.works_on_another(entry):
                held.entry = entry
            held.observe_lease(entry.owner, entry.lease_left, started)

    def observe_renewal(
        self, key: str, owner: str | None, left: float | None, started: Instant
    ) -> None:
        """Remember the end of a renewed lease; the renewal began at ``started``."""
        if held := self._held.get(key):
            held.observe_lease(owner, left, started)

    def needs_renewal(self) -> bool:
        """Return True if any lease must be renewed, and otherwise record that renewals end."""
        with self._lock:
            for key, held in list(self._held.items()):
                if not any(
                    worker.is_running or worker.is_stopped
                    for workers in held.workers.values()
                    for worker in workers
                ):
                    del self._held[key]  # its event loop was closed inside the block
            self._renewing = bool(self._held)
            return self._renewing

    def renewal_failed(self) -> None:
        """Record that the renewals ended with an error, so that the next block starts them."""
        self._renewing = False


_all_held: weakref.WeakSet[HeldLeases] = weakref.WeakSet()
"""Leases of all ledgers of this process, which a forked child must not renew."""


def _forget_leases() -> None:
    for held in list(_all_held):
        held.forget()


with suppress(AttributeError):  # Windows does not fork
    os.register_at_fork(after_in_child=_forget_leases)
