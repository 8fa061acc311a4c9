# SPDX-License-Identifier: Apache-2.0
"""PostgreSQL database of the ledger, for several machines.

It commits synchronously, whatever the server's default is. The tables are in one schema, whatever
the search path of the role is.
"""

import asyncio
import hashlib
import re
from typing import Any

import asyncpg
from sqlalchemy import ExceptionContext, Table, event
from sqlalchemy.dialects import postgresql
from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from .clock import Instant
from .database import ENGINE_OPTIONS, Database, fetch
from .database_errors import cause_of
from .schema import create_tables

CREATION_LOCK = 0x636F6D6574  # "comet"
"""Number of the advisory lock under which the tables are created."""

_READ_ONLY = "25006"
_DEFAULT_SCHEMA = "public"
_SEARCH_PATH = re.compile(r"-c\s*search_path=(\w+)")


class PostgreSQL(Database):
    """Database on a PostgreSQL server.

    Args:
        url: URL of the database.
        retry_timeout: Maximum seconds to wait for a server that is unreachable.
    """

    is_shared = True

    def __init__(self, url: URL, retry_timeout: float) -> None:
        super().__init__(url, retry_timeout)
        self._engine: AsyncEngine | None = None
        self._connecting = asyncio.Lock()
        self._locking = asyncio.Lock()

    def insert_new(self, table: Table) -> Any:
        """Return an insert statement without values, which skips rows whose keys exist."""
        return postgresql.insert(table).on_conflict_do_nothing()

    async def _execute(self, statement: Any, lock: str | None) -> tuple[Instant, list[Any]]:
        engine = await self._connected()
        if lock is not None:
            async with self._locking:  # else every pooled connection could wait for the lock
                return await _execute_locked(engine, statement, lock)
        async with engine.connect() as connection:
            started = Instant.now()
            return started, fetch(await connection.execute(statement))

    async def _connected(self) -> AsyncEngine:
        async with self._connecting:
            if self._engine is None:
                self._engine = await self._connect()
            return self._engine

    async def _connect(self) -> AsyncEngine:
        settings = {
            "synchronous_commit": "on",
            "application_name": "prefect-cometapi",
            "search_path": _schema_of(self._url),
        }
        arguments = {"timeout": 10, "command_timeout": 30, "server_settings": settings}
        url = self._url.difference_update_query(["options"])  # asyncpg rejects this parameter
        engine = create_async_engine(
            url, connect_args=arguments, pool_pre_ping=True, pool_size=4, **ENGINE_OPTIONS
        )
        event.listen(engine.sync_engine, "handle_error", _discard_unusable_connections)
        begin = ("BEGIN", f"SELECT pg_advisory_xact_lock({CREATION_LOCK})")
        try:
            async with engine.connect() as connection:
                await connection.run_sync(create_tables, begin=begin)
        except BaseException:
            await engine.dispose()
            raise
        return engine

    async def _close(self) -> None:
        engine, self._engine = self._engine, None
        if engine:
            await engine.dispose()

    def _detach(self) -> object:
        engine, self._engine = self._engine, None
        self._connecting = asyncio.Lock()
        self._locking = asyncio.Lock()
        return engine


async def _execute_locked(
    engine: AsyncEngine, statement: Any, lock: str
) -> tuple[Instant, list[Any]]:
    """Run a statement under an advisory lock; the time is the one after the lock was acquired."""
    number = int.from_bytes(hashlib.sha256(lock.encode()).digest()[:8], signed=True)
    async with engine.connect() as connection:
        try:
            await connection.exec_driver_sql("BEGIN ISOLATION LEVEL READ COMMITTED")
            await connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({number})")
            started = Instant.now()
            rows = fetch(await connection.execute(statement))
            await connection.exec_driver_sql("COMMIT")
        except BaseException:
            await connection.invalidate()  # the server then rolls the transaction back
            raise
    return started, rows


def _schema_of(url: URL) -> str:
    """Return the schema of the tables, from ``options=-csearch_path=NAME`` in the URL, or public.

    Otherwise two roles with different search paths would each use a ledger of their own in the same
    database.
    """
    options = url.query.get("options", "")
    named = _SEARCH_PATH.search(options if isinstance(options, str) else " ".join(options))
    return named[1] if named else _DEFAULT_SCHEMA


def _discard_unusable_connections(context: ExceptionContext) -> None:
    """Mark connections as lost that would reject all further statements, so that they are replaced.

    A standby server rejects changes. Another server takes its place, or it accepts changes again
    later. A connection that broke at a bad moment reports forever that an operation is in progress.
    """
    error = context.original_exception
    cause = cause_of(error)
    is_stuck = isinstance(cause, asyncpg.InternalClientError | asyncpg.InterfaceError)
    if getattr(error, "sqlstate", None) == _READ_ONLY or is_stuck:
        context.is_disconnect = True
