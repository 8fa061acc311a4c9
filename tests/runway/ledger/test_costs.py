# SPDX-License-Identifier: Apache-2.0
"""A cost is the best known one, and never makes a spending limit less strict without a bill."""

import asyncio
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_cometapi.runway import Ledger, State
from prefect_cometapi.runway.api.polling import PollPolicy, evaluate
from prefect_cometapi.runway.api.reply_parser import read_generation
from prefect_cometapi.runway.ledger.billing import (
    record_billed,
    record_listed,
    unbilled_entries,
)
from prefect_cometapi.runway.ledger.budget import Budget
from prefect_cometapi.runway.ledger.costs import (
    billed_amount,
    billed_cost,
    listed_cost,
    stored_cost,
)
from prefect_cometapi.runway.ledger.entry import CostSource
from prefect_cometapi.runway.models.account import AccountCharge, AccountTask
from prefect_cometapi.runway.models.prices import Price, shown_cost

from ..factories import MOMENT, Service, buy, entry, intent, put, video

S = State
BILLED, LISTED, ESTIMATED = CostSource.BILLED, CostSource.LISTED, CostSource.ESTIMATED
PRICES = {"gen4_turbo": Price(0.5), "gen4_aleph": Price(0.1, per_second=True)}
MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None

money = st.none() | st.floats(0, 5).map(lambda amount: round(amount, 3))
sources = st.sampled_from([None, *CostSource])
currencies = st.sampled_from([None, "USD", "EUR"])


def stored(cost=None, source=None, currency="USD", charges=1, **changes):
    """Make an entry with a cost."""
    known = {"cost": cost, "cost_source": source, "currency": currency, "charges": charges}
    return entry(S.STORED, task_id="t", **(known | changes))


@pytest.mark.parametrize(
    ("before", "amount", "after"),
    [
        (stored(), 0.3, (0.3, "billed")),
        (stored(0.5, ESTIMATED), 0.3, (0.3, "billed")),
        (stored(0.5, ESTIMATED, "EUR"), 0.3, (0.3, "billed")),
        (stored(0.3, BILLED), 0.3, None),
        (stored(0.5, ESTIMATED, charges=2), 0.3, None),
        (stored(0.2, ESTIMATED, charges=2), 0.3, (0.3, "billed")),
        (stored(None, None, charges=2), 0.3, None),
        (stored(0.2, ESTIMATED, "EUR", charges=2), 0.3, None),
    ],
)
def test_a_bill_replaces_an_estimate(before, amount, after):
    """The bill counts for one submission; for several, it only raises the cost of each."""
    changes = billed_cost(before, amount)
    assert (changes and (changes["cost"], changes["cost_source"])) == (after or {})
    assert not changes or changes["currency"] == "USD"


@pytest.mark.parametrize(
    ("before", "credits_", "after"),
    [
        (stored(), 25, (0.25, "listed")),
        (stored(0.5, ESTIMATED), 25, None),
        (stored(0.5, BILLED), 25, None),
        (stored(0.2, LISTED), 25, (0.25, "listed")),
        (stored(0.25, LISTED), 25, None),
    ],
)
def test_a_list_price_is_used_where_nothing_else_is_known(before, credits_, after):
    """Runway's credits fill an unknown cost, and replace earlier credits only."""
    changes = listed_cost(before, credits_)
    assert (changes and (changes["cost"], changes["cost_source"])) == (after or {})


def test_a_price_per_second_needs_the_length_unless_it_is_billed():
    """The length of the stored videos gives an estimate, if none was known before."""
    unknown = stored(1.0, ESTIMATED, billed_seconds=None)
    changes = stored_cost(unknown, 8.0, PRICES["gen4_aleph"], "EUR")
    assert changes == {
        "cost": 0.8,
        "currency": "EUR",
        "cost_source": "estimated",
        "list_cost": 0.8,
        "list_currency": "EUR",
    }
    assert stored_cost(unknown, 8.0, PRICES["gen4_turbo"], "EUR") == {}
    assert stored_cost(unknown, 8.0, None, "EUR") == {}
    billed = stored(1.0, BILLED, billed_seconds=None)
    assert stored_cost(billed, 8.0, PRICES["gen4_aleph"], "USD") == {}


def task(status: str, cost: float | None = 0.3) -> AccountTask:
    return AccountTask(task_id="task-1", status=status, cost=cost)


def refund(cost: float | None, content: str = "Refund of task task-1") -> AccountCharge:
    return AccountCharge(kind="refund", cost=cost, content=content)


@pytest.mark.parametrize(
    ("row", "refunds", "amount"),
    [
        (task("SUCCESS"), [], 0.3),
        (task("SUCCESS", None), [], None),
        (task("IN_PROGRESS"), [], None),
        (task("FAILURE"), [], None),
        (task("FAILURE"), [refund(0.3, "Refund of task other")], None),
        (task("FAILURE"), [refund(0.3)], 0.0),
        (task("FAILURE"), [refund(0.1)], 0.2),
        (task("FAILURE"), [refund(None)], None),
    ],
)
def test_a_failed_task_is_billed_once_its_refund_is_known(row, refunds, amount):
    """A charge without a final status, and a failure without a refund, are not final."""
    assert billed_amount(row, refunds) == amount


@pytest.mark.parametrize(
    ("cost", "shown"),
    [
        ((None, "USD", "billed"), ""),
        ((0.256, "USD", BILLED), "0.256 USD (billed)"),
        ((0.5, None, None), "0.50"),
        ((1234.0, "EUR", "estimated"), "1,234.00 EUR (estimated)"),
    ],
)
def test_a_cost_is_shown_with_its_currency_and_source(cost, shown):
    """A cost names its currency and where it comes from."""
    assert shown_cost(*cost) == shown


