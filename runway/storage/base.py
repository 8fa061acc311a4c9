# SPDX-License-Identifier: Apache-2.0
"""Interface of the storages that keep videos, and the helpers that they share.

A storage is a folder, or any file system that fsspec supports. A file never appears under its final
name before it is complete. A folder receives a flushed file by a rename. An object store receives
one upload, which becomes visible only when it is complete. Any other file system receives an upload
under a temporary name, and then a rename.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from ..errors import StagedFileMissing, StorageError
from ..redact import reason_of
from .staging import staged_path

PROBE = ".cometapi-probe"
_PROBE_TEXT = b"prefect-cometapi writes this to see whether it can\n"


class Storage(Protocol):
    """Interface of a storage. All methods block, so the steps call them in a thread."""

    def staging(self) -> Path:
        """Return a folder on this machine for files that are not published yet.

        Raises:
            StorageError: The folder cannot be created.
        """
        ...

    def check(self) -> None:
        """Check that the storage can be used, as far as possible without leaving a file in it.

        Raises:
            StorageError: The storage cannot be used.
        """
        ...

    def uri(self, name: str) -> str:
        """Return the location that a file of this name has, or would have."""
        ...

    def publish(self, staged: Path, name: str) -> str:
        """Publish a staged file under a name, completely or not at all, and return its URI.

        A name belongs to one generation, so an existing file of that name is replaced. The staged
        file may or may not exist afterwards; the caller deletes it.

        Raises:
            StagedFileMissing: The staged file does not exist.
            StorageError: The storage rejected the file.
        """
        ...

    def sha256(self, name: str) -> str | None:
        """Return the SHA-256 of the file published under a name, in hex, or None.

        None means that the file does not exist, or that the storage cannot read it back.
        """
        ...

    def read(self, name: str) -> bytes:
        """Return the content of the file published under a name.

        Raises:
            StorageError: The storage cannot read it back.
        """
        ...

    def names(self, folder: str = "") -> list[str] | None:
        """Return the names of the files in a folder, or None if the storage cannot list files.

        A folder that does not exist has no files.

        Raises:
            StorageError: The storage does not answer.
        """
        ...

    def delete(self, name: str) -> None:
        """Delete the file published under a name, if the storage can delete files.

        Raises:
            StorageError: The file still exists.
        """
        ...


def probe(storage: Storage) -> None:
    """Publish a small file, read it back and delete it, to test the storage.

    Raises:
        StorageError: The file cannot be written, read or deleted.
    """
    staged = staged_path(storage.staging(), "probe", ".txt")
    try:
        staged.write_bytes(_PROBE_TEXT)
        storage.publish(staged, PROBE)
    except OSError as error:
        raise StorageError(f"{staged.parent} is not writable: {reason_of(error)}") from error
    finally:
        staged.unlink(missing_ok=True)
    if storage.read(PROBE) != _PROBE_TEXT:
        raise StorageError(
            "the content that was read back differs from the content that was written"
        )
    storage.delete(PROBE)


def publish_written(storage: Storage, name: str, write: Callable[[Path], object]) -> str:
    """Write a staged file with a callback, publish it in a storage, and return its URI.

    Args:
        storage: Storage that receives the file.
        name: Name of the file in the storage.
        write: Writes the content to the path that it receives.

    Raises:
        StorageError: The file could not be staged or published.
    """
    staged = staged_path(storage.staging(), "output", ".tmp")
    try:
        write(staged)
        return storage.publish(staged, name)
    except OSError as error:
        raise StorageError(
            f"{name} could not be written to {staged.parent}: {reason_of(error)}"
        ) from error
    finally:
        staged.unlink(missing_ok=True)


def check_staged(staged: Path) -> None:
    """Check that a staged file exists, so that its loss is not reported as an error of the storage.

    Raises:
        StagedFileMissing: The staged file is gone.
    """
    if not staged.exists():
        raise StagedFileMissing(f"{staged} no longer exists on this machine") from None
