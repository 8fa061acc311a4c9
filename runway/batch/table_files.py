# SPDX-License-Identifier: Apache-2.0
"""Table files: the format of a file, and how to open it at a path or an fsspec URL."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from ..redact import RedactingFilter, reason_of, redact_url
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
_GZIP = ".gz"
NO_PYARROW = 'Parquet needs pyarrow: pip install "prefect-cometapi[parquet]"'


def format_of(location: str) -> FileFormat:
    """Return the format of the file at a location, by its suffix; pure.

    Raises:
        Unreadable: The suffix is not a known format.
    """
    name = _name(location).removesuffix(_GZIP)
    format_ = _FORMATS.get(PurePosixPath(name).suffix)
    if format_ is None or (format_ is FileFormat.PARQUET and is_gzipped(location)):
        known = ".jsonl, .ndjson or .csv, each optionally followed by .gz, or in .parquet"
        raise Unreadable(
            f"{redact_url(location)} has no known format: its name must end in {known}"
        )
    return format_


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
def open_table(location: str, *, text: bool) -> Iterator[Any]:
    """Open the file at a location for reading, as text (UTF-8, line ends unchanged) or as bytes.

    Invalid UTF-8 becomes surrogates, so that one bad cell makes only one bad row.

    Raises:
        Unreadable: The file could not be opened, or could not be read in the body.
    """
    how = {"encoding": "utf-8-sig", "errors": "surrogateescape", "newline": ""} if text else {}
    try:
        files, path = _located(location)
        compression = "gzip" if is_gzipped(location) else None
        with files.open(path, "rt" if text else "rb", compression=compression, **how) as file:
            yield file
    except Unreadable:
        raise
    except FileNotFoundError:
        raise Unreadable(
            f"{redact_url(location)} cannot be read: the file does not exist"
        ) from None
    except Exception as error:  # noqa: BLE001 - file systems and formats have errors of their own
        raise Unreadable(f"{redact_url(location)} cannot be read: {reason_of(error)}") from None


def _located(location: str) -> tuple[Any, str]:
    import fsspec
    from fsspec.core import url_to_fs

    path = local_path(location)
    if path is None and is_chained(location):
        raise Unreadable(f"{redact_url(location)} refers to more than one file system")
    if path is None:
        return url_to_fs(location)
    return fsspec.filesystem("file"), str(whole_path(path))


def _name(location: str) -> str:
    is_web = location.lower().startswith(("http://", "https://"))
    return (urlsplit(location).path if is_web else location).lower()
