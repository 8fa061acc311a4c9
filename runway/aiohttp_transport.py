# SPDX-License-Identifier: Apache-2.0
"""Transport of httpx that sends through aiohttp, for calls by the thousand.

httpx and its own transport need 0.5 ms of a processor for a poll, aiohttp 0.1 ms: its parser is
written in C, and it keeps idle connections without scanning them. The requests, replies and errors
stay those of httpx, so that callers, proxies and tests know one kind only.
"""

import asyncio
import selectors
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from functools import cache
from typing import Any, Protocol, cast
from weakref import WeakSet

import aiohttp
import httpx
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import Connection
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.tracing import Trace
from yarl import URL

MAX_HEADER = 64 * 1024
"""Maximum bytes of a header of a reply; the location of a redirect may hold a long signature."""

READ_BUFFER = 256 * 1024
"""Bytes of a reply that wait to be read before its connection is paused."""

_FAILURES = (aiohttp.ClientError, HttpProcessingError, OSError)

_ERRORS: tuple[tuple[type[Exception], Callable[[str], Exception]], ...] = (
    (aiohttp.SocketTimeoutError, httpx.ReadTimeout),
    (TimeoutError, httpx.ConnectTimeout),
    (aiohttp.ClientHttpProxyError, httpx.ProxyError),
    (aiohttp.ClientConnectorError, httpx.ConnectError),
    (aiohttp.NonHttpUrlClientError, httpx.UnsupportedProtocol),
    (aiohttp.InvalidURL, httpx.InvalidURL),
    (OSError, httpx.ReadError),
)
"""Errors of httpx for those of aiohttp; the first row wins, and any other breaks the protocol."""


class _Lost(aiohttp.ClientError):
    """Loss of a connection, with the error of aiohttp."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error


class AddressGuard(Protocol):
    """Decision about the addresses that a transport may connect to."""

    async def resolve(self, host: str, port: int) -> list[str]:
        """Return the addresses of a host that are allowed, or raise the error of a refusal."""
        ...

    def check(self, address: str) -> None:
        """Raise the error of a refusal if an address is not allowed."""
        ...


class AiohttpTransport(httpx.AsyncBaseTransport):
    """Transport with its own pool of connections, which keeps no cookies.

    It is created in a running event loop, and used in no other.

    Args:
        context: TLS context.
        proxy: URL of the http proxy to send through, or None.
        guard: Decides about the addresses to connect to. By default, all are allowed.
    """

    def __init__(
        self,
        context: ssl.SSLContext,
        *,
        proxy: str | None = None,
        guard: AddressGuard | None = None,
    ) -> None:
        self._proxy = proxy
        connector = _Connector(
            limit=0,  # the caller limits the number of calls
            ssl=context,
            resolver=_GuardedResolver(guard) if guard else aiohttp.ThreadedResolver(),
            socket_factory=_guarded_socket(guard) if guard else None,
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            middlewares=(_send_once,),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            skip_auto_headers=("Accept", "Accept-Encoding", "Content-Type", "User-Agent"),
            read_bufsize=READ_BUFFER,
            max_line_size=MAX_HEADER,
            max_field_size=MAX_HEADER,
        )

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request, and return the reply once its headers have arrived.

        Raises:
            httpx.TransportError: There is no reply.
            httpx.InvalidURL: The URL has no valid host.
        """
        timeout = request.extensions.get("timeout", {})
        try:
            reply = await self._session.request(
                request.method,
                URL(str(request.url), encoded=True),
                headers=[
                    (n.decode("latin-1"), v.decode("latin-1")) for n, v in request.headers.raw
                ],
                data=await request.aread() or None,
                allow_redirects=False,
                timeout=_timeout(timeout.get("connect"), timeout.get("read")),
                proxy=self._proxy,
            )
        except _Lost as lost:
            failure = translate(lost.error)
        except _FAILURES as error:
            failure = translate(error)
        else:
            return httpx.Response(
                reply.status, headers=reply.raw_headers, stream=_Body(reply), request=request
            )
        raise failure  # not inside "except": the message of the cause may contain a signed URL

    async def aclose(self) -> None:
        """Close all connections."""
        await self._session.close()


