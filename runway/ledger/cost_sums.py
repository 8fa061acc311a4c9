# SPDX-License-Identifier: Apache-2.0
"""Sums of the charges by day, deployment or tag; pure functions.

Amounts in different currencies are never added together, nor are those of different services: a
sandbox costs nothing. Amounts are decimal, so that the order of the entries does not matter.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC
from decimal import Decimal
from enum import StrEnum
from typing import NamedTuple

from .charged import is_uncertain, purchased_at
from .costs import billed_submissions
from .entry import Entry
from .service_names import service_name


class By(StrEnum):
    """Property of the entries by which their charges are added up."""

    DAY = "day"
    DEPLOYMENT = "deployment"
    TAG = "tag"


class Group(NamedTuple):
    """Key of a sum.

    Attributes:
        name: Day, deployment or tag; None for entries without one.
        service: Name of the service.
        currency: Currency of the amounts, or None for entries without a known cost.
    """

    name: str | None
    service: str
    currency: str | None


@dataclass
class Sum:
    """Charges of a group.

    Attributes:
        generations: Number of entries.
        submissions: Number of submissions that were or may have been charged.
        uncertain: Number of entries with a submission of unknown outcome.
        seconds: Billed seconds of video, as far as they are known.
        billed: Money that CometAPI billed, or None if nothing is billed yet.
        estimated: Money for the other submissions with a known cost, or None if there are none.
        without_cost: Number of submissions whose cost is not known.
    """

    generations: int = 0
    submissions: int = 0
    uncertain: int = 0
    seconds: Decimal = field(default_factory=Decimal)
    billed: Decimal | None = None
    estimated: Decimal | None = None
    without_cost: int = 0

    def add(self, entry: Entry) -> None:
        """Add an entry."""
        self.generations += 1
        self.submissions += entry.charges
        self.uncertain += is_uncertain(entry)
        if entry.billed_seconds is not None:
            self.seconds += _exact(entry.billed_seconds) * entry.charges
        if entry.cost is None:
            self.without_cost += entry.charges
            return
        cost, billed = _exact(entry.cost), billed_submissions(entry)
        if billed:
            self.billed = cost * billed + (self.billed or Decimal())
        if estimated := entry.charges - billed:
            self.estimated = cost * estimated + (self.estimated or Decimal())


class CostSums:
    """Sums of charges, by group.

    An entry with several tags counts under each of them, so sums by tag overlap.

    Args:
        by: Property by which the entries are grouped.
    """

    def __init__(self, by: By) -> None:
        self._by = by
        self._sums: dict[Group, Sum] = {}

    def add(self, entry: Entry) -> None:
        """Add an entry to each group to which it belongs."""
        currency = None if entry.cost is None else entry.currency
        for name in names_of(entry, self._by):
            group = Group(name, service_name(entry.base_url), currency)
            self._sums.setdefault(group, Sum()).add(entry)

    def items(self) -> list[tuple[Group, Sum]]:
        """Return the groups with their sums, sorted by name; entries without one come last."""
        return sorted(self._sums.items(), key=lambda item: _order(item[0]))


def names_of(entry: Entry, by: By) -> Iterable[str | None]:
    """Return the day, the deployment or the tags of an entry; pure."""
    if by is By.DAY:
        return [purchased_at(entry).astimezone(UTC).date().isoformat()]
    if by is By.DEPLOYMENT:
        return [entry.deployment or entry.deployment_id]
    return entry.tags or [None]


def _order(group: Group) -> tuple[bool, str, str, str]:
    return group.name is None, group.name or "", group.service, group.currency or ""


def _exact(amount: float) -> Decimal:
    """Return the decimal number that a person would write for an amount."""
    return Decimal(str(amount))
