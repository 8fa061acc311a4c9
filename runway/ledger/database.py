# SPDX-License-Identifier: Apache-2.0
"""Database of the ledger: SQLite for one machine, PostgreSQL for several.

SQLite uses a rollback journal, so that between two changes the ledger is one file, which can be
copied or moved like any other file. A lock file beside it protects a process that copies the ledger
from losing its locks. Each change is flushed to disk, and so is the folder. A write-ahead log would
be faster, but it is a second file: a copy of the first file alone lacks purchases, and a process
that closes its own descriptor of the file drops the locks that guard the log.

PostgreSQL commits synchronously, whatever the server's default is. The tables are in one schema,
whatever the search path of the role is.

Every statement is a transaction of its own; some statements run under a lock.
"""

import asyncio
import errno
import hashlib
import json
import os
import re
import socket
import time
import weakref
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar, cast

import asyncpg
from sqlalchemy import (
    Connection,
    CursorResult,
    ExceptionContext,
    StaticPool,
    create_engine,
    event,
)
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from ..errors import LedgerUnavailable
from ..redact import scrub
from .clock import Moment
from .file_lock import FileLock
from .loop_thread import elsewhere
from .schema import create_tables

PATIENCE = 30.0
"""Maximum seconds to wait for a database that is locked or restarting."""

_FIRST_PAUSE = 0.1
_LONGEST_PAUSE = 2.0
# SQLSTATE prefixes of PostgreSQL: connection failure, shutdown or start, too many connections, and
# rollback because of another transaction.
_PASSES = ("08", "57P", "53300", "40")

_READ_ONLY = "25006"

_FAILURES = (
    SQLAlchemyError,
    asyncpg.PostgresError,  # refused connection; SQLAlchemy 2.0 does not wrap this error
    OSError,
    TimeoutError,
    TypeError,  # raised by drivers for invalid parameters in a URL
    ValueError,
    OverflowError,
)
_PASSING = {None, errno.EHOSTUNREACH, errno.ENETUNREACH, socket.EAI_AGAIN}

T = TypeVar("T")


def ledger_url(url: str) -> str:
    """Check the URL of a ledger, and return it with its driver.

    Raises:
        LedgerUnavailable: The URL is not valid for a ledger.
    """
    try:
        parsed = make_url(re.sub("^postgres:", "postgresql:", url.strip()))
    except (ArgumentError, ValueError):
        raise LedgerUnavailable(
            "the ledger's URL is not a valid database URL: write sqlite:////folder/ledger.db or "
            "postgresql://user:password@host/database"
        ) from None
    backend = parsed.get_backend_name()
    if backend == "sqlite":
        path = Path(parsed.database or "")
        if not path.is_absolute() or path.name.startswith(":"):
            raise LedgerUnavailable(
                "the ledger's file needs an absolute path (sqlite:////folder/ledger.db): a worker "
                "runs flows in a folder that is deleted, and one in memory forgets"
            )
        return parsed.set(drivername="sqlite+pysqlite").render_as_string(hide_password=False)
    if backend == "postgresql":
        query = {("ssl" if name == "sslmode" else name): it for name, it in parsed.query.items()}
        parsed = parsed.set(drivername="postgresql+asyncpg", query=query)
        return parsed.render_as_string(hide_password=False)
    raise LedgerUnavailable(f"a ledger lies in SQLite or PostgreSQL, not in {backend}")


