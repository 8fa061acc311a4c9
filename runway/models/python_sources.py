# SPDX-License-Identifier: Apache-2.0
"""Sources as Python code has them: paths, bytes, open files, pictures and stored results.

Each is turned into the text that a request holds. A path and a stored file keep their address, so
they are read when the request is submitted. Anything that is only in memory becomes a data URI.
"""

import os
from collections.abc import Mapping
from contextlib import suppress
from io import BytesIO
from typing import Any

from pydantic import ValidationError

from .data_uris import data_uri_of, is_base64_of
from .generation import FetchedVideo, GenerationResult, StoredVideo
from .media_types import MAX_DATA_BYTES, Kind

_FORMS = (
    "a URL, a data URI, a path, an address of an object store (s3://, gs://, az://), the bytes of "
    "a file, a file opened with 'rb', or a stored result"
)
LONGEST_SHOWN = 4096
"""Maximum characters of a text that is shown in full; that of a path."""

_BYTES = bytes | bytearray | memoryview
_PICTURE_FORMATS = ("JPEG", "PNG", "WEBP")
_PICTURE_MODES = ("L", "RGB", "RGBA")


def source_text(value: object, kind: Kind) -> str:
    """Return the text of a source.

    An open file is read from its position, which stays where it is.

    Args:
        value: Source in any form.
        kind: What the field takes.

    Raises:
        ValueError: It is none of these forms, or cannot be read or sent.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, os.PathLike):
        return os.fsdecode(value)
    if isinstance(value, _BYTES):
        return data_uri_of(bytes(value), kind)
    if (content := _bytes_with_type(value)) is not None:
        return data_uri_of(content, kind)
    if (address := _stored_address(value, kind)) is not None:
        return address
    if callable(getattr(value, "read", None)):
        return data_uri_of(_content_of(value, kind), kind)
    if _is_pillow(value):
        return data_uri_of(_encoded(value), kind)
    raise ValueError(f"must be {_FORMS}, and not {type(value).__name__}")


def recordable(value: Any) -> Any:
    """Return a parameter of a run without what must not be recorded of it; pure.

    Bytes, open files and pictures are named by their kind and size. A stored result is recorded as
    it is.
    """
    if isinstance(value, Mapping):
        return {name: recordable(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [recordable(item) for item in value]
    if isinstance(value, _BYTES):
        return f"<{len(value):,} bytes>"
    if callable(getattr(value, "read", None)) or _is_pillow(value):
        return f"<{type(value).__name__}>"
    if isinstance(value, str) and (is_base64_of(value, "image") or is_base64_of(value, "video")):
        return f"<{len(value):,} characters of base64>"
    return value


class _QuietText(str):
    __slots__ = ()

    def __repr__(self) -> str:
        return f"<{len(self):,} characters>"


class _QuietBytes(bytes):
    __slots__ = ()

    def __repr__(self) -> str:
        return f"<{len(self):,} bytes>"


class _QuietList(list[Any]):
    __slots__ = ()

    def __repr__(self) -> str:
        return f"<{len(self):,} items>"


def quiet(value: Any) -> Any:
    """Return an equal parameter of a run, of which no repr shows the content; pure.

    Prefect logs the repr of parameters that are not valid, each of them twice. The items of a list
    are not copied, since those of a batch may take much memory.
    """
    if type(value) is list:
        return _QuietList(value)
    return _quiet_item(value)


def _quiet_item(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _quiet_item(item) for name, item in value.items()}
    if type(value) in {list, tuple}:
        return type(value)(_quiet_item(item) for item in value)
    if isinstance(value, _BYTES):
        return _QuietBytes(value)
    if type(value) is str and len(value) > LONGEST_SHOWN:
        return _QuietText(value)
    return value


def _bytes_with_type(value: object) -> bytes | None:
    """Return the bytes of a pair of bytes and media type; the type is read from the content."""
    if not isinstance(value, tuple):
        return None
    contents = [item for item in value if isinstance(item, _BYTES)]
    others = [item for item in value if not isinstance(item, _BYTES)]
    if len(contents) == 1 and all(isinstance(item, str) for item in others):
        return bytes(contents[0])
    return None


def _stored_address(value: object, kind: Kind) -> str | None:
    """Return the address of a stored or fetched file, or of the first fitting one of a result."""
    if isinstance(value, Mapping):
        value = _restored(value)
    if isinstance(value, GenerationResult):
        return _first_of(value, kind)
    if not isinstance(value, StoredVideo | FetchedVideo):
        return None
    if value.is_picture != (kind == "image"):
        poster = "; its poster is a picture" if kind == "image" and value.poster else ""
        raise ValueError(f"it is {value.media_type}, but the field takes {_article(kind)}{poster}")
    return value.uri if isinstance(value, StoredVideo) else value.path


def _restored(fields: Mapping[Any, Any]) -> object:
    """Return the result or the file that a mapping was made of, as by JSON, if it was."""
    for model, sign in ((GenerationResult, "videos"), (StoredVideo, "sidecar")):
        if sign in fields:
            with suppress(ValidationError):
                return model.model_validate(dict(fields))
    return fields


def _first_of(result: GenerationResult, kind: Kind) -> str:
    fitting = [video for video in result.videos if video.is_picture == (kind == "image")]
    if fitting:
        return fitting[0].uri
    stored = ", ".join(video.media_type for video in result.videos) or "nothing yet"
    raise ValueError(
        f"the result of generation {result.task_id} has no {'picture' if kind == 'image' else kind}"
        f" (it has {stored}), but the field takes {_article(kind)}"
    )


def _article(kind: Kind) -> str:
    return "an image" if kind == "image" else "a video"


def _content_of(file: Any, kind: Kind) -> bytes:
    limit = MAX_DATA_BYTES[kind] + 1
    try:
        position = file.tell() if file.seekable() else None
        content = file.read(limit)
        if position is not None:
            file.seek(position)  # a request may be validated more than once
    except (OSError, ValueError, AttributeError) as error:
        raise ValueError(f"the open file cannot be read: {type(error).__name__}") from None
    if not isinstance(content, _BYTES):
        raise ValueError("the file must be opened with 'rb', as bytes and not as text")  # noqa: TRY004 -- pydantic reports it
    if not content:
        raise ValueError("the open file has no bytes left; call seek(0), or pass its path")
    return bytes(content)


def _is_pillow(value: object) -> bool:
    return type(value).__module__.startswith("PIL.") and hasattr(value, "save")


def _encoded(picture: Any) -> bytes:
    """Return a picture of Pillow as a file, in its own format where Runway takes that."""
    content = BytesIO()
    if picture.mode not in _PICTURE_MODES:
        picture = picture.convert("RGB")
    own = picture.format if picture.format in _PICTURE_FORMATS else None
    own = "PNG" if own is None or (own == "JPEG" and picture.mode == "RGBA") else own
    try:
        picture.save(content, own, **({"quality": 95} if own == "JPEG" else {}))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"the picture cannot be written as {own}: {type(error).__name__}"
        ) from None
    return content.getvalue()
