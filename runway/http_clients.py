# SPDX-License-Identifier: Apache-2.0
"""TLS context, proxies and transport of all HTTP calls."""

import os
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.request import getproxies, proxy_bypass

import httpx

from .errors import InvalidEnvironment
from .redact import reason_of

if TYPE_CHECKING:
    from .aiohttp_transport import AddressGuard

CERTIFICATE_VARIABLES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
"""Variables that name trusted certificates; the first one that is set counts.

httpx reads the first two. Companies often set only one of the others, which requests and curl read.
"""


@cache
def tls_context() -> ssl.SSLContext:
    """Return the TLS context of httpx, created once: reading the certificates takes 20 ms.

    Raises:
        InvalidEnvironment: A variable names certificates that cannot be read.
    """
    name = next((each for each in CERTIFICATE_VARIABLES if os.environ.get(each)), None)
    if name is None:
        return httpx.create_ssl_context()
    path = Path(os.environ[name])
    try:
        if path.is_dir():
            return ssl.create_default_context(capath=path)
        return ssl.create_default_context(cafile=path)
    except OSError as error:
        raise InvalidEnvironment(
            f"{name} names the certificates {path}, which cannot be read: {reason_of(error)}"
        ) from None


def untraced() -> AbstractContextManager[None]:
    """Return a context in which OpenTelemetry records no requests.

    Its instrumentations of HTTP clients record the whole URL of each request, with the query that
    signs it. Prefect's own spans of runs and tasks are not affected.
    """
    suppress = _suppressor()
    return suppress() if suppress else nullcontext()


@cache
def _suppressor() -> Callable[[], AbstractContextManager[None]] | None:
    try:  # a package of which every instrumentation is built; without it, nothing is recorded
        utils = import_module("opentelemetry.instrumentation.utils")
    except ImportError:
        return None
    return utils.suppress_http_instrumentation


def proxy_of(url: httpx.URL, proxies: Mapping[str, str]) -> str | None:
    """Return the URL of the proxy for a request, or None if it is sent directly.

    Args:
        url: URL of the request.
        proxies: Proxies by scheme, as ``urllib.request.getproxies`` returns them.
    """
    proxy = proxies.get(url.scheme) or proxies.get("all")
    if not proxy or any(map(proxy_bypass, (url.host, url.netloc.decode("ascii")))):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


class NetworkTransport(httpx.AsyncBaseTransport):
    """Transport that sends each request directly, or through the proxy of the environment.

    Args:
        guard: Decides about the addresses of direct connections. By default, all are allowed. A
            proxy resolves names by itself, and decides by itself.
        use_proxies: If false, the proxies of the environment are not used.
    """

    def __init__(self, guard: "AddressGuard | None" = None, *, use_proxies: bool = True) -> None:
        self._guard = guard
        self._proxies = getproxies() if use_proxies else {}
        self._opened: dict[str | None, httpx.AsyncBaseTransport] = {}

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request, and return the reply once its headers have arrived.

        Raises:
            httpx.TransportError: There is no reply.
        """
        proxy = proxy_of(request.url, self._proxies) if self._proxies else None
        if proxy not in self._opened:
            self._opened[proxy] = self._open(proxy)
        return await self._opened[proxy].handle_async_request(request)

    async def aclose(self) -> None:
        """Close all connections."""
        for transport in self._opened.values():
            await transport.aclose()

    def _open(self, proxy: str | None) -> httpx.AsyncBaseTransport:
        if proxy and not proxy.lower().startswith("http://"):
            # aiohttp has no SOCKS, and asyncio supports TLS within TLS only in part.
            return httpx.AsyncHTTPTransport(verify=tls_context(), proxy=proxy)
        from .aiohttp_transport import AiohttpTransport  # takes 0.1 s, and no import needs it

        return AiohttpTransport(tls_context(), proxy=proxy, guard=None if proxy else self._guard)


@asynccontextmanager
async def streaming(
    transport: httpx.AsyncBaseTransport, request: httpx.Request
) -> AsyncIterator[httpx.Response]:
    """Send a request, and yield the reply, whose body is read by the block.

    A client of httpx would do more than is needed here: redirects, cookies and authentication.

    Raises:
        httpx.TransportError: There is no reply.
    """
    response = await transport.handle_async_request(request)
    try:
        yield response
    finally:
        await response.aclose()
