# SPDX-License-Identifier: Apache-2.0
"""Leases in a ledger: acquire, renew and release them, and check if their owners are active.

A lease is the time-limited right to work on a generation. Its owner renews it while the work
continues.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from enum import Enum, auto

from ..errors import CometAPIError, LedgerUnavailable
from ..processes import is_alive, is_dead
from .conditions import has_key, has_lease_of, has_owner
from .entry import Entry
from .held_leases import HeldLeases
from .loop_thread import in_background
from .owners import describe_owner, is_of_this_process, owner_name, register_owner, workers_of
from .restore import restore_entry
from .schema import GENERATIONS
from .statement import Sql
from .table import LEASE_LEFT, MAX_VALUES, EntryTable, entries_where

LEASE = 60.0
"""Seconds after which an owner that stops renewing counts as gone; renewals run every quarter."""

POLL_INTERVAL = 0.25
"""Seconds between two attempts to acquire a lease that another owner has."""

# Locked rows are skipped, so that one of them does not block all other renewals.
_RENEWAL = (
    f"UPDATE {GENERATIONS} SET leased_until = {{now}} + :lease "
    f"WHERE owner {{any:owners}} AND idempotency_key IN (SELECT idempotency_key FROM {GENERATIONS} "
    f"WHERE owner {{any:owners}}{{skip_locked}}) RETURNING idempotency_key, owner, {LEASE_LEFT}"
)


class OwnerStatus(Enum):
    """Status of the owner of an entry, as one read of the entry shows it."""

    ACTIVE = auto()
    GONE = auto()
    UNCLEAR = auto()


def owner_status(entry: Entry, lease_duration: float) -> OwnerStatus:
    """Return the status of the owner of an entry.

    Three sources are asked, and the first that knows the answer decides: the blocks of this
    process, the operating system for another process of this machine, and the lease. The status is
    unclear if the lease has expired although its process is alive, or ends much later than any
    lease can. Then a clock was set or the machine was suspended.
    """
    owner, left = entry.owner, entry.lease_left
    if owner is None or left is None:
        return OwnerStatus.GONE
    if is_of_this_process(owner):
        workers = workers_of(entry.idempotency_key, owner)
        # The loop of a stopped worker may run again, so its lease counts until it expires.
        is_active = any(one.is_running for one in workers) or bool(workers and left > 0)
        return OwnerStatus.ACTIVE if is_active else OwnerStatus.GONE
    if is_dead(owner):
        return OwnerStatus.GONE
    if 0 <= left <= 2 * lease_duration:
        return OwnerStatus.ACTIVE
    if left < 0 and not is_alive(owner):
        return OwnerStatus.GONE
    return OwnerStatus.UNCLEAR


class Leases:
    """Leases of the generations in one ledger.

    Args:
        table: Table of the ledger.
        held: Leases that this process holds in it.
    """

    def __init__(self, table: EntryTable, held: HeldLeases) -> None:
        self._table = table
        self.held = held
        self.duration = table.lease_duration

    @asynccontextmanager
    async def hold(self, key: str, run: str) -> AsyncIterator[str]:
        """Renew the lease of a generation while the block runs, and release it afterwards.

        Yields the name of the run as an owner. After a crash, the lease does not last: it expires,
        or other runs see that the process is dead. If the ledger has lost the row by the end of the
        block, the run writes it again, since no other record of the purchase exists.
        """
        owner = owner_name(run)
        with self.renewing(key, owner):
            note: str | None = None
            try:
                yield owner
            except BaseException as error:
                note = _closing_note(error)
                raise
            finally:
                last = self.held.entry(key)
                is_last_block = self.held.count(key, owner) == 1
                if is_last_block and last and last.owner == owner:
                    with suppress(LedgerUnavailable):
                        if await self.release(key, owner, note) is None:
                            released = last.model_copy(update={"owner": None})
                            await restore_entry(self._table, released)

    @asynccontextmanager
    async def hold_exclusively(
        self,
        key: str,
        run: str,
        *,
        report: Callable[[str], None] = lambda _text: None,
        is_done: Callable[[Entry], bool] = lambda entry: entry.has_ended,
    ) -> AsyncIterator[Entry | None]:
        """Acquire the lease of a generation, and hold it while the block runs.

        This waits while another run works on the generation. It stops waiting, without the lease,
        when the entry satisfies ``is_done``. Yields the entry, or None if the ledger does not have
        the key. Several blocks of one run may share the lease.

        Args:
            key: Idempotency key of the generation.
            run: Name of the run, which waiting runs see.
            report: Called with a message about the owner that this waits for.
            is_done: Returns True if an entry needs no more work by this run, even if another run
                has the lease.

        Raises:
            LedgerUnavailable: The ledger cannot be used.
        """
        async with self.hold(key, run) as owner:
            yield await self._wait_for(key, owner, report, is_done)

    async def _wait_for(
        self,
        key: str,
        owner: str,
        report: Callable[[str], None],
        is_done: Callable[[Entry], bool],
    ) -> Entry | None:
        reported = False
        while True:
            if self.held.count(key, owner) > 1:
                entry = self.held.entry(key)
                if entry and entry.owner == owner:  # this is a step of a flow that has the lease
                    return entry
            if acquired := await self.acquire(key, owner):
                return acquired
            entry = await self._table.get(key)
            if entry is None or is_done(entry):
                return entry
            if entry.owner and not reported:
                report(f"waiting for {describe_owner(entry.owner)}, which works on this generation")
                reported = True
            await asyncio.sleep(POLL_INTERVAL)

    async def acquire(self, key: str, owner: str) -> Entry | None:
        """Acquire the lease of an entry for an owner; return None if another active owner has it.

        The result is also None if the key has no entry.
        """
        free = Sql("(owner IS NULL OR owner = :owner)", {"owner": owner})
        if acquired := await self._table.update([has_key(key), free], {"owner": owner}):
            return acquired
        entry = await self._table.get(key)
        if entry is None or entry.owner is None or await self.is_active(entry):
            return None
        unchanged = [has_key(key), has_owner(entry.owner), has_lease_of(entry)]
        return await self._table.update(unchanged, {"owner": owner})

    async def release(self, key: str, owner: str, note: str | None = None) -> Entry | None:
        """Release a lease, so that the next owner need not wait until it expires.

        Returns:
            The entry, or None if the owner has no lease on it.
        """
        changes = {"owner": None} if note is None else {"owner": None, "note": note}
        return await self._table.update([has_key(key), has_owner(owner)], changes)

    async def is_active(self, entry: Entry) -> bool:
        """Return True if the owner of an entry is still active.

        If that is unclear, this waits for half the duration of a lease: an active owner has renewed
        the lease by then.
        """
        status = owner_status(entry, self.duration)
        if status is not OwnerStatus.UNCLEAR:
            return status is OwnerStatus.ACTIVE
        await asyncio.sleep(self.duration / 2)
        later = await self._table.get(entry.idempotency_key)
        return later is not None and later.leased_until not in {None, entry.leased_until}

    async def entries_of_run(self, run: str) -> list[Entry]:
        """Return the entries on which a run has a lease, in any process."""
        # Few rows have an owner. SQLite finds them in its index by a range, not by IS NOT NULL.
        held = Sql("owner > '' AND {position}(owner, :run) > 0", {"run": f"|{run}"})
        return await self._table.fetch(entries_where(held))

    @contextmanager
    def renewing(self, key: str, owner: str) -> Iterator[None]:
        """Renew an owner's lease on a key while the block runs."""
        with register_owner(key, owner) as worker:
            if self.held.enter(key, owner, worker):
                in_background(self._renew_while_held())
            try:
                yield
            finally:
                self.held.leave(key, owner, worker)

    async def _renew_while_held(self) -> None:
        try:
            while self.held.needs_renewal():
                with suppress(LedgerUnavailable):  # if this lasts, the leases expire, which is safe
                    await asyncio.sleep(self.duration / 4)
                    await self._renew()
        except BaseException:
            self.held.renewal_failed()
            raise

    async def _renew(self) -> None:
        owners = self.held.owners()
        before = self.held.entries_of(owners)
        renewed: set[str] = set()
        for start in range(0, len(owners), MAX_VALUES):
            some = owners[start : start + MAX_VALUES]
            renewal = Sql(_RENEWAL, {"lease": self.duration, "owners": some})
            started, rows = await self._table.database.execute_timed(renewal)
            for row in rows:
                key = row["idempotency_key"]
                renewed.add(key)
                self.held.observe_renewal(key, row["owner"], row["lease_left"], started)
        await self._restore_lost(
            [entry for entry in before if entry.idempotency_key not in renewed]
        )

    async def _restore_lost(self, missing: Sequence[Entry]) -> None:
        """Restore entries that a run works on and the ledger has lost.

        Another run may have bought the key in the meantime. Then the entry is written under another
        key.
        """
        for start in range(0, len(missing), MAX_VALUES):
            some = missing[start : start + MAX_VALUES]
            keys = [entry.idempotency_key for entry in some]
            query = f"SELECT idempotency_key, task_id FROM {GENERATIONS} "
            query += "WHERE idempotency_key {any:keys}"
            rows = await self._table.database.rows(Sql(query, {"keys": keys}))
            recorded = {(row["idempotency_key"], row["task_id"]) for row in rows}
            for entry in some:
                is_recorded = (entry.idempotency_key, entry.task_id) in recorded
                is_held = self.held.entry(entry.idempotency_key) is entry
                if is_held and not is_recorded:
                    await restore_entry(self._table, entry)


def _closing_note(error: BaseException) -> str:
    if isinstance(error, CometAPIError):
        return error.message
    return f"the run ended ({type(error).__name__}); the generation continues at the service"
