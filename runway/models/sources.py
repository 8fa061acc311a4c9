# SPDX-License-Identifier: Apache-2.0
"""Images and videos that a request refers to. Only their form is checked; CometAPI fetches them."""

import base64
import binascii
import re
from functools import partial
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import BeforeValidator, PlainSerializer, ValidationInfo

from ..redact import is_loopback, is_redacted, redact_payload, redact_url

MAX_URL_LENGTH = 2048
MAX_DATA_BYTES = {"image": 5_000_000, "video": 16_000_000}
"""Maximum bytes of a decoded data URI (Runway's docs, Inputs)."""


_DATA_URI = re.compile(r"data:(\w+)/[\w.+-]+;base64,([A-Za-z0-9+/]+={0,2})", re.IGNORECASE)


def check_source(value: object, info: ValidationInfo) -> object:
    """Return the source unchanged; a value that is not a text is left to pydantic.

    Raises:
        ValueError: CometAPI could not fetch the source, or it is only a redacted form.
    """
    if not isinstance(value, str):
        return value
    kind = _kind_of(info)
    if is_redacted(value):
        raise ValueError(
            "this is only the redacted form of a data URI; pass the original, or better an "
            "https:// URL"
        )
    if value[:5].lower() == "data:":
        return _checked_data_uri(value, kind)
    return _checked_url(value)


def _kind_of(info: ValidationInfo) -> str:
    told = (info.data or {}).get("type")  # of a source whose field does not name the kind
    return "video" if "video" in (info.field_name or "") or told == "video" else "image"


def _checked_data_uri(uri: str, kind: str) -> str:
    match = _DATA_URI.fullmatch(uri)
    if not match or match[1].lower() != kind:
        raise ValueError(f"a data URI must have the form data:{kind}/<type>;base64,<data>")
    try:
        size = len(base64.b64decode(match[2], validate=True))
    except binascii.Error:
        raise ValueError("the data URI is not valid base64") from None
    if size > MAX_DATA_BYTES[kind]:
        raise ValueError(
            f"a data URI may contain at most {MAX_DATA_BYTES[kind]:,} bytes of {kind}, but this "
            f"one has {size:,}; pass an https:// URL"
        )
    return uri


def _checked_url(url: str) -> str:
    if len(url) > MAX_URL_LENGTH:
        raise ValueError(
            f"a URL may have at most {MAX_URL_LENGTH} characters, but this one has {len(url)}"
        )
    if re.search(r"[\s\x00-\x1f\x7f]", url):
        raise ValueError("a URL must not contain spaces or control characters")
    try:
        parts = urlsplit(url)
        host = parts.hostname
        _ = parts.port
    except ValueError:
        raise ValueError("this is not a valid URL") from None
    if parts.scheme == "http" and is_loopback(url):
        return url
    if parts.scheme != "https" or not host:
        raise ValueError(
            f"must be an https:// URL that CometAPI can fetch (got {redact_url(url)!r}); "
            "http:// is allowed for this machine only"
        )
    return url


Source = Annotated[
    str,
    BeforeValidator(check_source),
    PlainSerializer(partial(redact_payload, urls=False), when_used="json", return_type=str),
]
"""HTTPS URL or base64 data URI. In JSON, a data URI is redacted, so that a picture never ends up in
the run history."""
