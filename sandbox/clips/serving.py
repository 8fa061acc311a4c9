# SPDX-License-Identifier: Apache-2.0
"""Finished clips served as by a CDN: signed URLs that expire, ranges and strong ETags."""

import base64
import hashlib
import hmac
import json
import re
import secrets
import time
from collections.abc import Mapping
from typing import Any, Literal

from starlette.responses import Response

_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")
"""Range of bytes. No position in a file has more digits, and Python rejects thousands of them."""


PNG = b"\x89PNG"
"""Beginning of a PNG."""


class Signer:
    """Signer of the URLs of outputs. Its secret lives as long as the object.

    Args:
        ttl: Seconds that a token is valid.
    """

    def __init__(self, ttl: float) -> None:
        self._ttl = ttl
        self._secret = secrets.token_bytes(32)

    def sign(self, name: str) -> str:
        """Return a new token for the output `name`; no two are the same."""
        claims = {"key": name, "exp": time.time() + self._ttl, "jti": secrets.token_hex(4)}
        signed = f"{_encoded({'alg': 'HS256', 'typ': 'JWT'})}.{_encoded(claims)}"
        return f"{signed}.{self._signature(signed)}"

    def accepts(self, name: str, token: str) -> bool:
        """Return True if this signer made `token` for `name` and it has not expired."""
        signed, _, signature = token.rpartition(".")
        if not hmac.compare_digest(self._signature(signed).encode(), signature.encode()):
            return False
        claims = _decoded(signed.partition(".")[2])
        return claims["key"] == name and time.time() < claims["exp"]

    def _signature(self, signed: str) -> str:
        digest = hmac.digest(self._secret, signed.encode(), "sha256")
        return base64.urlsafe_b64encode(digest).decode().rstrip("=")


def _encoded(claims: dict[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")


def _decoded(text: str) -> dict[str, Any]:
    return json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))


def clip_response(clip: bytes, headers: Mapping[str, str], *, ranges: bool = True) -> Response:
    """Return the clip, or the part of it that the request's headers ask for.

    Args:
        clip: MP4 or PNG to serve.
        headers: Headers of the request.
        ranges: ``False`` for a server that ignores ranges and sends the whole file.
    """
    etag = f'"{hashlib.sha256(clip).hexdigest()[:32]}"'
    common = {"ETag": etag, "Accept-Ranges": "bytes", "Cache-Control": "private, max-age=0"}
    media_type = "image/png" if clip.startswith(PNG) else "video/mp4"
    range_header = headers.get("range") if ranges else None
    if range_header is None or headers.get("if-range", etag) != etag:
        return Response(clip, headers=common, media_type=media_type)
    part = byte_range(range_header, len(clip))
    if part == "none":
        return Response(clip, headers=common, media_type=media_type)
    if part == "unsatisfiable":
        return Response(status_code=416, headers=common | {"Content-Range": f"bytes */{len(clip)}"})
    first, last = part
    common["Content-Range"] = f"bytes {first}-{last}/{len(clip)}"
    return Response(clip[first : last + 1], 206, headers=common, media_type=media_type)


def byte_range(range_header: str, size: int) -> tuple[int, int] | Literal["none", "unsatisfiable"]:
    """Return the positions of the first and the last byte that a Range header asks for.

    Args:
        range_header: Value of the Range header.
        size: Size of the file in bytes.

    Returns:
        The two positions; ``none`` for a header to be ignored (another unit, several ranges);
        ``unsatisfiable`` for one that begins after the end of the file.
    """
    match = _RANGE.fullmatch(range_header.strip())
    if match is None or match.groups() == ("", ""):
        return "none"
    first, last = match.groups()
    if not first:
        start, end = max(0, size - int(last)), size - 1
    else:
        start, end = int(first), min(int(last), size - 1) if last else size - 1
        if last and int(last) < int(first):
            return "none"
    return (start, end) if start <= end else "unsatisfiable"
