# SPDX-License-Identifier: Apache-2.0
"""Files of sources: on this machine, and in the file systems of fsspec.

All methods block, so they are called in a thread.
"""

import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from ..errors import SourceUnavailable, SourceUnreachable
from ..redact import reason_of, redact_url
from ..storage.drivers import failure_of
from ..storage.paths import local_path, whole_path


class SourceFile(Protocol):
    """Interface of a file with an image or a video."""

    @property
    def size(self) -> int | None:
        """Bytes of the file, or None if the storage does not say."""
        ...

    @property
    def signer(self) -> "Signer | None":
        """Signer of URLs of the file, or None if the storage cannot sign."""
        ...

    def read(self, limit: int) -> bytes:
        """Return the content, or its first bytes if it has more than the limit.

        Raises:
            SourceUnavailable: The file cannot be read.
        """
        ...


class Signer(Protocol):
    """Interface of a file of which its storage signs URLs."""

    def version(self) -> str:
        """Return a text that changes when the file changes, without reading the content."""
        ...

    def signed_url(self, seconds: int, media_type: str) -> str:
        """Return a URL that anyone can fetch for a time.

        Raises:
            SourceUnavailable: The storage cannot sign it.
        """
        ...


class LocalFile:
    """File on this machine.

    Args:
        path: Path of the file.
        address: Address as the user wrote it, for messages.

    Raises:
        SourceUnavailable: There is no such file, or it is not a regular one.
    """

    signer = None

    def __init__(self, path: Path, address: str) -> None:
        self._path = whole_path(path)
        self._address = address
        with self._readable():
            found = self._path.stat()
        if not stat.S_ISREG(found.st_mode):  # reading a pipe or a device might never end
            raise self._unavailable("it is not a file")
        self.size: int | None = found.st_size

    def read(self, limit: int) -> bytes:
        """Return the content, or its first bytes if it has more than the limit."""
        with self._readable(), self._path.open("rb") as file:
            return file.read(limit)

    @contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:
            raise self._unavailable(reason_of(error)) from None

    def _unavailable(self, why: str) -> SourceUnavailable:
        return SourceUnavailable(
            f"{self._address} cannot be read on {socket.gethostname()}, which submits the request: "
            f"{why}. A path is a file of that machine; s3://, gs://, az:// or a storage block can "
            "be read on each"
        )


_SCHEME_OPTIONS = {
    "s3": "ResponseContentType",
    "s3a": "ResponseContentType",
    "gs": "response_type",
    "gcs": "response_type",
    "az": "content_type",
    "abfs": "content_type",
    "abfss": "content_type",
}
"""Options of ``sign`` for the Content-Type of the response.

Runway refuses a URL whose Content-Type does not fit the content, and many objects are stored as
``binary/octet-stream``.
"""

_PERMANENT = (
    FileNotFoundError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
    ImportError,
    LookupError,
    NotImplementedError,
    TypeError,
    ValueError,
)
_NO_CREDENTIALS = ("Credential", "ClientAuthentication", "Profile", "TokenRetrieval", "Token")
"""Parts of the names of errors about missing credentials; each library has classes of its own."""


class FsspecFile:
    """File in a file system of fsspec, such as ``s3://bucket/cat.png``.

    Args:
        url: URL of the file.
        address: Address as the user wrote it, for messages.
        options: Arguments for the file system.

    Raises:
        SourceUnavailable: The file does not exist, or may not be read.
        SourceUnreachable: The file system does not answer.
    """

    def __init__(self, url: str, address: str, **options: Any) -> None:
        self._url = url
        self._address = address
        self._scheme = url.partition("://")[0].lower()
        with self._readable():
            from fsspec import AbstractFileSystem
            from fsspec.core import url_to_fs

            self._files, self._path = url_to_fs(url, **options)
            self._files.invalidate_cache()  # a cached listing has the ETag of an older object
            self._info: dict[str, Any] = self._files.info(self._path)
        if self._info.get("type") == "directory":
            raise self._unavailable("it is a folder")
        self.size: int | None = self._info.get("size")
        can_sign = type(self._files).sign is not AbstractFileSystem.sign
        self.signer: Signer | None = self if can_sign else None

    def read(self, limit: int) -> bytes:
        """Return the content, or its first bytes if it has more than the limit."""
        with self._readable():
            return self._files.cat_file(self._path, start=0, end=limit)

    def version(self) -> str:
        """Return the ETag of the object, or the file system's own hash of its properties."""
        for name in ("ETag", "etag"):
            if etag := self._info.get(name):
                return f"etag:{str(etag).strip(chr(34))}"
        with self._readable():
            return f"properties:{self._files.ukey(self._path)}"

    def signed_url(self, seconds: int, media_type: str) -> str:
        """Return a presigned URL of the object, with the media type in its response."""
        option = _SCHEME_OPTIONS.get(self._scheme)
        named = {option: media_type} if option else {}
        with self._readable("the storage cannot sign a URL of it: "):
            return self._files.sign(self._path, expiration=seconds, **named)

    @contextmanager
    def _readable(self, what: str = "") -> Iterator[None]:
        try:
            yield
        except Exception as error:  # noqa: BLE001 -- each file system has errors of its own
            # The error is not chained, because its text may contain credentials.
            raise self._reported(error, what) from None

    def _reported(self, error: Exception, what: str) -> SourceUnavailable:
        if isinstance(error, FileNotFoundError):
            return self._unavailable("it does not exist")
        if isinstance(error, PermissionError):
            return self._unavailable("the credentials of this machine do not permit it")
        why = f"{what}{failure_of(self._url, error)}"
        name = type(error).__name__
        if isinstance(error, _PERMANENT) or any(part in name for part in _NO_CREDENTIALS):
            return self._unavailable(why)
        return SourceUnreachable(f"{redact_url(self._address)} cannot be read for now: {why}")

    def _unavailable(self, why: str) -> SourceUnavailable:
        return SourceUnavailable(f"{redact_url(self._address)} cannot be read: {why}")


def open_file(address: str) -> SourceFile:
    """Return the file at a path or a URL.

    Raises:
        SourceUnavailable: There is no such file, or it cannot be read.
    """
    path = local_path(address)
    if path is None:
        return FsspecFile(address, address)
    return LocalFile(path, address)
