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

from sqlalchemy import (
    ColumnElement,
    FromClause,
    Select,
    and_,
    case,
    func,
    literal,
    or_,
    select,
    true,
)

from ..models.prices import Price
from .budget import ASSUMED_SECONDS, TOLERANCE, Budget
from .costs import BILLED_CURRENCY
from .entry import CostSource
from .schema import binary_key, generations

_HIGHEST_CODE_POINT = 0x10FFFF
_SURROGATES = range(0xD800, 0xE000)


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
) -> Select[*tuple[Any, ...]]:
    """Return a query for the money, the seconds of video and the charges of all keys with a prefix.

    Args:
        prefix: Prefix of the keys.
        prices: Prices by model, for submissions without a recorded cost in the currency.
        currency: Currency of the prices.
        without: Key to leave out, or None.
    """
    table = generations.alias()
    query = select(
        func.coalesce(func.sum(_money(table, prices, currency)), 0.0).label("money"),
        func.coalesce(func.sum(_seconds(table)), 0.0).label("seconds"),
        func.coalesce(func.sum(table.c.charges), 0).label("charges"),
    ).where(under(table, prefix))
    return query if without is None else query.where(table.c.idempotency_key != without)


def is_within(budget: Budget, key: str, row: Mapping[str, Any]) -> ColumnElement[bool]:
    """Return the condition that the budget is kept when the row of a key gets these values.

    As part of the statement that writes the row, the condition enforces the limit, provided that no
    other statement for the same prefix runs at the same time. ``Database.asked_alone`` ensures
    that.
    """
    money, seconds = budget.cost_of(row)
    spent = total_spent(budget.prefix, budget.prices, budget.currency, without=key).subquery()
    limits = [
        (spent.c.money + money, budget.max_spend),
        (spent.c.seconds + seconds, budget.max_seconds),
    ]
    kept = [amount <= limit + TOLERANCE for amount, limit in limits if limit is not None]
    return select(and_(true(), *kept)).scalar_subquery()


def under(table: FromClause, prefix: str) -> ColumnElement[bool]:
    """Return the condition that a key begins with a prefix, in which no character is a wildcard."""
    key = binary_key(table.c.idempotency_key)
    end = after_prefix(prefix)
    return and_(key >= prefix, key < end) if end is not None else key >= prefix


def _seconds(table: FromClause) -> ColumnElement[float]:
    return table.c.charges * func.coalesce(table.c.billed_seconds, ASSUMED_SECONDS)


def _money(table: FromClause, prices: Mapping[str, Price], currency: str) -> ColumnElement[float]:
    """Return the money of a row; ``Budget.cost_of`` is the same rule."""
    seconds = func.coalesce(table.c.billed_seconds, ASSUMED_SECONDS)
    each = [(table.c.model == model, _cost(price, seconds)) for model, price in prices.items()]
    highest = _highest(prices, seconds)
    known = case(*each, else_=highest) if each else highest
    in_currency = or_(table.c.currency.is_(None), table.c.currency == currency)
    is_listed = table.c.cost_source == str(CostSource.LISTED)
    is_recorded = and_(table.c.cost.is_not(None), in_currency)
    each_cost = case(
        (and_(is_recorded, or_(table.c.cost_source.is_(None), ~is_listed)), table.c.cost),
        (and_(is_recorded, table.c.cost > known), table.c.cost),
        else_=known,
    )
    return table.c.charges * each_cost


def _cost(price: Price, seconds: ColumnElement[float]) -> ColumnElement[float]:
    amount = literal(price.amount)
    return amount * seconds if price.per_second else amount


def _highest(prices: Mapping[str, Price], seconds: ColumnElement[float]) -> ColumnElement[float]:
    """Return the highest cost; SQLite and PostgreSQL share no function for this maximum."""
    amounts = [price.amount for price in prices.values() if not price.per_second]
    rates = [price.amount for price in prices.values() if price.per_second]
    flat, timed = literal(max(amounts, default=0.0)), literal(max(rates, default=0.0)) * seconds
    return case((timed > flat, timed), else_=flat)
