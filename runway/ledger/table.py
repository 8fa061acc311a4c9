# SPDX-License-Identifier: Apache-2.0
"""Table of the ledger: statements that return entries."""

from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Select, select, update

from ..errors import LedgerCorrupted
from .clock import Instant
from .database import Database
from .entry import Entry
from .entry_rows import as_columns, as_select, columns_of, read_entries
from .schema import database_time, generations

MAX_BIND_VALUES = 500
"""Maximum number of values in one statement; databases limit it."""

NOW = database_time()
LEASE_LEFT = (generations.c.leased_until - NOW).label("lease_left")
ENTRIES = select(generations, LEASE_LEFT)
"""Query for entries; callers add their conditions."""


class EntryTable:
    """Table of entries in one database.

    Every method may raise ``LedgerUnavailable`` and ``LedgerCorrupted``.

    Args:
        database: Database with the table.
        lease_duration: Seconds that a new lease lasts.
        observe: Called with each entry that a statement for one key returned, and with the time at
            which that statement started.
    """

    def __init__(
        self,
        database: Database,
        lease_duration: float,
        observe: Callable[[Entry, Instant], None],
    ) -> None:
        self.database = database
        self.lease_duration = lease_duration
        self._observe = observe

    async def get(self, key: str) -> Entry | None:
        """Return the entry of a key, or None."""
        return await self.fetch_one(ENTRIES.where(generations.c.idempotency_key == key))

    async def first(self, query: Select[Any]) -> Entry | None:
        """Return the first entry of a query, or None."""
        found = await self.fetch(query.limit(1))
        return found[0] if found else None

    async def fetch(
        self, query: Select[Any], on_corrupted: Callable[[LedgerCorrupted], None] | None = None
    ) -> list[Entry]:
        """Return the entries of a query.

        Args:
            query: Query for whole entries.
            on_corrupted: Called with the error of each corrupted row, which is then skipped.
        """
        rows = await self.database.rows(query)
        return read_entries(rows, self.database.redacted_url, on_corrupted)

    async def fetch_one(self, statement: Any, lock: str | None = None) -> Entry | None:
        """Return the entry that a statement for one key returns, or None.

        Args:
            statement: Statement that returns whole entries.
            lock: Name of the lock under which the statement runs, or None.
        """
        return next(iter(await self._fetch_observed(statement, lock)), None)

    async def update(
        self,
        where: Sequence[ColumnElement[bool]],
        values: dict[str, Any],
        lock: str | None = None,
    ) -> Entry | None:
        """Change the entry that satisfies all conditions; return it, or None if there is none.

        Args:
            where: Conditions, one of which names the key.
            values: Columns to change. A value for ``owner`` starts a lease; None ends it.
            lock: Name of the lock under which the statement runs, or None.
        """
        statement = update(generations).where(*where).values(self._columns(values))
        return await self.fetch_one(statement.returning(generations, LEASE_LEFT), lock)

    async def insert_if(
        self,
        values: dict[str, Any],
        condition: ColumnElement[bool] | None = None,
        lock: str | None = None,
    ) -> Entry | None:
        """Write a new entry; return it, or None if its key exists or the condition fails.

        Args:
            values: All columns of the entry. A value for ``owner`` starts a lease.
            condition: Condition for the write, or None.
            lock: Name of the lock under which the statement runs, or None.
        """
        row = self._columns(values)
        insert = self.database.insert_new(generations)
        if condition is None:
            insert = insert.values(row)
        else:
            insert = insert.from_select([*row], as_select(row).where(condition))
        return await self.fetch_one(insert.returning(generations, LEASE_LEFT), lock)

    async def insert(self, entries: Sequence[Entry]) -> list[Entry]:
        """Write complete entries whose keys the ledger lacks, and return the written ones."""
        written: list[Entry] = []
        for start in range(0, len(entries), MAX_BIND_VALUES):
            some = entries[start : start + MAX_BIND_VALUES]
            rows = [self._columns(columns_of(entry)) for entry in some]
            insert = self.database.insert_new(generations).values(rows)
            written += await self._fetch_observed(insert.returning(generations, LEASE_LEFT))
        return written

    async def _fetch_observed(self, statement: Any, lock: str | None = None) -> list[Entry]:
        started, rows = await self.database.execute_timed(statement, lock)
        entries = read_entries(rows, self.database.redacted_url)
        for entry in entries:
            self._observe(entry, started)
        return entries

    def _columns(self, values: dict[str, Any]) -> dict[str, Any]:
        """Return storable column values, with the end of the lease where there is an owner."""
        columns = as_columns(values)
        if "owner" in columns:
            columns["leased_until"] = NOW + self.lease_duration if columns["owner"] else None
        return columns
