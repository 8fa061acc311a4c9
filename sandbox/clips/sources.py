# SPDX-License-Identifier: Apache-2.0
"""Where the bytes of a source come from: a data URI, loopback, or the web if it answers at once.

The sandbox has to run every documented example on a machine without a network, so a source that
cannot be had is no error: the caller gets ``None`` and draws a stand-in. A data URI on the other
hand is the user's own bytes, and broken ones are refused as the real service refuses them.
"""

import base64
import ipaddress
import ssl
import threading
from collections.abc import Callable
from functools import cache, lru_cache
from urllib.parse import unquote_to_bytes, urlsplit

import httpx

PATIENCE = 1.5
"""Seconds that a source may take to answer before a stand-in is drawn instead."""

LARGEST = 64 * 2**20
"""Bytes of the largest source that is read."""


class InvalidSourceError(ValueError):
    """The source is there and is no picture or video."""


def source_bytes(uri: str) -> bytes | None:
    """The bytes behind `uri`, or ``None`` where it cannot be fetched from here.

    Raises:
        InvalidSourceError: A data URI holds no bytes that can be read.
    """
    if uri.startswith("data:"):
        return decode_data_uri(uri)
    if is_loopback(uri):
        return _fetch(uri, trust_env=False)
    return _fetch_from_the_web(uri)


def decode_data_uri(uri: str) -> bytes:
    """The bytes that a ``data:`` URI carries.

    Raises:
        InvalidSourceError: There is no comma, or what follows it is no base64.
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
    """Whether `uri` names this very machine."""
    try:
        host = urlsplit(uri).hostname or ""
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@lru_cache(maxsize=256)
def _fetch_from_the_web(uri: str) -> bytes | None:
    """Fetch once per process; a host that did not answer is not asked again for its next file."""
    host = uri.split("/")[2]
    if host in _silent_hosts:
        return None
    answer = _within(PATIENCE, lambda: _fetch(uri, trust_env=True))
    if answer is None:
        _silent_hosts.add(host)
    return answer


_silent_hosts: set[str] = set()


def _fetch(uri: str, *, trust_env: bool) -> bytes | None:
    """GET `uri` without following redirects; anything but a 200 with a body counts as nothing."""
    received = bytearray()
    try:
        with (
            httpx.Client(verify=_tls(), timeout=PATIENCE, trust_env=trust_env) as client,
            client.stream("GET", uri, follow_redirects=False) as response,
        ):
            if response.status_code != httpx.codes.OK:
                return None
            for chunk in response.iter_bytes():
                received += chunk
                if len(received) > LARGEST:
                    return None
    except (httpx.HTTPError, httpx.InvalidURL, OSError, UnicodeError):
        return None
    return bytes(received) or None


@cache
def _tls() -> ssl.SSLContext:
    """Made once, as reading the certificates takes longer than most requests on loopback."""
    return ssl.create_default_context()


def _within(seconds: float, fetch: Callable[[], bytes | None]) -> bytes | None:
    """What `fetch` returns if it does so in time.

    httpx cannot bound a name look-up, which hangs for many seconds on a machine whose resolver is
    out of reach; a daemon thread can be left behind.
    """
    answers: list[bytes | None] = []
    thread = threading.Thread(target=lambda: answers.append(fetch()), daemon=True)
    thread.start()
    thread.join(seconds)
    return answers[0] if answers else None
