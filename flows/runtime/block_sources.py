# SPDX-License-Identifier: Apache-2.0
"""Files of stored sources, also those in Prefect storage blocks (``type-slug/name/file``)."""

import asyncio
from pathlib import Path, PurePosixPath
from typing import Any

from ...runway.errors import SourceUnavailable, StorageError
from ...runway.models.sources import StoredSource, split_block_path
from ...runway.redact import scrub
from ...runway.sources.files import FsspecFile, LocalFile, Signer, SourceFile, open_file
from .block_loading import is_block_name, load_block
from .block_storage import BlockStorage, finished
from .run_context import RunContext


async def open_source(source: StoredSource, context: RunContext | None = None) -> SourceFile:
    """Return the file of a stored source: a path, an address of an object store, or in a block.

    A relative path that looks like a path in a block must be written with a leading ``./``. An
    address in the storage block of the run, such as that of a stored video, is read with the
    credentials of that block.

    Args:
        source: Address of the source.
        context: Context of the run, whose storage may have the source.

    Raises:
        SourceUnavailable: There is no such file or block, or it cannot be read.
    """
    storage = await _block_of(context) if context else None
    if storage and (own := storage.path_of(source)) and ".." not in PurePosixPath(own).parts:
        return await asyncio.to_thread(_open_in_block, storage.block, storage.name, own)
    found = split_block_path(source)
    if found is None:
        return await asyncio.to_thread(open_file, source)
    name, path = found
    hint = f"; for a file in a folder of that name, write ./{source}"
    if path.startswith("/") or ".." in PurePosixPath(path).parts:
        raise SourceUnavailable(f"{source} must not lead out of the block{hint}")
    block = await load_block(name, SourceUnavailable, hint)
    return await asyncio.to_thread(_open_in_block, block, name, path)


async def _block_of(context: RunContext) -> BlockStorage | None:
    """Return the storage of a run if it is a block; the step that stores reports any problem."""
    if not is_block_name(context.storage_name):
        return None
    try:
        storage = await context.storage()
    except StorageError:
        return None
    return storage if isinstance(storage, BlockStorage) else None


def _open_in_block(block: Any, name: str, path: str) -> SourceFile:
    address, slug = f"{name}/{path}", block.get_block_type_slug()
    if slug == "local-file-system":
        return LocalFile(Path(block.basepath or ".") / path, address)
    if slug == "remote-file-system":
        url = f"{str(block.basepath).rstrip('/')}/{path}"
        return FsspecFile(url, address, **(block.settings or {}))
    if not hasattr(block, "read_path"):
        raise SourceUnavailable(f"the block {name} cannot read files")
    if slug == "s3-bucket":
        return S3BlockFile(block, address, path)
    return BlockFile(block, address, path)


class BlockFile:
    """File in a Prefect block that reads whole files only."""

    signer: Signer | None = None

    def __init__(self, block: Any, address: str, path: str) -> None:
        self._block = block
        self._address = address
        self._path = path
        self.size: int | None = None

    def read(self, limit: int) -> bytes:
        """Return the content, or its first bytes if it has more than the limit."""
        return self._call(lambda: finished(self._block.read_path(self._path)))[:limit]

    def _call(self, ask: Any) -> Any:
        try:
            return ask()
        except Exception as error:  # noqa: BLE001 -- each block has errors of its own
            # The error is not chained, because its text may contain secrets of the block.
            why = scrub(str(error) or type(error).__name__)
            raise SourceUnavailable(f"{self._address} cannot be read: {why}") from None


class S3BlockFile(BlockFile):
    """File in an ``S3Bucket`` of prefect-aws, whose client can also sign a URL of it."""

    def __init__(self, block: Any, address: str, path: str) -> None:
        super().__init__(block, address, path)
        self.signer = self
        key = str(PurePosixPath(block.bucket_folder or "") / path)
        self._object = {"Bucket": block.bucket_name, "Key": key}
        self._client = self._call(block.credentials.get_s3_client)
        self._head = self._call(lambda: self._client.head_object(**self._object))
        self.size = self._head["ContentLength"]

    def read(self, limit: int) -> bytes:
        """Return the content, or its first bytes if it has more than the limit."""
        part = {**self._object, "Range": f"bytes=0-{limit - 1}"}

        def content() -> bytes:
            return self._client.get_object(**part)["Body"].read()

        return self._call(content)

    def version(self) -> str:
        """Return the ETag of the object."""
        return f"etag:{self._head['ETag'].strip(chr(34))}"

    def signed_url(self, seconds: int, media_type: str) -> str:
        """Return a presigned URL of the object, with the media type in its response."""
        wanted = {**self._object, "ResponseContentType": media_type}
        return self._call(
            lambda: self._client.generate_presigned_url(
                "get_object", Params=wanted, ExpiresIn=seconds
            )
        )
