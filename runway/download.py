# SPDX-License-Identifier: Apache-2.0
"""From an output's address to a whole file on this machine.

The address is a stranger's, it expires, and connections break: so the API key is never sent
there, redirects are followed by hand, a broken download goes on where it stopped (only when the
server confirms that the file is still the same), and the length and the SHA-256 are taken on the
way. Output addresses live for a day or two (Runway's docs, Outputs), those of CometAPI "for a
limited time"; an expired one is an error of its own, since a fresh one can be had.
"""

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from http.cookiejar import CookieJar, DefaultCookiePolicy
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import httpx

from .arriving import ArrivingFile
from .client import tls_context
from .errors import DownloadInterrupted, InvalidOutput, OutputExpired, StorageError
from .redact import HideSecrets, host_of, scrub, shown_url

MAX_REDIRECTS = 5
RESUMPTIONS = 4
"""Times that a download goes on after a break without a single new byte, before it is given up."""

RENEWALS = 2
"""Fresh addresses that are tried without a single new byte, before the output counts as lost."""

TIMEOUT = httpx.Timeout(60.0, connect=10.0)
_EXPIRED = {401, 403, 404, 410}


# httpx logs each URL whole at INFO; a signed one must not stand in anybody's log.
logging.getLogger("httpx").addFilter(HideSecrets())


def asset_client(transport: httpx.AsyncBaseTransport | None = None) -> httpx.AsyncClient:
    """A client that knows no key, keeps no cookie and follows no redirect.

    Args:
        transport: What httpx sends through; tests plug in here.
    """
    return httpx.AsyncClient(
        timeout=TIMEOUT,
        transport=transport,
        verify=tls_context(),
        follow_redirects=False,
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
    )


async def download(
    http: httpx.AsyncClient,
    url: str,
    destination: Path,
    *,
    renew: Callable[[], Awaitable[str]] | None = None,
    trusted_host: str = "",
) -> str:
    """Stream an asset to a new file, flushed to the disk, and return its SHA-256 in hex.

    Args:
        http: Made by `asset_client`; many downloads may share it.
        url: Where the asset is; https, or a host that is trusted.
        destination: The file to write; it exists only in part after an error.
        renew: Gives a fresh address when this one expires, even in the middle.
        trusted_host: A host that may be asked over plain http (the configured service).

    Raises:
        OutputExpired: The address is no longer valid (401, 403, 404, 410).
        DownloadInterrupted: The connection broke, and going on did not help.
        InvalidOutput: It is empty, an HTML page, or longer than announced or allowed.
        StorageError: The file cannot be written.
    """
    try:
        with destination.open("wb") as file:
            async with aclosing(ArrivingFile(file)) as arriving:
                await _receive_all(http, url, arriving, renew, trusted_host)
                sha256 = await arriving.finish()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise StorageError(f"{destination.parent} did not take the download: {reason}") from error
    if not arriving.received:
        raise InvalidOutput("the output is empty")
    return sha256


async def _receive_all(
    http: httpx.AsyncClient,
    url: str,
    arriving: ArrivingFile,
    renew: Callable[[], Awaitable[str]] | None,
    trusted_host: str,
) -> None:
    breaks = 0
    while True:
        before = arriving.received
        try:
            await _receive(http, url, arriving, trusted_host)
        except OutputExpired:
            if renew is None or breaks >= RENEWALS:
                raise
            url, breaks = await renew(), breaks + 1
            continue
        except (httpx.HTTPError, httpx.StreamError) as error:
            problem = f"{type(error).__name__}: {scrub(str(error))}"
        else:
            if arriving.total is None or arriving.received == arriving.total:
                return
            problem = f"{arriving.received:,} of {arriving.total:,} bytes arrived"
        breaks = breaks + 1 if arriving.received <= before else 0
        if breaks >= RESUMPTIONS:
            raise DownloadInterrupted(f"the download from {host_of(url)} broke off: {problem}")
        await asyncio.sleep(min(5.0, 0.1 * 4**breaks))


async def _receive(
    http: httpx.AsyncClient, url: str, arriving: ArrivingFile, trusted_host: str
) -> None:
    headers = {"Accept-Encoding": "identity"}
    if arriving.received and arriving.etag:
        headers |= {"Range": f"bytes={arriving.received}-", "If-Range": arriving.etag}
    for _ in range(MAX_REDIRECTS + 1):
        _check_address(url, trusted_host)
        async with http.stream("GET", url, headers=headers) as response:
            if response.has_redirect_location:
                url = _redirected(url, response.headers["location"])
                continue
            await _prepare_for(response, arriving)
            async for chunk in response.aiter_raw():
                await arriving.append(chunk)
            return
    raise InvalidOutput(f"the output's address redirects more than {MAX_REDIRECTS} times")


def _redirected(url: str, location: str) -> str:
    try:
        return urljoin(url, location)
    except ValueError:
        raise InvalidOutput("the output's address redirects to no valid address") from None


def _check_address(url: str, trusted_host: str) -> None:
    try:
        scheme, host, _ = httpx.URL(url).scheme, host_of(url), urlsplit(url).port
    except (httpx.InvalidURL, ValueError):
        raise InvalidOutput("the output's address is no valid address") from None
    if not host or not (scheme == "https" or (scheme == "http" and host == trusted_host)):
        raise InvalidOutput(f"the output's address is not https: {shown_url(url)}")


async def _prepare_for(response: httpx.Response, arriving: ArrivingFile) -> None:
    """Prepare for the body of a good reply, or raise what a bad one means."""
    status = response.status_code
    if status in _EXPIRED:
        raise OutputExpired("the output's address is no longer valid", http_status=status)
    if status == 416:
        await arriving.start_again()
    if status in {416, 429} or status >= 500:
        raise httpx.RemoteProtocolError(f"HTTP {status}")
    if status not in {200, 206}:
        raise DownloadInterrupted("the output cannot be downloaded", http_status=status)
    if "html" in response.headers.get("content-type", "").lower():
        raise InvalidOutput("an HTML page came in place of the output", http_status=status)
    length = response.headers.get("content-length", "")
    rest = int(length) if length.isdigit() else None
    if not (status == 206 and _continues(response, arriving)):
        await arriving.start_again()
    arriving.expect(rest)
    etag = response.headers.get("etag", "")
    arriving.etag = "" if etag.startswith("W/") else etag


def _continues(response: httpx.Response, arriving: ArrivingFile) -> bool:
    """Whether a partial reply begins exactly where the file ends."""
    match = re.match(r"bytes (\d+)-", response.headers.get("content-range", ""))
    if match and int(match[1]) == arriving.received:
        return True
    raise DownloadInterrupted("the server sent another part of the output than was asked for")
