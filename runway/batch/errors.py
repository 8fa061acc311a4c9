# SPDX-License-Identifier: Apache-2.0
"""Errors that concern a whole batch."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from ..errors import CometAPIError, NotSubmitted

if TYPE_CHECKING:
    from .models import BatchResult
    from .rows import BadRow


_NAMED = 3


def once_each(rows: Iterable["BadRow"]) -> list[str]:
    """Return the problems of rows, each of them once, with its first rows and their number.

    A misspelt field is the same problem in each line.
    """
    found: dict[tuple[str | None, str], list[BadRow]] = {}
    for row in rows:
        found.setdefault((row.field, row.problem), []).append(row)
    return [f"{first_names([row.name for row in rows])}: {rows[0].what}" for rows in found.values()]


def first_names(names: Sequence[str]) -> str:
    """Return a few of many names in words, as ``line 2, line 3, line 4 and 12 more``."""
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more:,} more" if more > 0 else "")


class InvalidManifest(NotSubmitted):
    """Manifest that cannot be read, or that has unusable rows.

    Attributes:
        rows: Every problem of every bad row; empty if the manifest as a whole is bad.
    """

    advice = "correct the manifest and run it again."
    shown: ClassVar[int] = 5

    def __init__(self, what: str, *, rows: Iterable["BadRow"] = (), **details: Any) -> None:
        super().__init__(what, **details)
        self.rows = tuple(rows)

    def _lines(self) -> list[str]:
        first, *rest = super()._lines()
        distinct = once_each(self.rows)
        problems = [f"  {problem}" for problem in distinct[: self.shown]]
        if (more := len(distinct) - self.shown) > 0:
            problems.append(f"  and {more:,} more")
        return [first, *problems, *rest]


class BatchFailed(CometAPIError):
    """Batch that made no video, or that had more failed items than allowed.

    Attributes:
        result: Result of each item.
    """

    money = "the output manifest has the outcome of each item."
    advice = "run the batch again with the same idempotency key; it buys only what is missing."

    def __init__(self, what: str, result: "BatchResult | None" = None, **details: Any) -> None:
        super().__init__(what, **details)
        self.result = result
