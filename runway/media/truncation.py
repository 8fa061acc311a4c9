# SPDX-License-Identifier: Apache-2.0
"""Detection of a missing tail, from the structure of an MP4 or WebM.

FFmpeg plays what is there, and reports a missing tail of a WebM as its regular end. So this module
follows the lengths that the file states from one element to the next, and skips their contents. The
bytes are untrusted: each step moves forward, and the decoder's limit on processor time ends the
walk through a file that was made to take very long.

This module imports nothing of the package, because decoder.py runs it by its path.
"""

import os
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

_BOXES = set(b"ftyp styp moov moof mdat sidx ssix mfra free skip wide uuid meta udta".split())
"""Boxes of an MP4 that must all be complete. Any other box may be appended data."""

_NESTED = {b"moov": b"trak", b"trak": b"mdia", b"mdia": b"minf", b"minf": b"stbl"}
"""Boxes with the tables of a track, each with the inner box that is read next."""

_SEGMENT, _CLUSTER, _BLOCK = b"\x18\x53\x80\x67", b"\x1f\x43\xb6\x75", b"\xa3"


class End(NamedTuple):
    """Earliest position at which a file can end."""

    byte: int
    open: bool
    """True if the file could continue: a cut between two elements does not show in its lengths."""

    seconds: float = 0.0
    """Duration that a fragmented MP4 states; 0 if it states none."""


def find_end(video: BinaryIO, container: str) -> End:
    """Follow the lengths that a file states, and return its required end.

    Args:
        video: The file; its read position changes.
        container: ``mp4`` or ``matroska``.

    Raises:
        ValueError: There is no element where one should begin.
    """
    size = video.seek(0, os.SEEK_END)
    return (_end_of_mp4 if container == "mp4" else _end_of_webm)(video, size)


class _Box(NamedTuple):
    kind: bytes
    start: int
    """Position of the content of the box."""

    end: int


def _end_of_mp4(video: BinaryIO, size: int) -> End:
    end, seconds, fragmented = 0, 0.0, False
    for box in _boxes(video, 0, size):
        fragmented = fragmented or box.kind == b"moof"
        if box.kind in _BOXES:
            end = max(end, box.end)
        elif fragmented and len(box.kind) < 4:
            end = max(end, box.start)
        elif fragmented:
            _require_name(box)
        if box.kind == b"sidx":
            end = max(end, box.end + _indexed(video, box))
        elif box.kind == b"moov":
            _require_tables(video, box)
            seconds = _fragments_last(video, box)
    return End(end, fragmented, seconds)


def _boxes(video: BinaryIO, at: int, end: int) -> Iterator[_Box]:
    """Yield the boxes between two positions; the last box may end after the second one."""
    while at < end:
        head = _read(video, at, 16)
        length, start = int.from_bytes(head[:4]), at + 8
        if length == 1:
            length, start = int.from_bytes(head[8:]), at + 16
        elif length == 0:  # it lasts to the end of the file
            length = end - at
        if length < start - at and len(head) >= start - at:
            return  # not a box, but data that was appended to the film
        yield _Box(head[4:8], start, at + max(length, start - at))
        at += max(length, start - at)


def _require_name(box: _Box) -> None:
    if not box.kind.strip(b"\0"):
        raise ValueError(f"there are zeros instead of a box at byte {box.start - 8:,}")


def _require_tables(video: BinaryIO, box: _Box) -> None:
    """Reject tables that end in zeros; a player would silently miss the last tracks."""
    for part in _boxes(video, box.start, box.end):
        _require_name(part)
        if part.kind == _NESTED.get(box.kind):
            _require_tables(video, part)


def _indexed(video: BinaryIO, sidx: _Box) -> int:
    """Return the number of bytes that an index of fragments describes after itself."""
    content = _read(video, sidx.start, sidx.end - sidx.start)
    wide = content[:1] != b"\0"
    offset = content[20:28] if wide else content[16:20]
    entries = content[32 if wide else 24 :]
    sizes = (int.from_bytes(entries[at : at + 4]) for at in range(0, len(entries) - 11, 12))
    return int.from_bytes(offset) + sum(size & 0x7FFF_FFFF for size in sizes)


def _fragments_last(video: BinaryIO, moov: _Box) -> float:
    """Return the total duration of all fragments in seconds, or 0 if it is not stated."""
    scale = ticks = 0
    for box in _boxes(video, moov.start, moov.end):
        if box.kind == b"mvhd":
            content = _read(video, box.start, 24)
            scale = int.from_bytes(content[12:16] if content[:1] == b"\0" else content[20:24])
        elif box.kind == b"mvex":
            for part in _boxes(video, box.start, box.end):
                if part.kind == b"mehd":
                    ticks = int.from_bytes(_read(video, part.start, part.end - part.start)[4:12])
    return ticks / scale if scale else 0.0


def _end_of_webm(video: BinaryIO, size: int) -> End:
    """Follow the segment and its clusters, and skip over everything else."""
    at = end = 0
    last = None  # where the segment ends
    while at < (size if last is None else min(last, size)):
        head = _read(video, at, 12)
        name, length, start = _element(head, at)
        if length is None and name not in {_SEGMENT, _CLUSTER}:
            raise ValueError(f"an element has no length at byte {at:,}")
        if name == _BLOCK and head[start - at :][:1] == b"\0":
            # FFmpeg skips such a block, and reports no error.
            raise ValueError(f"a block names no track at byte {at:,}")
        if length is not None:
            end = max(end, start + length)
        if name == _SEGMENT and length is not None:
            last = start + length
        at = start if name in {_SEGMENT, _CLUSTER} else start + (length or 0)
        end = max(end, at)
    return End(end, last is None)


def _element(head: bytes, at: int) -> tuple[bytes, int | None, int]:
    """Parse the head of an element: its name, its length or None, and the start of its content."""
    width = _width(head[0])
    if width > 4:
        raise ValueError(f"no element begins at byte {at:,}")
    name = head[:width]
    if len(head) <= width:
        return name, 0, at + width + 1
    wide = _width(head[width])
    if wide > 8:
        raise ValueError(f"an element has no length at byte {at:,}")
    bits = 7 * wide
    length = int.from_bytes(head[width : width + wide]) & ((1 << bits) - 1)
    return name, None if length == (1 << bits) - 1 else length, at + width + wide


def _width(first: int) -> int:
    """Return the number of bytes of an EBML number, given its first byte; 9 for zero."""
    return 9 - first.bit_length()


def _read(video: BinaryIO, at: int, count: int) -> bytes:
    video.seek(at)
    return video.read(min(count, 1 << 20))
