# SPDX-License-Identifier: Apache-2.0
"""Manifests: files with one row for each generation of a batch.

JSONL has a JSON object in each line. CSV has a header, commas, semicolons or tabs, and an empty
cell for a field that is not set. Parquet has columns. ``row_validation`` defines the names of the
fields. This module only reads a file; the requests in its rows are validated afterwards, all rows
at once.
"""

import csv
import re
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any

from ..redact import redact_url
from ..storage.paths import local_path, whole_path
from .errors import InvalidManifest
from .manifest_files import Part, open_parts
from .row_validation import check_names, is_nameless, is_own
from .rows import Row
from .strict_json import strict_json
from .table_content import (
    EncodingCheck,
    check_encoding,
    column_name,
    delimiter_of,
    encoding_of,
    separator_line,
    without_padding,
)
from .table_files import FileFormat, Unreadable, as_text, parquet_module, reading

MAX_CELL_LENGTH = 30_000_000
"""Maximum characters of a cell; more than the base64 of the largest data URI that a request may
carry."""

MAX_ARRAY_LENGTH = 300_000_000
"""Maximum characters of a file with one JSON array, which is read as a whole."""

_SHOWN_COLUMNS = 5
_ROWS_AT_ONCE = 256  # a row may hold megabytes
_WHOLE_NUMBER = re.compile(r"\s*\d+\s*")


def read_rows(
    location: str, *, file_format: FileFormat | None = None, encoding: str | None = None
) -> list[Row]:
    """Return the rows of a manifest at a path or any fsspec URL; blank lines are skipped.

    Args:
        location: Path or URL of the manifest, or of a folder of its parts. Its suffix determines
            the format: .jsonl, .ndjson or .csv, each optionally followed by .gz, or .parquet, which
            needs the extra ``parquet``. Without one, the file's media type or content does.
        file_format: Format of the manifest, whatever its suffix is.
        encoding: Encoding of the text, such as windows-1252, if it is not UTF-8 and has no mark.

    Raises:
        InvalidManifest: It cannot be read, has no rows, or has columns that no request has.
    """
    try:
        check_encoding(encoding)
        with reading(location):
            rows = list(_rows(location, file_format, encoding))
    except Unreadable as error:
        raise InvalidManifest(str(error)) from None
    if not rows:
        raise InvalidManifest(f"{redact_url(location)} has no rows")
    return rows


def check_manifest(location: str, file_format: FileFormat | None = None) -> None:
    """Check that a local manifest exists, can be opened, and has a known format.

    Other locations are not checked: a folder and a web address take too long, and what is read from
    a pipe is gone.

    Args:
        location: Path or URL of the manifest.
        file_format: Format of the manifest, whatever its suffix is.

    Raises:
        InvalidManifest: The file cannot be read.
    """
    path = local_path(location)
    if path is None or (whole_path(path).exists() and not whole_path(path).is_file()):
        return
    try:
        with reading(location), closing(open_parts(location, file_format)) as parts:
            next(parts)
    except Unreadable as error:
        raise InvalidManifest(str(error)) from None


def _rows(location: str, file_format: FileFormat | None, encoding: str | None) -> Iterator[Row]:
    number = 0
    for part in open_parts(location, file_format):
        for row in _READERS[part.format](part, encoding):
            number += 1
            fields = {**part.fields, **row.fields} if part.fields else row.fields
            if part.is_one_of_many:  # line numbers of several files would be ambiguous
                row = replace(row, number=number, unit="row", fields=fields)  # noqa: PLW2901
            yield row


@contextmanager
def _text_of(part: Part, named: str | None) -> Iterator["_Lines"]:
    """Yield the lines of a file, and check at the end that they were in the encoding."""
    encoding = encoding_of(part.head, named)
    text = as_text(part.file, encoding)
    check = EncodingCheck(part.name, encoding)
    yield _Lines(text, check)
    check.finish()


class _Lines:
    """Lines of a text file, each of which is checked for its encoding."""

    def __init__(self, text: Any, check: EncodingCheck) -> None:
        self._text = text
        self._check = check

    def readline(self, limit: int = -1) -> str:
        line = self._text.readline(limit)
        self._check.see(line)
        return line

    def read(self, limit: int) -> str:
        content = self._text.read(limit)
        for line in content.splitlines():
            self._check.see(line)
        return content

    def __iter__(self) -> Iterator[str]:
        return iter(self.readline, "")


def _json_rows(part: Part, encoding: str | None) -> Iterator[Row]:
    with _text_of(part, encoding) as lines:
        # The size limit keeps a line that is too long from being read as a whole.
        line = lines.readline(MAX_CELL_LENGTH + 1)
        if line.strip() == "{":
            raise Unreadable(
                f"{part.name} has one object over several lines: write each in one line, or all of "
                "them in one array"
            )
        if line.lstrip()[:1] == "[":
            yield from _array_rows(part, line + lines.read(MAX_ARRAY_LENGTH + 1))
            return
        following = iter(partial(lines.readline, MAX_CELL_LENGTH + 1), "")
        for number, each in enumerate(chain([line], following), 1):
            if len(each) > MAX_CELL_LENGTH:
                limit = f"{MAX_CELL_LENGTH:,} characters"
                raise Unreadable(f"{part.name}: line {number} is longer than {limit}")
            if each.strip():
                yield _json_row(number, each, "line")


