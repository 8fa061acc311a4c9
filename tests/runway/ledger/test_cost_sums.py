# SPDX-License-Identifier: Apache-2.0
"""Costs are added up exactly, by day, deployment and tag, and never across currencies."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_cometapi.runway import State
from prefect_cometapi.runway.ledger.charged import charged_entries, is_uncertain, purchased_at
from prefect_cometapi.runway.ledger.cost_sums import By, CostSums, Group, Sum, names_of
from prefect_cometapi.runway.ledger.entry import CostSource, Entry
from prefect_cometapi.runway.ledger.service_names import service_name
from prefect_cometapi.runway.ledger.statement import Sql

from ..factories import MOMENT, entry, put, set_columns

AMOUNTS = st.integers(0, 10**6).map(lambda cents: cents / 1000)
ENTRIES = st.builds(
    lambda state, charges, cost, currency, source, seconds, tags, name, day, task_id, url: entry(
        state,
        charges=charges,
        cost=cost,
        currency=None if cost is None else currency,
        cost_source=None if cost is None else source,
        billed_seconds=seconds,
        tags=tags,
        deployment=name,
        claimed_at=MOMENT + timedelta(days=day),
        task_id=task_id,
        base_url=url,
    ),
    st.sampled_from(State),
    st.integers(1, 3),
    st.none() | AMOUNTS,
    st.sampled_from(["USD", "EUR"]),
    st.sampled_from(CostSource),
    st.none() | AMOUNTS,
    st.none() | st.lists(st.sampled_from(["blue", "red"]), unique=True).map(tuple),
    st.none() | st.sampled_from(["nightly", "daily"]),
    st.integers(0, 3),
    st.none() | st.just("task-1"),
    st.sampled_from(["https://api.cometapi.com", "http://127.0.0.1:8777"]),
)


def sums_of(entries: list[Entry], by: By) -> dict[Group, Sum]:
    sums = CostSums(by)
    for one in entries:
        sums.add(one)
    return dict(sums.items())


def money(sums: dict[Group, Sum]) -> dict[tuple[str, str | None], Decimal]:
    """Return the money of each service and currency."""
    totals: dict[tuple[str, str | None], Decimal] = {}
    for group, total in sums.items():
        where = group.service, group.currency
        amount = (total.billed or Decimal()) + (total.estimated or Decimal())
        totals[where] = totals.get(where, Decimal()) + amount
    return totals


@given(st.lists(ENTRIES, max_size=12))
def test_every_amount_is_in_one_sum_of_its_currency(entries):
    """Days and deployments have the same totals in each currency: nothing is lost or doubled."""
    by_day, by_deployment = sums_of(entries, By.DAY), sums_of(entries, By.DEPLOYMENT)
    assert money(by_day) == money(by_deployment)
    for sums in (by_day, by_deployment):
        totals = list(sums.values())
        assert sum(total.generations for total in totals) == len(entries)
        assert sum(total.submissions for total in totals) == sum(one.charges for one in entries)
        assert sum(total.uncertain for total in totals) == sum(map(is_uncertain, entries))
    for (service, currency), amount in money(by_day).items():
        own = [
            Decimal(str(one.cost)) * one.charges
            for one in entries
            if one.cost is not None
            and (service_name(one.base_url), one.currency) == (service, currency)
        ]
        assert amount == sum(own, Decimal())


def test_one_bill_is_added_once():
    """A key that was sent three times has one known bill, and two estimates of the same amount."""
    bill = {"cost": 0.2, "currency": "USD", "cost_source": CostSource.BILLED}
    (total,) = sums_of([entry(State.STORED, charges=3, **bill)], By.DAY).values()
    assert (total.billed, total.estimated) == (Decimal("0.2"), Decimal("0.4"))
    (total,) = sums_of([entry(State.STORED, charges=1, **bill)], By.DAY).values()
    assert (total.billed, total.estimated) == (Decimal("0.2"), None)


@given(
    st.lists(ENTRIES, max_size=12).flatmap(
        lambda some: st.tuples(st.just(some), st.permutations(some))
    )
)
def test_the_order_of_the_entries_does_not_matter(both):
    """Sums are exact, so they do not depend on the order in which rows are read."""
    assert all(sums_of(both[0], by) == sums_of(both[1], by) for by in By)


@given(st.lists(ENTRIES, max_size=12), st.sampled_from(By))
def test_an_unknown_cost_is_no_amount(entries, by):
    """A group without a currency has no money, and no other group has submissions without cost."""
    for group, total in sums_of(entries, by).items():
        if group.currency is None:
            assert (total.billed, total.estimated) == (None, None)
            assert total.without_cost == total.submissions
        else:
            assert total.without_cost == 0
            assert (total.billed, total.estimated) != (None, None)


@given(ENTRIES)
def test_an_entry_counts_under_each_of_its_tags(one):
    """Several tags are several groups; entries without a tag are one group without a name."""
    assert {group.name for group in sums_of([one], By.TAG)} == set(one.tags or [None])


def test_a_deployment_without_a_known_name_has_its_id():
    """A run whose process got no name of its deployment is still added up by it."""
    named = entry(State.STORED, deployment_id="id-1", deployment="nightly")
    assert names_of(named, By.DEPLOYMENT) == ["nightly"]
    assert names_of(entry(State.STORED, deployment_id="id-1"), By.DEPLOYMENT) == ["id-1"]


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://api.cometapi.com", "CometAPI"),
        ("https://API.CometAPI.com/", "CometAPI"),
        ("https://cometapi.com.example.org", "cometapi.com.example.org"),
        ("https://notcometapi.com", "notcometapi.com"),
        ("http://localhost:8777", "sandbox"),
        ("http://[::1]:8777", "sandbox"),
    ],
)
def test_a_service_has_the_name_by_which_people_know_it(url, name):
    """Only hosts of CometAPI are CometAPI, and only this machine is the sandbox."""
    assert service_name(url) == name


def test_a_purchase_has_the_day_of_its_latest_claim():
    """A request that was sent again counts on the day on which it was sent again."""
    later = MOMENT + timedelta(days=2)
    assert purchased_at(entry(State.STORED, claimed_at=later, submitted_at=MOMENT)) == later
    assert purchased_at(entry(State.STORED, submitted_at=later)) == later
    assert purchased_at(entry(State.STORED)) == MOMENT


async def test_rows_are_read_in_pages(ledger, monkeypatch):
    """Every charged row arrives once, also where many have the same time of creation."""
    from prefect_cometapi.runway.ledger import charged

    monkeypatch.setattr(charged, "MAX_VALUES", 3)
    for number in range(10):
        made = await put(ledger, State.STORED, f"sku-{number}", charges=1)
        at = MOMENT + timedelta(seconds=number // 5)
        await set_columns(ledger, made.idempotency_key, created_at=at)
    await put(ledger, State.REJECTED, "refused", charges=0)
    found = [one.idempotency_key async for one in charged_entries(ledger)]
    assert found == [f"sku-{number}" for number in range(10)]


async def test_a_period_is_that_of_the_purchase(ledger):
    """The first moment of a period belongs to it, and its end to the next one."""
    days = [datetime(2026, 11, day, tzinfo=UTC) for day in (1, 2, 3)]
    for day in days:
        await put(ledger, State.STORED, str(day.day), charges=1, claimed_at=day)
    found = charged_entries(ledger, since=days[1], until=days[2])
    assert [one.idempotency_key async for one in found] == ["2"]


async def test_a_corrupted_row_stops_no_page(ledger, monkeypatch):
    """Pages continue after a row that cannot be read, which is reported."""
    from prefect_cometapi.runway.ledger import charged

    monkeypatch.setattr(charged, "MAX_VALUES", 1)
    for key in ("a", "b", "c"):
        await put(ledger, State.STORED, key, charges=1)
    await set_columns(ledger, "b", state="lost")
    errors = []
    found = charged_entries(ledger, on_corrupted=errors.append)
    assert [one.idempotency_key async for one in found] == ["a", "c"]
    assert len(errors) == 1


async def test_a_key_that_is_no_text_ends_the_pages(file_ledger, monkeypatch):
    """A damaged key that cannot be compared does not keep the reader in one page for ever."""
    from prefect_cometapi.runway.ledger import charged

    monkeypatch.setattr(charged, "MAX_VALUES", 1)
    await put(file_ledger, State.STORED, "a", charges=1)
    await file_ledger.database.rows(Sql("UPDATE cometapi_generations SET idempotency_key = x'ff'"))
    errors = []
    found = charged_entries(file_ledger, on_corrupted=errors.append)
    assert [one async for one in found] == []
    assert {error.message.partition(":")[0] for error in errors} != set()
