# SPDX-License-Identifier: Apache-2.0
"""Polls and downloads share connections, and behave as with httpx's own transport."""

import asyncio
import errno
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import aiohttp
import httpx
import pytest
from aiohttp.client_reqrep import ConnectionKey
from aiohttp.http_exceptions import BadStatusLine
from yarl import URL

from prefect_cometapi.runway.aiohttp_transport import translate
from prefect_cometapi.runway.http_clients import NetworkTransport, proxy_of, streaming

from .static_server import static_server

pytestmark = pytest.mark.usefixtures("plain_network")

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n"
SIGNED = "https://cdn.example.com/o?sig=s3cr3t"


@asynccontextmanager
async def transport(**options: Any) -> AsyncIterator[NetworkTransport]:
    """Open a transport and close it at the end."""
    opened = NetworkTransport(**options)
    yield opened
    await opened.aclose()


async def read(sender: httpx.AsyncBaseTransport, url: str, **options: Any) -> bytes:
    """Return the body of a reply."""
    async with streaming(sender, httpx.Request("GET", url, **options)) as response:
        return b"".join([piece async for piece in response.aiter_raw()])


class Service:
    """A service whose replies say on which connection they were sent.

    Attributes:
        connections: Connections so far; the first one is number 0.
    """

    def __init__(self) -> None:
        self.connections: list[asyncio.StreamWriter] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of a connection."""
        number = len(self.connections)
        self.connections.append(writer)
        while await reader.readline():
            while (await reader.readline()).strip():
                pass
            writer.write(OK + b"%04d" % number)
        writer.close()


@pytest.fixture
async def service() -> AsyncIterator[SimpleNamespace]:
    """Return a running service and its URL."""
    its = Service()
    server = await asyncio.start_server(its.serve, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        yield SimpleNamespace(url=f"http://127.0.0.1:{port}/", connections=its.connections)


async def test_requests_share_a_connection(service):
    """A connection is kept for the next request, and each request at the same time has its own."""
    async with transport() as sender:
        assert [await read(sender, service.url) for _ in range(3)] == [b"0000"] * 3
        replies = await asyncio.gather(*(read(sender, service.url) for _ in range(3)))
        assert len(set(replies)) == 3
    assert len(service.connections) == 3


@pytest.mark.parametrize("seen_by_the_loop", [True, False])
async def test_what_arrives_on_an_idle_connection_answers_nothing(service, seen_by_the_loop):
    """A second reply drops its connection, whether or not the event loop has read it already."""
    async with transport() as sender:
        assert await read(sender, service.url) == b"0000"
        service.connections[0].write(OK + b"late")
        if seen_by_the_loop:
            await read(sender, service.url.replace("127.0.0.1", "localhost"))
        replies = [await read(sender, service.url) for _ in range(2)]
    assert b"late" not in replies
    assert b"0000" not in replies


async def test_a_connection_whose_reply_was_not_read_is_closed(service):
    """The rest of a reply is not read as the answer to the next request."""
    async with transport() as sender:
        async with streaming(sender, httpx.Request("GET", service.url)) as response:
            assert response.status_code == 200
        assert await read(sender, service.url) in {b"0000", b"0001"}


async def test_no_cookie_is_kept_and_nothing_is_added_to_a_request():
    """A request has the headers that its caller names, and no cookie of an earlier reply."""
    reply = b"HTTP/1.1 200 OK\r\nset-cookie: a=b; Path=/\r\ncontent-length: 2\r\n\r\nok"
    async with static_server(reply) as (port, heads), transport() as sender:
        for _ in range(2):
            await read(sender, f"http://127.0.0.1:{port}/p?q=%2F+%20", headers={"X-Own": "1"})
    assert heads[0] == heads[1]
    lines = heads[0].decode().lower().split("\r\n")
    assert lines[0] == "get /p?q=%2f+%20 http/1.1"
    assert {line.partition(":")[0] for line in lines[1:] if line} == {"host", "x-own"}


async def test_a_redirect_is_a_reply_like_any_other():
    """No redirect is followed, however long the signature in its location is."""
    location = f"https://cdn.example.com/o?sig={'x' * 16_000}"
    head = f"HTTP/1.1 302 Found\r\nlocation: {location}\r\ncontent-length: 0\r\n\r\n"
    async with static_server(head.encode()) as (port, heads), transport() as sender:
        request = httpx.Request("GET", f"http://127.0.0.1:{port}/")
        async with streaming(sender, request) as response:
            assert response.headers["location"] == location
    assert len(heads) == 1


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (b"nonsense\r\n\r\n", httpx.RemoteProtocolError),
        (b"HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n", httpx.RemoteProtocolError),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", httpx.RemoteProtocolError),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf", httpx.ReadTimeout),
        (b"HTTP/1.1 200", httpx.ReadTimeout),
    ],
    ids=repr,
)
async def test_a_reply_that_is_not_http_is_an_error_of_httpx(reply, error):
    """A broken reply ends in an error of httpx, with no cause that could name the URL."""
    extensions = {"timeout": {"connect": 5.0, "read": 0.2}}
    async with static_server(reply) as (port, _), transport() as sender:
        url = f"http://127.0.0.1:{port}/o?sig=s3cr3t"
        with pytest.raises(error) as raised:
            await read(sender, url, extensions=extensions)
    assert raised.value.__cause__ is None
    assert raised.value.__context__ is None
    assert "s3cr3t" not in str(raised.value)


KEY = ConnectionKey("h", 443, True, True, None, None, None)
INFO = aiohttp.RequestInfo(URL(SIGNED), "GET", Any, URL(SIGNED))  # pyright: ignore[reportArgumentType]
DOWN = OSError(errno.ECONNREFUSED, "refused")


@pytest.mark.parametrize(
    ("error", "expected", "message"),
    [
        (aiohttp.SocketTimeoutError("slow"), httpx.ReadTimeout, "slow"),
        (aiohttp.ConnectionTimeoutError("slow"), httpx.ConnectTimeout, "slow"),
        (TimeoutError(), httpx.ConnectTimeout, ""),
        (
            aiohttp.ClientHttpProxyError(INFO, (), status=407, message="who?"),
            httpx.ProxyError,
            "who?",
        ),
        (aiohttp.ClientConnectorError(KEY, DOWN), httpx.ConnectError, "h:443: [Errno 111] refused"),
        (
            aiohttp.ClientConnectorDNSError(KEY, OSError("unknown")),
            httpx.ConnectError,
            "the host name h cannot be resolved: unknown",
        ),
        (
            aiohttp.ClientConnectorCertificateError(KEY, ssl.CertificateError("expired")),
            httpx.ConnectError,
            "h:443: ('expired',)",
        ),
        (aiohttp.ServerDisconnectedError(), httpx.RemoteProtocolError, "Server disconnected"),
        (aiohttp.ClientPayloadError("half"), httpx.RemoteProtocolError, "half"),
        (
            aiohttp.ClientResponseError(INFO, (), status=400, message="bad"),
            httpx.RemoteProtocolError,
            "bad",
        ),
        (BadStatusLine("x"), httpx.RemoteProtocolError, None),
        (ConnectionResetError(104, "reset"), httpx.ReadError, "[Errno 104] reset"),
        (aiohttp.NonHttpUrlClientError(URL("ftp://h")), httpx.UnsupportedProtocol, "ftp://h"),
        (aiohttp.InvalidURL("h", "no host"), httpx.InvalidURL, "h - no host"),
    ],
    ids=repr,
)
def test_each_error_has_its_meaning_in_httpx(error, expected, message):
    """Errors of httpx decide what a failure means, and their messages have no signature."""
    translated = translate(error)
    assert type(translated) is expected
    assert message is None or str(translated) == message
    assert "s3cr3t" not in str(translated)


PROXIES = {"http": "p:1", "https": "http://p:2", "no": "x"}


@pytest.mark.parametrize(
    ("url", "proxies", "exclusions", "proxy"),
    [
        ("http://h/", PROXIES, "", "http://p:1"),
        ("https://h/", PROXIES, "", "http://p:2"),
        ("https://h/", {"all": "socks5://p:3"}, "", "socks5://p:3"),
        ("https://h/", {}, "", None),
        ("https://h/", PROXIES, "*", None),
        ("https://a.example.com/", PROXIES, "localhost, example.com", None),
        ("https://a.example.com/", PROXIES, ".example.com", None),
        ("https://example.org/", PROXIES, "example.com", "http://p:2"),
        ("https://localhost:8080/", PROXIES, "localhost:8080", None),
        ("https://[::1]:8080/", PROXIES, "::1", None),
        ("https://10.0.0.1/", PROXIES, "10.0.0.1", None),
    ],
)
def test_the_proxy_of_a_url(monkeypatch, url, proxies, exclusions, proxy):
    """The environment names a proxy for each scheme, and the hosts that need none."""
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setenv("NO_PROXY", exclusions)
    assert proxy_of(httpx.URL(url), proxies) == proxy


async def test_a_plain_request_goes_through_an_http_proxy_as_a_whole(monkeypatch):
    """A proxy gets the whole URL of a request over plain http."""
    async with static_server(OK + b"done") as (port, heads):
        monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{port}")
        async with transport() as sender:
            assert await read(sender, "http://storage.internal/o") == b"done"
        async with transport(use_proxies=False) as sender:
            with pytest.raises(httpx.ConnectError):
                await read(sender, "http://storage.invalid/o")
    assert [head.split(b"\r\n")[0] for head in heads] == [b"GET http://storage.internal/o HTTP/1.1"]


async def test_a_request_whose_connection_is_lost_is_not_sent_again():
    """A connection that ends without a reply is an error, also where it was used before."""
    connections = 0

    async def answer_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK + b"once")
        await reader.readuntil(b"\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(answer_once, "127.0.0.1", 0)
    async with server, transport() as sender:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        assert await read(sender, url) == b"once"
        with pytest.raises(httpx.TransportError):
            await read(sender, url)
    assert connections == 1
