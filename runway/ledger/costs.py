# SPDX-License-Identifier: Apache-2.0
"""Cost of a generation from its best known source: billed, listed or estimated; pure functions.

- ``billed``: CometAPI's own figure for the task, in US dollars.
- ``listed``: Runway's credits in the state of the task. They are Runway's list price, and CometAPI
  has prices of its own. So they are used only where nothing else is known.
- ``estimated``: the price in ``COMETAPI_PRICES``, in the currency of ``COMETAPI_CURRENCY``.

A figure never makes a spending limit less strict than it is without the figure, unless CometAPI
itself billed less.
"""

from collections.abc import Sequence
from typing import Any

from ..models.account import AccountCharge, AccountTask
from ..models.prices import Price
from .entry import CostSource, Entry

BILLED_CURRENCY = "USD"
"""Currency in which CometAPI bills, and in which a Runway credit has a price."""

USD_PER_CREDIT = 0.01
"""Price of one credit at Runway (docs.dev.runwayml.com, pricing)."""


def billed_submissions(entry: Entry) -> int:
    """Return the number of charged submissions of an entry whose bill is known; pure.

    A bill is that of one task. Whatever the other submissions under the key cost is not billed yet,
    even though they count at the same cost.
    """
    return min(1, entry.charges) if entry.cost_source is CostSource.BILLED else 0


def billed_cost(entry: Entry, amount: float) -> dict[str, Any]:
    """Return the changed columns of an entry whose task was billed; pure.

    A key that was submitted several times counts each of its submissions at the same cost. The
    bill is that of one of them, so it then only raises the cost.

    Args:
        entry: Entry of the task.
        amount: US dollars that CometAPI billed for the task; 0 after a refund.
    """
    same_currency = entry.currency in {None, BILLED_CURRENCY}
    if entry.charges > 1:
        if entry.cost is None or not same_currency or amount <= entry.cost:
            return {}
    elif entry.cost_source is CostSource.BILLED and entry.cost == amount:
        return {}
    return _columns(amount, CostSource.BILLED)


def listed_cost(entry: Entry, credits_: float) -> dict[str, Any]:
    """Return the changed columns of an entry whose state names its credits; pure.

    Args:
        entry: Entry of the task.
        credits_: Runway credits for the task.
    """
    known = entry.cost is not None and entry.cost_source is not CostSource.LISTED
    amount = round(credits_ * USD_PER_CREDIT, 6)
    if known or (entry.cost, entry.cost_source) == (amount, CostSource.LISTED):
        return {}
    return _columns(amount, CostSource.LISTED)


def stored_cost(entry: Entry, seconds: float, price: Price | None, currency: str) -> dict[str, Any]:
    """Return the changed columns of an entry whose videos have a known length; pure.

    Args:
        entry: Entry of the videos.
        seconds: Billed seconds of video.
        price: Price of its model. One per second is applied if the seconds were unknown before.
        currency: Currency of the price.
    """
    is_known = entry.cost_source is CostSource.BILLED or entry.billed_seconds is not None
    if is_known or price is None or not price.per_second:
        return {}
    amount = round(price.of(seconds), 6)
    return {
        "cost": amount,
        "currency": currency,
        "cost_source": str(CostSource.ESTIMATED),
        "list_cost": amount,
        "list_currency": currency,
    }


def billed_amount(task: AccountTask, refunds: Sequence[AccountCharge]) -> float | None:
    """Return the US dollars that CometAPI charged for a task in the end, or None; pure.

    A task that failed may still be refunded, so its charge is final only with its refund.

    Args:
        task: Row of the account's list.
        refunds: Refunds of the account.
    """
    if task.cost is None or task.status not in {"SUCCESS", "FAILURE"}:
        return None
    if task.status == "SUCCESS":
        return task.cost
    returned = [refund.cost for refund in refunds if task.task_id in refund.content]
    known = [amount for amount in returned if amount is not None]
    if not returned or len(known) < len(returned):
        return None
    return round(max(0.0, task.cost - sum(known)), 6)


def _columns(amount: float, source: CostSource) -> dict[str, Any]:
    return {"cost": amount, "currency": BILLED_CURRENCY, "cost_source": str(source)}
