# SPDX-License-Identifier: Apache-2.0
"""Inspection of pictures: PNG, JPEG and WebP, complete to their last byte.

FFmpeg shows the beginning of a picture whose end is missing. So this module first follows the
structure of the file to its stated end, and then decodes the whole picture, with every error of the
decoder as a reason to refuse it. decoder.py runs this file by its path, in its own process. It
imports nothing of the package.
"""

import os
import re
import zlib
from typing import Any, BinaryIO

MAX_SIZE = 256 << 20
"""Maximum bytes of a picture. Runway's largest have eight million pixels."""

STRICT = {"err_detect": "crccheck+bitstream+buffer+explode"}
"""Options of a decoder that does not hide errors."""

_PNG = b"\x89PNG\r\n\x1a\n"
_MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])", re.DOTALL)
"""Marker after compressed data. The excluded ones may occur within it."""


def kind_of(file: BinaryIO) -> str | None:
    """Return ``png``, ``jpeg`` or ``webp``, or None if the file does not begin like one of them."""
    file.seek(0)
    head = file.read(12)
    if head.startswith(_PNG):
        return "png"
    if head.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    return "webp" if head[:4] == b"RIFF" and head[8:] == b"WEBP" else None


def decode(file: BinaryIO, kind: str) -> Any:
    """Decode a picture completely and return its frame.

    Raises:
        ValueError: The picture is not complete, or cannot be decoded without an error.
    """
    require_end(file, kind)
    return _decode(file, kind)


def _decode(file: BinaryIO, kind: str) -> Any:
    import av
    from av.error import FFmpegError

    file.seek(0)
    options = {"protocol_whitelist": "none"}
    try:
        opened: Any = av.open(file, format=f"{kind}_pipe", options=options)
        with opened as container:
            context = container.streams.video[0].codec_context
            context.options, context.thread_count = STRICT, 1
            return next(container.decode(video=0))
    except (FFmpegError, StopIteration, LookupError) as error:
        reason = getattr(error, "strerror", None) or "it has no image"
        raise ValueError(f"the picture cannot be decoded: {reason}") from None


def require_end(file: BinaryIO, kind: str) -> None:
    """Follow the structure of a picture to its end.

    Raises:
        ValueError: The end is missing, or a checksum is wrong.
    """
    size = file.seek(0, os.SEEK_END)
    if size > MAX_SIZE:
        raise ValueError(f"the picture has {size:,} bytes, more than {MAX_SIZE:,}")
    file.seek(0)
    content = file.read(size)
    if kind == "webp":
        whole = int.from_bytes(content[4:8], "little") + 8 <= len(content)
    else:
        whole = (_png_ends if kind == "png" else _jpeg_ends)(content)
    if not whole:
        raise ValueError(f"the picture is truncated: its end is not within its {size:,} bytes")


def _png_ends(content: bytes) -> bool:
    at = len(_PNG)
    while at + 12 <= len(content):
        length = int.from_bytes(content[at : at + 4])
        end = at + 12 + length
        if end > len(content):
            return False
        if zlib.crc32(content[at + 4 : end - 4]) != int.from_bytes(content[end - 4 : end]):
            raise ValueError(f"the picture is damaged: a checksum is wrong at byte {at:,}")
        if content[at + 4 : at + 8] == b"IEND":
            return True
        at = end
    return False


def _jpeg_ends(content: bytes) -> bool:
    """Return True if the end marker follows the segments and the compressed data."""
    at = 2
    while marker := _MARKER.search(content, at):
        if marker[1] == b"\xd9":
            return True
        at = marker.end() + int.from_bytes(content[marker.end() : marker.end() + 2])
        at = max(at, marker.end())
    return False
