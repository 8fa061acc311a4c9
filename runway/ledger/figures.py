# SPDX-License-Identifier: Apache-2.0
"""Money figures of a batch: each has one name, and is worded here for every place that shows it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .budget import Spending

BY_RUN = "bought by this run"
BY_BATCH = "bought by this batch so far"
FOR_ALL = "estimated for all"


@dataclass
class Tally:
    """Submissions of one run that were charged, or may have been."""

    seconds: float = 0.0
    money: float = 0.0

    def add(self, seconds: float, money: float | None) -> None:
        """Count a submission before it is sent."""
        self.seconds += seconds
        self.money += money or 0.0

    def take_back(self, seconds: float, money: float | None) -> None:
        """Give back a submission that was certainly refused."""
        self.add(-seconds, None if money is None else -money)


def figures(spending: "Spending", *, of_run: bool = True) -> dict[str, str]:
    """Return the figures of a batch in words, by their names; pure.

    Args:
        spending: The figures.
        of_run: Whether there is a run, which there is not before one begins.
    """
    run = {BY_RUN: in_words(spending.run_seconds, spending.run_spent)} if of_run else {}
    limits = (spending.max_seconds, spending.max_spend)
    return {
        **run,
        BY_BATCH: in_words(spending.spent_seconds, spending.spent, *limits),
        FOR_ALL: in_words(spending.seconds, spending.estimate),
    }


def in_words(
    seconds: float,
    money: float | None,
    max_seconds: float | None = None,
    max_money: float | None = None,
) -> str:
    """Return an amount in words, as ``10 s of video, 0.64 of 0.70 (0.06 left) as estimated``; pure.

    Money is left out where there are no prices.
    """
    video = f"{_against(seconds, max_seconds, 'g', ' s of video')}"
    return video if money is None else f"{video}, {_against(money, max_money, '.2f')} as estimated"


def _against(amount: float, limit: float | None, form: str, unit: str = "") -> str:
    told = f"{amount:,{form}}"
    if limit is None:
        return f"{told}{unit}"
    return f"{told} of {limit:,{form}}{unit} ({max(0.0, limit - amount):,{form}} left)"
