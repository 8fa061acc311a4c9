# SPDX-License-Identifier: Apache-2.0
"""Images and videos that a request refers to, as the user writes them.

A URL is sent as it is; only its form is checked, and CometAPI fetches it. A data URI is checked by
its content, and sent in one form, however it is written. Any other address (a file, an object
store, a storage block) is a stored source: the machine that submits the request reads it then. The
request keeps the address, so the ledger and Prefect never hold bytes or signatures.
"""

import ipaddress
import os
import re
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Annotated, Any, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, PlainSerializer, ValidationInfo

from ..redact import is_loopback, is_redacted, redact_payload, redact_url
from .data_uris import checked_data_uri, data_uri_of_base64
from .media_types import Kind
from .python_sources import source_text

MAX_URL_LENGTH = 2048

MAX_PATH_LENGTH = 4096

OBJECT_STORES = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss"})
"""URL schemes of the object stores from which a source may come."""

_STORED_SCHEMES = OBJECT_STORES | {"file", "memory"}
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]+:", re.IGNORECASE)  # one letter is a drive of Windows
_IN_BLOCK = re.compile(
    r"(?P<block>[a-z0-9]+(?:-[a-z0-9]+)*/[A-Za-z0-9][A-Za-z0-9 _-]*)/(?P<file>.+)"
)


class StoredSource(str):
    """Address of an image or a video that is read when its request is submitted.

    Attributes:
        kind: What the field takes, ``image`` or ``video``.
    """

    __slots__ = ("kind",)

    kind: Kind

    def __new__(cls, address: str, kind: Kind = "image") -> Self:
        """Make the address of a source of a kind."""
        source = super().__new__(cls, address)
        source.kind = kind
        return source


def check_source(value: object, info: ValidationInfo) -> str:
    """Return the text of a source that a request may have.

    Raises:
        ValueError: The source cannot be sent or read, or it is only a redacted form.
    """
    kind = _kind_of(info)
    source = source_text(value, kind)
    if isinstance(value, os.PathLike) and (split_block_path(source) or not is_stored(source)):
        source = f"./{source}"  # a path is never a file in a block, nor a URL
    if is_redacted(source):
        raise ValueError(
            "this is only the redacted form of a data URI; pass the original, or better an "
            "https:// URL"
        )
    if source[:5].lower() == "data:":
        return checked_data_uri(source, kind)
    if not is_stored(source):
        return checked_url(source)
    return data_uri_of_base64(source, kind) or _checked_address(source)


def _as_stored(value: str, info: ValidationInfo) -> str:
    is_sent = value[:5].lower() == "data:" or not is_stored(value)
    return str(value) if is_sent else StoredSource(value, _kind_of(info))


def _kind_of(info: ValidationInfo) -> Kind:
    named = (info.data or {}).get("type")  # of a source whose field does not name the kind
    return "video" if "video" in (info.field_name or "") or named == "video" else "image"


def is_stored(address: str) -> bool:
    """Return True for an address that this package reads, and False for one that is sent; pure."""
    if "://" in address:
        return address.partition("://")[0].lower() in _STORED_SCHEMES
    return not _SCHEME.match(address)


def split_block_path(address: str) -> tuple[str, str] | None:
    """Return the name of a block and a path in it, or None for any other address; pure.

    A file in a storage block is written like the location of a stored video in it, as
    ``type-slug/name/file``. So a relative path of that form needs a leading ``./``.
    """
    match = None if "://" in address else _IN_BLOCK.fullmatch(address)
    return (match["block"], match["file"]) if match else None


def _checked_address(address: str) -> str:
    if not address.strip() or address != address.strip():
        raise ValueError("a path must not be empty, and must not begin or end with a blank")
    if not address.isprintable() or len(address) > MAX_PATH_LENGTH:
        raise ValueError(
            f"a path may have at most {MAX_PATH_LENGTH} characters, and no control characters"
        )
    if "://" not in address or address.lower().startswith("file://"):
        return address
    if re.search(r"[?#]|::", address) or re.search(r"://[^/]*@", address):
        raise ValueError(
            f"{redact_url(address)} must not contain a password, a query, a fragment or a chain of "
            "file systems; credentials belong into the environment or into a storage block"
        )
    if not re.fullmatch(r"[^:]+://[^/]+/.*[^/]", address):
        raise ValueError("must name a file, for example s3://bucket/cat.png")
    return address


def checked_url(url: str) -> str:
    """Return a URL that CometAPI can fetch, unchanged; pure.

    Raises:
        ValueError: CometAPI cannot fetch it.
    """
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
            f"must be an https:// URL that CometAPI can fetch (got {redact_url(url)!r}), a path, "
            "or an address of an object store (s3://, gs://, az://); http:// is allowed for this "
            "machine only"
        )
    if _is_ip_address(host) and not is_loopback(url):
        raise ValueError(f"the host of a URL must be a name, because Runway refuses {host}")
    return url


def _is_ip_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def stored_sources(body: Any, path: str = "") -> Iterator[tuple[str, StoredSource]]:
    """Yield the stored sources of a request body, each with its path; pure.

    A path is written like ``references[0].uri``.
    """
    if isinstance(body, StoredSource):
        yield path, body
    elif isinstance(body, Mapping):
        for name, value in body.items():
            yield from stored_sources(value, f"{path}.{name}" if path else str(name))
    elif isinstance(body, list | tuple):
        for number, value in enumerate(body):
            yield from stored_sources(value, f"{path}[{number}]")


def with_sources(body: Any, sent: Mapping[str, str], path: str = "") -> Any:
    """Return a request body with its stored sources replaced, by their paths; pure."""
    if isinstance(body, StoredSource):
        return sent[path]
    if isinstance(body, Mapping):
        return {
            name: with_sources(value, sent, f"{path}.{name}" if path else str(name))
            for name, value in body.items()
        }
    if isinstance(body, list | tuple):
        return [with_sources(value, sent, f"{path}[{n}]") for n, value in enumerate(body)]
    return body


IS_SOURCE = BeforeValidator(check_source)
"""Metadata by which the fields that are sources are found."""

Source = Annotated[
    str,
    IS_SOURCE,
    AfterValidator(_as_stored),
    PlainSerializer(partial(redact_payload, urls=False), when_used="json", return_type=str),
]
"""URL, base64 data URI or address of a stored source. In JSON, a data URI is redacted, so that a
picture never ends up in the run history."""
