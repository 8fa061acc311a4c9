# SPDX-License-Identifier: Apache-2.0
"""A TCP proxy for a client and a service, with the network faults that a test asks for."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class NetworkFaults:
    """Proxy faults applied to the bytes of a connection.

    Attributes:
        delay: Seconds by which each piece is delayed.
        piece: Maximum bytes in a piece.
        reset_up: Bytes towards the service after which the connection is reset.
        reset_down: The same towards the client.
        drop_up: Bytes towards the service after which all further bytes are silently dropped.
        drop_down: The same towards the client.
        twice: Whether each reply is sent twice.
        limit: Number of connections with these faults; later ones have none.
    """

    delay: float = 0.0
    piece: int = 65_536
    reset_up: int | None = None
    reset_down: int | None = None
    drop_up: int | None = None
    drop_down: int | None = None
    twice: bool = False
    limit: int = 1_000_000


NO_FAULTS = NetworkFaults()


class _Reset(Exception):
    """Fault that resets the connection."""


@dataclass
class Proxy:
    """A TCP proxy.

    Attributes:
        url: URL at which the client reaches the service.
        faults: Faults of new connections; may be changed at any time.
        connections: Number of connections made.
    """

    host: str
    port: int
    url: str = ""
    faults: NetworkFaults = NO_FAULTS
    connections: int = 0
    _open: set[asyncio.Task[None]] = field(default_factory=set)

    async def serve(self, down: asyncio.StreamReader, up: asyncio.StreamWriter) -> None:
        """Serve one connection with the faults that are set when it opens."""
        task = asyncio.current_task()
        assert task
        self._open.add(task)
        faults = self.faults if self.connections < self.faults.limit else NO_FAULTS
        self.connections += 1
        reader, writer = await asyncio.open_connection(self.host, self.port)
        try:
            await _both(
                _forward(down, writer, faults, faults.reset_up, faults.drop_up),
                _forward(reader, up, faults, faults.reset_down, faults.drop_down, faults.twice),
            )
        except _Reset:
            up.transport.abort()
            writer.transport.abort()
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            self._open.discard(task)
            for end in (up, writer):
                end.close()

    async def stop(self) -> None:
        """Drop every connection."""
        for task in list(self._open):
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)


async def _both(*directions: Coroutine[Any, Any, None]) -> None:
    """Run until one direction ends, then cancel the other."""
    tasks = [asyncio.create_task(direction) for direction in directions]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _forward(
    source: asyncio.StreamReader,
    target: asyncio.StreamWriter,
    faults: NetworkFaults,
    reset: int | None,
    drop: int | None,
    twice: bool = False,
) -> None:
    forwarded = 0
    while piece := await source.read(faults.piece):
        if faults.delay:
            await asyncio.sleep(faults.delay)
        if reset is not None and forwarded + len(piece) >= reset:
            target.write(piece[: reset - forwarded])
            with suppress(OSError):
                await target.drain()
            raise _Reset
        if drop is not None and forwarded + len(piece) >= drop:
            target.write(piece[: drop - forwarded])
            await asyncio.Event().wait()
        forwarded += len(piece)
        target.write(piece * 2 if twice else piece)
        await target.drain()


@asynccontextmanager
async def network(service: str, faults: NetworkFaults = NO_FAULTS) -> AsyncIterator[Proxy]:
    """Start a proxy in front of a service, which is given as host:port."""
    host, _, port = service.rpartition(":")
    proxy = Proxy(host, int(port), faults=faults)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    proxy.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield proxy
    finally:
        server.close()
        await proxy.stop()
