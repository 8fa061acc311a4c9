# SPDX-License-Identifier: Apache-2.0
"""Conversion between rows of the ledger's table and entries."""

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from pydantic import ValidationError

from ..errors import LedgerCorrupted
from ..redact import scrub
from .entry import Entry
from .schema import JSON_COLUMNS, TIME_COLUMNS
from .statement import Row, Sql, Value

_UNREADABLE = "unreadable"


def read_entries(
    rows: Sequence[Row],
    location: str,
    on_corrupted: Callable[[LedgerCorrupted], None] | None = None,
) -> list[Entry]:
    """Return the entries in rows of the ledger's table.

    A corrupted row may be a purchase, so by default it is an error and not skipped.

    Args:
        rows: Rows from the database.
        location: Location of the ledger, for error messages.
        on_corrupted: Called with the error of each corrupted row, which is then skipped.

    Raises:
        LedgerCorrupted: A row is corrupted, and ``on_corrupted`` is not given.
    """
    found: list[Entry] = []
    for row in rows:
        try:
            found.append(_entry(row, location))
        except LedgerCorrupted as error:
            if on_corrupted is None:
                raise
            on_corrupted(error)
    return found


def _entry(row: Row, location: str) -> Entry:
    values = dict(row)
    for name in JSON_COLUMNS:
        values[name] = _read_json(values[name])
    for name in TIME_COLUMNS:
        values[name] = read_time(values[name])
    try:
        return Entry.model_validate(values)
    except ValidationError as error:
        columns = ", ".join(sorted({str(problem["loc"][0]) for problem in error.errors()}))
        key = scrub(str(row["idempotency_key"]))
        raise LedgerCorrupted(
            f"in the ledger at {location} the row of key {key!r} is corrupted: {columns}"
        ) from None


def _read_json(value: Any) -> Any:
    """Parse JSON; return a corrupted text unchanged, which the validation then rejects."""
    try:
        return None if value is None else json.loads(value)
    except (TypeError, ValueError):
        return value


def read_time(value: Any) -> datetime | str | None:
    """Return the time that a database returned, or an invalid text for a corrupted one.

    SQLite has no times: they are texts in UTC without a zone. A number must not pass, since the
    validation would take it for seconds since 1970.
    """
    if value is None or isinstance(value, datetime):
        return value
    try:
        read = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return _UNREADABLE
    return read if read.tzinfo else read.replace(tzinfo=UTC)


def columns_of(entry: Entry) -> dict[str, Any]:
    """Return all columns of an entry except the end of its lease."""
    known = entry.model_dump(exclude={"lease_left", "leased_until"})
    known["state"] = str(entry.state)
    known["outputs"] = [str(output) for output in entry.outputs]
    known["videos"] = entry.model_dump(mode="json")["videos"]
    known["resubmitted_by"] = list(entry.resubmitted_by)
    return known


def as_columns(values: Mapping[str, Any]) -> dict[str, Value | Sql]:
    """Return column values as every database can store them.

    Texts become valid UTF-8 without NUL, and structures become JSON. Times get UTC.
    """
    return {name: _column(name, value) for name, value in values.items()}


def _column(name: str, value: Any) -> Value | Sql:
    if name in JSON_COLUMNS:
        return json.dumps(value)
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode().replace("\0", "")
    if isinstance(value, datetime):
        return value.astimezone(UTC)
    return value
