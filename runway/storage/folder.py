# SPDX-License-Identifier: Apache-2.0
"""Storage in a folder, which publishes a flushed file by a rename."""

import errno
import hashlib
import os
import shutil
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

from ..errors import StorageError
from ..models.keys import LONGEST_STEM
from ..redact import reason_of
from .base import LACKS, NO_RENAME, PROBE, check_staged, code_of, probe, require_space
from .paths import whole_path
from .staging import staged_path, staging_inside, temporary_staging


class FolderStorage:
    """Storage in a folder on this machine, or on a file system that is mounted here."""

    def __init__(self, folder: Path) -> None:
        self.folder = whole_path(folder)

    def staging(self) -> Path:
        """Return a staging folder on the same file system, so that publishing is a rename.

        If the storage folder cannot have a subfolder that only this user can write to, the staging
        folder is in the system's folder for temporary files.

        Raises:
            StorageError: The folder cannot be created.
        """
        return staging_inside(self.folder) or temporary_staging(str(self.folder))

    def check(self) -> None:
        """Publish a small file in the folder, read it back, and delete it if that is possible.

        Raises:
            StorageError: The folder cannot be used, or its disk has too little space.
        """
        self.staging()
        require_space(self.folder)
        name = f"{PROBE}-{uuid4().hex}".ljust(LONGEST_STEM + len(".mp4"), "-")
        probe(self, name, strict=False)

    def uri(self, name: str) -> str:
        """Return the absolute path of the file."""
        return str(self.folder / name)

    def publish(self, staged: Path, name: str, *, more: bool = False, flushed: bool = False) -> str:
        """Flush the file to disk, rename it, and flush the folder unless more files follow.

        A staged file on another file system is copied first. What the file system of the folder
        cannot do is left out: without a rename, the file is copied to its final name.

        Raises:
            StagedFileMissing: The staged file does not exist.
            StorageError: The file could not be written.
        """
        target = self.folder / name
        moved = False
        try:
            target.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            if not flushed:
                _flush(staged)
            _move(staged, target)
            moved = True
            if not more:
                _flush(target.parent)
        except OSError as error:
            if not moved:
                check_staged(staged)
            raise StorageError(
                f"{name} could not be written to {self.folder}: {reason_of(error)}"
            ) from error
        return str(target)

    def sha256(self, name: str) -> str | None:
        """Return the SHA-256 of the file in hex, or None if it cannot be read."""
        try:
            with (self.folder / name).open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError:
            return None

    def read(self, name: str) -> bytes:
        """Return the content of the file.

        Raises:
            StorageError: The file cannot be read.
        """
        try:
            return (self.folder / name).read_bytes()
        except OSError as error:
            raise StorageError(
                f"{name} cannot be read from {self.folder}: {reason_of(error)}",
                code=code_of(error),
            ) from error

    def names(self, folder: str = "") -> list[str] | None:
        """Return the sorted names of the files in a subfolder, or in the folder itself.

        Raises:
            StorageError: The folder exists, and cannot be listed.
        """
        try:
            with os.scandir(self.folder / folder) as found:
                return sorted(entry.name for entry in found if entry.is_file())
        except FileNotFoundError:
            return []
        except OSError as error:
            raise StorageError(f"{self.folder} cannot be listed: {reason_of(error)}") from error

    def delete(self, name: str) -> None:
        """Delete the file.

        Raises:
            StorageError: The file still exists.
        """
        try:
            (self.folder / name).unlink(missing_ok=True)
        except OSError as error:
            raise StorageError(
                f"{name} cannot be deleted from {self.folder}: {reason_of(error)}"
            ) from error


def _move(staged: Path, target: Path) -> None:
    """Give a flushed file its final name: by a rename, or by a copy where there is no rename."""
    try:
        staged.replace(target)
    except OSError as error:
        if error.errno not in {*NO_RENAME, errno.EXDEV}:
            raise
        _copy_and_rename(staged, target)


def _copy_and_rename(staged: Path, target: Path) -> None:
    """Copy a file to another file system, under a hidden name until the copy is complete.

    A file system without a rename gets the copy under its final name.
    """
    hidden = staged_path(target.parent, ".copy", ".part")
    try:
        _copy(staged, hidden)
        hidden.replace(target)
    except BaseException as error:
        with suppress(OSError):  # the first error is the one to report
            hidden.unlink(missing_ok=True)
        if not (isinstance(error, OSError) and error.errno in NO_RENAME):
            raise
    else:
        return
    _copy(staged, target)


def _copy(source: Path, target: Path) -> None:
    """Copy a file completely, or leave nothing of it."""
    try:
        with source.open("rb") as original, target.open("wb") as copy:
            shutil.copyfileobj(original, copy, 1 << 20)
            copy.flush()
            _flush_descriptor(copy.fileno())
        sizes = target.stat().st_size, source.stat().st_size
        if sizes[0] != sizes[1]:
            raise OSError(errno.EIO, f"{sizes[0]:,} of {sizes[1]:,} bytes were written")
    except BaseException:
        with suppress(OSError):
            target.unlink(missing_ok=True)
        raise


def _flush(path: Path) -> None:
    """Flush a file or a folder to disk, as far as its file system can.

    Windows cannot open folders, and flushes only files that are open for writing.
    """
    try:
        descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    except OSError as error:
        if error.errno in {*LACKS, errno.EACCES, errno.EPERM, errno.EISDIR}:
            return
        raise
    try:
        _flush_descriptor(descriptor)
    finally:
        os.close(descriptor)


def _flush_descriptor(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in {*LACKS, errno.EBADF, errno.EISDIR}:
            raise
