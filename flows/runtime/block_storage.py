# SPDX-License-Identifier: Apache-2.0
"""Prefect storage blocks as locations for videos."""

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
    """Storage in a Prefect block that accepts single files, such as ``prefect_aws.S3Bucket``."""

    def __init__(self, block: Any, name: str) -> None:
        self.block = block
        self.name = name

    def staging(self) -> Path:
        """Return a folder for temporary files that only this block uses."""
        return temporary_staging(f"block://{self.name}")

    def check(self) -> None:
        """Check that the staging folder can be used.

        The block itself is not tested: beyond loading it, a test would have to write to it.
        """
        self.staging()

    def uri(self, name: str) -> str:
        """Return the name of the block, followed by the path in it."""
        return f"{self.name}/{name}"

    def publish(self, staged: Path, name: str) -> str:
        """Upload a staged file: from the disk if the block supports it, else from memory."""
        check_staged(staged)
        with self._failures("could not store", name, staged):
            if hasattr(self.block, "upload_from_path"):
                sent = self.block.upload_from_path(str(staged), name)
            else:
                sent = self.block.write_path(name, staged.read_bytes())
            finished(sent)
        return self.uri(name)

    def sha256(self, name: str) -> str | None:
        """Return the SHA-256 of a file, or None if the block cannot read the file."""
        try:
            return hashlib.sha256(finished(self.block.read_path(name))).hexdigest()
        except Exception:  # noqa: BLE001 -- each block has errors of its own
            return None

    def read(self, name: str) -> bytes:
        """Return the content of a file."""
        with self._failures("could not read", name):
            return finished(self.block.read_path(name))

    def names(self, folder: str = "") -> list[str] | None:
        """Return the file names in a folder, or None if the block cannot list files.

        ``S3Bucket`` can.
        """
        if not hasattr(self.block, "list_objects"):
            return None
        with self._failures("could not list", folder or "its files"):
            found = finished(self.block.list_objects(folder))
        names = (PurePosixPath(str(entry.get("Key", ""))) for entry in found)
        return sorted({path.name for path in names if not folder or path.parent.name == folder})

    def delete(self, name: str) -> None:
        """Do nothing, because a block has no method to delete a file."""

    @contextmanager
    def _failures(self, what: str, name: str, staged: Path | None = None) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # noqa: BLE001 -- each block has errors of its own
            if staged:
                check_staged(staged)
            # The error is not chained, because its text may contain secrets of the block.
            told = f"the block {self.name} {what} {name}: {scrub(str(error))}"
            raise StorageError(told) from None


def finished(call: Any) -> Any:
    """Return the result of a block's method, which may be async.

    A storage is called in a thread without a running event loop, so ``asyncio.run`` can be used.
    """

    async def awaited() -> Any:
        return await call

    return asyncio.run(awaited()) if inspect.isawaitable(call) else call


def canonical_location(place: str) -> str:
    """Return a unique name of a location.

    A local path becomes absolute. A URL or the name of a block stays as it is.
    """
    path = None if is_block_name(place) else local_path(place)
    return place if path is None else str(whole_path(path))


async def resolve_storage(place: str) -> Storage:
    """Return the storage at a path, an fsspec URL or a Prefect block (``type-slug/name``).

    A relative path that looks like the name of a block must be written with a leading ``./``.

    Raises:
        StorageError: The block cannot be loaded, or it does not store files.
    """
    if not is_block_name(place):
        return open_storage(place)
    hint = f"; for a folder of that name, write ./{place}"
    return block_storage(await load_block(place, StorageError, hint), place)


def block_storage(block: Any, name: str) -> Storage:
    """Return a storage that uses a loaded block.

    Raises:
        StorageError: The block does not store files.
    """
    if block.get_block_type_slug() == "local-file-system":
        return FolderStorage(Path(block.basepath or "."))
    if block.get_block_type_slug() == "remote-file-system":
        return FsspecStorage(block.basepath, **(block.settings or {}))
    if not (hasattr(block, "upload_from_path") or hasattr(block, "write_path")):
        raise StorageError(f"the block {name} cannot store files")
    return BlockStorage(block, name)
