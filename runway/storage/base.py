# SPDX-License-Identifier: Apache-2.0
"""Where videos are kept: a folder, or any file system that fsspec knows.

Nothing appears under its final name before it is whole. A folder gets a flushed file by renaming;
an object store gets one upload, which shows only when it is complete; any other file system gets
an upload under another name and then a rename.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from ..errors import StagedFileMissing, StorageError
from ..redact import scrub
from .staging import staged_path

PROBE = ".cometapi-probe"
_PROBE_TEXT = b"prefect-cometapi writes this to see whether it can\n"


class Storage(Protocol):
    """What the steps need of a storage. All calls block; steps make them in a thread."""

    def staging(self) -> Path:
        """A folder on this machine for files that are not published yet.

        Raises:
            StorageError: There is no place for it.
        """
        ...

    def check(self) -> None:
        """See that it can be used, as far as that is told without leaving anything in it.

        Raises:
            StorageError: It cannot.
        """
        ...

    def uri(self, name: str) -> str:
        """Where a file of that name is, or would be."""
        ...

    def publish(self, staged: Path, name: str) -> str:
        """Make a staged file appear under a name, whole or not at all, and return its URI.

        A name belongs to one generation, so a file of that name is replaced. The staged file may
        be gone afterwards, or be there still: its owner deletes it.

        Raises:
            StagedFileMissing: There is no staged file.
            StorageError: The storage did not take it.
        """
        ...

    def sha256(self, name: str) -> str | None:
        """Return the SHA-256 in hex of what is published under a name, or None.

        None means that nothing is there, or that the storage does not give it back.
        """
        ...

    def read(self, name: str) -> bytes:
        """What is published under a name.

        Raises:
            StorageError: The storage does not give it back.
        """
        ...

    def names(self, folder: str = "") -> list[str] | None:
        """Return the names of the files in a folder of the storage, or None if it lists nothing.

        A folder that is not there has no files.

        Raises:
            StorageError: The storage does not answer.
        """
        ...

    def delete(self, name: str) -> None:
        """Take back what is published under a name, where the storage can.

        Raises:
            StorageError: It is there still.
        """
        ...


def probe(storage: Storage) -> None:
    """Publish a small file, read it and delete it, as far as the storage can.

    Raises:
        StorageError: It cannot be written or read.
    """
    staged = staged_path(storage.staging(), "probe", ".txt")
    try:
        staged.write_bytes(_PROBE_TEXT)
        storage.publish(staged, PROBE)
    except OSError as error:
        raise StorageError(f"{staged.parent} takes no files: {reason_of(error)}") from error
    finally:
        staged.unlink(missing_ok=True)
    if storage.read(PROBE) != _PROBE_TEXT:
        raise StorageError("what is read there is not what was written")
    storage.delete(PROBE)


def publish_written(storage: Storage, name: str, write: Callable[[Path], object]) -> str:
    """Have a file written on this machine, make it appear in a storage, and return where it is.

    Raises:
        StorageError: This machine or the storage did not take it.
    """
    staged = staged_path(storage.staging(), "output", ".tmp")
    try:
        write(staged)
        return storage.publish(staged, name)
    except OSError as error:
        reason = scrub(error.strerror or type(error).__name__)
        raise StorageError(f"{staged.parent} did not take {name}: {reason}") from error
    finally:
        staged.unlink(missing_ok=True)


def check_staged(staged: Path) -> None:
    """Report a staged file that is gone as what it is, and not as a fault of the storage.

    Raises:
        StagedFileMissing: It is gone.
    """
    if not staged.exists():
        raise StagedFileMissing(f"{staged} is not on this machine any more") from None


def reason_of(error: Exception) -> str:
    """Return what a system or a file system says of an error, without secrets."""
    return scrub(getattr(error, "strerror", None) or str(error) or type(error).__name__)
