# SPDX-License-Identifier: Apache-2.0
"""Proxies of company networks: HTTP CONNECT and SOCKS 5. All names lead to one service."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass
class Proxy:
    """Running proxy and the targets that clients requested.

    Attributes:
        address: Address as host:port.
        asked: Requested targets as host:port, in order.
    """

    address: str = ""
    asked: list[str] = field(default_factory=list)


async def _connect_target(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
    """Answer a CONNECT request and return its target."""
    head = await reader.readuntil(b"\r\n\r\n")
    method, target, _ = head.split(b" ", 2)
    assert method == b"CONNECT", head
    writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
    return target.decode()


async def _socks_target(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
    """Answer a SOCKS 5 request by name (RFC 1928) and return its target."""
    _version, methods = await reader.readexactly(2)
    await reader.readexactly(methods)
    writer.write(b"\x05\x00")
    _version, command, _, kind = await reader.readexactly(4)
    assert (command, kind) == (1, 3), (command, kind)
    (length,) = await reader.readexactly(1)
    host = (await reader.readexactly(length)).decode()
    port = int.from_bytes(await reader.readexactly(2), "big")
    writer.write(b"\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00")
    return f"{host}:{port}"


@asynccontextmanager
async def _proxy(
    service: str, ask: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[str]]
) -> AsyncIterator[Proxy]:
    proxy = Proxy()
    host, _, port = service.rpartition(":")

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        proxy.asked.append(await ask(reader, writer))
        up_reader, up_writer = await asyncio.open_connection(host, int(port))
        await asyncio.gather(pump(reader, up_writer), pump(up_reader, writer))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    proxy.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield proxy
    finally:
        server.close()


def http_proxy(service: str):
    """Start an HTTP proxy, all of whose tunnels lead to one service."""
    return _proxy(service, _connect_target)


def socks_proxy(service: str):
    """Start a SOCKS 5 proxy, all of whose tunnels lead to one service."""
    return _proxy(service, _socks_target)
