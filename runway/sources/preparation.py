# SPDX-License-Identifier: Apache-2.0
"""Preparation of a request: its stored sources are read, checked, and made sendable.

A source that fits into a data URI is sent as one. A larger one is sent as a URL that its object
store signs for it. Neither is recorded: the ledger has the address and a version, which is the
SHA-256 of the content, or the ETag of an object that is not read whole.
"""

import asyncio
import base64
import hashlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from math import ceil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ..errors import (
    CometAPIError,
    InvalidOutput,
    InvalidSource,
    SourceUnavailable,
    StorageError,
)
from ..media.inspector import inspect_image, inspect_video
from ..models.media_types import (
    HEAD_BYTES,
    MAX_DATA_BYTES,
    MAX_FETCHED_BYTES,
    media_type_of,
    problem_of_type,
)
from ..models.requests import GenerationRequest
from ..models.sources import (
    StoredSource,
    checked_url,
    with_sources,
)
from ..redact import reason_of, redact_url
from .files import Signer, SourceFile

OpenSource = Callable[[StoredSource], Awaitable[SourceFile]]
"""Function that opens the file of a stored source."""

SourceProblem = InvalidSource | SourceUnavailable
"""Error for a source that cannot be sent."""

SUBMISSION_SECONDS = 900.0
"""Seconds that a submission may take with all of its retries: six calls of at most 120 seconds, and
five delays of at most 30 seconds."""

MIN_VALIDITY, MAX_VALIDITY = 3600, 7 * 24 * 3600
"""Seconds for which a signed URL is valid, at least and at most. S3 does not sign for longer than
seven days."""

_INSPECTED = {"video/mp4", "video/quicktime", "video/webm", "video/x-matroska"}


@dataclass(frozen=True)
class ReadSource:
    """Source that was read and can be sent.

    Attributes:
        version: Version of its content.
        sent: URL or data URI to send; it is a secret.
        summary: Properties of the source in words.
    """

    version: str
    sent: str = field(repr=False)
    summary: str


@dataclass(frozen=True)
class PreparedRequest:
    """Request with the sources that its submission sends.

    Attributes:
        request: Request as the user wrote it.
        versions: Versions of its stored sources, by their paths in the body.
        sent: What is sent for each of them; these are secrets.
        summaries: Properties of each of them in words.
        problem: Reason why the request cannot be sent, or None. A request that is bought already
            needs no sources.
    """

    request: GenerationRequest
    versions: Mapping[str, str] = field(default_factory=dict[str, str])
    sent: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)
    summaries: Mapping[str, str] = field(default_factory=dict[str, str])
    problem: CometAPIError | None = None

    def body(self) -> dict[str, Any]:
        """Return the body to send.

        Raises:
            CometAPIError: A source could not be read.
        """
        if self.problem:
            raise self.problem
        return with_sources(self.request.to_wire(), self.sent)


def validity(generation_timeout: float) -> int:
    """Return the seconds for which to sign a URL; pure.

    The URL has to outlast the submission with its retries. The service may fetch it when the
    generation starts, so it also outlasts the time for which a run waits for the generation.
    """
    return min(MAX_VALIDITY, max(MIN_VALIDITY, ceil(SUBMISSION_SECONDS + generation_timeout)))


def for_purchase(
    request: GenerationRequest,
    bought: Mapping[str, str] | None,
    read: "PreparedRequest | SourceProblem",
) -> "PreparedRequest | SourceProblem":
    """Return the request under a key that may be bought already, or why it cannot be sent; pure.

    A purchase no longer needs its sources. So if they cannot be read, the request has the versions
    that were bought, and continues with the purchase. If they have changed, it has the new
    versions, and conflicts with the purchase. If nothing is known of them, as for an adopted
    generation, they cannot have changed.

    Args:
        request: Request under the key.
        bought: Versions of the sources in the purchase of this request, or None if there is none.
        read: Request with its sources as they are now, or why they cannot be used.
    """
    if bought is None:
        return read
    if not isinstance(read, PreparedRequest):
        return PreparedRequest(request, bought, problem=read)
    return replace(read, versions={}) if not bought else read


async def prepare(
    request: GenerationRequest, open_source: OpenSource, valid_seconds: int
) -> PreparedRequest:
    """Read and check the stored sources of a request.

    Args:
        request: Request to send.
        open_source: Opens the file of a source.
        valid_seconds: Seconds for which signed URLs have to be valid.

    Raises:
        InvalidSource: The service does not accept one of them.
        SourceUnavailable: One of them cannot be read.
    """
    read: dict[str, ReadSource] = {}
    for path, source in request.stored_sources().items():
        try:
            file = await open_source(source)
            read[path] = await asyncio.to_thread(read_source, file, source, valid_seconds)
        except (InvalidSource, SourceUnavailable) as error:
            raise named(error, path) from None
    return PreparedRequest(
        request,
        versions={path: one.version for path, one in read.items()},
        sent={path: one.sent for path, one in read.items()},
        summaries={path: one.summary for path, one in read.items()},
    )


