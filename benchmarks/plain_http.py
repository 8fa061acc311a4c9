# SPDX-License-Identifier: Apache-2.0
"""Minimal HTTP/1.1 for benchmarks, so that the service costs next to nothing.

It reads the requests of well-behaved clients: heads in one or several pieces, bodies with a length,
and kept-alive connections. It supports neither chunked requests nor trailers.
"""

import asyncio
import json
import re
import signal
import sys
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, BinaryIO

LONGEST_HEAD = 64 * 1024
_HEADER = rb"(?i)\r\n%s: *([^\r]*)"
_LENGTH = re.compile(_HEADER % b"content-length")
_CLOSE = re.compile(rb"(?i)\r\nconnection: *close")
_REASONS = {status.value: status.phrase for status in HTTPStatus}


@dataclass(frozen=True)
class Request:
    """HTTP request."""

    method: str
    path: str
    head: bytes = field(repr=False)
    body: bytes = field(repr=False)

    def header(self, name: str) -> str:
        """Return the value of a header, or nothing."""
        found = re.search(_HEADER % re.escape(name.lower().encode()), self.head)
        return found[1].decode("latin-1").strip() if found else ""


@dataclass(frozen=True)
class Part:
    """Range of an open file, which the kernel sends."""

    file: BinaryIO
    first: int
    size: int


@dataclass(frozen=True)
class Response:
    """HTTP response."""

    status: int
    body: bytes | memoryview | Part
    headers: dict[str, str] = field(default_factory=dict)

    def head(self, *, last: bool) -> bytes:
        """Return the status line and the headers."""
        size = self.body.size if isinstance(self.body, Part) else len(self.body)
        headers = {"Content-Type": "application/json", "Content-Length": str(size)} | self.headers
        if last:
            headers["Connection"] = "close"
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        return f"HTTP/1.1 {self.status} {_REASONS[self.status]}\r\n{lines}\r\n".encode()


def as_json(value: Any, status: int = 200) -> Response:
    """Return a response in JSON."""
    return Response(status, json.dumps(value, separators=(",", ":")).encode())


class Connection(asyncio.Protocol):
    """Connection that answers each request before it reads the next."""

    def __init__(self, respond: Callable[[Request], Response], open_: set["Connection"]) -> None:
        self._answer = respond
        self._open = open_
        self._buffer = b""
        self._sending: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._open.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._open.discard(self)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        self._proceed()

    def _proceed(self) -> None:
        while not self._sending and not self._transport.is_closing():
            head, ended, rest = self._buffer.partition(b"\r\n\r\n")
            if not ended:
                if len(head) > LONGEST_HEAD:
                    self._transport.close()
                return
            found = _LENGTH.search(head)
            length = int(found[1]) if found else 0
            if len(rest) < length:
                return
            self._buffer = rest[length:]
            method, path, _ = head.partition(b"\r\n")[0].decode("latin-1").split(" ", 2)
            self._send(Request(method, path, head, rest[:length]), last=bool(_CLOSE.search(head)))

    def _send(self, request: Request, *, last: bool) -> None:
        response = self._answer(request)
        head = response.head(last=last)
        if request.method == "HEAD":
            self._transport.write(head)
        elif isinstance(response.body, Part):
            self._transport.write(head)
            self._sending = asyncio.create_task(self._send_part(response.body, last=last))
            return
        elif len(response.body) < LONGEST_HEAD:
            self._transport.write(head + response.body)
        else:
            self._transport.write(head)
            self._transport.write(response.body)
        if last:
            self._transport.close()

    async def _send_part(self, part: Part, *, last: bool) -> None:
        try:
            loop = asyncio.get_running_loop()
            await loop.sendfile(self._transport, part.file, part.first, part.size)
        except (OSError, RuntimeError):
            self._transport.abort()  # The client closed the connection.
            return
        finally:
            self._sending = None
        if last:
            self._transport.close()
        self._proceed()


async def _serve(
    respond: Callable[[Request], Response], beside: Callable[[], Coroutine[Any, Any, None]] | None
) -> None:
    loop, stop, open_ = asyncio.get_running_loop(), asyncio.Event(), set[Connection]()
    server = await loop.create_server(
        lambda: Connection(respond, open_), "127.0.0.1", 0, backlog=4096
    )
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    loop.add_reader(sys.stdin, stop.set)  # Standard input ends when the parent process ends.
    task = asyncio.create_task(beside()) if beside else None
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await stop.wait()
    if task:
        task.cancel()
    server.close()


def serve(
    respond: Callable[[Request], Response],
    beside: Callable[[], Coroutine[Any, Any, None]] | None = None,
) -> None:
    """Answer requests until standard input ends; the first line of output is the address.

    Args:
        respond: Returns the response to a request, without waiting.
        beside: Coroutine that also runs in the loop.
    """
    asyncio.run(_serve(respond, beside))
