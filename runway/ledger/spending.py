# SPDX-License-Identifier: Apache-2.0
"""SQL for the spending under the idempotency keys of a batch.

The rows of the ledger are the only record. Each submission that was charged, or may have been
charged, counts once (``charges``), at the cost that was billed or estimated (``cost``). A row
without a cost was written without a price, and counts at the present price of its model. So does a
row whose cost is in another currency. Runway's list price counts only if it is higher. If the
model is unknown or has no price, the row counts at the highest of all prices, so that missing data
cannot exceed a limit.
"""

from collections.abc import Mapping
from typing import Any

from ..models.prices import Price
from .budget import ASSUMED_SECONDS, TOLERANCE, Budget
from .costs import BILLED_CURRENCY
from .entry import CostSource
from .schema import BINARY_KEY, GENERATIONS
from .statement import Sql, Value, all_of

_HIGHEST_CODE_POINT = 0x10FFFF
_SURROGATES = range(0xD800, 0xE000)

_SECONDS = f"coalesce(billed_seconds, {ASSUMED_SECONDS})"


def after_prefix(prefix: str) -> str | None:
    """Return the least text above all texts with a prefix, or None if there is none; pure.

    UTF-8 bytes sort in the order of their code points, so the result is exact in a database that
    compares bytes.
    """
    kept = prefix.rstrip(chr(_HIGHEST_CODE_POINT))
    if not kept:
        return None
    following = ord(kept[-1]) + 1
    return kept[:-1] + chr(_SURROGATES.stop if following in _SURROGATES else following)


def total_spent(
    prefix: str,
    prices: Mapping[str, Price],
    currency: str = BILLED_CURRENCY,
    *,
    without: str | None = None,
) -> Sql:
    """Return a query for the money, the seconds of video and the charges of all keys with a prefix.

    Args:
        prefix: Prefix of the keys.
        prices: Prices by model, for submissions without a recorded cost in the currency.
        currency: Currency of the prices.
        without: Key to leave out, or None.
    """
    counted = [under(prefix)]
    if without is not None:
        counted.append(Sql("idempotency_key <> :without", {"without": without}))
    return (
        Sql("SELECT coalesce(sum(charges * ")
        + _cost_of_one(prices, currency)
        + f"), 0.0) AS money, coalesce(sum(charges * {_SECONDS}), 0.0) AS seconds, "
        f"coalesce(sum(charges), 0) AS charges FROM {GENERATIONS} WHERE " + all_of(counted)
    )


def is_within(budget: Budget, key: str, row: Mapping[str, Any]) -> Sql:
    """Return the condition that the budget is kept when the row of a key gets these values.

    As part of the statement that writes the row, the condition enforces the limit, provided that no
    other statement for the same prefix runs at the same time. The lock of
    ``Database.execute_timed`` ensures that.
    """
    money, seconds = budget.cost_of(row)
    spent = total_spent(budget.prefix, budget.prices, budget.currency, without=key)
    limits = [
        ("money", money, budget.max_spend),
        ("seconds", seconds, budget.max_seconds),
    ]
    kept = [
        Sql(f"spent.{name} + :more_{name} <= :max_{name}", _limit(name, amount, limit))
        for name, amount, limit in limits
        if limit is not None
    ]
    return Sql("(SELECT ") + all_of([Sql("TRUE"), *kept]) + " FROM (" + spent + ") AS spent)"


def _limit(name: str, amount: float, limit: float) -> dict[str, Value]:
    return {f"more_{name}": amount, f"max_{name}": limit + TOLERANCE}


def under(prefix: str) -> Sql:
    """Return the condition that a key begins with a prefix, in which no character is a wildcard."""
    end = after_prefix(prefix)
    begins = Sql(f"{BINARY_KEY} >= :prefix", {"prefix": prefix})
    return begins if end is None else begins + Sql(f" AND {BINARY_KEY} < :end", {"end": end})


def _cost_of_one(prices: Mapping[str, Price], currency: str) -> Sql:
    """Return the cost of one submission of a row; ``Budget.cost_of`` is the same rule."""
    known = _present_price(prices)
    in_currency = Sql("(currency IS NULL OR currency = :currency)", {"currency": currency})
    recorded = Sql("cost IS NOT NULL AND ") + in_currency
    listed = f"cost_source = '{CostSource.LISTED}'"
    return (
        (Sql("CASE WHEN ") + recorded + f" AND (cost_source IS NULL OR NOT {listed}) THEN cost")
        + (Sql(" WHEN ") + recorded + " AND cost > " + known + " THEN cost ELSE ")
        + (known + " END")
    )


def _present_price(prices: Mapping[str, Price]) -> Sql:
    """Return the present price of a row: that of its model, or else the highest of all prices."""
    highest = _highest(prices)
    if not prices:
        return highest
    cases, values = "", dict(highest.values)
    for number, (model, price) in enumerate(prices.items()):
        cost = f"CAST(:price_{number} AS DOUBLE PRECISION)"
        cost = f"{cost} * {_SECONDS}" if price.per_second else cost
        cases += f"WHEN model = :model_{number} THEN {cost} "
        values |= {f"model_{number}": model, f"price_{number}": price.amount}
    return Sql(f"CASE {cases}ELSE {highest.text} END", values)


def _highest(prices: Mapping[str, Price]) -> Sql:
    """Return the highest cost; SQLite and PostgreSQL share no function for this maximum."""
    amounts = [price.amount for price in prices.values() if not price.per_second]
    rates = [price.amount for price in prices.values() if price.per_second]
    flat = "CAST(:flat AS DOUBLE PRECISION)"
    timed = f"CAST(:rate AS DOUBLE PRECISION) * {_SECONDS}"
    return Sql(
        f"CASE WHEN {timed} > {flat} THEN {timed} ELSE {flat} END",
        {"flat": max(amounts, default=0.0), "rate": max(rates, default=0.0)},
    )
