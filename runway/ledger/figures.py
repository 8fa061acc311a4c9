# SPDX-License-Identifier: Apache-2.0
"""Money figures of a batch, with the names and the wording that all outputs share."""

from dataclasses import dataclass

from pydantic import Field, computed_field

from ..models.generation import FrozenModel

BY_RUN = "bought by this run"
BY_BATCH = "bought by this batch so far"
FOR_ALL = "estimated for all"


@dataclass
class Tally:
    """Sum of the certain and possible charges of one run."""

    seconds: float = 0.0
    money: float = 0.0

    def add(self, seconds: float, money: float | None) -> None:
        """Count a submission before it is sent.

        Args:
            seconds: Seconds of video that it buys.
            money: Its cost in the currency of the prices, or None without a price.
        """
        self.seconds += seconds
        self.money += money or 0.0

    def refund(self, seconds: float, money: float | None) -> None:
        """Subtract a submission that the service certainly refused.

        Args:
            seconds: Seconds of video, as they were added.
            money: Cost, as it was added.
        """
        self.add(-seconds, None if money is None else -money)


class Spending(FrozenModel):
    """Spending of a batch. Money is in the currency of the prices, and None without prices."""

    seconds: float = Field(description="Seconds of video estimated for all valid items.")
    estimate: float | None = Field(default=None, description="Money estimated for all valid items.")
    spent_seconds: float = Field(
        default=0.0, description="Seconds of video bought by this batch so far, in all its runs."
    )
    spent: float | None = Field(
        default=None, description="Money for what was bought by this batch so far, in all its runs."
    )
    run_seconds: float = Field(default=0.0, description="Seconds of video bought by this run.")
    run_spent: float | None = Field(
        default=None, description="Money for what was bought by this run."
    )
    max_seconds: float | None = Field(default=None, description="Limit in seconds of video.")
    max_spend: float | None = Field(default=None, description="Limit in money.")

    @computed_field(description="Money left under the limit; None without a limit.")
    @property
    def remaining(self) -> float | None:
        """Money left under the limit, or None without one."""
        left = None if self.max_spend is None else self.max_spend - (self.spent or 0.0)
        return None if left is None else round(max(0.0, left), 6)


def figures(spending: Spending, *, of_run: bool = True) -> dict[str, str]:
    """Return the figures of a batch as texts by name; pure.

    Args:
        spending: Figures of the batch.
        of_run: True to include the figures of the current run; False if no run has started.
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
    """Return an amount such as ``10 s of video, 0.64 of 0.70 (0.06 left) as estimated``; pure.

    Money is left out if there are no prices.
    """
    video = f"{_against(seconds, max_seconds, 'g', ' s of video')}"
    return video if money is None else f"{video}, {_against(money, max_money, '.2f')} as estimated"


def _against(amount: float, limit: float | None, form: str, unit: str = "") -> str:
    used = f"{amount:,{form}}"
    if limit is None:
        return f"{used}{unit}"
    return f"{used} of {limit:,{form}}{unit} ({max(0.0, limit - amount):,{form}} left)"
