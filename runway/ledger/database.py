# SPDX-License-Identifier: Apache-2.0
"""Base of the ledger's databases: statements with retries, in the background thread.

Each statement takes effect completely or not at all, whatever becomes of the others. ``SQLite`` and
``PostgreSQL`` own everything in which the two databases differ.
"""

import os
import time
import weakref
from abc import ABC, abstractmethod
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

from ..errors import LedgerUnavailable
from .clock import Instant
from .database_errors import describe, is_transient
from .database_url import DatabaseURL
from .loop_thread import run_in_background
from .statement import Row, Sql

RETRY_TIMEOUT = 30.0
"""Maximum seconds to wait for a database that is locked or restarting."""

Answer = tuple[Instant, list[Row]]
"""Time at which a statement started, and its rows."""

_FIRST_PAUSE = 0.1
_LONGEST_PAUSE = 2.0


@dataclass
class Retries:
    """Retries of one statement while the database is locked or unreachable.

    Attributes:
        end: Monotonic time after which there are none.
        pause: Seconds before the next one.
    """

    end: float
    pause: float = _FIRST_PAUSE

    def next_pause(self, error: Exception) -> float | None:
        """Return the seconds before the next retry after an error, or None if there is none."""
        pause, self.pause = self.pause, min(2 * self.pause, _LONGEST_PAUSE)
        return pause if is_transient(error) and time.monotonic() + pause <= self.end else None


class Database(ABC):
    """Database that any event loop of this process can use; it connects on first use.

    Args:
        url: URL of the database.
        retry_timeout: Maximum seconds to wait for a database that is locked or unreachable.

    Attributes:
        is_shared: True if other machines can use the database.
        errors: Errors that a statement, or the connection for it, may raise.
    """

    is_shared: ClassVar[bool]
    errors: ClassVar[tuple[type[Exception], ...]]

    def __init__(self, url: DatabaseURL, retry_timeout: float) -> None:
        self._url = url
        self.retry_timeout = retry_timeout
        _databases.add(self)

    @cached_property
    def redacted_url(self) -> str:
        """URL of the database, without password and query."""
        return self._url.redacted

    @property
    def file(self) -> Path | None:
        """Path of the database file, or None for a server."""
        return None

    async def rows(self, statement: Sql) -> list[Row]:
        """Return the rows of a statement.

        Raises:
            LedgerUnavailable: The statement failed, or did not succeed within ``retry_timeout``.
        """
        return (await self.execute_timed(statement))[1]

    @abstractmethod
    async def execute_timed(self, statement: Sql, lock: str | None = None) -> Answer:
        """Return the time at which a statement started, and its rows.

        The statement may start long after the call, for example while the database is unreachable.
        What it changed is committed. It runs in the background thread, and continues when the
        caller is cancelled, so that a change is made completely or not at all.

        Args:
            statement: Statement to run.
            lock: Name of a lock, or None. No process runs another statement under the same lock at
                the same time. So the rows that the statement reads cannot change before it writes.

        Raises:
            LedgerUnavailable: The statement failed, or did not succeed within ``retry_timeout``.
        """
        ...

    def _retries(self) -> "Retries":
        return Retries(time.monotonic() + self.retry_timeout)

    def _unavailable(self, error: Exception) -> Exception:
        """Return the error for a caller; one that no driver raised is the caller's as it is."""
        if isinstance(error, LedgerUnavailable):  # a copy, since callers add their keys to it
            return LedgerUnavailable(error.message)
        if not isinstance(error, self.errors):
            return error
        unavailable = LedgerUnavailable(
            f"the ledger at {self.redacted_url} cannot be used: {describe(error)}"
        )
        unavailable.__cause__ = error
        return unavailable

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


_databases: weakref.WeakSet[Database] = weakref.WeakSet()
"""Databases of this process, whose connections a forked child must not use."""

_inherited: list[object] = []
"""Connections of the parent process, referenced here so that this process never closes them."""


def _forget_connections() -> None:
    for database in list(_databases):
        database.forget_connection()


with suppress(AttributeError):  # Windows does not fork
    os.register_at_fork(after_in_child=_forget_connections)
