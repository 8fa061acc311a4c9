# SPDX-License-Identifier: Apache-2.0
"""Cost estimates and spending limits.

CometAPI bills some models per generation and others per second of video, and its prices change. So
the user sets the prices (``COMETAPI_PRICES``), in any currency. Everything that is possibly charged
counts as spent: submissions with an unknown outcome, generations that failed upstream, and
generations that other runs of the same batch bought.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import Field

from ..models.generation import FrozenModel
from ..models.prices import Price
from ..models.requests import GenerationRequest
from .costs import BILLED_CURRENCY
from .entry import CostSource

ASSUMED_SECONDS = 10.0
"""Seconds of video assumed as billed where neither the request nor the docs give the number."""


def seconds_of(request: GenerationRequest) -> float:
    """Return the seconds of video that a request is billed for, or an assumption."""
    seconds = request.billed_seconds()
    return ASSUMED_SECONDS if seconds is None else seconds


def estimate(request: GenerationRequest, prices: Mapping[str, Price]) -> float | None:
    """Return the estimated cost of a request, or None if its model has no price; pure."""
    price = prices.get(request.model)
    return price.of(seconds_of(request)) if price else None


class Spent(FrozenModel):
    """Total of the certain and possible charges of a batch, across all of its runs."""

    money: float = Field(
        default=0.0, description="Estimated money, in the currency of COMETAPI_PRICES."
    )
    seconds: float = Field(default=0.0, description="Seconds of video.")
    charges: int = Field(
        default=0, description="Number of submissions that were or may have been charged."
    )

    def with_one_more(self, money: float, seconds: float) -> "Spent":
        """Return the total after one more submission; pure."""
        return Spent(
            money=self.money + money, seconds=self.seconds + seconds, charges=self.charges + 1
        )


@dataclass(frozen=True)
class Budget:
    """Spending limits for the idempotency keys of a batch, across all of its runs.

    The ledger enforces them: it accepts a claim only if the sum of all rows of the batch, including
    the claim, stays within the limits.

    Args:
        prefix: Common prefix of the batch's idempotency keys.
        prices: Prices by model.
        max_spend: Maximum amount of money, or None for no limit.
        max_seconds: Maximum seconds of video, or None for no limit.
        currency: Currency of the prices and of the limit.
    """

    prefix: str
    prices: Mapping[str, Price] = field(default_factory=dict[str, Price])
    max_spend: float | None = None
    max_seconds: float | None = None
    currency: str = BILLED_CURRENCY

    @property
    def is_limited(self) -> bool:
        """True if there is a limit."""
        return self.max_spend is not None or self.max_seconds is not None

    def cost_of(self, row: Mapping[str, Any]) -> tuple[float, float]:
        """Return the money and the seconds of video that a ledger row counts for; pure.

        A row with an unknown cost counts as in ``Ledger.spent``.
        """
        seconds = row["billed_seconds"]
        seconds = ASSUMED_SECONDS if seconds is None else seconds
        money = row["cost"] if row.get("currency") in {None, self.currency} else None
        is_listed = row.get("cost_source") == CostSource.LISTED
        if money is None or is_listed:
            price = self.prices.get(row["model"])
            known = [price] if price else self.prices.values()
            money = max((money or 0.0, *(each.of(seconds) for each in known)))
        return row["charges"] * money, row["charges"] * seconds

    def objection(self, spent: Spent, money: float, seconds: float) -> str | None:
        """Return why one more submission would exceed a limit, or None if it would not; pure.

        Args:
            spent: Sums of the earlier submissions under the same limits.
            money: Estimated cost of the submission, in the currency of the prices.
            seconds: Seconds of video that it buys.
        """
        limits = (
            (spent.money, money, self.max_spend, "{:,.2f} of {:,.2f} spent, {:,.2f} more"),
            (spent.seconds, seconds, self.max_seconds, "{:,g} of {:,g} s of video, {:,g} more"),
        )
        for before, more, limit, form in limits:
            if limit is not None and before + more > limit + TOLERANCE:
                amounts = form.format(before, limit, more)
                return f"{EXCEEDS_LIMIT} ({amounts})"
        return None


EXCEEDS_LIMIT = "it would exceed the spending limit of the batch"
"""Beginning of the reason why a submission has no room under a limit."""

TOLERANCE = 1e-6
"""Amount by which a limit may be exceeded, since sums of floats are not exact."""
