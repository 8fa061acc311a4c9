# SPDX-License-Identifier: Apache-2.0
"""Interface of the storages that keep videos, and the helpers that they share.

A storage is a folder, or any file system that fsspec supports. A file never appears under its final
name before it is complete. A folder receives a flushed file by a rename. An object store receives
one upload, which becomes visible only when it is complete. Any other file system receives an upload
under a temporary name, and then a rename. A file system without a rename receives a copy under the
final name, which is compared with the original by its size.
"""

import errno
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Protocol
from uuid import uuid4

from ..errors import StagedFileMissing, StorageError
from ..models.keys import LONGEST_STEM
from ..redact import reason_of
from .staging import staged_path

PROBE = ".cometapi-probe"
_PROBE_TEXT = b"prefect-cometapi writes this to see whether it can\n"

MIN_FREE = 16 << 20
"""Minimum free bytes of a disk that is to receive a video."""

LACKS = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL}
"""Errors of a file system that lacks an operation. Others mean that the operation failed."""

NO_RENAME = {*LACKS, errno.EPERM, errno.EACCES, errno.EEXIST}
"""Errors of a rename after which a copy may still succeed."""

DENIED = "AccessDenied"
"""Code of the error for credentials that may write but not read."""

_DENIALS = re.compile("AccessDenied|Access Denied|Forbidden|Unauthorized|not authorized|\\b403\\b")


class Storage(Protocol):
    """Interface of a storage. All methods block, so the steps call them in a thread."""

    def staging(self) -> Path:
        """Return a folder on this machine for files that are not published yet.

        Raises:
            StorageError: The folder cannot be created.
        """
        ...

    def check(self) -> None:
        """Do what ``publish`` does with a small file, and delete the file if that is possible.

        Raises:
            StorageError: The storage cannot be used.
        """
        ...

    def uri(self, name: str) -> str:
        """Return the location that a file of this name has, or would have."""
        ...

    def publish(self, staged: Path, name: str, *, more: bool = False, flushed: bool = False) -> str:
        """Publish a staged file under a name, completely or not at all, and return its URI.

        A name belongs to one generation, so an existing file of that name is replaced. The staged
        file may or may not exist afterwards; the caller deletes it.

        Args:
            staged: Path of the staged file.
            name: Name of the file in the storage.
            more: True if another file is published in the same folder next. Until then, a loss of
                power may take this one back.
            flushed: True if the content of the staged file is on the disk already.

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


def probe(storage: Storage, name: str = PROBE, *, strict: bool = True) -> None:
    """Publish a small file, read it back and delete it, to test the storage.

    The staged file has the longest name that a video may have.

    Args:
        storage: Storage to test.
        name: Name of the file. Another process may use the same one at the same time, and delete
            the file before it is read here; then the test is repeated under a name of its own.
        strict: False to accept a storage that denies reading, or that cannot delete.

    Raises:
        StorageError: The file cannot be written, or read, or deleted.
    """
    _publish_probe(storage, name)
    try:
        _read_probe(storage, name, strict=strict)
    except StorageError:
        name = f"{PROBE}-{uuid4().hex}"
        _publish_probe(storage, name)
        _read_probe(storage, name, strict=strict)
    try:
        storage.delete(name)
    except StorageError:
        if strict:
            raise


def _publish_probe(storage: Storage, name: str) -> None:
    folder = storage.staging()
    require_space(folder)
    staged = staged_path(folder, "probe".ljust(LONGEST_STEM, "-"), ".txt")
    try:
        staged.write_bytes(_PROBE_TEXT)
        storage.publish(staged, name)
    except StorageError as error:
        error.message = error.message.replace(name, "a test file")
        raise
    except OSError as error:
        raise StorageError(f"{folder} is not writable: {reason_of(error)}") from error
    finally:
        with suppress(OSError):
            staged.unlink(missing_ok=True)


def _read_probe(storage: Storage, name: str, *, strict: bool) -> None:
    try:
        content = storage.read(name)
    except StorageError as error:
        if strict or error.code != DENIED:
            error.message = error.message.replace(name, "a test file")
            raise
        return
    if content != _PROBE_TEXT:
        raise StorageError(
            "the content that was read back differs from the content that was written"
        )


def require_space(folder: Path) -> None:
    """Check that the disk of a folder has space for a video.

    Raises:
        StorageError: The disk is full, or nearly so.
    """
    try:
        usage = shutil.disk_usage(folder)
    except OSError:
        return
    if usage.total and usage.free < MIN_FREE:  # some mounted file systems report no sizes
        raise StorageError(
            f"the disk of {folder} is full: {usage.free / 1e6:.1f} MB are free, and a video may "
            f"need {MIN_FREE / 1e6:.0f} MB"
        )


def code_of(error: BaseException) -> str:
    """Return ``DENIED`` for the error of a storage that may be written but not read, else ""."""
    is_denial = isinstance(error, (PermissionError, NotImplementedError, AttributeError))
    return DENIED if is_denial or _DENIALS.search(str(error)) else ""


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
        with suppress(OSError):  # the first error is the one to report
            staged.unlink(missing_ok=True)


def check_staged(staged: Path) -> None:
    """Check that a staged file exists, so that its loss is not reported as an error of the storage.

    Raises:
        StagedFileMissing: The staged file is gone.
    """
    if not staged.exists():
        raise StagedFileMissing(f"{staged} no longer exists on this machine") from None
