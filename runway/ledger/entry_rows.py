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
    place: str,
    tell: Callable[[LedgerCorrupted], None] | None = None,
) -> list[Entry]:
    """Return the entries in rows of the ledger's table.

    A corrupted row may be a purchase, so by default it is an error and not skipped.

    Args:
        rows: Rows from the database.
        place: Location of the ledger, for error messages.
        tell: Called with the error of each corrupted row, which is then skipped.

    Raises:
        LedgerCorrupted: A row is corrupted, and ``tell`` is not given.
    """
    found: list[Entry] = []
    for row in rows:
        try:
            found.append(_entry(row, place))
        except LedgerCorrupted as error:
            if tell is None:
                raise
            tell(error)
    return found


def _entry(row: Mapping[str, Any], place: str) -> Entry:
    try:
        return Entry.model_validate(dict(row))
    except ValidationError as error:
        wrong = ", ".join(sorted({str(problem["loc"][0]) for problem in error.errors()}))
        where = f"in the ledger at {place} the row of key {scrub(str(row['idempotency_key']))!r}"
        raise LedgerCorrupted(f"{where} is damaged: {wrong}") from None


def columns_of(entry: Entry) -> dict[str, Any]:
    """Return all columns of an entry except its lease."""
    known = entry.model_dump(exclude={"lease_left", "leased_until", "holder"})
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
