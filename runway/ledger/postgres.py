# SPDX-License-Identifier: Apache-2.0
"""PostgreSQL database of the ledger, for several machines.

It commits synchronously, whatever the server's default is. The tables are in one schema, whatever
the search path of the role is.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Generator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import asyncpg
from asyncpg.pool import Pool, PoolConnectionProxy

from ..errors import LedgerUnavailable
from ..http_clients import tls_context
from .clock import Instant
from .database import Answer, Database
from .database_errors import COMMON_ERRORS
from .database_url import DatabaseURL
from .libpq import Connection, connection_of
from .loop_thread import run_in_background
from .schema import creation, missing_columns, missing_indexes
from .statement import POSTGRESQL, Row, Sql, render

CREATION_LOCK = 0x636F6D6574  # "comet"
"""Number of the advisory lock under which the tables are created."""

_BEGIN = ("BEGIN", f"SELECT pg_advisory_xact_lock({CREATION_LOCK})")
_CREATION_TIMEOUT = 600.0  # seconds; an index over a million rows takes some
_MOST_CONNECTIONS = 8
_POOL_TIMEOUT = 30.0
_CLOSE_TIMEOUT = 5.0
_ROOTS = Path("~/.postgresql/root.crt")  # where libpq and asyncpg look for them


class PostgreSQL(Database):
    """Database on a PostgreSQL server.

    Args:
        url: URL of the database.
        retry_timeout: Maximum seconds to wait for a server that is unreachable.
    """

    is_shared = True
    errors = (
        asyncpg.PostgresError,
        asyncpg.InterfaceError,
        asyncpg.InternalClientError,
        *COMMON_ERRORS,
    )

    def __init__(self, url: DatabaseURL, retry_timeout: float) -> None:
        super().__init__(url, retry_timeout)
        self._pool: Pool | None = None
        self._connecting = asyncio.Lock()
        self._locking = asyncio.Lock()

    async def execute_timed(self, statement: Sql, lock: str | None = None) -> Answer:
        """Return the time at which a statement started, and its rows; the base describes it."""
        return await run_in_background(self._with_retries(statement, lock))

    async def _with_retries(self, statement: Sql, lock: str | None) -> Answer:
        retries = self._retries()
        while True:
            try:
                return await self._execute(statement, lock)
            except self.errors as error:
                pause = retries.next_pause(error)
                if pause is None:
                    raise self._unavailable(error) from error
            await asyncio.sleep(pause)

    async def _execute(self, statement: Sql, lock: str | None) -> Answer:
        if lock is not None:
            async with self._locking:  # else every pooled connection could wait for the lock
                return await self._execute_locked(statement, lock)
        async with _usable_connection(await self._connected()) as connection:
            started = Instant.now()
            return started, await _rows(connection, statement)

    async def _execute_locked(self, statement: Sql, lock: str) -> Answer:
        """Run a statement under an advisory lock; the time is the one after it was acquired."""
        number = int.from_bytes(hashlib.sha256(lock.encode()).digest()[:8], signed=True)
        async with _usable_connection(await self._connected()) as connection:
            try:
                await connection.execute(
                    f"BEGIN ISOLATION LEVEL READ COMMITTED; SELECT pg_advisory_xact_lock({number})"
                )
                started = Instant.now()
                rows = await _rows(connection, statement)
                await connection.execute("COMMIT")
            except BaseException:
                connection.terminate()  # the server then rolls the transaction back
                raise
        return started, rows

    async def _connected(self) -> Pool:
        async with self._connecting:
            if self._pool is None:
                self._pool = await self._connect()
            return self._pool

    async def _connect(self) -> Pool:
        given = connection_of(self._url)
        pool = await asyncpg.create_pool(
            min_size=0,
            max_size=_MOST_CONNECTIONS,
            reset=_keep_as_it_is,
            **given.arguments | _tls_of(given),
        )
        try:
            async with _usable_connection(pool) as connection:
                await _create(connection, creation(_BEGIN))
                await _create(connection, missing_columns(_BEGIN))
                # A ledger without the newest indexes is only slower.
                with suppress(*self.errors):
                    await _create(connection, missing_indexes(_BEGIN))
        except BaseException:
            pool.terminate()
            raise
        return pool

    async def _close(self) -> None:
        pool, self._pool = self._pool, None
        if pool:
            with suppress(*self.errors):
                async with asyncio.timeout(_CLOSE_TIMEOUT):
                    await pool.close()

    def _detach(self) -> object:
        pool, self._pool = self._pool, None
        self._connecting = asyncio.Lock()
        self._locking = asyncio.Lock()
        return pool


@asynccontextmanager
async def _usable_connection(pool: Pool) -> AsyncIterator[PoolConnectionProxy]:
    """Provide a connection, and drop it if it would reject all further statements.

    A standby server rejects changes. Another server takes its place, or it accepts changes again
    later. A connection that broke at a bad moment reports forever that an operation is in progress.

    Raises:
        ConnectionResetError: The connection cannot be used any more.
    """
    try:
        async with pool.acquire(timeout=_POOL_TIMEOUT) as connection:
            try:
                yield connection
            except asyncpg.ReadOnlySQLTransactionError:
                connection.terminate()
                await pool.expire_connections()  # the others lead to the same server
                raise
            except (asyncpg.InterfaceError, asyncpg.InternalClientError):
                connection.terminate()
                raise
    except (asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
        if isinstance(error, ValueError):  # an invalid argument, which does not pass by itself
            raise
        raise ConnectionResetError(str(error)) from error


async def _rows(
    connection: PoolConnectionProxy, statement: Sql, seconds: float | None = None
) -> list[Row]:
    rendered = render(statement.text, POSTGRESQL)
    values = [statement.values[name] for name in rendered.names]
    return [dict(row) for row in await connection.fetch(rendered.text, *values, timeout=seconds)]


async def _create(
    connection: PoolConnectionProxy, steps: Generator[Sql, Sequence[Row], None]
) -> None:
    """Run the statements that create tables or indexes; all of them or none take effect."""
    try:
        statement = next(steps, None)
        while statement:
            rows = await _rows(connection, statement, _CREATION_TIMEOUT)
            try:
                statement = steps.send(rows)
            except StopIteration:
                statement = None
    except BaseException:
        connection.terminate()  # the server then rolls the transaction back
        raise


async def _keep_as_it_is(_connection: PoolConnectionProxy) -> None:
    """Skip the reset of a connection that goes back to the pool: no statement changes its state."""


def _tls_of(given: Connection) -> dict[str, Any]:
    """Return the TLS arguments of a connection for which its URL names no certificates.

    Raises:
        LedgerUnavailable: The URL names a file that does not exist.
    """
    for name, path in given.files.items():
        if not Path(path).is_file():
            raise LedgerUnavailable(f"the ledger's URL has {name}={path}, which is not a file")
    uses_system = given.trusts_system and not _ROOTS.expanduser().is_file()
    return {"ssl": tls_context()} if uses_system else {}