@pytest.mark.parametrize(
    ("body", "credits_"),
    [
        ({"cost": {"credits": 25}}, 25.0),
        ({"estimatedCost": {"credits": 12.5}}, 12.5),
        ({"cost": {"credits": 0}, "estimatedCost": {"credits": 25}}, 0.0),
        ({"cost": {"credits": -1}}, None),
        ({"cost": {"credits": True}}, None),
        ({"cost": {"credits": float("nan")}}, None),
        ({"cost": 25}, None),
        ({}, None),
    ],
)
def test_the_credits_of_a_task_are_read_from_its_state(body, credits_):
    """Runway's task object names credits; anything else says nothing."""
    reply = read_generation({"id": "t", "status": "FAILED", **body}, "t")
    assert reply
    assert reply.credits == credits_
    error = evaluate(reply, 1.0, 0.0, PollPolicy())
    assert getattr(error, "credits", "missing") == credits_


async def test_a_refund_is_recorded_and_said(ledger):
    """A failed generation that was refunded costs nothing, and its note says so."""
    failed = await put(ledger, S.FAILED, task_id="t", cost=0.5, charges=1, note="it failed")
    entry_ = await record_billed(ledger, failed, 0.0)
    assert entry_
    assert (entry_.cost, entry_.cost_source) == (0.0, BILLED)
    assert entry_.note == "it failed; CometAPI refunded it"
    assert await record_billed(ledger, failed, 0.0) is None
    other = failed.model_copy(update={"task_id": "another"})
    assert await record_billed(ledger, other, 0.3) is None


async def test_the_credits_of_a_failure_are_said(ledger):
    """Runway reports 0 credits for a task that it refunded."""
    failed = await put(ledger, S.FAILED, task_id="t", charges=1)
    entry_ = await record_listed(ledger, failed, 0.0)
    assert entry_
    assert entry_.note == "Runway reports 0 credits for it"
    assert (entry_.cost, entry_.cost_source) == (0.0, LISTED)
    assert await record_listed(ledger, entry_, 0.0) is None


async def test_generations_without_a_bill_are_found(ledger):
    """Ended generations of the period whose charge is not known are listed."""
    for number, (state, source) in enumerate(
        [(S.STORED, None), (S.FAILED, "estimated"), (S.STORED, "billed"), (S.SUBMITTED, None)]
    ):
        await put(
            ledger, state, f"k{number}", task_id=f"t{number}", cost_source=source,
            submitted_at=MOMENT,
        )  # fmt: skip
    found = await unbilled_entries(ledger, MOMENT, 10)
    assert {one.idempotency_key for one in found} == {"k0", "k1"}


async def test_a_key_that_is_bought_again_counts_the_higher_cost_of_one_currency(ledger):
    """The bill of a failed generation does not lower the cost of its next submission."""
    for key, currency, cost in (("b/same", "USD", 0.5), ("b/other", "EUR", None)):
        wish = intent(key, cost=0.5, currency="USD", cost_source="estimated")
        await put(
            ledger, S.RESUBMIT_ALLOWED, key, cost=0.2, currency=currency, cost_source="billed",
            charges=1, billed_seconds=5.0,
        )  # fmt: skip
        bought = await buy(ledger, Service(), wish=wish)
        assert (bought.cost, bought.charges, bought.cost_source) == (cost, 2, ESTIMATED)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["gen4_turbo", "gen4_aleph", "unknown", None]),
            money, currencies, sources, st.none() | st.floats(0, 20), st.integers(0, 3),
        ),
        max_size=4,
    ),
    st.sampled_from(["USD", "EUR"]),
)  # fmt: skip
def test_a_limit_counts_at_least_what_it_counted_before(rows, currency):
    """Listed costs and other currencies never count less than the prices; SQL and Python agree."""
    budget = Budget("b/", PRICES, currency=currency)
    expected = plain = 0.0
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        asyncio.run(_fill(f"sqlite:///{folder}/l.db", rows))
        spent = asyncio.run(_spent(f"sqlite:///{folder}/l.db", currency))
    for model, cost, unit, source, seconds, charges in rows:
        row = {"model": model, "cost": cost, "currency": unit, "cost_source": source,
               "billed_seconds": seconds, "charges": charges}  # fmt: skip
        expected += budget.cost_of(row)[0]
        is_exact = source in {None, ESTIMATED, BILLED} and unit in {None, currency}
        plain += budget.cost_of({**row, "cost": cost if is_exact else None,
                                 "currency": None, "cost_source": None})[0]  # fmt: skip
    assert spent == pytest.approx(expected)
    assert expected >= plain - 1e-9


async def _fill(url, rows) -> None:
    ledger = Ledger(url)
    for number, (model, cost, unit, source, seconds, charges) in enumerate(rows):
        wish = intent(f"b/{number}", model=model, cost=cost, currency=unit, cost_source=source,
                      billed_seconds=seconds)  # fmt: skip
        await ledger._insert(wish, S.STORED, str(number), charges=charges)
    await ledger.database.close()


async def _spent(url, currency) -> float:
    ledger = Ledger(url)
    try:
        return (await ledger.spent("b/", PRICES, currency)).money
    finally:
        await ledger.database.close()


async def test_a_stored_video_has_its_estimate_in_the_currency_of_the_prices(ledger):
    """The length of a video gives the cost of a model with a price per second."""
    wish = intent("k", model="gen4_aleph", billed_seconds=None)
    sent = await ledger._insert(wish, S.SUBMITTED, "c", task_id="t")
    assert sent
    done = await ledger.mark_stored(
        sent, "t", "/v", [video(seconds=8.0)], price=PRICES["gen4_aleph"], currency="EUR"
    )
    assert done
    assert (done.cost, done.currency, done.cost_source) == (0.8, "EUR", ESTIMATED)
