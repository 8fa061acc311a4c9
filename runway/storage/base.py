# SPDX-License-Identifier: Apache-2.0
"""Where videos are kept: a folder, or any file system that fsspec knows.

Nothing appears under its final name before it is whole. A folder gets a flushed file by renaming;
an object store gets one upload, which shows only when it is complete; any other file system gets
an upload under another name and then a rename.
"""

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from ..batch.table_files import is_chained, local_path, whole_path
from ..errors import StagedFileMissing, StorageError
from ..redact import scrub, shown_url
from .staging import staged_path, staging_inside, temporary_staging

_BUCKETS = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss"}
_OBJECT_STORES = _BUCKETS | {"memory"}
_IN_PARTS: dict[str, dict[str, Any]] = {
    "s3": {"chunksize": 8 << 20, "max_concurrency": 2},  # else it reads 100 MB at once
    "s3a": {"chunksize": 8 << 20, "max_concurrency": 2},
}
"""How an upload streams from the disk, where the file system does not by itself."""
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
            raise StorageError(f"{self.folder} takes no files: {_reason(error)}") from error

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
            raise StorageError(f"{self.folder} did not take {name}: {_reason(error)}") from error
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
                f"{self.folder} does not give back {name}: {_reason(error)}"
            ) from error

    def names(self, folder: str = "") -> list[str] | None:
        """Return the names of the files in a folder of this one."""
        try:
            with os.scandir(self.folder / folder) as found:
                return sorted(entry.name for entry in found if entry.is_file())
        except FileNotFoundError:
            return []
        except OSError as error:
            raise StorageError(f"{self.folder} cannot be listed: {_reason(error)}") from error

    def delete(self, name: str) -> None:
        """Delete the file."""
        try:
            (self.folder / name).unlink(missing_ok=True)
        except OSError as error:
            raise StorageError(
                f"{self.folder} does not let go of {name}: {_reason(error)}"
            ) from error


class FsspecStorage:
    """A place that fsspec can write to, as s3://bucket/videos or memory://videos.

    Errors of a file system are told and not chained: their own text may hold its credentials, and a
    traceback would repeat it.

    Args:
        url: The place; what comes after ``://`` is the file system's own path.
        options: Arguments of the file system, as fsspec takes them.

    Raises:
        StorageError: The URL holds a password or a query, or names more than one file system.
    """

    def __init__(self, url: str, **options: Any) -> None:
        if "?" in url or re.search(r"://[^/?#@]*:[^/?#]*@", url):
            raise StorageError(
                f"{shown_url(url)} is stored with each video, so it may hold no password and no "
                "query; put it into a remote-file-system block or into fsspec's configuration"
            )
        if is_chained(url):
            raise StorageError(f"{shown_url(url)} names more than one file system")
        self.url = url.rstrip("/")
        self.options = options

    def staging(self) -> Path:
        """A folder for temporary files, which belongs to this storage and this user alone."""
        return temporary_staging(self.url)

    def check(self) -> None:
        """See that there is a file system for the URL, and its bucket."""
        self.staging()
        try:
            files, path = self._opened()
            if self._protocol in _BUCKETS:
                files.info(path.partition("/")[0])
        except PermissionError:  # who may write need not be allowed to list
            return
        except Exception as error:  # noqa: BLE001 -- each file system has errors of its own
            raise StorageError(f"{shown_url(self.url)} is no storage: {_reason(error)}") from None

    def uri(self, name: str) -> str:
        """The file's URL."""
        return f"{self.url}/{name}"

    def publish(self, staged: Path, name: str) -> str:
        """Upload the file, see that its size is right there, and give it its name."""
        at_once = self._protocol in _OBJECT_STORES
        check_staged(staged)
        try:
            files, target = self._opened(name)
            if not at_once:  # an object store has no folders, and would make a bucket
                files.makedirs(target.rpartition("/")[0], exist_ok=True)
            upload = target if at_once else f"{target}.part"
            files.put_file(str(staged), upload, **_IN_PARTS.get(self._protocol, {}))
            written, wanted = files.info(upload)["size"], staged.stat().st_size
            if written != wanted:
                files.rm_file(upload)
                raise StorageError(f"{name} has {written} bytes there, and {wanted} here")
            if upload != target:
                files.mv(upload, target)
        except StorageError:
            raise
        except Exception as error:  # noqa: BLE001 -- each file system has errors of its own
            check_staged(staged)
            place = shown_url(self.url)
            raise StorageError(f"{place} did not take {name}: {_reason(error)}") from None
        return self.uri(name)

    def sha256(self, name: str) -> str | None:
        """Read the file piece by piece, if it is there."""
        try:
            files, target = self._opened(name)
            with files.open(target, "rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except Exception:  # noqa: BLE001 -- each file system has errors of its own
            return None

    def read(self, name: str) -> bytes:
        """The file's content."""
        with self._told("does not give back", name):
            files, target = self._opened(name)
            return files.cat_file(target)

    def names(self, folder: str = "") -> list[str] | None:
        """List the files below the URL, as far as the file system can."""
        with self._told("does not list", folder or "its files"):
            files, target = self._opened(folder or None)
            files.invalidate_cache()  # it would repeat what it saw before
            try:
                found = files.ls(target, detail=True)
            except FileNotFoundError:
                return []
        return sorted(
            PurePosixPath(entry["name"]).name for entry in found if entry["type"] == "file"
        )

    def delete(self, name: str) -> None:
        """Delete the file."""
        with self._told("does not let go of", name):
            files, target = self._opened(name)
            files.rm_file(target)

    @property
    def _protocol(self) -> str:
        return self.url.partition("://")[0]

    def _opened(self, name: str | None = None) -> tuple[Any, str]:
        """The file system, and a path in it."""
        from fsspec.core import url_to_fs

        return url_to_fs(self.url if name is None else self.uri(name), **self.options)

    @contextmanager
    def _told(self, what: str, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # noqa: BLE001 -- each file system has errors of its own
            place = shown_url(self.url)
            raise StorageError(f"{place} {what} {name}: {_reason(error)}") from None


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
        raise StorageError(f"{staged.parent} takes no files: {_reason(error)}") from error
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


def open_storage(place: str) -> Storage:
    """The storage at a path or an fsspec URL."""
    path = local_path(place)
    return FsspecStorage(place) if path is None else FolderStorage(path)


def check_staged(staged: Path) -> None:
    """Report a staged file that is gone as what it is, and not as a fault of the storage.

    Raises:
        StagedFileMissing: It is gone.
    """
    if not staged.exists():
        raise StagedFileMissing(f"{staged} is not on this machine any more") from None


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


def _reason(error: Exception) -> str:
    return scrub(getattr(error, "strerror", None) or str(error) or type(error).__name__)