def named(error: SourceProblem, path: str) -> SourceProblem:
    """Return the problem with a source together with the path of its field; pure."""
    return type(error)(f"{path}: {error.message}")


def read_source(file: SourceFile, source: StoredSource, valid_seconds: int) -> ReadSource:
    """Read and check a file, and return what to send for it.

    Raises:
        InvalidSource: The service does not accept it.
        SourceUnavailable: It cannot be read, or its storage signs no URL that can be fetched.
    """
    limit = MAX_DATA_BYTES[source.kind]
    _check_size(file, source, file.size)
    is_large = file.size is not None and file.size > limit
    content = b"" if is_large else file.read(limit + 1)
    if len(content) > limit:  # the storage did not say its size, or the file has grown
        _check_size(file, source, len(content), f"more than {limit:,}")
        is_large = True
    if is_large and file.signer:
        media_type = _type_of(file.read(HEAD_BYTES), source)
        url = _url_of(file.signer, source, valid_seconds, media_type)
        return ReadSource(file.signer.version(), url, f"{media_type}, as a signed URL")
    media_type = _type_of(content, source)
    properties = _inspect(content, media_type, source)
    version = f"sha256:{hashlib.sha256(content).hexdigest()}"
    uri = f"data:{media_type};base64,{base64.b64encode(content).decode()}"
    summary = f"{media_type}{properties}, {len(content):,} bytes"
    # It is not certain whether the limit applies to the content or to its base64 form, which is a
    # third longer. A URL avoids the question where there can be one.
    if file.signer and len(uri) > limit:
        uri = _url_of(file.signer, source, valid_seconds, media_type)
        summary += ", as a signed URL"
    return ReadSource(version, uri, summary)


def _url_of(signer: Signer, source: StoredSource, valid_seconds: int, media_type: str) -> str:
    try:
        return checked_url(signer.signed_url(valid_seconds, media_type))
    except ValueError as error:
        raise SourceUnavailable(
            f"{redact_url(source)}: its storage signs a URL that CometAPI cannot fetch: {error}"
        ) from None


def _check_size(
    file: SourceFile, source: StoredSource, size: int | None, shown: str | None = None
) -> None:
    kind = source.kind
    most = (MAX_FETCHED_BYTES if file.signer else MAX_DATA_BYTES)[kind]
    if size is None or 0 < size <= most:
        return
    if size == 0:
        raise InvalidSource(f"{redact_url(source)} is empty")
    _type_of(file.read(HEAD_BYTES), source)  # a smaller file of a wrong type would not help
    elsewhere = (
        ""
        if file.signer
        else (
            f". An object store that signs URLs (s3://, gs://, az://) or an https:// URL allows "
            f"{MAX_FETCHED_BYTES[kind]:,}"
        )
    )
    raise InvalidSource(
        f"{redact_url(source)} is too large: it has {shown or f'{size:,}'} bytes, and {most:,} "
        f"bytes of {kind} are allowed{elsewhere}"
    )


def _type_of(content: bytes, source: StoredSource) -> str:
    media_type = media_type_of(content)
    problem = problem_of_type(media_type, source.kind)
    if problem or media_type is None:
        raise InvalidSource(f"{redact_url(source)} cannot be used: {problem}")
    return media_type


def _inspect(content: bytes, media_type: str, source: StoredSource) -> str:
    """Decode an image, or demux a video, in the decoder process, and return its properties.

    A service that accepted a broken file would charge for the attempt.
    """
    if media_type.startswith("video/") and media_type not in _INSPECTED:
        return ""
    try:
        with TemporaryDirectory(prefix="cometapi-") as folder:
            path = Path(folder) / "source"
            path.write_bytes(content)
            if media_type.startswith("image/"):
                image = inspect_image(path)
                return f", {image.width} x {image.height}" if image else ""
            video = inspect_video(path)
    except InvalidOutput as error:
        why = error.message.replace("the output", "it")  # the decoder names its usual file
        raise InvalidSource(f"{redact_url(source)} cannot be used: {why}") from None
    except StorageError as error:  # the decoder does not start
        raise SourceUnavailable(f"{redact_url(source)}: {error.message}") from None
    except OSError as error:
        why = f"this machine could not keep a temporary copy: {reason_of(error)}"
        raise SourceUnavailable(f"{redact_url(source)}: {why}") from None
    return f", {video.width} x {video.height}, {video.duration:g} s"
