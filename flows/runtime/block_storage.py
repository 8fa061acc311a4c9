# SPDX-License-Identifier: Apache-2.0
"""Prefect storage blocks as locations for videos."""

import asyncio
import hashlib
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ...runway.errors import StorageError
from ...runway.redact import scrub
from ...runway.storage.base import Storage, check_staged, code_of, probe
from ...runway.storage.factory import open_storage
from ...runway.storage.folder import FolderStorage
from ...runway.storage.fsspec import FsspecStorage
from ...runway.storage.paths import local_path, whole_path
from ...runway.storage.staging import temporary_staging
from ...runway.storage.upload_options import azure_settings, media_type_of_name
from .block_loading import is_block_name, load_block


@dataclass(frozen=True)
class ObjectStore:
    """Kind of block that stores files in an object store.

    Attributes:
        scheme: Scheme of the addresses of its objects.
        bucket: Field of the block with the name of the bucket or container.
        folder: Field of the block with the folder in it.
        options: Function that returns the options of an upload for a media type.
    """

    scheme: str
    bucket: str
    folder: str
    options: Callable[[str], dict[str, Any]]

    def address(self, block: Any, name: str) -> str:
        """Return the address of a file that a block stores."""
        key = PurePosixPath(getattr(block, self.folder) or "") / name
        return f"{self.scheme}://{getattr(block, self.bucket)}/{key}"


OBJECT_STORES = {
    "s3-bucket": ObjectStore(
        "s3", "bucket_name", "bucket_folder", lambda kind: {"ExtraArgs": {"ContentType": kind}}
    ),
    "gcs-bucket": ObjectStore("gs", "bucket", "bucket_folder", lambda kind: {"content_type": kind}),
    "azure-blob-storage-container": ObjectStore(
        "az",
        "container_name",
        "base_folder",
        # Azure refuses to replace a file unless it is told to.
        lambda kind: {"content_settings": azure_settings(kind), "overwrite": True},
    ),
}
"""Blocks of object stores (prefect-aws, prefect-gcp, prefect-azure), by their type."""


class BlockStorage:
    """Storage in a Prefect block that accepts single files, such as ``prefect_aws.S3Bucket``.

    Attributes:
        block: The loaded block.
        name: Name of the block, ``type-slug/name``.
    """

    def __init__(self, block: Any, name: str) -> None:
        self.block = block
        self.name = name
        self._store = OBJECT_STORES.get(block.get_block_type_slug())

    def staging(self) -> Path:
        """Return a folder for temporary files that only this block uses."""
        return temporary_staging(f"block://{self.name}")

    def check(self) -> None:
        """Upload a small file and read it back. It stays, because a block cannot delete files."""
        probe(self, strict=False)

    def uri(self, name: str) -> str:
        """Return the object's own address, or the name of the block with the path in it."""
        return self._store.address(self.block, name) if self._store else f"{self.name}/{name}"

    def path_of(self, address: str) -> str | None:
        """Return the path in the block of an address that ``uri`` returned, or None."""
        path = address.removeprefix(self.uri("_")[:-1])
        return path if path != address else None

    def publish(self, staged: Path, name: str, **_hints: bool) -> str:
        """Upload a staged file: from the disk if the block supports it, else from memory."""
        check_staged(staged)
        with self._failures("could not store", name, staged):
            if hasattr(self.block, "upload_from_path"):
                options = self._store.options(media_type_of_name(name)) if self._store else {}
                sent = self.block.upload_from_path(str(staged), name, **options)
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
            message = f"the block {self.name} {what} {name}: {scrub(str(error))}"
            raise StorageError(message, code="" if staged else code_of(error)) from None


def finished(call: Any) -> Any:
    """Return the result of a block's method, which may be async.

    A storage is called in a thread without a running event loop, so ``asyncio.run`` can be used.
    """

    async def awaited() -> Any:
        return await call

    return asyncio.run(awaited()) if inspect.isawaitable(call) else call


def canonical_location(location: str) -> str:
    """Return a unique name of a location.

    A local path becomes absolute. A URL or the name of a block stays as it is.
    """
    path = None if is_block_name(location) else local_path(location)
    return location if path is None else str(whole_path(path))


async def resolve_storage(location: str) -> Storage:
    """Return the storage at a path, an fsspec URL or a Prefect block (``type-slug/name``).

    A relative path that looks like the name of a block must be written with a leading ``./``.

    Raises:
        StorageError: The block cannot be loaded, or it does not store files.
    """
    if not is_block_name(location):
        return open_storage(location)
    hint = f"; for a folder of that name, write ./{location}"
    return block_storage(await load_block(location, StorageError, hint), location)


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
