# SPDX-License-Identifier: Apache-2.0
"""Storage on any file system of fsspec, with uploads that become visible once complete."""

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any
from uuid import uuid4

from ..errors import StorageError
from ..redact import redact_url
from .base import LACKS, check_staged, code_of, probe
from .drivers import failure_of
from .paths import is_chained
from .staging import temporary_staging
from .upload_options import put_options

_OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "memory"}
_IN_PARTS: dict[str, dict[str, Any]] = {
    "s3": {"chunksize": 8 << 20, "max_concurrency": 2},  # the default reads 100 MB at once
    "s3a": {"chunksize": 8 << 20, "max_concurrency": 2},
}
"""Options that make an upload stream from disk, for file systems that need them."""


class FsspecStorage:
    """Storage at a URL that fsspec can write to, such as s3://bucket/videos or memory://videos.

    Errors of the file system are reported without chaining. Their own text may contain credentials,
    and a traceback would repeat them.

    Args:
        url: URL of the storage; the part after ``://`` is a path of the file system.
        options: Arguments for the file system, passed to fsspec.

    Raises:
        StorageError: The URL contains a password or a query, or more than one file system.
    """

    def __init__(self, url: str, **options: Any) -> None:
        if "?" in url or re.search(r"://[^/?#@]*:[^/?#]*@", url):
            raise StorageError(
                f"{redact_url(url)} must not contain a password or a query, because it is stored "
                "with each video; use a remote-file-system block or fsspec's configuration"
            )
        if is_chained(url):
            raise StorageError(f"{redact_url(url)} refers to more than one file system")
        self.url = url.rstrip("/")
        self.options = options

    def staging(self) -> Path:
        """Return a temporary folder that belongs to this storage and this user only.

        Raises:
            StorageError: The folder cannot be created.
        """
        return temporary_staging(self.url)

    def check(self) -> None:
        """Upload a small file, read it back, and delete it if the credentials may do that.

        Raises:
            StorageError: The URL has no driver, or the file system does not accept the file.
        """
        try:
            self._opened()
        except Exception as error:  # noqa: BLE001 -- each file system has errors of its own
            location = redact_url(self.url)
            raise StorageError(
                f"{location} cannot be used as a storage: {failure_of(self.url, error)}"
            ) from None
        probe(self, strict=False)

    def uri(self, name: str) -> str:
        """Return the URL of the file."""
        return f"{self.url}/{name}"

    def publish(self, staged: Path, name: str, **_hints: bool) -> str:
        """Upload the file, check the uploaded size, and rename it if it has a temporary name.

        Raises:
            StagedFileMissing: The staged file does not exist.
            StorageError: The file could not be written, or arrived incomplete.
        """
        check_staged(staged)
        try:
            files, target = self._opened(name)
            if self._protocol in _OBJECT_STORES:
                self._upload(files, staged, target, name)
            else:
                self._upload_and_rename(files, staged, target, name)
        except StorageError:
            raise
        except Exception as error:  # noqa: BLE001 -- each file system has errors of its own
            check_staged(staged)
            location = redact_url(self.url)
            raise StorageError(
                f"{name} could not be written to {location}: {failure_of(self.url, error)}"
            ) from None
        return self.uri(name)

    def _upload_and_rename(self, files: Any, staged: Path, target: str, name: str) -> None:
        """Upload a file under a temporary name that no other process uses, and rename it.

        A file system without a rename gets the upload under its final name.
        """
        with suppress(NotImplementedError):
            files.makedirs(target.rpartition("/")[0], exist_ok=True)
        upload = f"{target}.{uuid4().hex[:8]}.part"
        try:
            self._upload(files, staged, upload, name)
            files.mv(upload, target)
        except BaseException as error:
            with suppress(Exception):  # it may not exist, or the file system may be unreachable
                files.rm_file(upload)
            lacks_rename = isinstance(error, OSError) and error.errno in LACKS
            if not (lacks_rename or isinstance(error, NotImplementedError)):
                raise
        else:
            return
        self._upload(files, staged, target, name)

    def _upload(self, files: Any, staged: Path, target: str, name: str) -> None:
        """Upload a file, and delete it again if it arrived incomplete."""
        options = {**_IN_PARTS.get(self._protocol, {}), **put_options(self._protocol, name)}
        files.put_file(str(staged), target, **options)
        written, wanted = files.info(target).get("size"), staged.stat().st_size
        if written not in {wanted, None}:  # some file systems do not report sizes
            with suppress(Exception):  # the first error is the one to report
                files.rm_file(target)
            raise StorageError(
                f"{name} has {written} bytes in the storage, but {wanted} on this machine"
            )

    def sha256(self, name: str) -> str | None:
        """Return the SHA-256 of the file in hex, or None if it cannot be read."""
        try:
            files, target = self._opened(name)
            with files.open(target, "rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except Exception:  # noqa: BLE001 -- each file system has errors of its own
            return None

    def read(self, name: str) -> bytes:
        """Return the content of the file.

        Raises:
            StorageError: The file cannot be read.
        """
        with self._described(f"{name} cannot be read from"):
            files, target = self._opened(name)
            return files.cat_file(target)

    def names(self, folder: str = "") -> list[str] | None:
        """Return the sorted names of the files in a folder below the URL.

        Raises:
            StorageError: The folder exists, and cannot be listed.
        """
        with self._described(f"{folder or 'the files'} cannot be listed in"):
            files, target = self._opened(folder or None)
            files.invalidate_cache()  # a cached listing lacks newer files
            try:
                found = files.ls(target, detail=True)
            except FileNotFoundError:
                return []
        return sorted(
            PurePosixPath(entry["name"]).name for entry in found if entry["type"] == "file"
        )

    def delete(self, name: str) -> None:
        """Delete the file.

        Raises:
            StorageError: The file still exists, or did not exist.
        """
        with self._described(f"{name} cannot be deleted from"):
            files, target = self._opened(name)
            files.rm_file(target)

    @property
    def _protocol(self) -> str:
        return self.url.partition("://")[0]

    def _opened(self, name: str | None = None) -> tuple[Any, str]:
        """Return the file system, and the path of the URL or of a file below it."""
        from fsspec.core import url_to_fs

        return url_to_fs(self.url if name is None else self.uri(name), **self.options)

    @contextmanager
    def _described(self, what: str) -> Iterator[None]:
        """Turn any error of the file system into a StorageError."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 -- each file system has errors of its own
            location = redact_url(self.url)
            why = failure_of(self.url, error)
            raise StorageError(f"{what} {location}: {why}", code=code_of(error)) from None
