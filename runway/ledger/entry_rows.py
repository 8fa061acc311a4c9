# SPDX-License-Identifier: Apache-2.0
"""Rows of the ledger's table as entries, and entries as rows."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from ..errors import LedgerDamaged
from ..redact import scrub
from .entry import Entry


def read_entries(
    rows: Sequence[Mapping[str, Any]],
    place: str,
    tell: Callable[[LedgerDamaged], None] | None = None,
) -> list[Entry]:
    """Return the entries in some rows.

    A row that cannot be read might be a purchase, so nothing goes on without it.

    Args:
        rows: As the database gives them.
        place: Which ledger they are from, for errors.
        tell: Is told of each damaged row, in place of an error.

    Raises:
        LedgerDamaged: A row cannot be read.
    """
    found: list[Entry] = []
    for row in rows:
        try:
            found.append(_entry(row, place))
        except LedgerDamaged as error:
            if tell is None:
                raise
            tell(error)
    return found


def _entry(row: Mapping[str, Any], place: str) -> Entry:
    try:
        return Entry.model_validate(dict(row))
    except ValidationError as error:
        wrong = ", ".join(sorted({str(problem["loc"][0]) for problem in error.errors()}))
        where = f"in the ledger at {place} the row of key {scrub(str(row['key']))!r}"
        raise LedgerDamaged(f"{where} is damaged: {wrong}") from None


def columns_of(entry: Entry) -> dict[str, Any]:
    """Return the columns of a whole entry, but for its lease."""
    known = entry.model_dump(exclude={"lease_left", "leased_until", "holder"})
    known["state"] = str(entry.state)
    known["outputs"] = [str(output) for output in entry.outputs]
    known["videos"] = entry.model_dump(mode="json")["videos"]
    known["resubmitted_by"] = list(entry.resubmitted_by)
    return known


def as_columns(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values as columns take them: text that every database can hold."""
    return {
        name: value.encode("utf-8", "replace").decode().replace("\0", "")
        if isinstance(value, str)
        else value
        for name, value in values.items()
    }
