# SPDX-License-Identifier: Apache-2.0
"""Download of an output from its URL to a complete file on this machine.

The URL is untrusted, it expires, and connections break. So the API key is never sent there,
redirects are followed manually, and a broken download resumes at its last byte, but only if the
server confirms that the file has not changed. The length and the SHA-256 are computed on the way.
Output URLs are valid for a day or two (Runway's docs, Outputs), those of CometAPI "for a limited
time". An expired URL has its own error, since a fresh one can be requested.
"""

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Collection
from contextlib import aclosing
from http.cookiejar import CookieJar, DefaultCookiePolicy
from pathlib import Path
from time import monotonic
from typing import Self
from urllib.parse import urljoin, urlsplit

import httpx

from ..errors import DownloadInterrupted, InvalidOutput, OutputExpired, StorageError
from ..http_clients import tls_context
from ..redact import RedactingFilter, host_of, origin_of, reason_of, redact_url, scrub
from .download_file import DownloadWriter
from .ssrf_guard import check_literal, keep_outside

MAX_REDIRECTS = 5
MAX_RESUMPTIONS = 4
"""Maximum number of consecutive breaks without a single new byte, before the download fails."""

MAX_RENEWALS = 2
"""Maximum number of fresh URLs without a single new byte, before the output counts as lost."""

TIMEOUT = httpx.Timeout(60.0, connect=10.0)
MIN_RATE, RATE_GRACE = 10_000, 120.0
"""Minimum average rate in bytes per second, and seconds before the rate is checked."""

HTTPCORE_LOGGERS = ("connection", "http11", "http2", "proxy", "socks")
_EXPIRED = {401, 403, 404, 410}
_IS_TEXT = re.compile(r"^text/|html|xml|json|javascript")
"""Media types that are certainly not a video; storage services label videos in many ways."""

MAX_SECONDS = 3600.0
"""Maximum seconds for one whole download, so that a slowly dripping file cannot hold its run
forever."""


# httpx logs complete URLs at INFO, and httpcore logs the headers of a reply at DEBUG. A signed URL
# must not appear in any log.
for _logger in ("httpx", *(f"httpcore.{part}" for part in HTTPCORE_LOGGERS)):
    logging.getLogger(_logger).addFilter(RedactingFilter())


class AssetClients:
    """Two HTTP clients that have no API key, keep no cookies and follow no redirects.

    Use it as an async context manager. Many downloads may share it.

    Args:
        transport: httpx transport to send through, for tests.

    Attributes:
        outside: Connects to public addresses only.
        trusted: Connects to any address that the host of a trusted URL resolves to.
    """

    def __init__(self, transport: httpx.AsyncBaseTransport | None = None) -> None:
        self.outside, self.trusted = _asset_client(transport), _asset_client(transport)
        keep_outside(self.outside)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self.outside.aclose()
        await self.trusted.aclose()


def _asset_client(transport: httpx.AsyncBaseTransport | None) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        timeout=TIMEOUT,
        transport=transport,
        verify=tls_context(),
        follow_redirects=False,
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=100),
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
    )


async def download(
    clients: AssetClients,
    url: str,
    destination: Path,
    *,
    renew: Callable[[], Awaitable[str]] | None = None,
    trusted: Collection[str] = (),
) -> str:
    """Stream an asset to a new file, flushed to disk, and return its SHA-256 in hex.

    Args:
        clients: HTTP clients to use.
        url: URL of the asset: https and on the internet, or a trusted host.
        destination: File to write; after an error it may be incomplete.
        renew: Returns a fresh URL when this one expires, even in the middle of the download.
        trusted: Hosts and origins that may be requested over plain http and at any address: hosts
            in lower case, as the user names them, and origins (``origin_of``), such as that of the
            configured service.

    Raises:
        OutputExpired: The URL is no longer valid (401, 403, 404, 410).
        DownloadInterrupted: The connection broke, and resuming did not help.
        InvalidOutput: The asset is empty, a text instead of a video, longer than announced or
            allowed, or its URL does not lead to the internet.
        StorageError: The file cannot be written.
    """
    try:
        with destination.open("wb") as file:
            async with aclosing(DownloadWriter(file)) as writer:
                try:
                    async with asyncio.timeout(MAX_SECONDS):
                        await _receive_all(clients, url, writer, renew, trusted)
                except TimeoutError:
                    problem = f"the download took longer than {MAX_SECONDS:,.0f} s"
                    raise DownloadInterrupted(problem) from None
                sha256 = await writer.finish()
    except OSError as error:
        raise StorageError(
            f"the download could not be written to {destination.parent}: {reason_of(error)}"
        ) from error
    if not writer.received:
        raise InvalidOutput("the output is empty")
    return sha256


