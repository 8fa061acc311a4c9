# SPDX-License-Identifier: Apache-2.0
"""Prefect's storage blocks as places to keep videos."""

import asyncio
import hashlib
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from ...runway.errors import StorageError
from ...runway.redact import scrub
from ...runway.storage.base import Storage, check_staged
from ...runway.storage.factory import open_storage
from ...runway.storage.folder import FolderStorage
from ...runway.storage.fsspec import FsspecStorage
from ...runway.storage.paths import local_path, whole_path
from ...runway.storage.staging import temporary_staging
from .block_loading import is_block_name, load_block


class BlockStorage:
    """A storage block that takes files one by one, as ``prefect_aws.S3Bucket`` does."""

    def __init__(self, block: Any, name: str) -> None:
        self.block = block
        self.name = name

    def staging(self) -> Path:
        """A folder for temporary files, which belongs to this block alone."""
        return temporary_staging(f"block://{self.name}")

    def check(self) -> None:
        """A block that was loaded is all that can be told without writing to it."""
        self.staging()

    def uri(self, name: str) -> str:
        """The block and the path in it."""
        return f"{self.name}/{name}"

    def publish(self, staged: Path, name: str) -> str:
        """Upload the file; from the disk where the block can, else as one piece."""
        check_staged(staged)
        with self._told("did not take", name, staged):
            if hasattr(self.block, "upload_from_path"):
                sent = self.block.upload_from_path(str(staged), name)
            else:
                sent = self.block.write_path(name, staged.read_bytes())
            _finished(sent)
        return self.uri(name)

    def sha256(self, name: str) -> str | None:
        """Read the file, if it is there and the block can."""
        try:
            return hashlib.sha256(_finished(self.block.read_path(name))).hexdigest()
        except Exception:  # noqa: BLE001 -- each block has errors of its own
            return None

    def read(self, name: str) -> bytes:
        """The file's content."""
        with self._told("does not give back", name):
            return _finished(self.block.read_path(name))

    def names(self, folder: str = "") -> list[str] | None:
        """List the files of a folder in the block, where it has a way to: ``S3Bucket`` does."""
        if not hasattr(self.block, "list_objects"):
            return None
        with self._told("does not list", folder or "its files"):
            found = _finished(self.block.list_objects(folder))
        names = (PurePosixPath(str(entry.get("Key", ""))) for entry in found)
        return sorted({path.name for path in names if not folder or path.parent.name == folder})

    def delete(self, name: str) -> None:
        """Nothing: a block has no way to delete a file."""

    @contextmanager
    def _told(self, what: str, name: str, staged: Path | None = None) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # noqa: BLE001 -- each block has errors of its own
            if staged:
                check_staged(staged)
            # not chained: its own text may hold what the block does
            told = f"the block {self.name} {what} {name}: {scrub(str(error))}"
            raise StorageError(told) from None


def _finished(call: Any) -> Any:
    """What a block's method gave; a storage is called in a thread, where no event loop runs."""

    async def awaited() -> Any:
        return await call

    return asyncio.run(awaited()) if inspect.isawaitable(call) else call


def full_name(place: str) -> str:
    """A place told apart from any other: a URL or block as it is, a path of this machine whole."""
    path = None if is_block_name(place) else local_path(place)
    return place if path is None else str(whole_path(path))


async def resolve_storage(place: str) -> Storage:
    """The storage at a path, an fsspec URL or a Prefect block (``type-slug/name``).

    A relative path that looks like a block is written with a leading ``./``.

    Raises:
        StorageError: There is no such block, or it stores nothing.
    """
    if not is_block_name(place):
        return open_storage(place)
    hint = f"; a folder of that name is written ./{place}"
    return block_storage(await load_block(place, StorageError, hint), place)


def block_storage(block: Any, name: str) -> Storage:
    """The storage that a loaded block stands for."""
    if block.get_block_type_slug() == "local-file-system":
        return FolderStorage(Path(block.basepath or "."))
    if block.get_block_type_slug() == "remote-file-system":
        return FsspecStorage(block.basepath, **(block.settings or {}))
    if not (hasattr(block, "upload_from_path") or hasattr(block, "write_path")):
        raise StorageError(f"the block {name} is no storage: it takes no files")
    return BlockStorage(block, name)
