# SPDX-License-Identifier: Apache-2.0
"""Where a batch stands: one result per item, counted, with the time that is left."""

import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from dataclasses import dataclass, field

from ...runway.batch.models import ItemResult, Outcome, counted
from ...runway.ledger.budget import Budget, Spent
from ...runway.ledger.figures import Spending, Tally


@dataclass(frozen=True)
class Standing:
    """Where a batch stands at a moment."""

    counts: dict[Outcome, int]
    seconds: float
    left: float | None
    spending: Spending

    @property
    def total(self) -> int:
        """All items."""
        return sum(self.counts.values())

    @property
    def done(self) -> int:
        """Items about which this run does nothing more."""
        return sum(count for outcome, count in self.counts.items() if outcome.is_final)

    def sentence(self) -> str:
        """The counts in words, as ``480 stored, 15 failed, 5 uncertain``."""
        return counted(self.counts)


def seconds_left(done: int, total: int, elapsed: float) -> float | None:
    """Seconds until all are done if it goes on as so far, or None where nothing is done; pure."""
    return elapsed / done * (total - done) if done else None


batch_listener: ContextVar[Callable[[Standing], None] | None] = ContextVar(
    "batch_listener", default=None
)
"""Called after each change; the command line draws its progress from it."""


@dataclass
class Board:
    """The results of a batch while it runs, in the order asked for.

    Args:
        budget: What it may spend.
        wanted: What is estimated for all items, and the limits.

    Attributes:
        tally: What this run has bought.
        spent: What was spent under its keys, as last read from the ledger.
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
        """Put up every item; those that are done already do not count for the time left."""
        for result in results:
            self._results[result.id] = result
            self._counts[result.outcome] += 1
        self._done_before = self.standing().done

    def put(self, result: ItemResult) -> None:
        """Note what became of an item."""
        self._counts[self._results[result.id].outcome] -= 1
        self._results[result.id] = result
        self._counts[result.outcome] += 1
        self.changes += 1
        if listener := batch_listener.get():
            listener(self.standing())

    def results(self) -> tuple[ItemResult, ...]:
        """Each item, in the order asked for."""
        return tuple(self._results.values())

    def standing(self) -> Standing:
        """Where it stands now."""
        counts = {outcome: self._counts[outcome] for outcome in Outcome}
        elapsed = time.monotonic() - self._started
        total = len(self._results) - self._done_before
        done = sum(n for outcome, n in counts.items() if outcome.is_final) - self._done_before
        return Standing(
            counts=counts,
            seconds=elapsed,
            left=seconds_left(done, total, elapsed),
            spending=self.spending(),
        )

    def spending(self) -> Spending:
        """Return what was bought so far, by this run and by all, beside what is estimated."""
        is_priced = self.wanted.estimate is not None
        return self.wanted.model_copy(
            update={
                "spent_seconds": round(self.spent.seconds, 6),
                "spent": round(self.spent.money, 6) if is_priced else None,
                "run_seconds": round(self.tally.seconds, 6),
                "run_spent": round(self.tally.money, 6) if is_priced else None,
            }
        )