async def _receive_all(
    clients: AssetClients,
    url: str,
    writer: DownloadWriter,
    renew: Callable[[], Awaitable[str]] | None,
    trusted: Collection[str],
) -> None:
    breaks, rate = 0, _RateCheck()
    while True:
        before = writer.received
        try:
            await _receive(clients, url, writer, trusted, rate)
        except OutputExpired:
            if renew is None or breaks >= MAX_RENEWALS:
                raise
            url, breaks = await renew(), breaks + 1
            continue
        except (httpx.HTTPError, httpx.StreamError) as error:
            problem = f"{type(error).__name__}: {scrub(str(error))}"
        except (httpx.InvalidURL, ValueError) as error:  # httpx parses every Location header
            what = f"the server of the output sent an invalid reply: {scrub(str(error), limit=120)}"
            raise InvalidOutput(what) from None
        else:
            if writer.total is None or writer.received == writer.total:
                return
            problem = f"{writer.received:,} of {writer.total:,} bytes arrived"
        breaks = breaks + 1 if writer.received <= before else 0
        rate.check()
        if breaks >= MAX_RESUMPTIONS:
            raise DownloadInterrupted(
                f"the download from {host_of(url)} was interrupted: {problem}"
            )
        await asyncio.sleep(min(5.0, 0.1 * 4**breaks))


class _RateCheck:
    """Average rate of a download, over all of its connections."""

    def __init__(self) -> None:
        self._begun, self._bytes = monotonic(), 0

    def check(self, arrived: int = 0) -> None:
        """Count the bytes that arrived, and check the average rate.

        Raises:
            DownloadInterrupted: The rate is too low.
        """
        self._bytes += arrived
        if monotonic() - self._begun > RATE_GRACE + self._bytes / MIN_RATE:
            raise DownloadInterrupted(f"the download is slower than {MIN_RATE:,} bytes/s")


async def _receive(
    clients: AssetClients,
    url: str,
    writer: DownloadWriter,
    trusted: Collection[str],
    rate: _RateCheck,
) -> None:
    headers = {"Accept-Encoding": "identity"}
    if writer.received and writer.etag:
        headers |= {"Range": f"bytes={writer.received}-", "If-Range": writer.etag}
    for _ in range(MAX_REDIRECTS + 1):
        http = clients.trusted if _is_trusted(url, trusted) else clients.outside
        async with http.stream("GET", url, headers=headers) as response:
            if response.has_redirect_location:
                url = _redirected(url, response.headers["location"])
                continue
            await _prepare_for(response, writer)
            async for chunk in response.aiter_raw():
                rate.check(len(chunk))
                await writer.append(chunk)
            return
    raise InvalidOutput(f"the URL of the output redirects more than {MAX_REDIRECTS} times")


def _redirected(url: str, location: str) -> str:
    try:
        return urljoin(url, location)
    except ValueError:
        raise InvalidOutput("the URL of the output redirects to an invalid URL") from None


def _is_trusted(url: str, trusted: Collection[str]) -> bool:
    """Return True if the URL may lead to any address.

    Raises:
        InvalidOutput: The URL must not be requested at all.
    """
    try:
        scheme, host, _ = httpx.URL(url).scheme, host_of(url), urlsplit(url).port
    except (httpx.InvalidURL, ValueError):
        raise InvalidOutput("the URL of the output is not valid") from None
    is_named = host in trusted or origin_of(url) in trusted
    if host and is_named and scheme in {"http", "https"}:
        return True
    if not host or scheme != "https":
        raise InvalidOutput(f"the URL of the output is not https: {redact_url(url)}")
    check_literal(host)  # also here, since a proxy resolves names instead of this machine
    return False


async def _prepare_for(response: httpx.Response, writer: DownloadWriter) -> None:
    """Prepare for the body of a good reply, or raise the error of a bad one."""
    status = response.status_code
    if status in _EXPIRED:
        raise OutputExpired("the URL of the output is no longer valid", http_status=status)
    if status == 416:
        await writer.start_again()
    if status in {416, 429} or status >= 500:
        raise httpx.RemoteProtocolError(f"HTTP {status}")
    if status not in {200, 206}:
        raise DownloadInterrupted("the output cannot be downloaded", http_status=status)
    media_type = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    if _IS_TEXT.search(media_type):
        what = f"the server sent text instead of a video ({scrub(media_type, limit=60)})"
        raise InvalidOutput(what, http_status=status)
    length = response.headers.get("content-length", "")
    rest = int(length) if re.fullmatch("[0-9]{1,18}", length) else None
    if not (status == 206 and _continues(response, writer)):
        await writer.start_again()
    writer.expect(rest)
    etag = response.headers.get("etag", "")
    writer.etag = "" if etag.startswith("W/") else etag


def _continues(response: httpx.Response, writer: DownloadWriter) -> bool:
    """Return True if a partial reply begins exactly at the end of the file."""
    match = re.match(r"bytes (\d{1,18})-", response.headers.get("content-range", ""))
    if match and int(match[1]) == writer.received:
        return True
    raise DownloadInterrupted("the server sent a different part of the output than requested")
