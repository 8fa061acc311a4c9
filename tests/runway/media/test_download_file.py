# SPDX-License-Identifier: Apache-2.0
"""A file is written block by block while it arrives, up to a maximum length."""

import errno
import os
from contextlib import AsyncExitStack, aclosing

import httpx
import pytest

from prefect_cometapi.runway import InvalidOutput, StorageError
from prefect_cometapi.runway.media import download_file
from prefect_cometapi.runway.media.download_file import DownloadWriter

from .fetching import BODY, URL, digest, download


@pytest.fixture
def target(tmp_path):
    return tmp_path / "o.mp4"


@pytest.mark.parametrize("announced", [None, "100", "50000"])
async def test_no_output_is_longer_than_announced_or_allowed(target, monkeypatch, announced):
    """A server cannot fill the disk, whatever length it announces."""
    monkeypatch.setattr(download_file, "MAX_BYTES", 5000)
    headers = {"content-length": announced} if announced else {}

    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, headers=headers, stream=httpx.ByteStream(BODY))

    with pytest.raises(InvalidOutput, match="longer than"):
        await download(URL, target, transport=httpx.MockTransport(answer))
    assert target.stat().st_size <= 5000


class Chunks(httpx.AsyncByteStream):
    """A body that arrives in pieces."""

    async def __aiter__(self):
        for start in range(0, len(BODY), 100):
            yield BODY[start : start + 100]


async def test_a_file_is_written_while_it_arrives(target, monkeypatch):
    """Blocks are written in order, and the hash is that of the whole file."""
    monkeypatch.setattr(download_file, "MAX_BLOCK", 1000)
    transport = httpx.MockTransport(lambda _: httpx.Response(200, stream=Chunks()))
    assert await download(URL, target, transport=transport) == digest(BODY)
    assert target.read_bytes() == BODY


@pytest.mark.parametrize("refused", [False, True])
async def test_a_large_file_goes_to_the_disk_while_it_arrives(tmp_path, monkeypatch, refused):
    """The system is asked to write each part once; a file system that refuses breaks nothing."""
    monkeypatch.setattr(download_file, "MAX_BLOCK", 1000)
    monkeypatch.setattr(download_file, "FLUSH_BYTES", 5000)
    parts: list[tuple[int, int]] = []

    def advise(_file: int, start: int, size: int, _advice: int) -> None:
        parts.append((start, size))
        if refused:
            raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "posix_fadvise", advise, raising=False)
    monkeypatch.setattr(os, "POSIX_FADV_DONTNEED", 4, raising=False)
    with (tmp_path / "o").open("wb") as file:
        async with aclosing(DownloadWriter(file)) as writer:
            for start in range(0, len(BODY), 1000):
                await writer.append(BODY[start : start + 1000])
            assert await writer.finish() == digest(BODY)
    assert parts == [(0, 5000), (5000, 5000)]


async def test_a_disk_that_is_full_on_the_way_is_told(target, monkeypatch):
    """The error comes before the rest of the file arrives."""
    monkeypatch.setattr(download_file, "MAX_BLOCK", 1000)
    monkeypatch.setattr(download_file.DownloadWriter, "_write", full)
    transport = httpx.MockTransport(lambda _: httpx.Response(200, stream=Chunks()))
    with pytest.raises(StorageError, match=r"could not be written to .*: No space left"):
        await download(URL, target, transport=transport)


def full(*_args: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


async def test_a_thousand_slow_files_share_the_memory_of_a_few(tmp_path, monkeypatch):
    """Each file buffers less, so that all of them stay below a memory limit."""
    monkeypatch.setattr(download_file, "MAX_IN_MEMORY", 8_000_000)
    monkeypatch.setattr(download_file, "MIN_BLOCK", 1000)
    async with AsyncExitStack() as stack:
        files = []
        for number in range(200):
            file = stack.enter_context((tmp_path / f"{number}").open("wb"))
            files.append(await stack.enter_async_context(aclosing(DownloadWriter(file))))
        for _ in range(100):
            for file in files:
                await file.append(b"x" * 1000)
            assert sum(file._size for file in files) <= 8_000_000
        for file in files:
            assert await file.finish() == digest(b"x" * 100_000)


async def test_a_file_alone_has_its_whole_block(tmp_path):
    """Finished files no longer count for the shared memory limit."""
    assert len(DownloadWriter._open_writers) == 0
    with (tmp_path / "o").open("wb") as file:
        async with aclosing(DownloadWriter(file)) as only:
            await only.append(b"x" * (download_file.MAX_BLOCK - 1))
            assert only._size == download_file.MAX_BLOCK - 1
            await only.append(b"x")
            assert only._size == 0
