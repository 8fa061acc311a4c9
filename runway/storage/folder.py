# SPDX-License-Identifier: Apache-2.0
"""Storage in a folder, which publishes a flushed file by a rename."""

import hashlib
import os
import shutil
import tempfile
from pathlib import Path

from ..errors import StorageError
from ..redact import reason_of
from .base import check_staged
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
        """
        return staging_inside(self.folder) or temporary_staging(str(self.folder))

    def check(self) -> None:
        """Write a temporary file into the folder, which deletes itself."""
        staging = self.staging()
        try:
            for folder in {staging, staging if staging.parent == self.folder else self.folder}:
                with tempfile.TemporaryFile(dir=folder) as file:
                    file.write(b"probe")
        except OSError as error:
            raise StorageError(f"{self.folder} is not writable: {reason_of(error)}") from error

    def uri(self, name: str) -> str:
        """Return the absolute path of the file."""
        return str(self.folder / name)

    def publish(self, staged: Path, name: str) -> str:
        """Flush the file to disk, rename it, and flush the folder.

        A staged file on another file system is copied first.
        """
        target = self.folder / name
        check_staged(staged)
        try:
            target.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            if staged.stat().st_dev == target.parent.stat().st_dev:
                _flush(staged)
                staged.replace(target)
            else:
                _copy_and_rename(staged, target)
            _flush(target.parent)
        except OSError as error:
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
        """Return the content of the file."""
        try:
            return (self.folder / name).read_bytes()
        except OSError as error:
            raise StorageError(
                f"{name} cannot be read from {self.folder}: {reason_of(error)}"
            ) from error

    def names(self, folder: str = "") -> list[str] | None:
        """Return the sorted names of the files in a subfolder, or in the folder itself."""
        try:
            with os.scandir(self.folder / folder) as found:
                return sorted(entry.name for entry in found if entry.is_file())
        except FileNotFoundError:
            return []
        except OSError as error:
            raise StorageError(f"{self.folder} cannot be listed: {reason_of(error)}") from error

    def delete(self, name: str) -> None:
        """Delete the file."""
        try:
            (self.folder / name).unlink(missing_ok=True)
        except OSError as error:
            raise StorageError(
                f"{name} cannot be deleted from {self.folder}: {reason_of(error)}"
            ) from error


def _copy_and_rename(staged: Path, target: Path) -> None:
    """Copy a file to another file system, under a hidden name until the copy is complete."""
    hidden = staged_path(target.parent, ".copy", ".part")
    try:
        with staged.open("rb") as source, hidden.open("xb") as copy:
            shutil.copyfileobj(source, copy, 1 << 20)
            copy.flush()
            os.fsync(copy.fileno())
        hidden.replace(target)
    except BaseException:
        hidden.unlink(missing_ok=True)
        raise


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
