# SPDX-License-Identifier: Apache-2.0
"""A row for finance has the columns of FOCUS, and no figure that the ledger does not know."""

import json
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_cometapi.runway import State
from prefect_cometapi.runway.ledger.entry import CostSource
from prefect_cometapi.runway.ledger.focus import COLUMNS, focus_row

from ..factories import MOMENT, entry

BOUGHT = {"task_id": "task-1", "charges": 1, "claimed_at": MOMENT}


def test_a_billed_generation_is_a_complete_row():
    """Each figure is where finance looks for it, with its unit and currency."""
    row = focus_row(
        entry(
            State.STORED,
            **BOUGHT,
            base_url="https://api.cometapi.com",
            cost=0.2,
            currency="USD",
            cost_source=CostSource.BILLED,
            list_cost=0.25,
            list_currency="USD",
            tags=("team:web", "blue"),
            flow_run_id="run-1",
            deployment_id="id-1",
            deployment="nightly",
        )
    )
    expected = {
        "ProviderName": "CometAPI",
        "PublisherName": "Runway",
        "ServiceCategory": "AI and Machine Learning",
        "ServiceSubcategory": "Generative AI",
        "SkuId": "gen4_turbo",
        "SkuMeter": "image_to_video",
        "ResourceId": "task-1",
        "ResourceName": "sku-17",
        "ResourceType": "Generation",
        "ChargeCategory": "Usage",
        "ChargeClass": None,
        "ChargePeriodStart": datetime(2026, 11, 21, tzinfo=UTC),
        "ChargePeriodEnd": datetime(2026, 11, 22, tzinfo=UTC),
        "ConsumedQuantity": 5.0,
        "PricingUnit": "Seconds",
        "ListUnitPrice": 0.05,
        "ListCost": 0.25,
        "ContractedCost": 0.25,
        "BilledCost": 0.2,
        "BillingCurrency": "USD",
        "x_EstimatedCost": None,
        "x_IsUncertain": False,
        "x_FlowRunId": "run-1",
        "x_DeploymentName": "nightly",
    }
    assert {name: row[name] for name in expected} == expected
    assert json.loads(row["Tags"]) == {"team:web": True, "blue": True}


@pytest.mark.parametrize("source", [CostSource.ESTIMATED, CostSource.LISTED])
def test_an_estimate_is_not_billed(source):
    """A cost that CometAPI did not state is in a column of its own."""
    row = focus_row(entry(State.STORED, **BOUGHT, cost=0.2, currency="EUR", cost_source=source))
    assert (row["BilledCost"], row["EffectiveCost"], row["ListCost"]) == (None, None, None)
    assert (row["x_EstimatedCost"], row["BillingCurrency"]) == (0.2, "EUR")


def test_a_purchase_without_an_id_is_no_resource():
    """FOCUS wants a type of resource if and only if there is an id of one."""
    row = focus_row(entry(State.UNCERTAIN, charges=1, task_id=None, claimed_at=MOMENT))
    assert (row["ResourceId"], row["ResourceType"]) == (None, None)


def test_one_bill_counts_for_one_submission():
    """The other submissions of a key are estimated, because nobody knows their bill."""
    bill = {"cost": 0.2, "currency": "USD", "cost_source": CostSource.BILLED}
    row = focus_row(entry(State.STORED, **BOUGHT | {"charges": 3}, **bill))
    assert (row["BilledCost"], row["x_EstimatedCost"]) == (0.2, 0.4)
    assert (row["x_CostSource"], row["x_Submissions"]) == ("billed", 3)


def test_a_list_price_in_another_currency_is_no_list_cost():
    """FOCUS states the list cost in the currency of the bill, so another one has its own column."""
    known = {"cost": 0.2, "currency": "USD", "cost_source": CostSource.BILLED}
    row = focus_row(entry(State.STORED, **BOUGHT, **known, list_cost=1.0, list_currency="EUR"))
    assert (row["ListCost"], row["ListUnitPrice"]) == (None, None)
    assert (row["PricingCurrency"], row["PricingCurrencyListUnitPrice"]) == ("EUR", 0.2)


def test_a_picture_is_counted_and_has_no_seconds():
    """The unit is the one in which the route is sold."""
    row = focus_row(entry(State.STORED, **BOUGHT, route="text_to_image", billed_seconds=None))
    assert (row["PricingUnit"], row["PricingQuantity"]) == ("Units", 1.0)


def test_a_refund_is_a_known_zero():
    """Only a bill of nothing is 0."""
    known = {"cost": 0.0, "currency": "USD", "cost_source": CostSource.BILLED}
    assert focus_row(entry(State.FAILED, **BOUGHT, **known))["BilledCost"] == 0.0


@pytest.mark.parametrize(
    "changes",
    [
        {"task_id": None},
        {"task_id": "task-1", "task_id_checked": False},
        {"task_id": "task-1", "unresolved_since": MOMENT},
    ],
)
@given(state=st.sampled_from(State))
def test_an_uncertain_purchase_is_marked(changes, state):
    """A submission of which nobody knows the outcome is marked, whatever was decided about it."""
    assert focus_row(entry(state, charges=1, **changes))["x_IsUncertain"] is True


@given(
    cost=st.none() | st.floats(0.0, 1e6),
    listed=st.none() | st.floats(0.0, 1e6),
    seconds=st.none() | st.floats(0.0, 1e6),
    charges=st.integers(1, 5),
    route=st.none() | st.sampled_from(["image_to_video", "text_to_image", "later"]),
    source=st.sampled_from(CostSource),
    ago=st.timedeltas(timedelta(0), timedelta(days=400)),
)
def test_a_figure_that_is_unknown_is_empty(cost, listed, seconds, charges, route, source, ago):
    """A figure is a number if and only if its source is known, and each value has its type."""
    row = focus_row(
        entry(
            State.STORED,
            task_id="task-1",
            claimed_at=MOMENT - ago,
            charges=charges,
            route=route,
            billed_seconds=seconds,
            cost=cost,
            cost_source=None if cost is None else source,
            currency=None if cost is None else "USD",
            list_cost=listed,
            list_currency=None if listed is None else "USD",
        )
    )
    assert list(row) == list(COLUMNS)
    assert all(value is None or isinstance(value, COLUMNS[name]) for name, value in row.items())
    assert (row["ListCost"] is None) == (listed is None)
    is_billed = cost is not None and source is CostSource.BILLED
    assert (row["BilledCost"] is not None) == is_billed
    has_estimate = cost is not None and (not is_billed or charges > 1)
    assert (row["x_EstimatedCost"] is not None) == has_estimate
    assert (row["BillingCurrency"] is None) == (cost is None and listed is None)
    assert row["ChargePeriodStart"] <= row["x_PurchasedAt"] < row["ChargePeriodEnd"]
    assert all(name.startswith("x_") or name[0].isupper() for name in row)
