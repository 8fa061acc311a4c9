# SPDX-License-Identifier: Apache-2.0
"""Sources in storage blocks: whole files, and objects of an S3 bucket that can be signed."""

import asyncio
import io
from types import SimpleNamespace
from typing import Any

import pytest

from prefect_cometapi.flows.runtime import block_sources
from prefect_cometapi.flows.runtime.block_sources import open_source
from prefect_cometapi.runway import SourceUnavailable
from prefect_cometapi.runway.models.sources import StoredSource


class Block:
    """Block with files in memory."""

    slug = "memory-block"

    def get_block_type_slug(self) -> str:
        return self.slug

    async def read_path(self, path: str) -> bytes:
        return {"pics/cat.png": b"0123456789"}[path]


class S3Client:
    """Client with one object."""

    def __init__(self) -> None:
        self.signed: dict[str, Any] = {}

    def head_object(self, **wanted: str) -> dict[str, Any]:
        if wanted != {"Bucket": "b", "Key": "folder/pics/cat.png"}:
            raise LookupError("no such key, secret=canary-of-the-block")
        return {"ContentLength": 10, "ETag": '"abc"'}

    def get_object(self, **wanted: str) -> dict[str, Any]:
        first, last = map(int, wanted["Range"].removeprefix("bytes=").split("-"))
        return {"Body": io.BytesIO(b"0123456789"[first : last + 1])}

    def generate_presigned_url(self, _method: str, **options: Any) -> str:
        self.signed = options
        return "https://b.s3.amazonaws.com/cat.png?X-Amz-Signature=canary"


class Bucket(Block):
    """Block of prefect-aws, as far as it is used."""

    slug = "s3-bucket"
    bucket_name = "b"
    bucket_folder = "folder"

    def __init__(self) -> None:
        self.client = S3Client()
        self.credentials = SimpleNamespace(get_s3_client=lambda: self.client)


@pytest.fixture
def saved(monkeypatch):
    """Return a function that saves a block under every name."""

    def save(block: Any) -> Any:
        async def load(_name: str, *_arguments: Any) -> Any:
            return block

        monkeypatch.setattr(block_sources, "load_block", load)
        return block

    return save


async def test_a_block_that_reads_whole_files_has_no_size_and_no_signatures(saved):
    """The content is cut after the limit."""
    saved(Block())
    file = await open_source(StoredSource("memory-block/prod/pics/cat.png"))
    assert (file.size, file.signer) == (None, None)
    assert await asyncio.to_thread(file.read, 4) == b"0123"


async def test_a_file_that_a_block_does_not_have_is_unavailable(saved):
    """The message names the address and the reason of the block."""
    saved(Block())
    file = await open_source(StoredSource("memory-block/prod/dog.png"))
    with pytest.raises(SourceUnavailable, match=r"memory-block/prod/dog\.png cannot be read"):
        await asyncio.to_thread(file.read, 4)


async def test_a_block_that_is_no_storage_is_refused(saved):
    """A secret or a webhook has no files."""
    saved(SimpleNamespace(get_block_type_slug=lambda: "secret"))
    with pytest.raises(SourceUnavailable, match="the block secret/prod cannot read files"):
        await open_source(StoredSource("secret/prod/cat.png"))


@pytest.mark.parametrize("path", ["../cat.png", "pics/../../cat.png", "/etc/cat.png"])
async def test_a_path_in_a_block_stays_in_it(saved, path):
    """A block gives access to its own files only."""
    saved(Block())
    with pytest.raises(SourceUnavailable, match="must not lead out of the block"):
        await open_source(StoredSource(f"memory-block/prod/{path}"))


async def test_an_object_of_a_bucket_can_be_signed(saved):
    """Its credentials sign for the object below its folder, with the type of the content."""
    bucket = saved(Bucket())
    file = await open_source(StoredSource("s3-bucket/prod/pics/cat.png"))
    assert (file.size, file.read(4)) == (10, b"0123")
    assert file.signer
    assert file.signer.version() == "etag:abc"
    assert file.signer.signed_url(60, "image/png").startswith("https://")
    assert bucket.client.signed == {
        "Params": {
            "Bucket": "b",
            "Key": "folder/pics/cat.png",
            "ResponseContentType": "image/png",
        },
        "ExpiresIn": 60,
    }


async def test_an_object_that_is_missing_is_unavailable_without_secrets(saved):
    """The text of the client is redacted."""
    saved(Bucket())
    with pytest.raises(SourceUnavailable, match="no such key") as caught:
        await open_source(StoredSource("s3-bucket/prod/dog.png"))
    assert "canary" not in str(caught.value)
