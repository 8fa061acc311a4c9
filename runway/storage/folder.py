# SPDX-License-Identifier: Apache-2.0
"""A folder as storage: a flushed file appears in it by renaming."""

import hashlib
import os
import shutil
import tempfile
from pathlib import Path

from ..errors import StorageError
from .base import check_staged, reason_of
from .paths import whole_path
from .staging import staged_path, staging_inside, temporary_staging


class FolderStorage:
    """A folder on this machine, or on a file system mounted here."""

    def __init__(self, folder: Path) -> None:
        self.folder = whole_path(folder)

    def staging(self) -> Path:
        """Return a folder on the same file system, so that publishing is a rename.

        Where no folder in there is this user's alone, it is one among the temporary files.
        """
        return staging_inside(self.folder) or temporary_staging(str(self.folder))

    def check(self) -> None:
        """Write a file into the folder and delete it."""
        staging = self.staging()
        try:
            for folder in {staging, staging if staging.parent == self.folder else self.folder}:
                with tempfile.TemporaryFile(dir=folder) as file:
                    file.write(b"probe")
        except OSError as error:
            raise StorageError(f"{self.folder} takes no files: {reason_of(error)}") from error

    def uri(self, name: str) -> str:
        """The file's absolute path."""
        return str(self.folder / name)

    def publish(self, staged: Path, name: str) -> str:
        """Flush the file, rename it, and flush the folder."""
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
            raise StorageError(f"{self.folder} did not take {name}: {reason_of(error)}") from error
        return str(target)

    def sha256(self, name: str) -> str | None:
        """Read the file, if it is there."""
        try:
            with (self.folder / name).open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError:
            return None

    def read(self, name: str) -> bytes:
        """The file's content."""
        try:
            return (self.folder / name).read_bytes()
        except OSError as error:
            raise StorageError(
                f"{self.folder} does not give back {name}: {reason_of(error)}"
            ) from error

    def names(self, folder: str = "") -> list[str] | None:
        """Return the names of the files in a folder of this one."""
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
                f"{self.folder} does not let go of {name}: {reason_of(error)}"
            ) from error


def _copy_and_rename(staged: Path, target: Path) -> None:
    """Bring a file to another file system, under a hidden name until it is whole."""
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
