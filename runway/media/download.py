# SPDX-License-Identifier: Apache-2.0
"""Download of an output from its URL to a complete file on this machine.

The URL is untrusted, it expires, and connections break. So the API key is never sent there,
redirects are followed manually, and a broken download resumes at its last byte, but only if the
server confirms that the file has not changed. The length and the SHA-256 are computed on the way.
Output URLs are valid for a day or two (Runway's docs, Outputs), those of CometAPI "for a limited
time". Object stores refuse an expired URL with various statuses (S3 and Google 400 or 403, Azure
and CloudFront 403, others 401, 404 or 410), so any refusal is worth one fresh URL. They label
videos in many ways, as text too, so the content is judged by its bytes alone (inspector.py).
"""

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Collection
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Self
from urllib.parse import urljoin, urlsplit

import httpx

from ..errors import DownloadInterrupted, InvalidOutput, OutputExpired, StorageError
from ..http_clients import NetworkTransport, streaming, untraced
from ..redact import RedactingFilter, host_of, origin_of, reason_of, redact_url, scrub
from .download_file import DownloadWriter
from .ssrf_guard import PublicAddresses, check_literal

MAX_REDIRECTS = 5
MAX_RESUMPTIONS = 4
"""Maximum number of consecutive breaks without a single new byte, before the download fails."""

MAX_RENEWALS = 1
"""Maximum number of fresh URLs without a single new byte, before the download fails."""

TIMEOUT = httpx.Timeout(60.0, connect=10.0)
MIN_RATE, RATE_GRACE = 10_000, 120.0
"""Minimum average rate in bytes per second, and seconds before the rate is checked."""

HTTPCORE_LOGGERS = ("connection", "http11", "http2", "proxy", "socks")
_BUSY = {408, 425, 429}
"""Statuses of a server that refuses a request only for now; they say nothing about the URL."""

MAX_SECONDS = 3600.0
"""Maximum seconds for one whole download, so that a slowly dripping file cannot hold its run
forever."""


# httpx logs complete URLs at INFO, and httpcore logs the headers of a reply at DEBUG. A signed URL
# must not appear in any log.
for _logger in ("httpx", *(f"httpcore.{part}" for part in HTTPCORE_LOGGERS)):
    logging.getLogger(_logger).addFilter(RedactingFilter())


class AssetClients:
    """Two transports that have no API key, keep no cookies and follow no redirects.

    Use it as an async context manager. Many downloads may share it.

    Args:
        transport: httpx transport to send through, for tests.

    Attributes:
        outside: Connects to public addresses only.
        trusted: Connects to any address that the host of a trusted URL resolves to.
    """

    def __init__(self, transport: httpx.AsyncBaseTransport | None = None) -> None:
        self.outside = transport or NetworkTransport(PublicAddresses())
        self.trusted = transport or NetworkTransport()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self.outside.aclose()
        await self.trusted.aclose()


async def download(
    clients: AssetClients,
    url: str,
    destination: Path,
    *,
    renew: Callable[[], Awaitable[str]] | None = None,
    trusted: Collection[str] = (),
    dead: dict[str, int] | None = None,
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
        dead: URLs that earlier attempts found dead, with their statuses. They are not requested
            again, and further ones are added.

    Raises:
        OutputExpired: The URL is no longer valid: a status from 400 to 499.
        DownloadInterrupted: The connection broke, and resuming did not help.
        InvalidOutput: The asset is empty, longer than announced or allowed, or its URL does not
            lead to the internet.
        StorageError: The file cannot be written.
    """
    dead = {} if dead is None else dead
    for refused in [url for url, status in dead.items() if may_recover(url, status)]:
        del dead[refused]
    try:
        with destination.open("wb") as file:
            async with aclosing(DownloadWriter(file)) as writer:
                try:
                    with untraced():
                        async with asyncio.timeout(MAX_SECONDS):
                            await _receive_all(_Source(clients, trusted, dead), url, writer, renew)
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


def may_recover(url: str, status: int) -> bool:
    """Return True if a refused URL may become valid later; pure.

    A signature that was refused stays refused. A URL without one cannot expire, and a file may
    still be on its way to the server that does not find it.
    """
    return "?" not in url or status == 404


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


@dataclass
class _Source:
    """Clients of a download, what they may request, and the rate at which it arrives."""

    clients: AssetClients
    trusted: Collection[str]
    dead: dict[str, int]
    rate: _RateCheck = field(default_factory=_RateCheck)


async def _receive_all(
    source: _Source,
    url: str,
    writer: DownloadWriter,
    renew: Callable[[], Awaitable[str]] | None,
) -> None:
    breaks, renewals, renewed_at = 0, 0, -1
    while True:
        before = writer.received
        try:
            await _receive(source, url, writer)
        except OutputExpired:
            renewals = renewals if writer.received == renewed_at else 0
            if renew is None or renewals >= MAX_RENEWALS:
                raise
            url, renewals, renewed_at = await renew(), renewals + 1, writer.received
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
        source.rate.check()
        if breaks >= MAX_RESUMPTIONS:
            raise DownloadInterrupted(
                f"the download from {host_of(url)} was interrupted: {problem}"
            )
        await asyncio.sleep(min(5.0, 0.1 * 4**breaks))


async def _receive(source: _Source, url: str, writer: DownloadWriter) -> None:
    headers = {"Accept-Encoding": "identity", "User-Agent": "prefect-cometapi"}
    if writer.received and writer.etag:
        headers |= {"Range": f"bytes={writer.received}-", "If-Range": writer.etag}
    for _ in range(MAX_REDIRECTS + 1):
        clients = source.clients
        transport = clients.trusted if _is_trusted(url, source.trusted) else clients.outside
        if url in source.dead:
            raise _expired(source.dead[url])
        request = httpx.Request(
            "GET", url, headers=headers, extensions={"timeout": TIMEOUT.as_dict()}
        )
        async with streaming(transport, request) as response:
            if response.has_redirect_location:
                url = _redirected(url, response.headers["location"])
                continue
            status = response.status_code
            if 400 <= status < 500 and status not in {*_BUSY, 416}:
                source.dead[url] = status
                raise _expired(status)
            await _prepare_for(response, writer)
            async for chunk in response.aiter_raw():
                source.rate.check(len(chunk))
                await writer.append(chunk)
            return
    raise InvalidOutput(f"the URL of the output redirects more than {MAX_REDIRECTS} times")


def _expired(status: int) -> OutputExpired:
    return OutputExpired("the URL of the output is no longer valid", http_status=status)


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
    if status == 416:
        await writer.start_again()
    if status in {*_BUSY, 416} or status >= 500:
        raise httpx.RemoteProtocolError(f"HTTP {status}")
    if status not in {200, 206}:
        raise DownloadInterrupted("the output cannot be downloaded", http_status=status)
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
