# SPDX-License-Identifier: Apache-2.0
"""Base of the ledger's databases: one statement at a time, with retries, in the background thread.

Every statement is a transaction of its own. ``SQLite`` and ``PostgreSQL`` own everything in which
the two databases differ.
"""

import asyncio
import os
import time
import weakref
from abc import ABC, abstractmethod
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

from sqlalchemy import CursorResult, Table
from sqlalchemy.engine import URL

from ..errors import LedgerUnavailable
from .clock import Instant
from .database_errors import DATABASE_ERRORS, describe, is_transient
from .loop_thread import run_in_background

RETRY_TIMEOUT = 30.0
"""Maximum seconds to wait for a database that is locked or restarting."""

ENGINE_OPTIONS: dict[str, Any] = {
    "isolation_level": "AUTOCOMMIT",
    "pool_reset_on_return": None,  # no transaction is ever left open
    "hide_parameters": True,
}
"""Options of every SQLAlchemy engine."""

_FIRST_PAUSE = 0.1
_LONGEST_PAUSE = 2.0


class Database(ABC):
    """Database that any event loop of this process can use; it connects on first use.

    Args:
        url: URL with the driver of the database.
        retry_timeout: Maximum seconds to wait for a database that is locked or unreachable.

    Attributes:
        is_shared: True if other machines can use the database.
    """

    is_shared: ClassVar[bool]

    def __init__(self, url: URL, retry_timeout: float) -> None:
        self._url = url
        self.retry_timeout = retry_timeout
        _databases.add(self)

    @property
    def redacted_url(self) -> str:
        """URL of the database, without password and query."""
        return self._url.set(query={}).render_as_string(hide_password=True)

    @property
    def file(self) -> Path | None:
        """Path of the database file, or None for a server."""
        return None

    async def rows(self, statement: Any) -> list[Any]:
        """Return the rows of a statement.

        Raises:
            LedgerUnavailable: The statement failed, or did not succeed within ``retry_timeout``.
        """
        return (await self.execute_timed(statement))[1]

    async def execute_timed(
        self, statement: Any, lock: str | None = None
    ) -> tuple[Instant, list[Any]]:
        """Return the time at which a statement started, and its rows.

        The statement may start long after the call, for example while the database is unreachable.

        Args:
            statement: Statement to run in a transaction of its own.
            lock: Name of a lock, or None. No process runs another statement under the same lock at
                the same time. So the rows that the statement reads cannot change before it writes.

        Raises:
            LedgerUnavailable: The statement failed, or did not succeed within ``retry_timeout``.
        """
        return await run_in_background(self._with_retries(statement, lock))

    async def _with_retries(self, statement: Any, lock: str | None) -> tuple[Instant, list[Any]]:
        """Run a statement, with retries while the database is locked or unreachable."""
        end = time.monotonic() + self.retry_timeout
        pause = _FIRST_PAUSE
        while True:
            try:
                return await self._execute(statement, lock)
            except DATABASE_ERRORS as error:
                if not is_transient(error) or time.monotonic() + pause > end:
                    raise LedgerUnavailable(
                        f"the ledger at {self.redacted_url} cannot be used: {describe(error)}"
                    ) from error
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    @abstractmethod
    async def _execute(self, statement: Any, lock: str | None) -> tuple[Instant, list[Any]]:
        """Run a statement once, as ``execute_timed`` describes; connect first if necessary."""
        ...

    @abstractmethod
    def insert_new(self, table: Table) -> Any:
        """Return an insert statement without values, which skips rows whose keys exist."""
        ...

    async def close(self) -> None:
        """Close the connections; the next use opens them again."""
        await run_in_background(self._close())

    @abstractmethod
    async def _close(self) -> None: ...

    def forget_connection(self) -> None:
        """Drop the connection of the parent process, in a forked child, without closing it.

        The child does not own the locks and sockets that it inherits. Closing its copies would
        abort or roll back the work of the parent.
        """
        _inherited.append(self._detach())

    @abstractmethod
    def _detach(self) -> object:
        """Return the open connection, and forget it with its locks."""
        ...


def fetch(result: CursorResult[Any]) -> list[Any]:
    """Return the rows of a result; a statement that returns none has an empty list."""
    return list(result.mappings()) if result.returns_rows else []


_databases: weakref.WeakSet[Database] = weakref.WeakSet()
"""Databases of this process, whose connections a forked child must not use."""

_inherited: list[object] = []
"""Connections of the parent process, referenced here so that this process never closes them."""


def _forget_connections() -> None:
    for database in list(_databases):
        database.forget_connection()


with suppress(AttributeError):  # Windows does not fork
    os.register_at_fork(after_in_child=_forget_connections)
