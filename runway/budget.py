# SPDX-License-Identifier: Apache-2.0
"""What a generation is going to cost, and whether one more may be bought.

CometAPI bills some models per generation and others per second of video, and its prices drift; so
the prices are the user's own (``COMETAPI_PRICES``), in whatever currency they are written. What
may have been bought counts as spent: a submission whose outcome is unknown, a generation that
failed upstream, and one that was bought by an earlier run of the same batch.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from pydantic import Field, computed_field

from .entries import Entry, State
from .figures import figures
from .generation import Value
from .prices import Price
from .requests import GenerationRequest

ASSUMED_SECONDS = 10.0
"""Of video, where neither the request nor the docs tell how many will be billed."""


def seconds_of(request: GenerationRequest) -> float:
    """Seconds of video that a request is going to be billed for, as far as can be told."""
    return request.billed_seconds() or ASSUMED_SECONDS


def estimate(request: GenerationRequest, prices: Mapping[str, Price]) -> float | None:
    """What a request is going to cost, or None where its model has no price; pure."""
    price = prices.get(request.model)
    return price.of(seconds_of(request)) if price else None


class Spending(Value):
    """Estimates for a batch. Money is in the currency of the prices; None without prices."""

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
    max_seconds: float | None = Field(default=None, description="The user's limit in seconds.")
    max_spend: float | None = Field(default=None, description="The user's limit in money.")

    @computed_field(description="Money left under the limit; None without one.")
    @property
    def remaining(self) -> float | None:
        """Money left under the limit, or None without one."""
        left = None if self.max_spend is None else self.max_spend - (self.spent or 0.0)
        return None if left is None else round(max(0.0, left), 6)

    def in_words(self) -> str:
        """Return every figure with its name, and what is left where there is a limit."""
        return "; ".join(f"{name}: {amount}" for name, amount in figures(self).items())


@dataclass
class Budget:
    """What a batch may spend, and what it has spent; each key counts once.

    Args:
        prices: Prices by model.
        max_spend: Most money, or None.
        max_seconds: Most seconds of video, or None.
        resubmits: Whether what was perhaps bought is bought again, and then costs once more.

    Attributes:
        spent: Money, as far as the models have prices.
        spent_seconds: Seconds of video.
    """

    prices: Mapping[str, Price]
    max_spend: float | None = None
    max_seconds: float | None = None
    resubmits: bool = False
    spent: float = 0.0
    spent_seconds: float = 0.0
    _in_doubt: set[str] = field(default_factory=set[str], repr=False)
    _reserved: set[str] = field(default_factory=set[str], repr=False)
    _costs: dict[str, tuple[float, float]] = field(
        default_factory=dict[str, tuple[float, float]], repr=False
    )
    _keys: dict[str, str] = field(default_factory=dict[str, str], repr=False)

    def count(self, entry: Entry, request: GenerationRequest) -> None:
        """Count what the ledger knows to be bought, or perhaps bought; each id once."""
        if entry.is_free() or entry.key in self._costs:
            return
        if entry.task_id and self._keys.setdefault(entry.task_id, entry.key) != entry.key:
            return
        self._set_aside(entry.key, self._cost(request, entry.billed_seconds))
        if entry.state is State.UNCERTAIN:
            self.doubt(entry.key)

    def reserve(self, key: str, request: GenerationRequest) -> bool:
        """Set aside what a request is going to cost; False where that passes a limit."""
        if key in self._costs and key not in self._in_doubt:
            return True
        money, seconds = self._cost(request)
        if _passes(self.spent + money, self.max_spend):
            return False
        if _passes(self.spent_seconds + seconds, self.max_seconds):
            return False
        self._in_doubt.discard(key)  # what it cost before is not given back any more
        self._set_aside(key, (money, seconds))
        self._reserved.add(key)
        return True

    def doubt(self, key: str) -> None:
        """What was set aside was perhaps bought; if it is sent again, that costs once more."""
        if self.resubmits and key in self._costs:
            self._in_doubt.add(key)

    def give_back(self, key: str) -> None:
        """What was reserved was certainly not bought; what an earlier run bought stays spent."""
        if key not in self._reserved:
            return
        self._reserved.discard(key)
        money, seconds = self._costs.pop(key)
        self.spent -= money
        self.spent_seconds -= seconds

    def _set_aside(self, key: str, cost: tuple[float, float]) -> None:
        self._costs[key] = cost
        self.spent += cost[0]
        self.spent_seconds += cost[1]

    def _cost(
        self, request: GenerationRequest, seconds: float | None = None
    ) -> tuple[float, float]:
        seconds = seconds or seconds_of(request)
        price = self.prices.get(request.model)
        return (price.of(seconds) if price else 0.0), seconds


def _passes(amount: float, limit: float | None) -> bool:
    return limit is not None and amount > limit + 1e-9  # ten times 0.1 is a little more than 1.0