class Database:
    """Database that any event loop of this process can use; it connects on first use.

    Args:
        url: SQLAlchemy URL of a SQLite file (absolute path) or a PostgreSQL database.
        patience: Maximum seconds to wait for a database that is locked or unreachable.
    """

    def __init__(self, url: str, *, patience: float = PATIENCE) -> None:
        self._url = make_url(ledger_url(url))
        self.patience = patience
        self._file = Path(self._url.database or "")
        self._lock = FileLock(self._file, patience)
        self._opened_file: tuple[int, int] | None = None
        self._open: Connection | AsyncEngine | None = None
        self._opening = asyncio.Lock()
        self._locking = asyncio.Lock()
        _databases.add(self)

    def forget_connection(self) -> None:
        """Drop the connection of the parent process, in a forked child, without closing it.

        The child does not own the locks and sockets that it inherits. Closing its copies would
        abort or roll back the work of the parent.
        """
        _inherited.append(self._open)
        self._open = None
        self._lock.close()
        self._opening = asyncio.Lock()
        self._locking = asyncio.Lock()

    @property
    def place(self) -> str:
        """URL of the database, without password and query."""
        return self._url.set(query={}).render_as_string(hide_password=True)

    @property
    def file(self) -> Path | None:
        """Path of the SQLite file, or None for a server."""
        return None if self.is_shared else self._file

    @property
    def is_shared(self) -> bool:
        """True if other machines can use the database."""
        return self._url.get_backend_name() == "postgresql"

    async def close(self) -> None:
        """Close the connections; the next use opens them again."""
        await elsewhere(self._close())

    async def _close(self) -> None:
        opened, self._open = self._open, None
        if isinstance(opened, AsyncEngine):
            await opened.dispose()
        elif opened:
            opened.close()
            opened.engine.dispose()
            self._lock.close()

    async def rows(self, statement: Any) -> list[Any]:
        """Return the rows of a statement.

        Raises:
            LedgerUnavailable: The statement failed, or did not succeed within ``patience``.
        """
        _, rows = await self.asked(statement)
        return rows

    async def asked(self, statement: Any) -> tuple[Moment, list[Any]]:
        """Return the time at which the query started, and its rows.

        The query may start long after the call, for example while the database is unreachable.

        Raises:
            LedgerUnavailable: The statement failed, or did not succeed within ``patience``.
        """

        async def ask() -> tuple[Moment, list[Any]]:
            return Moment.now(), await self.execute(statement)

        return await elsewhere(ask())

    async def asked_alone(self, lock: str, statement: Any) -> tuple[Moment, list[Any]]:
        """Run a statement that writes, while no process runs another one under the same lock.

        So the rows that the statement reads cannot change before it writes. SQLite has only one
        writer at a time and needs no lock.

        Args:
            lock: Name of the lock; any text.
            statement: Statement to run in a transaction of its own.

        Returns:
            The time at which the statement started, after the lock was acquired, and its rows.

        Raises:
            LedgerUnavailable: The statement failed, or did not succeed within ``patience``.
        """

        async def ask() -> tuple[Moment, list[Any]]:
            if not self.is_shared:
                return Moment.now(), await self.execute(statement)
            async with self._locking:  # else every pooled connection could wait for the lock
                return await self._with_retries(lambda: self._run_locked(lock, statement))

        return await elsewhere(ask())

    async def _run_locked(self, lock: str, statement: Any) -> tuple[Moment, list[Any]]:
        opened = cast("AsyncEngine", await self._opened())
        number = int.from_bytes(hashlib.sha256(lock.encode()).digest()[:8], signed=True)
        async with opened.connect() as connection:
            try:
                await connection.exec_driver_sql("BEGIN ISOLATION LEVEL READ COMMITTED")
                await connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({number})")
                began = Moment.now()
                rows = _fetched(await connection.execute(statement))
                await connection.exec_driver_sql("COMMIT")
            except BaseException:
                await connection.invalidate()  # the server then rolls the transaction back
                raise
        return began, rows

    async def execute(self, statement: Any) -> list[Any]:
        """Return the rows of a statement, for callers that run in the background thread."""

        async def run() -> list[Any]:
            opened = await self._opened()
            if isinstance(opened, AsyncEngine):
                async with opened.connect() as connection:
                    return _fetched(await connection.execute(statement))
            try:
                with self._lock.held():  # blocking is fine in the background thread
                    return _fetched(opened.execute(statement))
            except OperationalError as error:
                if "readonly" in str(error.orig):  # a new connection may be able to write again
                    await self._close()
                raise

        return await self._with_retries(run)

    async def _with_retries(self, operation: Callable[[], Awaitable[T]]) -> T:
        """Run an operation, with retries while the database is locked or unreachable."""
        end = time.monotonic() + self.patience
        pause = _FIRST_PAUSE
        while True:
            try:
                return await operation()
            except _FAILURES as error:
                if not is_transient(error) or time.monotonic() + pause > end:
                    raise LedgerUnavailable(
                        f"the ledger at {self.place} cannot be used: {_reason(error)}{_help(error)}"
                    ) from error
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    async def _opened(self) -> Connection | AsyncEngine:
        async with self._opening:
            if self._open and not self.is_shared and self._was_replaced():
                await self._close()
            if self._open is None:
                self._open = await self._postgresql() if self.is_shared else self._sqlite()
            return self._open

    def _was_replaced(self) -> bool:
        """Return True if the path of the open file now belongs to another file.

        Raises:
            LedgerUnavailable: There is no file at the path. The open file could still be written,
                but nobody would ever read it again. A new, empty file would lack all purchases.
        """
        now = _identity(self._file)
        if now is None:
            raise LedgerUnavailable(
                f"the ledger at {self.place} was deleted or moved away while it was in use; put it "
                "back, it tells what was bought (whoever starts without it begins an empty one)"
            )
        return now != self._opened_file

    async def _postgresql(self) -> AsyncEngine:
        settings = {
            "synchronous_commit": "on",
            "application_name": "prefect-cometapi",
            "search_path": _schema_of(self._url),
        }
        arguments = {"timeout": 10, "command_timeout": 30, "server_settings": settings}
        url = self._url.difference_update_query(["options"])  # asyncpg rejects this parameter
        engine = create_async_engine(
            url, connect_args=arguments, pool_pre_ping=True, pool_size=4, **_OPTIONS
        )
        event.listen(engine.sync_engine, "handle_error", _leave_useless_connections)
        try:
            async with engine.connect() as connection:
                await connection.run_sync(create_tables)
        except BaseException:
            await engine.dispose()
            raise
        return engine

    def _sqlite(self) -> Connection:
        """Open the only connection: SQLite has one writer, and one thread runs all statements."""
        self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with suppress(FileExistsError):  # SQLite would make it and its journal readable by all
            os.close(os.open(self._file, os.O_CREAT | os.O_EXCL, 0o600))
        engine = create_engine(
            self._url,
            connect_args={"timeout": self.patience},
            json_deserializer=_json_or_as_it_is,
            poolclass=StaticPool,
            **_OPTIONS,
        )
        event.listen(engine, "connect", _prepare)
        try:
            with self._lock.held():
                connection = engine.connect()
                create_tables(connection)
        except BaseException:
            engine.dispose()
            raise
        self._opened_file = _identity(self._file)
        return connection


