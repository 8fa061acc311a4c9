# SPDX-License-Identifier: Apache-2.0
"""Table of the ledger: statements that return entries."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..errors import LedgerCorrupted
from .clock import Instant
from .database import Database
from .entry import Entry
from .entry_rows import as_columns, columns_of, read_entries
from .schema import COLUMNS, GENERATIONS
from .statement import Sql, Value, all_of, join

MAX_VALUES = 500
"""Maximum number of keys, ids or rows that are sent to the database at once."""

LEASE_LEFT = "leased_until - {now} AS lease_left"
_ENTRY = f"{', '.join(column.name for column in COLUMNS)}, {LEASE_LEFT}"
_RETURNING = f" RETURNING {_ENTRY}"


def entries_where(*conditions: Sql) -> Sql:
    """Return a query for the entries that satisfy all conditions; callers add the order."""
    query = f"SELECT {_ENTRY} FROM {GENERATIONS}"
    return Sql(f"{query} WHERE ") + all_of(conditions) if conditions else Sql(query)


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
        return await self.fetch_one(entries_where(Sql("idempotency_key = :key", {"key": key})))

    async def first(self, query: Sql) -> Entry | None:
        """Return the first entry of a query, or None."""
        found = await self.fetch(query + " LIMIT 1")
        return found[0] if found else None

    async def fetch(
        self, query: Sql, on_corrupted: Callable[[LedgerCorrupted], None] | None = None
    ) -> list[Entry]:
        """Return the entries of a query.

        Args:
            query: Query for whole entries.
            on_corrupted: Called with the error of each corrupted row, which is then skipped.
        """
        rows = await self.database.rows(query)
        return read_entries(rows, self.database.redacted_url, on_corrupted)

    async def fetch_one(self, statement: Sql, lock: str | None = None) -> Entry | None:
        """Return the entry that a statement for one key returns, or None.

        Args:
            statement: Statement that returns whole entries.
            lock: Name of the lock under which the statement runs, or None.
        """
        started, rows = await self.database.execute_timed(statement, lock)
        entries = read_entries(rows, self.database.redacted_url)
        for entry in entries:
            self._observe(entry, started)
        return next(iter(entries), None)

    async def update(
        self, where: Sequence[Sql], values: Mapping[str, Any], lock: str | None = None
    ) -> Entry | None:
        """Change the entry that satisfies all conditions; return it, or None if there is none.

        Args:
            where: Conditions, one of which names the key.
            values: Columns to change. A value for ``owner`` starts a lease; None ends it.
            lock: Name of the lock under which the statement runs, or None.
        """
        changes = [Sql(f"{name} = ") + new for name, new in self._new_values(values)]
        statement = Sql(f"UPDATE {GENERATIONS} SET ") + join(", ", changes)
        return await self.fetch_one(statement + " WHERE " + all_of(where) + _RETURNING, lock)

    async def insert_if(
        self, values: Mapping[str, Any], condition: Sql | None = None, lock: str | None = None
    ) -> Entry | None:
        """Write a new entry; return it, or None if its key exists or the condition fails.

        Args:
            values: All columns of the entry. A value for ``owner`` starts a lease.
            condition: Condition for the write, or None.
            lock: Name of the lock under which the statement runs, or None.
        """
        row = self._new_values(values)
        names = ", ".join(name for name, _ in row)
        statement = (
            Sql(f"INSERT INTO {GENERATIONS} ({names}) SELECT ")
            + join(", ", [new for _, new in row])
            + " WHERE "
            + (condition or Sql("TRUE"))
            + f" ON CONFLICT DO NOTHING{_RETURNING}"
        )
        return await self.fetch_one(statement, lock)

    async def insert(self, entries: Sequence[Entry]) -> list[Entry]:
        """Write complete entries whose keys the ledger lacks, and return the written ones."""
        written: list[Entry] = []
        for start in range(0, len(entries), MAX_VALUES):
            some = entries[start : start + MAX_VALUES]
            rows = await asyncio.gather(*(self.insert_if(columns_of(entry)) for entry in some))
            written += [row for row in rows if row]
        return written

    def _new_values(self, values: Mapping[str, Any]) -> list[tuple[str, Sql]]:
        """Return the columns with their values as SQL, and the end of the lease of an owner."""
        columns = as_columns(values)
        new = [(name, _new_value(name, value)) for name, value in columns.items()]
        if columns.get("owner"):
            new.append(("leased_until", Sql("{now} + :lease", {"lease": self.lease_duration})))
        elif "owner" in columns:
            new.append(("leased_until", Sql("NULL")))
        return new


def _new_value(name: str, value: Value | Sql) -> Sql:
    return value if isinstance(value, Sql) else Sql(f":new_{name}", {f"new_{name}": value})
