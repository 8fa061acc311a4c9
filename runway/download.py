# SPDX-License-Identifier: Apache-2.0
"""From an output's address to a whole file on this machine.

The address is a stranger's, it expires, and connections break: so the API key is never sent
there, redirects are followed by hand, a broken download goes on where it stopped (only when the
server confirms that the file is still the same), and the length and the SHA-256 are taken on the
way. Output addresses live for a day or two (Runway's docs, Outputs), those of CometAPI "for a
limited time"; an expired one is an error of its own, since a fresh one can be had.
"""

import asyncio
import hashlib
import logging
import os
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urljoin, urlsplit

import httpx

from .client import tls_context
from .errors import DownloadInterrupted, InvalidOutput, OutputExpired, StorageError
from .redact import HideSecrets, host_of, scrub, shown_url

MAX_REDIRECTS = 5
MAX_BYTES = 4 * 1024**3
RESUMPTIONS = 4
"""Times that a download goes on after a break without a single new byte, before it is given up."""

RENEWALS = 2
"""Fresh addresses that are tried without a single new byte, before the output counts as lost."""

TIMEOUT = httpx.Timeout(60.0, connect=10.0)
_EXPIRED = {401, 403, 404, 410}


@dataclass
class Partial:
    """What has arrived so far."""

    file: BinaryIO
    received: int = 0
    total: int | None = None
    etag: str = ""
    hash: "hashlib._Hash" = field(default_factory=hashlib.sha256)

    def start_again(self) -> None:
        """Forget what arrived: the server sends the file from its beginning."""
        self.file.seek(0)
        self.file.truncate()
        self.received, self.total, self.etag, self.hash = 0, None, "", hashlib.sha256()

    def append(self, chunk: bytes) -> None:
        """Keep a chunk, which must not make the file longer than announced or allowed."""
        self.received += len(chunk)
        allowed = MAX_BYTES if self.total is None else self.total
        if self.received > allowed:
            raise InvalidOutput(f"the output is longer than {allowed:,} bytes")
        self.file.write(chunk)
        self.hash.update(chunk)


# httpx logs each URL whole at INFO; a signed one must not stand in anybody's log.
logging.getLogger("httpx").addFilter(HideSecrets())


async def download(
    url: str,
    destination: Path,
    *,
    renew: Callable[[], Awaitable[str]] | None = None,
    trusted_host: str = "",
    transport: httpx.AsyncBaseTransport | None = None,
) -> str:
    """Stream an asset to a new file, flushed to the disk, and return its SHA-256 in hex.

    Args:
        url: Where the asset is; https, or a host that is trusted.
        destination: The file to write; it exists only in part after an error.
        renew: Gives a fresh address when this one expires, even in the middle.
        trusted_host: A host that may be asked over plain http (the configured service).
        transport: What httpx sends through.

    Raises:
        OutputExpired: The address is no longer valid (401, 403, 404, 410).
        DownloadInterrupted: The connection broke, and going on did not help.
        InvalidOutput: It is empty, an HTML page, or longer than announced or allowed.
        StorageError: The file cannot be written.
    """
    async with httpx.AsyncClient(
        timeout=TIMEOUT, transport=transport, verify=tls_context(), follow_redirects=False
    ) as http:
        try:
            with destination.open("wb") as file:
                partial = Partial(file)
                await _receive_all(http, url, partial, renew, trusted_host)
                await asyncio.to_thread(_flush, file)
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise StorageError(
                f"{destination.parent} did not take the download: {reason}"
            ) from error
    if not partial.received:
        raise InvalidOutput("the output is empty")
    return partial.hash.hexdigest()


async def _receive_all(
    http: httpx.AsyncClient,
    url: str,
    partial: Partial,
    renew: Callable[[], Awaitable[str]] | None,
    trusted_host: str,
) -> None:
    breaks = 0
    while True:
        before = partial.received
        try:
            await _receive(http, url, partial, trusted_host)
        except OutputExpired:
            if renew is None or breaks >= RENEWALS:
                raise
            url, breaks = await renew(), breaks + 1
            continue
        except (httpx.HTTPError, httpx.StreamError) as error:
            problem = f"{type(error).__name__}: {scrub(str(error))}"
        else:
            if partial.total is None or partial.received == partial.total:
                return
            problem = f"{partial.received:,} of {partial.total:,} bytes arrived"
        breaks = breaks + 1 if partial.received <= before else 0
        if breaks >= RESUMPTIONS:
            raise DownloadInterrupted(f"the download from {host_of(url)} broke off: {problem}")
        await asyncio.sleep(min(5.0, 0.1 * 4**breaks))


async def _receive(http: httpx.AsyncClient, url: str, partial: Partial, trusted_host: str) -> None:
    headers = {"Accept-Encoding": "identity"}
    if partial.received and partial.etag:
        headers |= {"Range": f"bytes={partial.received}-", "If-Range": partial.etag}
    for _ in range(MAX_REDIRECTS + 1):
        _check_address(url, trusted_host)
        async with http.stream("GET", url, headers=headers) as response:
            if response.has_redirect_location:
                url = _redirected(url, response.headers["location"])
                continue
            _check_response(response, partial)
            async for chunk in response.aiter_raw():
                partial.append(chunk)
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


def _check_response(response: httpx.Response, partial: Partial) -> None:
    """Prepare for the body of a good reply, or raise what a bad one means."""
    status = response.status_code
    if status in _EXPIRED:
        raise OutputExpired("the output's address is no longer valid", http_status=status)
    if status == 416:
        partial.start_again()
    if status in {416, 429} or status >= 500:
        raise httpx.RemoteProtocolError(f"HTTP {status}")
    if status not in {200, 206}:
        raise DownloadInterrupted("the output cannot be downloaded", http_status=status)
    if "html" in response.headers.get("content-type", "").lower():
        raise InvalidOutput("an HTML page came in place of the output", http_status=status)
    length = response.headers.get("content-length", "")
    rest = int(length) if length.isdigit() else None
    if not (status == 206 and _continues(response, partial)):
        partial.start_again()
    partial.total = None if rest is None else partial.received + rest
    if partial.total is not None and partial.total > MAX_BYTES:
        raise InvalidOutput(f"the output is longer than {MAX_BYTES:,} bytes")
    etag = response.headers.get("etag", "")
    partial.etag = "" if etag.startswith("W/") else etag


def _continues(response: httpx.Response, partial: Partial) -> bool:
    """Whether a partial reply begins exactly where the file ends."""
    match = re.match(r"bytes (\d+)-", response.headers.get("content-range", ""))
    if match and int(match[1]) == partial.received:
        return True
    raise DownloadInterrupted("the server sent another part of the output than was asked for")


def _flush(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