async def _send_once(
    request: aiohttp.ClientRequest, send: aiohttp.ClientHandlerType
) -> aiohttp.ClientResponse:
    """Send a request, and let the loss of its connection be a failure.

    aiohttp itself would send the request again, where nobody sees it.
    """
    try:
        return await send(request)
    except aiohttp.ClientConnectorError:
        raise
    except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
        raise _Lost(error) from None


@cache
def _timeout(connect: float | None, read: float | None) -> aiohttp.ClientTimeout:
    return aiohttp.ClientTimeout(total=None, connect=connect, sock_read=read)


class _Body(httpx.AsyncByteStream):
    """Body of a reply, in pieces of the size in which they arrive."""

    def __init__(self, reply: aiohttp.ClientResponse) -> None:
        self._reply = reply

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for piece in self._reply.content.iter_any():
                yield piece
        except _FAILURES as error:
            failure = translate(error)
        else:
            return
        raise failure

    async def aclose(self) -> None:
        self._reply.release()  # also closes the connection if the body was not read to its end


class _Connector(aiohttp.TCPConnector):
    """Pool that drops an idle connection on which something arrived.

    Nobody waits for bytes on an idle connection: they are the end of the connection, or a second
    reply, which would be read as the answer to the next request.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._used: WeakSet[ResponseHandler] = WeakSet()

    async def connect(
        self,
        req: aiohttp.ClientRequest,
        traces: list[Trace],
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109 -- the interface of aiohttp
    ) -> Connection:
        """Return a new connection, or an idle one on which nothing arrived."""
        while True:
            connection = await super().connect(req, traces, timeout)
            protocol = cast("ResponseHandler", connection.protocol)
            if protocol not in self._used:
                self._used.add(protocol)
                return connection
            if not (protocol.should_close or _is_readable(protocol)):
                return connection
            connection.close()


def _is_readable(protocol: ResponseHandler) -> bool:
    """Return True if bytes wait in the socket that the event loop has not read yet."""
    transport = cast("asyncio.Transport", protocol.transport)
    with getattr(selectors, "PollSelector", selectors.SelectSelector)() as selector:
        selector.register(transport.get_extra_info("socket"), selectors.EVENT_READ)
        return bool(selector.select(0))


class _GuardedResolver(AbstractResolver):
    """Resolver that returns only the addresses which a guard allows."""

    def __init__(self, guard: AddressGuard) -> None:
        self._guard = guard

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Return the allowed addresses of a host, in the order in which to try them."""
        del family
        addresses = await self._guard.resolve(host, port)
        if not addresses:
            raise OSError("it has no address")
        return [_resolved(host, port, address) for address in addresses]

    async def close(self) -> None:
        """Do nothing: the resolver of the machine needs no end."""


def _resolved(host: str, port: int, address: str) -> ResolveResult:
    return ResolveResult(
        hostname=host,
        host=address,
        port=port,
        family=socket.AF_INET6 if ":" in address else socket.AF_INET,
        proto=0,
        flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
    )


def _guarded_socket(guard: AddressGuard) -> aiohttp.SocketFactoryType:
    """Return a function that creates a socket for an allowed address.

    aiohttp resolves no host that looks like an address. So each address is checked where its socket
    is made, too.
    """

    def create(info: aiohttp.AddrInfoType) -> socket.socket:
        family, kind, protocol, _name, address = info
        guard.check(str(address[0]))
        return socket.socket(family, kind, protocol)

    return create


def translate(error: Exception) -> Exception:
    """Return the error of httpx for one of aiohttp; pure."""
    made = next((made for kind, made in _ERRORS if isinstance(error, kind)), None)
    return (made or httpx.RemoteProtocolError)(_message(error))


def _message(error: Exception) -> str:
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return f"the host name {error.host} cannot be resolved: {error.os_error}"
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return f"{error.host}:{error.port}: {error.certificate_error}"
    if isinstance(error, aiohttp.ClientConnectorError):
        return f"{error.host}:{error.port}: {error.os_error}"
    if isinstance(error, aiohttp.ClientResponseError):
        return error.message  # the whole text has the URL
    return str(error)
