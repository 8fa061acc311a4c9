# SPDX-License-Identifier: Apache-2.0
"""File that is written while its bytes arrive.

A thread writes and hashes received bytes while the event loop receives more. So a slow disk delays
neither other downloads nor polls. Memory holds at most three blocks of a file; the more files
arrive at the same time, the smaller the blocks are.
"""

import asyncio
import hashlib
import os
from collections.abc import Callable
from contextlib import suppress
from typing import BinaryIO, ClassVar
from weakref import WeakSet

from ..errors import InvalidOutput

MAX_BYTES = 4 * 1024**3
MAX_BLOCK = 2 * 1024**2
"""Maximum bytes that are passed to the thread at a time. With smaller blocks the thread and the
loop wait for each other more often; a quarter of this size is a third slower."""

FLUSH_BYTES = 16 * 1024**2
"""Bytes after which the system is asked to start to write to the disk. Otherwise it writes a large
file only at its end, while nothing else is done."""

MAX_PIECES = 32
"""Maximum number of pieces of a block that are written one by one. More and smaller ones are joined
first: a thread waits for the interpreter after each piece."""

MAX_IN_MEMORY, MIN_BLOCK = 64 * 1024**2, 32 * 1024
"""Maximum bytes of all files together that wait for the thread, and the minimum that each file may
have in any case."""


class DownloadWriter:
    """Writer of a file that is being downloaded; close it before its file.

    Args:
        file: File to write to. It is empty, and the caller closes it.

    Attributes:
        received: Bytes received so far.
        total: Announced number of bytes, or None.
        etag: ETag by which the server identifies the file, or an empty text.
    """

    _open_writers: ClassVar["WeakSet[DownloadWriter]"] = WeakSet()

    def __init__(self, file: BinaryIO) -> None:
        self._open_writers.add(self)
        self.received = 0
        self.total: int | None = None
        self.etag = ""
        self._file = file
        self._hash = hashlib.sha256()
        self._buffer: list[bytes] = []
        self._size = 0
        self._flushed = 0
        self._writing: asyncio.Task[None] | None = None

    async def aclose(self) -> None:
        """Wait for the writing thread, because the file must not be closed while it writes."""
        self._open_writers.discard(self)
        with suppress(OSError):
            await self._written()

    async def start_again(self) -> None:
        """Discard what was received, because the server sends the file from its beginning."""
        await self._written()
        self._file.seek(0)
        self._file.truncate()
        self.received, self.total, self.etag = 0, None, ""
        self._hash, self._buffer, self._size, self._flushed = hashlib.sha256(), [], 0, 0

    def expect(self, more: int | None) -> None:
        """Record the announced number of further bytes, or None if it is unknown.

        Raises:
            InvalidOutput: The file would be longer than allowed.
        """
        self.total = None if more is None else self.received + more
        self._check(self.total or 0, MAX_BYTES)

    async def append(self, chunk: bytes) -> None:
        """Add a chunk, which must not make the file longer than announced or allowed.

        Raises:
            InvalidOutput: The file would be longer than announced or allowed.
            OSError: An earlier chunk could not be written.
        """
        self.received += len(chunk)
        self._check(self.received, MAX_BYTES if self.total is None else self.total)
        self._buffer.append(chunk)
        self._size += len(chunk)
        if self._size >= min(MAX_BLOCK, max(MIN_BLOCK, MAX_IN_MEMORY // len(self._open_writers))):
            await self._hand_over(self._write)

    async def finish(self) -> str:
        """Write everything to disk, and return the SHA-256 in hex.

        Raises:
            OSError: The file could not be written.
        """
        await self._hand_over(self._write_last)
        await self._written()
        return self._hash.hexdigest()

    @staticmethod
    def _check(size: int, allowed: int) -> None:
        if size > allowed:
            raise InvalidOutput(f"the output is longer than {allowed:,} bytes")

    async def _written(self) -> None:
        if self._writing:
            await asyncio.wait([self._writing])  # the write continues if this is cancelled
            writing, self._writing = self._writing, None
            writing.result()

    async def _hand_over(self, write: Callable[[list[bytes]], None]) -> None:
        await self._written()
        chunks, self._buffer, self._size = self._buffer, [], 0
        self._writing = asyncio.create_task(asyncio.to_thread(write, chunks))

    def _write(self, chunks: list[bytes]) -> None:
        pieces = chunks if len(chunks) <= MAX_PIECES else [b"".join(chunks)]
        for piece in pieces:
            self._file.write(piece)
            self._hash.update(piece)
        self._start_flush()

    def _start_flush(self) -> None:
        """Ask the system to write what is complete to the disk, without waiting for it."""
        written = self._file.tell()
        start, size = self._flushed, written - self._flushed
        if size < FLUSH_BYTES or not hasattr(os, "posix_fadvise"):
            return
        self._flushed = written
        with suppress(OSError):  # advice, which some file systems do not take
            # Linux starts to write what it would have to drop, and keeps it until it is written.
            os.posix_fadvise(self._file.fileno(), start, size, os.POSIX_FADV_DONTNEED)

    def _write_last(self, chunks: list[bytes]) -> None:
        self._write(chunks)
        self._file.flush()
        os.fsync(self._file.fileno())
