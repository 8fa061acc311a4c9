# SPDX-License-Identifier: Apache-2.0
"""Prices of generations, as written in the settings."""

import json
import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer

CATALOGUE = "catalogue"
"""Value of COMETAPI_PRICES that takes the prices of CometAPI's catalogue."""


@dataclass(frozen=True)
class Price:
    """Price of one generation, or of one second of its video."""

    amount: float
    per_second: bool = False

    def of(self, seconds: float) -> float:
        """Return the price of a generation with this many seconds of video."""
        return self.amount * seconds if self.per_second else self.amount

    def __str__(self) -> str:
        return f"{self.amount:g}{'/s' if self.per_second else ''}"


def parse_price(value: Any) -> Price:
    """Parse a price: 0.256 for a generation, or "0.05/s" for a second of video.

    Raises:
        ValueError: The value has neither form.
    """
    if isinstance(value, Price):
        return value
    found = re.fullmatch(r"\s*(\d{1,9}(?:\.\d{1,9})?)\s*(/\s*s)?\s*", str(value))
    if not found or isinstance(value, bool):
        raise ValueError('write 0.256 for a generation, or "0.05/s" for a second of video')
    return Price(float(found[1]), per_second=bool(found[2]))


def decode_prices(value: Any) -> Any:
    """Return the value of COMETAPI_PRICES: prices in JSON, or the word ``catalogue``.

    Raises:
        ValueError: The text is neither.
    """
    if not isinstance(value, str) or value.strip().lower() == CATALOGUE:
        return value.strip().lower() if isinstance(value, str) else value
    try:
        return json.loads(value)
    except ValueError:
        raise ValueError(
            'write JSON such as {"gen3a_turbo": 0.256}, or the word catalogue'
        ) from None


Prices = dict[str, Annotated[Price, BeforeValidator(parse_price), PlainSerializer(str)]]
"""Prices by model."""


def shown_cost(cost: float | Decimal | None, currency: str | None, source: str | None) -> str:
    """Return a cost such as ``0.26 USD (billed)``, or an empty text if it is unknown; pure."""
    if cost is None:
        return ""
    amount = f"{cost:,.4f}".rstrip("0")
    whole, _, cents = amount.partition(".")
    text = f"{whole}.{cents.ljust(2, '0')}"
    named = " ".join(filter(None, [text, currency]))
    return f"{named} ({source})" if source else named