def _array_rows(part: Part, text: str) -> Iterator[Row]:
    """Return the rows of one JSON array, as data frames write it."""
    if len(text) > MAX_ARRAY_LENGTH:
        limit = f"{MAX_ARRAY_LENGTH:,} characters"
        raise Unreadable(f"{part.name} is one JSON array of more than {limit}: write it as JSONL")
    try:
        found = strict_json(text, missing_numbers=True)
    except ValueError as error:
        raise Unreadable(f"{part.name} {error}") from None
    for number, fields in enumerate(found, 1):
        if isinstance(fields, dict):
            yield Row(number, fields)
        else:
            yield Row(number, problem="is not a JSON object")


def _json_row(number: int, line: str, unit: Any) -> Row:
    try:
        fields = strict_json(line, missing_numbers=True)
    except ValueError as error:
        return Row(number, problem=str(error), unit=unit)
    if not isinstance(fields, dict):
        return Row(number, problem="is not a JSON object", unit=unit)
    return Row(number, fields, unit=unit)


def _csv_rows(part: Part, encoding: str | None) -> Iterator[Row]:
    # The limit is global to the process, so it is only ever raised.
    csv.field_size_limit(max(MAX_CELL_LENGTH, csv.field_size_limit()))
    with _text_of(part, encoding) as lines:
        records = _csv_records(part, lines)
        _, header = next(records, (0, []))
        columns = [column_name(name) for name in header]
        nameless = _NamelessColumns(part.name, columns)
        if columns:
            _check_columns(part.name, [name for name in columns if not is_nameless(name)], part)
        for number, cells in records:
            problem = _count_problem(cells, columns)
            if problem:
                yield Row(number, problem=problem, unit="line")
                continue
            nameless.see(number, cells)
            cell_of = zip(columns, cells, strict=False)
            fields = {n: c for n, c in cell_of if c.strip() and not is_nameless(n)}
            yield Row(number, fields, unit="line")


def _count_problem(cells: list[str], columns: list[str]) -> str:
    """Return the problem of a row with too few or too many cells, or an empty text.

    A spreadsheet leaves out cells at the end, or adds empty ones. That is safe if no field of the
    request is concerned.
    """
    extra, missing = cells[len(columns) :], columns[len(cells) :]
    is_safe = all(is_own(name) or is_nameless(name) for name in missing)
    if is_safe and not any(cell.strip() for cell in extra):
        return ""
    return f"has {len(cells)} cells, but the header has {len(columns)}"


class _NamelessColumns:
    """Columns without a name: the empty ones of a spreadsheet, and the index of a data frame.

    Args:
        name: Name of the file for messages.
        columns: Names of all columns.
    """

    def __init__(self, name: str, columns: list[str]) -> None:
        self._name = name
        self._positions = [at for at, column in enumerate(columns) if is_nameless(column)]
        self._index: set[str] = set()

    def see(self, number: int, cells: list[str]) -> None:
        """Look at the next row.

        Raises:
            Unreadable: A column without a name has values, and they are no index.
        """
        for at in self._positions:
            cell = cells[at].strip() if at < len(cells) else ""
            is_index = at == 0 and _WHOLE_NUMBER.fullmatch(cell) and cell not in self._index
            if cell and not is_index:
                raise Unreadable(
                    f"{self._name} cannot be used: column {at + 1} has no name, but a value in "
                    f"line {number}; name it after a field of the request, or x_ and a name of "
                    "your own"
                )
            if at == 0:
                self._index.add(cell)


def _csv_records(part: Part, lines: _Lines) -> Iterator[tuple[int, list[str]]]:
    """Yield each record that is not blank, with the number of the line in which it begins."""
    skipped, first = 0, lines.readline()
    while first and (not first.strip() or separator_line(first.strip("\ufeff"))):
        named = separator_line(first.strip("\ufeff"))
        skipped, first = skipped + 1, lines.readline()
        if named:
            break
    else:
        named = None
    delimiter = named or delimiter_of(first)
    following = without_padding(chain([first], lines), first, delimiter)
    reader = csv.reader(following, delimiter=delimiter, strict=True, skipinitialspace=True)
    begins = skipped + 1
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                yield begins, cells
            begins = skipped + reader.line_num + 1
    except csv.Error as error:  # the start of the next record is unknown
        where = f"the record that begins in line {begins}"
        raise Unreadable(f"{part.name} is not valid CSV: {where}: {error}") from None


def _parquet_rows(part: Part, _encoding: str | None) -> Iterator[Row]:
    table = parquet_module().ParquetFile(part.file)
    columns = table.schema_arrow.names
    _check_columns(part.name, columns, part)
    wanted = [name for name in columns if not is_own(name)]
    number = 0
    for batch in table.iter_batches(batch_size=_ROWS_AT_ONCE, columns=wanted):
        for fields in batch.to_pylist():
            number += 1
            yield Row(number, {name: _parquet_cell(cell) for name, cell in fields.items()})


def _parquet_cell(cell: Any) -> Any:
    # Old writers store text as bytes. Invalid UTF-8 becomes surrogates, which make a bad row.
    return cell.decode("utf-8", "surrogateescape") if isinstance(cell, bytes) else cell


def _check_columns(name: str, columns: list[str], part: Part) -> None:
    columns = [*columns, *(each for each in part.fields if each not in columns)]
    problems = [f"column {column}: {problem}" for column, problem in check_names(columns)]
    if "id" not in {column_name(column) for column in columns}:
        problems.append("the column id is missing")
    if problems:
        more = len(problems) - _SHOWN_COLUMNS
        shown = [*problems[:_SHOWN_COLUMNS], *([f"and {more} more"] if more > 0 else [])]
        raise Unreadable(f"{name} cannot be used: {'; '.join(shown)}")


_READERS: dict[FileFormat, Callable[[Part, str | None], Iterator[Row]]] = {
    FileFormat.JSONL: _json_rows,
    FileFormat.CSV: _csv_rows,
    FileFormat.PARQUET: _parquet_rows,
}
