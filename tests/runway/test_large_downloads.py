# SPDX-License-Identifier: Apache-2.0
"""Large outputs arrive in few pieces, since each piece costs the same."""

import asyncio
import hashlib

import pytest

from prefect_cometapi.runway.download import READ_BYTES, Partial, download

BODY = bytes(range(256)) * 4096 * 8


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(BODY))
    writer.write(BODY)
    await writer.drain()
    writer.close()


async def test_a_large_output_comes_in_large_pieces(tmp_path, monkeypatch: pytest.MonkeyPatch):
    """Over a real connection; this is what tells when httpcore has its own way again."""
    sizes: list[int] = []
    original = Partial.append

    def append(partial: Partial, chunk: bytes) -> None:
        sizes.append(len(chunk))
        original(partial, chunk)

    monkeypatch.setattr(Partial, "append", append)
    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/o.mp4"
        sha256 = await download(url, tmp_path / "o.mp4", trusted_host="127.0.0.1")
    assert sha256 == hashlib.sha256(BODY).hexdigest()
    assert 64 * 1024 < max(sizes) <= READ_BYTES