_databases: weakref.WeakSet[Database] = weakref.WeakSet()
_inherited: list[object] = []
"""Connections of the parent process, referenced here so that this process never closes them."""


def _forget_connections() -> None:
    for database in list(_databases):
        database.forget_connection()


with suppress(AttributeError):  # Windows does not fork
    os.register_at_fork(after_in_child=_forget_connections)

_DEFAULT_SCHEMA = "public"
_SEARCH_PATH = re.compile(r"-c\s*search_path=(\w+)")


def _schema_of(url: URL) -> str:
    """Return the schema of the tables, from ``options=-csearch_path=NAME`` in the URL, or public.

    Otherwise two roles with different search paths would each use a ledger of their own in the same
    database.
    """
    options = url.query.get("options", "")
    named = _SEARCH_PATH.search(options if isinstance(options, str) else " ".join(options))
    return named[1] if named else _DEFAULT_SCHEMA


_OPTIONS: dict[str, Any] = {
    "isolation_level": "AUTOCOMMIT",
    "pool_reset_on_return": None,  # no transaction is ever left open
    "hide_parameters": True,
}


def _fetched(result: CursorResult[Any]) -> list[Any]:
    return list(result.mappings()) if result.returns_rows else []


def _text_or_as_it_is(text: bytes) -> str | bytes:
    """Decode a text; return a corrupted one unchanged, which the row's reader then rejects."""
    try:
        return text.decode()
    except ValueError:
        return text


