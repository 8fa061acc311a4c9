# SPDX-License-Identifier: Apache-2.0
"""Conversion between rows of the ledger's table and entries."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydantic import ValidationError
from sqlalchemy import ColumnElement, Select, literal, select

from ..errors import LedgerCorrupted
from ..redact import scrub
from .entry import Entry
from .schema import generations


def read_entries(
    rows: Sequence[Mapping[str, Any]],
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


def _entry(row: Mapping[str, Any], location: str) -> Entry:
    try:
        return Entry.model_validate(dict(row))
    except ValidationError as error:
        columns = ", ".join(sorted({str(problem["loc"][0]) for problem in error.errors()}))
        key = scrub(str(row["idempotency_key"]))
        raise LedgerCorrupted(
            f"in the ledger at {location} the row of key {key!r} is damaged: {columns}"
        ) from None


def columns_of(entry: Entry) -> dict[str, Any]:
    """Return all columns of an entry except the end of its lease."""
    known = entry.model_dump(exclude={"lease_left", "leased_until"})
    known["state"] = str(entry.state)
    known["outputs"] = [str(output) for output in entry.outputs]
    known["videos"] = entry.model_dump(mode="json")["videos"]
    known["resubmitted_by"] = list(entry.resubmitted_by)
    return known


def as_columns(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return column values with texts that every database can store: valid UTF-8 without NUL."""
    return {
        name: value.encode("utf-8", "replace").decode().replace("\0", "")
        if isinstance(value, str)
        else value
        for name, value in values.items()
    }


def as_select(row: Mapping[str, Any]) -> Select[Any]:
    """Return a query that selects values, of which some may be expressions, as columns."""
    return select(
        *[
            value if isinstance(value, ColumnElement) else literal(value, generations.c[name].type)
            for name, value in row.items()
        ]
    )
