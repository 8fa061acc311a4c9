# SPDX-License-Identifier: Apache-2.0
"""Data URIs: checked by their content, and written in the one form that is sent.

Programs wrap base64 at 76 characters, use its form for URLs, leave out its padding, or label the
content wrongly (``image/jpg``). All of these mean the same file.
"""

import base64
import binascii
import re
from urllib.parse import unquote

from .media_types import (
    HEAD_BYTES,
    MAX_DATA_BYTES,
    Kind,
    media_type_of,
    problem_of_type,
    usual_type,
)

_HEAD = re.compile(r"data:\s*([\w.+/-]*)[^,]*;\s*base64\s*", re.IGNORECASE)
_LABEL = re.compile(r"data:\s*([\w.+-]+/[\w.+-]+)", re.IGNORECASE)
_STANDARD = str.maketrans("-_", "+/")
_BARE = re.compile(r"[A-Za-z0-9+/_\s-]{64,}={0,2}\s*")
_FIRST_DIGITS = 256
_ELSEWHERE = "an https:// URL, or an address of an object store (s3://, gs://, az://)"


def data_uri_of(content: bytes, kind: Kind) -> str:
    """Return the data URI of a file's content; pure.

    Raises:
        ValueError: It cannot be sent.
    """
    return _data_uri(content, _accepted(content, kind) or _refuse(content, kind))


def checked_data_uri(uri: str, kind: Kind) -> str:
    """Return a data URI in the form that is sent; pure.

    Content of no known type keeps its label, and the service decides.

    Raises:
        ValueError: It is not a data URI in base64, or the service does not accept it.
    """
    head, comma, data = uri.partition(",")
    found = _HEAD.fullmatch(head)
    label = usual_type((found or _LABEL.match(head) or [""] * 2)[1].lower())
    refused = problem_of_type(label, kind) if label.startswith("image/") else None
    if not comma or not found or not data:
        raise ValueError(
            f"cannot be used: {refused}"
            if refused
            else f"a data URI must have the form data:{kind}/<type>;base64,<data>"
        )
    content = _decoded(data)
    if content is None:
        raise ValueError("the data URI is not valid base64")
    if media_type := _accepted(content, kind):
        return _data_uri(content, media_type)
    if media_type_of(content[:HEAD_BYTES]):
        _refuse(content, kind)
    if not label.startswith(f"{kind}/"):
        raise ValueError(f"a data URI must have the form data:{kind}/<type>;base64,<data>")
    if refused:
        raise ValueError(f"cannot be used: {refused}")
    return _data_uri(content, label)


def data_uri_of_base64(text: str, kind: Kind) -> str | None:
    """Return the data URI of a file in base64 without a head, or None for any other text; pure.

    Only content of a known type counts, since a path may have the same characters.

    Raises:
        ValueError: It cannot be sent.
    """
    if not is_base64_of(text, kind):
        return None
    content = _decoded(text)
    return None if content is None else data_uri_of(content, kind)


def is_base64_of(text: str, kind: Kind) -> bool:
    """Return True if a text begins with base64 of an image or a video, without a head; pure."""
    # The first digits are enough to rule out a path, and a match of megabytes takes its time.
    start = text[:_FIRST_DIGITS]
    if not _BARE.fullmatch(start):
        return False
    digits = "".join(start.split())
    first = _decoded(digits[: len(digits) // 4 * 4])
    return first is not None and problem_of_type(media_type_of(first), kind) is None


def check_size(size: int, kind: Kind) -> None:
    """Check the bytes of a file that is sent as a data URI; pure.

    Raises:
        ValueError: It is too large.
    """
    most = MAX_DATA_BYTES[kind]
    if size > most:
        raise ValueError(
            f"a data URI may contain at most {most:,} bytes of {kind}, but this one has {size:,}; "
            f"pass {_ELSEWHERE}"
        )


def _accepted(content: bytes, kind: Kind) -> str | None:
    """Return the media type of a content, or None unless the field takes it."""
    check_size(len(content), kind)
    media_type = media_type_of(content[:HEAD_BYTES])
    return None if problem_of_type(media_type, kind) else media_type


def _refuse(content: bytes, kind: Kind) -> str:
    problem = problem_of_type(media_type_of(content[:HEAD_BYTES]), kind)
    raise ValueError(f"cannot be used: {problem}" if content else "is empty")


def _data_uri(content: bytes, media_type: str) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def _decoded(data: str) -> bytes | None:
    digits = "".join((unquote(data) if "%" in data else data).split()).translate(_STANDARD)
    digits = digits.rstrip("=")
    try:
        return base64.b64decode(digits + "=" * (-len(digits) % 4), validate=True)
    except (binascii.Error, ValueError):
        return None
