# SPDX-License-Identifier: Apache-2.0
"""Faults below HTTP: connections that are reset, fall silent, or end half way.

ASGI cannot express these, so the functions use the socket: uvicorn's ``send`` is a method of an
object that holds the transport. Under a server that keeps the transport elsewhere, the application
raises `ConnectionResetError` instead, and an in-process client receives that error.
"""

import asyncio
import socket
import struct
from collections.abc import MutableMapping
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

_RESET_WHEN_CLOSED = struct.pack("ii", 1, 0)
_PIECES = 20


async def reset(receive: Receive, send: Send) -> None:
    """Reset the connection with a real RST, as a dying proxy does."""
    transport = _transport(send)
    raw = transport.get_extra_info("socket")
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_WHEN_CLOSED)
    transport.abort()
    await _gone(receive)


async def fall_silent(receive: Receive, send: Send, seconds: float) -> None:
    """Send nothing for some seconds, then close; return earlier if the client closes."""
    try:
        await asyncio.wait_for(_gone(receive), seconds)
    except TimeoutError:
        _transport(send).close()
        await _gone(receive)


async def drain(receive: Receive) -> None:
    """Read a request to its end, so that the client has certainly sent all of it."""
    while (message := await receive())["type"] == "http.request" and message.get("more_body"):
        pass


async def answer_of(app: ASGIApp, scope: Scope, receive: Receive) -> list[Message]:
    """Run `app` and return its answer without sending it to the client."""
    kept: list[Message] = []

    async def keep(message: MutableMapping[str, Any]) -> None:
        kept.append(message)

    await app(scope, receive, keep)
    return kept


async def replay(messages: list[Message], send: Send) -> None:
    """Send an answer that was held back."""
    for message in messages:
        await send(message)


async def cut_in_half(messages: list[Message], receive: Receive, send: Send) -> None:
    """Announce the whole body, send its first half and close the connection."""
    start, body = messages[0], _body(messages)
    await send(start)
    half = body[: len(body) // 2]
    await send({"type": "http.response.body", "body": half, "more_body": True})
    _transport(send).close()
    await _gone(receive)


async def trickle(messages: list[Message], send: Send, seconds: float) -> None:
    """Send an answer piece by piece over `seconds`."""
    start, body = messages[0], _body(messages)
    await send(start)
    size = max(1, -(-len(body) // _PIECES))
    for first in range(0, len(body), size):
        await asyncio.sleep(seconds / _PIECES)
        piece = body[first : first + size]
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


def _body(messages: list[Message]) -> bytes:
    return b"".join(message.get("body", b"") for message in messages)


def _transport(send: Send) -> asyncio.Transport:
    transport = getattr(getattr(send, "__self__", None), "transport", None)
    if not isinstance(transport, asyncio.Transport):
        raise ConnectionResetError("The sandbox reset this connection.")
    return transport


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
