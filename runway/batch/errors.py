# SPDX-License-Identifier: Apache-2.0
"""Errors that concern a whole batch."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar

from ..errors import CometAPIError, NotSubmitted

if TYPE_CHECKING:
    from .models import BatchResult
    from .rows import BadRow


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
        problems = [f"  {row}" for row in self.rows[: self.shown]]
        if (more := len(self.rows) - self.shown) > 0:
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
