# SPDX-License-Identifier: Apache-2.0
"""Check of the account's balance before the first submission of a batch."""

from collections.abc import Collection, Iterable

from ...runway.batch.models import BatchItem
from ...runway.errors import QuotaExceeded
from ...runway.ledger.budget import Budget, Spent, estimate
from ...runway.ledger.costs import BILLED_CURRENCY
from ...runway.models.account import AccountBalance
from ..runtime.run_context import RunContext
from .plan import Plan


def amount_to_buy(
    items: Iterable[BatchItem], bought: Collection[str], budget: Budget, spent: Spent
) -> float:
    """Return the least estimate of what a batch still buys; pure.

    Items without a price count as free, and a spending limit caps the amount, so a batch is never
    refused for money that it would not spend.
    """
    costs = [
        estimate(item.request, budget.prices) or 0.0
        for item in items
        if item.idempotency_key not in bought
    ]
    amount = sum(costs)
    if budget.max_spend is not None:
        amount = min(amount, max(0.0, budget.max_spend - spent.money))
    return round(amount, 6)


def refusal(amount: float, balance: AccountBalance) -> QuotaExceeded | None:
    """Return the error for a balance that does not cover an amount; None if unknown; pure."""
    if balance.usd is None or balance.covers(amount):
        return None
    return QuotaExceeded(
        f"the batch is estimated to cost {amount:,.2f} USD and the balance is "
        f"{balance.usd:,.2f} USD (--ignore-balance or ignore_balance starts it all the same)"
    )


async def check_balance(context: RunContext, plan: Plan, budget: Budget) -> None:
    """Refuse a batch whose estimated cost exceeds the balance. An unknown balance refuses nothing.

    The balance is in US dollars; with prices in another currency it is not asked for.

    Raises:
        QuotaExceeded: The balance does not cover the estimate; nothing was bought.
        LedgerUnavailable: The ledger cannot be used.
    """
    if context.currency != BILLED_CURRENCY or not amount_to_buy(plan.items, (), budget, Spent()):
        return  # amounts in two currencies cannot be compared
    ledger = await context.ledger()
    known = await ledger.get_many([item.idempotency_key for item in plan.items])
    bought = {key for key, entry in known.items() if not entry.is_free()}
    spent = await ledger.spent(budget.prefix, budget.prices)
    amount = amount_to_buy(plan.items, bought, budget, spent)
    if not amount:
        return
    async with context.credentials.get_account() as account:
        balance = await account.balance()
    if error := refusal(amount, balance):
        raise error
