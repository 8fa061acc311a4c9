# SPDX-License-Identifier: Apache-2.0
"""A TCP proxy between client and service, with the network faults that a test asks for."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Weather:
    """Network faults applied to the bytes of a connection.

    Attributes:
        delay: Seconds by which each piece is delayed.
        piece: Maximum bytes in a piece.
        cut_up: Bytes towards the service after which the connection is reset.
        cut_down: The same towards the client.
        hole_up: Bytes towards the service after which all further bytes are silently dropped.
        hole_down: The same towards the client.
        twice: Whether each reply is sent twice.
        spells: Number of connections with these faults; later ones have none.
    """

    delay: float = 0.0
    piece: int = 65_536
    cut_up: int | None = None
    cut_down: int | None = None
    hole_up: int | None = None
    hole_down: int | None = None
    twice: bool = False
    spells: int = 1_000_000


FAIR = Weather()


class _Reset(Exception):
    """The fault that resets the connection."""


@dataclass
class Network:
    """A TCP proxy.

    Attributes:
        url: URL at which the client reaches the service.
        weather: Faults of new connections; may be changed at any time.
        connections: Number of connections made.
    """

    host: str
    port: int
    url: str = ""
    weather: Weather = FAIR
    connections: int = 0
    _open: set[asyncio.Task[None]] = field(default_factory=set)

    async def serve(self, down: asyncio.StreamReader, up: asyncio.StreamWriter) -> None:
        """Serve one connection with the faults that are set when it opens."""
        task = asyncio.current_task()
        assert task
        self._open.add(task)
        weather = self.weather if self.connections < self.weather.spells else FAIR
        self.connections += 1
        reader, writer = await asyncio.open_connection(self.host, self.port)
        try:
            await _both(
                _carry(down, writer, weather, weather.cut_up, weather.hole_up),
                _carry(reader, up, weather, weather.cut_down, weather.hole_down, weather.twice),
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


async def _both(*ways: Coroutine[Any, Any, None]) -> None:
    """Run until one direction ends, then cancel the other."""
    tasks = [asyncio.create_task(way) for way in ways]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _carry(
    source: asyncio.StreamReader,
    target: asyncio.StreamWriter,
    weather: Weather,
    cut: int | None,
    hole: int | None,
    twice: bool = False,
) -> None:
    carried = 0
    while piece := await source.read(weather.piece):
        if weather.delay:
            await asyncio.sleep(weather.delay)
        if cut is not None and carried + len(piece) >= cut:
            target.write(piece[: cut - carried])
            with suppress(OSError):
                await target.drain()
            raise _Reset
        if hole is not None and carried + len(piece) >= hole:
            target.write(piece[: hole - carried])
            await asyncio.Event().wait()
        carried += len(piece)
        target.write(piece * 2 if twice else piece)
        await target.drain()


@asynccontextmanager
async def network(service: str, weather: Weather = FAIR) -> AsyncIterator[Network]:
    """Start a proxy in front of a service, which is given as host:port."""
    host, _, port = service.rpartition(":")
    between = Network(host, int(port), weather=weather)
    server = await asyncio.start_server(between.serve, "127.0.0.1", 0)
    between.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield between
    finally:
        server.close()
        await between.stop()
