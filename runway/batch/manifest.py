# SPDX-License-Identifier: Apache-2.0
"""Manifests: files with one row for each generation of a batch.

JSONL has a JSON object in each line. CSV has a header, commas, and an empty cell for a field that
is not set. Parquet has columns. ``row_validation`` defines the names of the fields. This module
only reads a file; the requests in its rows are validated afterwards, all rows at once.
"""

import csv
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from ..redact import redact_url
from .errors import InvalidManifest
from .row_validation import check_names, is_own
from .rows import Row
from .strict_json import strict_json
from .table_files import FileFormat, Unreadable, format_of, open_table, parquet_module

MAX_CELL_LENGTH = 30_000_000
"""Maximum characters of a cell; more than the base64 of the largest data URI that a request may
carry."""

_SHOWN_COLUMNS = 5
_ROWS_AT_ONCE = 256  # a row may hold megabytes


def read_rows(location: str) -> list[Row]:
    """Return the rows of a manifest at a path or any fsspec URL; blank lines are skipped.

    Args:
        location: Path or URL of the manifest. Its suffix determines the format: .jsonl, .ndjson or
            .csv, each optionally followed by .gz, or .parquet, which needs the extra ``parquet``.

    Raises:
        InvalidManifest: It cannot be read, has no rows, or has columns that no request has.
    """
    try:
        rows = list(_READERS[format_of(location)](location))
    except Unreadable as error:
        raise InvalidManifest(str(error)) from None
    if not rows:
        raise InvalidManifest(f"{redact_url(location)} has no rows")
    return rows


def _json_rows(location: str) -> Iterator[Row]:
    with open_table(location, text=True) as lines:
        # The size limit keeps a line that is too long from being read as a whole.
        for number, line in enumerate(iter(partial(lines.readline, MAX_CELL_LENGTH + 1), ""), 1):
            if len(line) > MAX_CELL_LENGTH:
                limit = f"{MAX_CELL_LENGTH:,} characters"
                raise Unreadable(f"{redact_url(location)}: line {number} is longer than {limit}")
            if line.strip():
                yield _json_row(number, line)


def _json_row(number: int, line: str) -> Row:
    try:
        fields = strict_json(line)
    except ValueError as error:
        return Row(number, problem=str(error), unit="line")
    if not isinstance(fields, dict):
        return Row(number, problem="is not a JSON object", unit="line")
    return Row(number, fields, unit="line")


def _csv_rows(location: str) -> Iterator[Row]:
    # The limit is global to the process, so it is only ever raised.
    csv.field_size_limit(max(MAX_CELL_LENGTH, csv.field_size_limit()))
    with open_table(location, text=True) as lines:
        records = _csv_records(location, lines)
        _, header = next(records, (0, []))
        columns = [name.strip() for name in header]
        if columns:
            _check_columns(location, columns)
        for number, cells in records:
            if len(cells) != len(columns):
                problem = f"has {len(cells)} cells, but the header has {len(columns)}"
                yield Row(number, problem=problem, unit="line")
            else:
                cell_of = zip(columns, cells, strict=True)
                yield Row(number, {name: c for name, c in cell_of if c.strip()}, unit="line")


def _csv_records(location: str, lines: Any) -> Iterator[tuple[int, list[str]]]:
    """Yield each record that is not blank, with the number of the line in which it begins."""
    reader = csv.reader(lines, strict=True)
    begins = 1
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                yield begins, cells
            begins = reader.line_num + 1
    except csv.Error as error:  # the start of the next record is unknown
        where = f"the record that begins in line {begins}"
        raise Unreadable(f"{redact_url(location)} is not valid CSV: {where}: {error}") from None


def _parquet_rows(location: str) -> Iterator[Row]:
    parquet = parquet_module()
    with open_table(location, text=False) as file:
        table = parquet.ParquetFile(file)
        columns = table.schema_arrow.names
        _check_columns(location, columns)
        wanted = [name for name in columns if not is_own(name)]
        number = 0
        for batch in table.iter_batches(batch_size=_ROWS_AT_ONCE, columns=wanted):
            for fields in batch.to_pylist():
                number += 1
                yield Row(number, {name: _parquet_cell(cell) for name, cell in fields.items()})


def _parquet_cell(cell: Any) -> Any:
    if isinstance(cell, float) and math.isnan(cell):  # some writers use NaN for null
        return None
    # Old writers store text as bytes. Invalid UTF-8 becomes surrogates, which make a bad row.
    return cell.decode("utf-8", "surrogateescape") if isinstance(cell, bytes) else cell


def _check_columns(location: str, names: list[str]) -> None:
    problems = [f"column {name}: {problem}" for name, problem in check_names(names)]
    if "id" not in names:
        problems.append("the column id is missing")
    if problems:
        more = len(problems) - _SHOWN_COLUMNS
        shown = [*problems[:_SHOWN_COLUMNS], *([f"and {more} more"] if more > 0 else [])]
        raise Unreadable(f"{redact_url(location)} cannot be used: {'; '.join(shown)}")


_READERS: dict[FileFormat, Callable[[str], Iterator[Row]]] = {
    FileFormat.JSONL: _json_rows,
    FileFormat.CSV: _csv_rows,
    FileFormat.PARQUET: _parquet_rows,
}
