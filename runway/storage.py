# SPDX-License-Identifier: Apache-2.0
"""Where videos are kept: a folder, or any file system that fsspec knows.

Nothing appears under its final name before it is whole. A folder gets a flushed file by renaming;
an object store gets one upload, which shows only when it is complete; any other file system gets
an upload under another name and then a rename.
"""

import getpass
import hashlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote

from .errors import StagedFileMissing, StorageError
from .redact import scrub, shown_url

_OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "memory"}
INCOMING = ".incoming"


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

        A name belongs to one generation, so a file of that name is replaced, and one that was
        published before (its staged file is gone) is left as it is.

        Raises:
            StorageError: The storage did not take it.
        """
        ...


class FolderStorage:
    """A folder on this machine, or on a file system mounted here."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.expanduser().absolute()

    def staging(self) -> Path:
        """A folder on the same file system, so that publishing is a rename."""
        return _made(self.folder / INCOMING)

    def check(self) -> None:
        """Write a file into the folder and delete it."""
        staging = self.staging()
        try:
            with tempfile.TemporaryFile(dir=staging) as file:
                file.write(b"probe")
        except OSError as error:
            raise StorageError(f"{self.folder} takes no files: {_reason(error)}") from error

    def uri(self, name: str) -> str:
        """The file's absolute path."""
        return str(self.folder / name)

    def publish(self, staged: Path, name: str) -> str:
        """Flush the file, rename it, and flush the folder."""
        target = self.folder / name
        if not staged.exists() and target.exists():
            return str(target)
        try:
            _made(target.parent)
            here = staged
            if staged.stat().st_dev != target.parent.stat().st_dev:
                here = Path(shutil.copy2(staged, self.staging() / staged.name))
            _flush(here)
            here.replace(target)
            _flush(target.parent)
            staged.unlink(missing_ok=True)
        except OSError as error:
            _check_staged(staged)
            raise StorageError(f"{self.folder} did not take {name}: {_reason(error)}") from error
        return str(target)


class FsspecStorage:
    """A place that fsspec can write to, as s3://bucket/videos or memory://videos.

    Args:
        url: The place; what comes after ``://`` is the file system's own path.
        options: Arguments of the file system, as fsspec takes them.
    """

    def __init__(self, url: str, **options: Any) -> None:
        self.url = url.rstrip("/")
        self.options = options

    def staging(self) -> Path:
        """A folder for temporary files, which belongs to this storage alone."""
        mark = hashlib.sha256(self.url.encode()).hexdigest()[:12]
        return _made(Path(tempfile.gettempdir()) / f"prefect-cometapi-{getpass.getuser()}" / mark)

    def check(self) -> None:
        """See that there is a file system for the URL."""
        from fsspec.core import url_to_fs

        self.staging()
        try:
            url_to_fs(self.url, **self.options)
        except Exception as error:  # each file system has errors of its own
            raise StorageError(f"{shown_url(self.url)} is no storage: {_reason(error)}") from error

    def uri(self, name: str) -> str:
        """The file's URL."""
        return f"{self.url}/{name}"

    def publish(self, staged: Path, name: str) -> str:
        """Upload the file, see that its size is right there, and give it its name."""
        from fsspec.core import url_to_fs

        try:
            files, target = url_to_fs(self.uri(name), **self.options)
            if not staged.exists() and files.exists(target):
                return self.uri(name)
            files.makedirs(target.rpartition("/")[0], exist_ok=True)
            upload = target if self._is_object_store() else f"{target}.part"
            files.put_file(str(staged), upload)
            written, wanted = files.info(upload)["size"], staged.stat().st_size
            if written != wanted:
                files.rm_file(upload)
                raise StorageError(f"{name} has {written} bytes there, and {wanted} here")
            if upload != target:
                files.mv(upload, target)
        except StorageError:
            raise
        except Exception as error:  # each file system has errors of its own
            _check_staged(staged)
            place = shown_url(self.url)
            raise StorageError(f"{place} did not take {name}: {_reason(error)}") from error
        staged.unlink(missing_ok=True)
        return self.uri(name)

    def _is_object_store(self) -> bool:
        return self.url.partition("://")[0] in _OBJECT_STORES


def open_storage(place: str) -> Storage:
    """The storage at a path or an fsspec URL."""
    if place.startswith("file://"):
        return FolderStorage(Path(unquote(place.removeprefix("file://"))))
    if "://" in place:
        return FsspecStorage(place)
    return FolderStorage(Path(place))


def _check_staged(staged: Path) -> None:
    if not staged.exists():
        raise StagedFileMissing(f"{staged} is not on this machine any more") from None


def _made(folder: Path) -> Path:
    try:
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{folder} cannot be made: {_reason(error)}") from error
    return folder


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _reason(error: Exception) -> str:
    return scrub(getattr(error, "strerror", None) or str(error) or type(error).__name__)
