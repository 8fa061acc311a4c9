# SPDX-License-Identifier: Apache-2.0
"""Bytes of a source, from a data URI, from loopback, or from the web if it answers quickly.

The sandbox has to run every documented example on a machine without a network. A source that
cannot be fetched is therefore not an error: the caller gets ``None`` and draws a stand-in. A data
URI holds the user's own bytes, so the sandbox rejects a broken one as the real service does.
"""

import base64
import ipaddress
import ssl
import threading
from collections.abc import Callable
from functools import cache, lru_cache
from urllib.parse import unquote_to_bytes, urlsplit

import httpx

FETCH_TIMEOUT = 1.5
"""Seconds to wait for a source before a stand-in is drawn instead."""

MAX_SOURCE_BYTES = 64 * 2**20
"""Maximum size of a source in bytes."""


class InvalidSourceError(ValueError):
    """Error for a source that is there but is not a picture or a video."""


def source_bytes(uri: str) -> bytes | None:
    """Return the bytes of a source, or ``None`` if it cannot be fetched from this machine.

    Raises:
        InvalidSourceError: The bytes of a data URI cannot be read.
    """
    if uri.startswith("data:"):
        return decode_data_uri(uri)
    if is_loopback(uri):
        return _fetch(uri, trust_env=False)
    return _fetch_from_the_web(uri)


def decode_data_uri(uri: str) -> bytes:
    """Return the bytes that a ``data:`` URI carries.

    Raises:
        InvalidSourceError: There is no comma, or the data is declared as base64 and is not valid.
    """
    head, comma, body = uri.partition(",")
    if not comma:
        raise InvalidSourceError("The data URI has no data.")
    if not head.endswith(";base64"):
        return unquote_to_bytes(body)
    try:
        return base64.b64decode(body, validate=True)
    except ValueError as error:
        raise InvalidSourceError("The data URI is not valid base64.") from error


def is_loopback(uri: str) -> bool:
    """Return True if `uri` points to this machine."""
    try:
        host = urlsplit(uri).hostname or ""
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@lru_cache(maxsize=256)
def _fetch_from_the_web(uri: str) -> bytes | None:
    """Fetch a URL once per process; a host that did not deliver is not asked for other files."""
    host = uri.split("/")[2]
    if host in _silent_hosts:
        return None
    answer = _within(FETCH_TIMEOUT, lambda: _fetch(uri, trust_env=True))
    if answer is None:
        _silent_hosts.add(host)
    return answer


_silent_hosts: set[str] = set()
"""Hosts that did not answer once. Of the process, so that no later clip waits for them again."""


def _fetch(uri: str, *, trust_env: bool) -> bytes | None:
    """GET `uri` without redirects; return None for anything but a 200 with a body."""
    received = bytearray()
    try:
        with (
            httpx.Client(verify=_tls(), timeout=FETCH_TIMEOUT, trust_env=trust_env) as client,
            client.stream("GET", uri, follow_redirects=False) as response,
        ):
            if response.status_code != httpx.codes.OK:
                return None
            for chunk in response.iter_bytes():
                received += chunk
                if len(received) > MAX_SOURCE_BYTES:
                    return None
    except (httpx.HTTPError, httpx.InvalidURL, OSError, UnicodeError):
        return None
    return bytes(received) or None


@cache
def _tls() -> ssl.SSLContext:
    """Return one TLS context; reading the certificates takes longer than most loopback requests."""
    return ssl.create_default_context()


def _within(seconds: float, fetch: Callable[[], bytes | None]) -> bytes | None:
    """Return the result of `fetch`, or None if it takes longer than `seconds`.

    httpx has no timeout for a name lookup, which hangs for many seconds on a machine that cannot
    reach its resolver. The fetch runs in a daemon thread, which can be left behind.
    """
    answers: list[bytes | None] = []
    thread = threading.Thread(target=lambda: answers.append(fetch()), daemon=True)
    thread.start()
    thread.join(seconds)
    return answers[0] if answers else None
