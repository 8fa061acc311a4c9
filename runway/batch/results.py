# SPDX-License-Identifier: Apache-2.0
"""Output manifest of a batch: the result of each item, as JSONL or Parquet.

Each write replaces the whole file and publishes it like a video, completely or not at all. A reader
sees an older or a newer state while the batch runs, never a partial one.
"""

import gzip
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import NoneType
from typing import Any, get_args

from pydantic import AwareDatetime
from pydantic_core import to_json

from ..errors import StorageError, StorageUnavailable
from ..redact import redact_url
from ..storage.base import Storage, publish_written
from ..storage.factory import open_storage
from ..storage.folder import FolderStorage
from ..storage.paths import local_path
from .models import ItemResult
from .table_files import (
    FileFormat,
    Unreadable,
    format_of,
    is_gzipped,
    parquet_module,
)

MIN_WRITE_INTERVAL = 10.0
"""Minimum seconds between two writes of a growing output."""

WRITING_SHARE = 0.02
"""Maximum share of a batch's time that writing a growing file takes."""


def next_write(ended: float, took: float, share: float = WRITING_SHARE) -> float:
    """Return the time from which a growing output may be written again; pure.

    The cost of a write grows with the number of items, so writing after each item would have a
    quadratic cost. With this gap, writing takes at most a fixed share of the time, for any number
    of items.

    Args:
        ended: End of the last write, in seconds of any clock.
        took: Seconds that the last write took.
        share: Maximum share of the time.
    """
    return ended + max(MIN_WRITE_INTERVAL, took * (1 / share - 1))


def check_location(location: str) -> None:
    """Check that results can be written to a location, before anything is bought.

    Raises:
        StorageUnavailable: They cannot be written.
    """
    try:
        storage, name = split_location(location)
        check_name(name)
        storage.check()
    except StorageError as error:
        raise StorageUnavailable(error.message) from error


def check_name(name: str) -> None:
    """Check that results can be written to a file of this name.

    Raises:
        StorageError: Its suffix is not a known format, or the library that writes the format is not
            installed.
    """
    try:
        if format_of(name) is FileFormat.CSV:
            raise StorageError(f"{name} is not possible: results are written as .jsonl or .parquet")
        if format_of(name) is FileFormat.PARQUET:
            parquet_module()
    except Unreadable as error:
        raise StorageError(str(error)) from None


def write_results(results: Sequence[ItemResult], location: str) -> str:
    """Write results to a path or any fsspec URL, completely or not at all, and return the location.

    Args:
        results: All results; an existing file is replaced.
        location: A file in a folder. Its suffix determines the format: .jsonl or .ndjson (each
            optionally followed by .gz), or .parquet, which needs the extra ``parquet``.

    Raises:
        StorageError: The results could not be written to the location.
    """
    storage, name = split_location(location)
    return publish_results(results, storage, name)


def publish_results(results: Sequence[ItemResult], storage: Storage, name: str) -> str:
    """Write results to a file of a storage, as ``write_results`` does.

    Raises:
        StorageError: The results could not be written to the storage.
    """
    check_name(name)

    def write(staged: Path) -> None:
        if format_of(name) is FileFormat.PARQUET:
            _write_parquet(staged, results)
        else:
            _write_jsonl(staged, results, gzip.open if is_gzipped(name) else open)

    return publish_written(storage, name, write)


def split_location(location: str) -> tuple[Storage, str]:
    """Split a location into its storage and its file name.

    Raises:
        StorageError: It is not a file in a folder.
    """
    path = local_path(location)
    if path is not None:
        return FolderStorage(path.parent), path.name
    folder, _, name = location.rpartition("/")
    if folder.endswith(":/"):
        raise StorageError(f"{redact_url(location)} is not a file in a folder")
    return open_storage(folder), name


def _write_jsonl(path: Path, results: Iterable[ItemResult], open_file: Callable[..., Any]) -> None:
    with open_file(path, "wb") as file:
        file.writelines(to_json(_row_of(result)) + b"\n" for result in results)


def _write_parquet(path: Path, results: Iterable[ItemResult]) -> None:
    parquet = parquet_module()
    import pyarrow as pa

    types = {
        bool: pa.bool_(),
        int: pa.int64(),
        float: pa.float64(),
        AwareDatetime: pa.timestamp("us", tz="UTC"),
    }
    schema = pa.schema(
        [
            (name, types.get(_plain_type(info.annotation), pa.string()))
            for name, info in ItemResult.model_fields.items()
        ]
    )
    rows = [_row_of(result) for result in results]
    parquet.write_table(pa.Table.from_pylist(rows, schema=schema), path)


def _plain_type(annotation: Any) -> Any:
    """Return the type of a field, without None if it is optional."""
    return (*(one for one in get_args(annotation) if one is not NoneType), annotation)[0]


def _row_of(result: ItemResult) -> dict[str, Any]:
    return {
        name: _written(value) if isinstance(value, str) else value
        for name, value in result.model_dump().items()
    }


def _written(text: str) -> str:
    """Return the text with lone surrogates replaced, since a file cannot hold them.

    A service may send half of a surrogate pair.
    """
    if text.isascii():
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