def _json_or_as_it_is(text: Any) -> Any:
    """Parse JSON; return a corrupted text unchanged, which the row's reader then rejects."""
    try:
        return json.loads(text)
    except (TypeError, ValueError):
        return text


def _identity(file: Path) -> tuple[int, int] | None:
    """Return the device and inode of a file, or None if there is no file."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _leave_useless_connections(context: ExceptionContext) -> None:
    """Mark connections as lost that would reject all further statements, so that they are replaced.

    A standby server rejects changes. Another server takes its place, or it accepts changes again
    later. A connection that broke at a bad moment reports forever that an operation is in progress.
    """
    error = context.original_exception
    cause = _cause(error)
    is_stuck = isinstance(cause, asyncpg.InternalClientError | asyncpg.InterfaceError)
    if getattr(error, "sqlstate", None) == _READ_ONLY or is_stuck:
        context.is_disconnect = True


def _prepare(connection: Any, _record: Any) -> None:
    connection.text_factory = _text_or_as_it_is
    connection.execute("PRAGMA journal_mode=DELETE")  # converts a ledger with a write-ahead log
    # EXTRA also flushes the folder, else a deleted journal may come back after a power failure.
    connection.execute("PRAGMA synchronous=EXTRA")


def is_transient(error: Exception) -> bool:
    """Return True if the database is only locked, restarting or unreachable for now; pure."""
    if isinstance(error, DBAPIError):
        if error.connection_invalidated:
            return True
        locked = any(word in str(error.orig) for word in ("database is locked", "is busy"))
        away = isinstance(error.orig, OSError) or isinstance(_cause(error.orig), OSError)
        return _passes_by_itself(error.orig) or locked or away
    if _passes_by_itself(error):  # a refused connection raises the driver's own error
        return True
    unreachable = type(error) in {OSError, socket.gaierror}  # with several addresses, errno is None
    return isinstance(error, ConnectionError | TimeoutError | PoolTimeout) or (
        unreachable and isinstance(error, OSError) and error.errno in _PASSING
    )


def _passes_by_itself(error: BaseException | None) -> bool:
    return str(getattr(error, "sqlstate", None) or "").startswith(_PASSES)


def _cause(error: BaseException | None) -> BaseException | None:
    return error.__cause__ if error else None


_RESTORE = "; put a backup in its place, and do not delete it: it tells what was bought"
"""Advice for a corrupted ledger file."""

_HELP = {
    "is full|No space left": "; make room on its disk",
    "disk I/O error": "; see that its disk has room, is sound and can be written",
    "unable to open": "; see that its folder exists and can be written",
    "readonly database": "; let it be written",
    "too many clients|connection slots": "; raise max_connections, or have fewer processes",
    "read-only transaction": "; the server is a standby, or was told to let nobody write",
    "not a database|malformed|unsupported file": _RESTORE,
}


def _help(error: Exception) -> str:
    """Return advice for an error of the database, or an empty string; pure."""
    text = str(_said(error))
    return next((words for sign, words in _HELP.items() if re.search(sign, text)), "")


def _said(error: Exception) -> BaseException:
    return getattr(error, "orig", None) or error


def _reason(error: Exception) -> str:
    cause = _said(error)
    text = scrub(str(cause), limit=200)
    return f"{type(cause).__name__}: {text}" if text else type(cause).__name__
