# SPDX-License-Identifier: Apache-2.0
"""HTTP clients: certificates that are read once, and connections for thousands of calls.

httpx's own pool looks through all of its connections at the beginning and at the end of each
request, and through all requests that wait; with a thousand of them that is most of the work. Here
each client has a single connection, and the one that was used last, which is the likeliest to be
open still, is used next.
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
    """What httpx would make for each client, made once: reading the certificates takes 20 ms."""
    return httpx.create_ssl_context()


class Connections:
    """Lends clients of one connection each, as few as are needed at a time.

    Args:
        make: Makes a client; its limits should be ``SINGLE``.
        most: Most clients at a time; who wants one more waits.
    """

    def __init__(self, make: Callable[[], httpx.AsyncClient], most: int) -> None:
        self._make = make
        self._turns = asyncio.Semaphore(most)
        self._free: list[httpx.AsyncClient] = []

    @asynccontextmanager
    async def one(self) -> AsyncIterator[httpx.AsyncClient]:
        """A client for the block alone."""
        async with self._turns:
            http = self._free.pop() if self._free else self._make()
            try:
                yield http
            finally:
                self._free.append(http)

    async def aclose(self) -> None:
        """Close the connections that nobody uses; the others were to be given back before."""
        while self._free:
            await self._free.pop().aclose()
