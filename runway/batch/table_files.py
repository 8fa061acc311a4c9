# SPDX-License-Identifier: Apache-2.0
"""Table files: the format of a file, and how to open it at a path or an fsspec URL."""

import gzip
import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from ..http_clients import untraced
from ..redact import RedactingFilter, reason_of, redact_url
from ..storage.drivers import failure_of
from ..storage.paths import is_chained, local_path, whole_path

for _logger in ("fsspec", "fsspec.http"):  # at DEBUG they log complete URLs
    logging.getLogger(_logger).addFilter(RedactingFilter())


class Unreadable(ValueError):
    """Table file that cannot be read or written; the message holds no secret."""


class FileFormat(StrEnum):
    """Format of a table file."""

    JSONL = "JSONL"
    CSV = "CSV"
    PARQUET = "Parquet"


_FORMATS = {
    ".jsonl": FileFormat.JSONL,
    ".ndjson": FileFormat.JSONL,
    ".csv": FileFormat.CSV,
    ".parquet": FileFormat.PARQUET,
}
_ALSO_READ = {
    ".json": FileFormat.JSONL,
    ".tsv": FileFormat.CSV,
    ".tab": FileFormat.CSV,
    ".txt": FileFormat.CSV,  # Excel's "Unicode text": tabs in UTF-16
}
_GZIP = ".gz"
_GZIP_MARK = b"\x1f\x8b"
NO_PYARROW = 'Parquet needs pyarrow: pip install "prefect-cometapi[parquet]"'


def format_of(location: str) -> FileFormat:
    """Return the format of the file at a location, by its suffix; pure.

    Raises:
        Unreadable: The suffix is not a known format.
    """
    format_ = _FORMATS.get(_suffix(location))
    if format_ is None or (format_ is FileFormat.PARQUET and is_gzipped(location)):
        known = ".jsonl, .ndjson or .csv, each optionally followed by .gz, or in .parquet"
        raise Unreadable(
            f"{redact_url(location)} has no known format: its name must end in {known}"
        )
    return format_


def suffix_format(location: str) -> FileFormat | None:
    """Return the format in which to read a file, by its suffix, or None if that does not say; pure.

    More formats are read than written.
    """
    return (_FORMATS | _ALSO_READ).get(_suffix(location))


def is_gzipped(location: str) -> bool:
    """Return True if the file at a location is compressed, by its suffix; pure."""
    return _name(location).endswith(_GZIP)


def parquet_module() -> Any:
    """Return ``pyarrow.parquet``.

    Raises:
        Unreadable: pyarrow is not installed.
    """
    try:
        import pyarrow.parquet
    except ImportError:
        raise Unreadable(NO_PYARROW) from None
    return pyarrow.parquet


@contextmanager
def reading(location: str) -> Iterator[None]:
    """Turn every error of the block into ``Unreadable``, without a secret, and trace nothing.

    Raises:
        Unreadable: The block failed; the message names the location and the reason.
    """
    try:
        with untraced():
            yield
    except Unreadable:
        raise
    except FileNotFoundError:
        raise Unreadable(
            f"{redact_url(location)} cannot be read: the file does not exist"
        ) from None
    except UnicodeError as error:
        encoding = getattr(error, "encoding", "its encoding")
        raise Unreadable(
            f"{redact_url(location)} is not in {encoding}: {reason_of(error)}"
        ) from None
    except Exception as error:  # noqa: BLE001 - file systems and formats have errors of their own
        why = failure_of(location, error)
        raise Unreadable(f"{redact_url(location)} cannot be read: {why}") from None


def as_text(file: Any, encoding: str) -> Any:
    """Return the text of an open file, with its line ends unchanged.

    Invalid UTF-8 becomes surrogates, so that one bad cell makes only one bad row.
    """
    errors = "surrogateescape" if encoding.startswith("utf-8") else "strict"
    return io.TextIOWrapper(file, encoding, errors, newline="")


def decompressed(file: Any, *, must: bool) -> Any:
    """Return an open file, decompressed if its first bytes are those of gzip.

    Args:
        file: Open file, which can seek.
        must: Whether the file has to be compressed, by its name.
    """
    start = file.read(2)
    file.seek(0)
    return gzip.GzipFile(fileobj=file, mode="rb") if must or start == _GZIP_MARK else file


def located(location: str) -> tuple[Any, str]:
    """Return the file system of a location, and the path in it.

    Raises:
        Unreadable: The location refers to more than one file system.
    """
    import fsspec
    from fsspec.core import url_to_fs

    path = local_path(location)
    if path is None and is_chained(location):
        raise Unreadable(f"{redact_url(location)} refers to more than one file system")
    if path is None:
        return url_to_fs(location)
    return fsspec.filesystem("file"), str(whole_path(path))


def _suffix(location: str) -> str:
    return PurePosixPath(_name(location).rstrip("/").removesuffix(_GZIP)).suffix


def _name(location: str) -> str:
    return (urlsplit(location).path if is_web(location) else location).lower()


def is_web(location: str) -> bool:
    """Return True for an address of the web; pure."""
    return location.lower().startswith(("http://", "https://"))
