# SPDX-License-Identifier: Apache-2.0
"""Progress of a batch: one result per item, counts, and an estimate of the time left."""

import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from dataclasses import dataclass, field

from ...runway.batch.models import ItemResult, Outcome, counted
from ...runway.ledger.budget import Budget, Spent
from ...runway.ledger.figures import Spending, Tally


@dataclass(frozen=True)
class ProgressSnapshot:
    """Snapshot of the progress of a batch.

    Attributes:
        counts: Number of items by outcome.
        seconds: Seconds since the batch started.
        left: Estimated seconds until all items are done, or None if unknown.
        spending: Estimated and spent amounts.
    """

    counts: dict[Outcome, int]
    seconds: float
    left: float | None
    spending: Spending

    @property
    def total(self) -> int:
        """Number of all items."""
        return sum(self.counts.values())

    @property
    def done(self) -> int:
        """Number of items that this run has finished with."""
        return sum(count for outcome, count in self.counts.items() if outcome.is_final)

    def sentence(self) -> str:
        """Return the counts as text, such as ``480 stored, 15 failed, 5 uncertain``."""
        return counted(self.counts)


def seconds_left(done: int, total: int, elapsed: float) -> float | None:
    """Return the estimated seconds until all items are done, or None if none is done yet; pure.

    The estimate assumes the same average speed as so far.
    """
    return elapsed / done * (total - done) if done else None


batch_listener: ContextVar[Callable[[ProgressSnapshot], None] | None] = ContextVar(
    "batch_listener", default=None
)
"""Callback for each change; the command line draws its progress display from it."""


@dataclass
class BatchProgress:
    """Results of a batch while it runs, in the order of its items.

    Args:
        budget: Limits of the spending.
        wanted: Estimate for all items, and the limits.

    Attributes:
        tally: Tally of what this run has bought.
        spent: Amounts spent under the keys of the batch, as last read from the ledger.
    """

    budget: Budget
    wanted: Spending = field(default_factory=lambda: Spending(seconds=0.0))
    tally: Tally = field(default_factory=Tally)
    spent: Spent = field(default_factory=Spent)
    _results: dict[str, ItemResult] = field(default_factory=dict[str, ItemResult])
    _counts: Counter[Outcome] = field(default_factory=Counter[Outcome])
    _started: float = field(default_factory=time.monotonic)
    _done_before: int = 0
    changes: int = 0

    def begin(self, results: Iterable[ItemResult]) -> None:
        """Set the initial result of every item.

        Items that are already done are left out of the estimate of the time left.
        """
        for result in results:
            self._results[result.id] = result
            self._counts[result.outcome] += 1
        self.changes += 1
        self._done_before = self.snapshot().done

    def put(self, result: ItemResult) -> None:
        """Replace the result of an item, and call the listener."""
        self._counts[self._results[result.id].outcome] -= 1
        self._results[result.id] = result
        self._counts[result.outcome] += 1
        self.changes += 1
        if listener := batch_listener.get():
            listener(self.snapshot())

    def put_if_changed(self, result: ItemResult) -> None:
        """Replace the result of an item that the batch has, unless it is the same."""
        if self._results.get(result.id, result) != result:
            self.put(result)

    def results(self) -> tuple[ItemResult, ...]:
        """Return the results in the order of the items."""
        return tuple(self._results.values())

    def snapshot(self) -> ProgressSnapshot:
        """Return a snapshot of the current progress."""
        counts = {outcome: self._counts[outcome] for outcome in Outcome}
        elapsed = time.monotonic() - self._started
        total = len(self._results) - self._done_before
        done = sum(n for outcome, n in counts.items() if outcome.is_final) - self._done_before
        return ProgressSnapshot(
            counts=counts,
            seconds=elapsed,
            left=seconds_left(done, total, elapsed),
            spending=self.spending(),
        )

    def spending(self) -> Spending:
        """Return the estimate and the amounts spent so far, by this run and by all runs."""
        is_priced = self.wanted.estimate is not None
        return self.wanted.model_copy(
            update={
                "spent_seconds": round(self.spent.seconds, 6),
                "spent": round(self.spent.money, 6) if is_priced else None,
                "run_seconds": round(self.tally.seconds, 6),
                "run_spent": round(self.tally.money, 6) if is_priced else None,
            }
        )
