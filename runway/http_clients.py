# SPDX-License-Identifier: Apache-2.0
"""HTTP clients that share one TLS context, and a pool of them for thousands of calls.

The pool of httpx scans all of its connections and all waiting requests at the start and at the end
of each request. With a thousand of them, the scans are most of the work. Here each client has a
single connection. The client that was used last is used next, since its connection is the most
likely to be still open.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import cache

import httpx

SINGLE = httpx.Limits(max_connections=1, max_keepalive_connections=1)


@cache
def tls_context() -> ssl.SSLContext:
    """Return the TLS context of httpx, created once: reading the certificates takes 20 ms."""
    return httpx.create_ssl_context()


class ClientPool:
    """Pool of clients with one connection each; it creates no more than are needed at a time.

    Args:
        make: Creates a client; its limits should be ``SINGLE``.
        most: Maximum number of clients in use at a time; further callers wait.
    """

    def __init__(self, make: Callable[[], httpx.AsyncClient], most: int) -> None:
        self._make = make
        self._turns = asyncio.Semaphore(most)
        self._free: list[httpx.AsyncClient] = []

    @asynccontextmanager
    async def acquire(self) -> AsyncIterator[httpx.AsyncClient]:
        """Lend a client that only this block uses."""
        async with self._turns:
            http = self._free.pop() if self._free else self._make()
            try:
                yield http
            finally:
                self._free.append(http)

    async def aclose(self) -> None:
        """Close the idle connections; call it when all clients have been returned."""
        while self._free:
            await self._free.pop().aclose()
