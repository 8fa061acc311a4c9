# SPDX-License-Identifier: Apache-2.0
"""A file that grows while its bytes arrive.

A thread writes and hashes what has arrived while the event loop receives what comes next, so a
slow disk holds up neither other downloads nor polls, and memory holds three blocks at most; the
more files arrive at a time, the smaller they are.
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
BLOCK = 2 * 1024**2
"""Bytes that are handed over at a time. With smaller ones the thread and the loop wait for one
another more often; a quarter of it is a third slower."""

IN_MEMORY, SMALLEST_BLOCK = 64 * 1024**2, 32 * 1024
"""Bytes of all files together that wait to be handed over; what each may have all the same."""


class ArrivingFile:
    """What has arrived so far; it is to be closed before its file is.

    Args:
        file: Where it goes; it is empty, and closed by the caller.

    Attributes:
        received: Bytes that have arrived.
        total: Bytes that were announced, if they were.
        etag: What tells the server which file it was, if it told us.
    """

    _arriving: ClassVar["WeakSet[ArrivingFile]"] = WeakSet()

    def __init__(self, file: BinaryIO) -> None:
        self._arriving.add(self)
        self.received = 0
        self.total: int | None = None
        self.etag = ""
        self._file = file
        self._hash = hashlib.sha256()
        self._gathered: list[bytes] = []
        self._size = 0
        self._writing: asyncio.Task[None] | None = None

    async def aclose(self) -> None:
        """Wait for the thread that writes, under which the file must not be closed."""
        self._arriving.discard(self)
        with suppress(OSError):
            await self._written()

    async def start_again(self) -> None:
        """Forget what arrived: the server sends the file from its beginning."""
        await self._written()
        self._file.seek(0)
        self._file.truncate()
        self.received, self.total, self.etag = 0, None, ""
        self._hash, self._gathered, self._size = hashlib.sha256(), [], 0

    def expect(self, more: int | None) -> None:
        """Take note of how many bytes are announced to come, if it is known.

        Raises:
            InvalidOutput: The file would be longer than allowed.
        """
        self.total = None if more is None else self.received + more
        self._check(self.total or 0, MAX_BYTES)

    async def append(self, chunk: bytes) -> None:
        """Take a chunk, which must not make the file longer than announced or allowed.

        Raises:
            InvalidOutput: It does.
            OSError: What arrived before could not be written.
        """
        self.received += len(chunk)
        self._check(self.received, MAX_BYTES if self.total is None else self.total)
        self._gathered.append(chunk)
        self._size += len(chunk)
        if self._size >= min(BLOCK, max(SMALLEST_BLOCK, IN_MEMORY // len(self._arriving))):
            await self._hand_over(self._write)

    async def finish(self) -> str:
        """Have all of it on the disk, and return its SHA-256 in hex.

        Raises:
            OSError: It could not be written.
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
            await asyncio.wait([self._writing])  # goes on if this is cancelled
            writing, self._writing = self._writing, None
            writing.result()

    async def _hand_over(self, write: Callable[[list[bytes]], None]) -> None:
        await self._written()
        chunks, self._gathered, self._size = self._gathered, [], 0
        self._writing = asyncio.create_task(asyncio.to_thread(write, chunks))

    def _write(self, chunks: list[bytes]) -> None:
        block = b"".join(chunks)
        chunks.clear()
        self._file.write(block)
        self._hash.update(block)

    def _write_last(self, chunks: list[bytes]) -> None:
        self._write(chunks)
        self._file.flush()
        os.fsync(self._file.fileno())
