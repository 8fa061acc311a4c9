# SPDX-License-Identifier: Apache-2.0
"""What a generation is going to cost, and whether one more may be bought.

CometAPI bills some models per generation and others per second of video, and its prices drift; so
the prices are the user's own (``COMETAPI_PRICES``), in whatever currency they are written. What
may have been bought counts as spent: a submission whose outcome is unknown, a generation that
failed upstream, and one that was bought by another run of the same batch.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import Field

from ..models.generation import Value
from ..models.prices import Price
from ..models.requests import GenerationRequest

ASSUMED_SECONDS = 10.0
"""Of video, where neither the request nor the docs tell how many will be billed."""


def seconds_of(request: GenerationRequest) -> float:
    """Seconds of video that a request is going to be billed for, as far as can be told."""
    return request.billed_seconds() or ASSUMED_SECONDS


def estimate(request: GenerationRequest, prices: Mapping[str, Price]) -> float | None:
    """What a request is going to cost, or None where its model has no price; pure."""
    price = prices.get(request.model)
    return price.of(seconds_of(request)) if price else None


class Spent(Value):
    """Purchases, certain or possible, under the keys of a batch, by whichever run."""

    money: float = Field(
        default=0.0, description="Estimated money, in the currency of COMETAPI_PRICES."
    )
    seconds: float = Field(default=0.0, description="Seconds of video.")
    charges: int = Field(default=0, description="Submissions that were, or may be, charged.")


@dataclass(frozen=True)
class Budget:
    """Most that may be spent under the keys of a batch, by all of its runs together.

    The ledger keeps to it: a submission is claimed only where it stays within the limits together
    with all that its rows say.

    Args:
        prefix: What the keys of the batch begin with.
        prices: Prices by model.
        max_spend: Most money, or None.
        max_seconds: Most seconds of video, or None.
    """

    prefix: str
    prices: Mapping[str, Price] = field(default_factory=dict[str, Price])
    max_spend: float | None = None
    max_seconds: float | None = None

    @property
    def is_limited(self) -> bool:
        """Whether there is a limit."""
        return self.max_spend is not None or self.max_seconds is not None

    def cost_of(self, row: Mapping[str, Any]) -> tuple[float, float]:
        """Return the money and the seconds of video that a row of the ledger counts; pure.

        A row whose cost is unknown counts as ``Ledger.spent`` counts it.
        """
        seconds = row["billed_seconds"]
        seconds = ASSUMED_SECONDS if seconds is None else seconds
        money = row["cost"]
        if money is None:
            price = self.prices.get(row["model"])
            known = [price] if price else self.prices.values()
            money = max((each.of(seconds) for each in known), default=0.0)
        return row["charges"] * money, row["charges"] * seconds

    def objection(self, spent: Spent, money: float, seconds: float) -> str | None:
        """Return why one more submission would pass a limit, or None where it would not; pure."""
        limits = (
            (spent.money, money, self.max_spend, "{:,.2f} of {:,.2f} spent, {:,.2f} more"),
            (spent.seconds, seconds, self.max_seconds, "{:,g} of {:,g} s of video, {:,g} more"),
        )
        for before, more, limit, form in limits:
            if limit is not None and before + more > limit + TOLERANCE:
                told = form.format(before, limit, more)
                return f"it would pass the limit of what the batch may spend ({told})"
        return None


TOLERANCE = 1e-6
"""Of a limit, since ten times 0.1 is a little more than 1.0."""
