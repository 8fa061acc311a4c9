# SPDX-License-Identifier: Apache-2.0
"""Servers that a run of the chaos tests starts for itself: Prefect and PostgreSQL."""

import asyncio
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

import httpx

from ...postgres import Postgres, binaries
from .processes import QUIET, inherited_environment, wait_for_end

START_TIMEOUT = 240.0
"""Seconds within which a server must answer."""


@contextmanager
def postgres_server(*, wanted: bool = True) -> Iterator[Postgres | None]:
    """Start PostgreSQL while the block runs; yield None if it is not wanted or not installed."""
    found = binaries() if wanted else None
    postgres = Postgres(found) if found else None
    try:
        yield postgres
    finally:
        if postgres:
            postgres.remove()


@asynccontextmanager
async def prefect_server(home: Path, database: str | None = None) -> AsyncIterator[str]:
    """Start a Prefect server on a free port; yield the address of its API.

    If there is a PostgreSQL, the server gets a database there: with SQLite it answers 503 when two
    clients write at once, and a client then waits for seconds.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = inherited_environment("PREFECT_") | QUIET | {"PREFECT_HOME": str(home)}
    if database:
        url = database.replace("postgresql:", "postgresql+asyncpg:")
        environment["PREFECT_SERVER_DATABASE_CONNECTION_URL"] = url
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "prefect", "server", "start", "--port", str(port)),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
        env=environment,
    )
    api = f"http://127.0.0.1:{port}/api"
    try:
        async with asyncio.timeout(START_TIMEOUT), httpx.AsyncClient() as http:
            while not await _answers(http, f"{api}/health"):  # noqa: ASYNC110 -- another process
                await asyncio.sleep(0.2)
        yield api
    finally:
        process.terminate()
        await wait_for_end(process)


async def _answers(http: httpx.AsyncClient, url: str) -> bool:
    with suppress(httpx.TransportError):
        return (await http.get(url)).is_success
    return False
