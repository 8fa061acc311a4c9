# SPDX-License-Identifier: Apache-2.0
"""A batch that the account cannot pay is refused before its first submission."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_cometapi.flows import generate_batch
from prefect_cometapi.flows.batch.balance import amount_to_buy, refusal
from prefect_cometapi.runway import BatchFailed, QuotaExceeded
from prefect_cometapi.runway.batch.models import BatchItem
from prefect_cometapi.runway.ledger.budget import Budget, Spent
from prefect_cometapi.runway.models.account import AccountBalance
from prefect_cometapi.runway.models.prices import Price
from prefect_cometapi.runway.models.requests import ImageToVideoRequest
from prefect_cometapi.sandbox import Sandbox

from ...conftest import point_to
from .catalogue import creates, manifest, rows

PRICES = {"gen3a_turbo": Price(0.256)}
AMOUNTS = st.floats(0, 1000)


def items(number: int, model: str = "gen3a_turbo") -> list[BatchItem]:
    """Return the items of a batch."""
    return [
        BatchItem(
            id=f"sku-{n}",
            idempotency_key=f"batch/sku-{n}",
            request=ImageToVideoRequest(prompt_image="https://example.com/a.jpg", model=model),
        )
        for n in range(number)
    ]


@given(st.integers(0, 6), st.integers(0, 6), st.none() | AMOUNTS, AMOUNTS)
def test_a_batch_counts_what_it_still_buys_and_may_spend(number, bought, limit, spent):
    """The amount never exceeds the price of the missing items, nor the rest of the limit."""
    budget = Budget("batch/", PRICES, max_spend=limit)
    keys = {f"batch/sku-{n}" for n in range(bought)}
    amount = amount_to_buy(items(number), keys, budget, Spent(money=spent))
    missing = 0.256 * max(0, number - bought)
    rest = missing if limit is None else min(missing, max(0.0, limit - spent))
    assert amount == pytest.approx(rest, abs=1e-6)


def test_an_item_without_a_price_counts_as_free():
    """A batch is not refused for money that nobody can estimate."""
    assert amount_to_buy(items(2, "gen9"), (), Budget("batch/", PRICES), Spent()) == 0


@given(AMOUNTS, st.none() | st.floats(-10, 1000))
def test_only_a_known_balance_below_the_amount_refuses(amount, usd):
    """An unknown or unlimited balance refuses nothing."""
    error = refusal(amount, AccountBalance(usd=usd))
    assert (error is not None) == (usd is not None and amount > usd)
    assert refusal(amount, AccountBalance(is_unlimited=True)) is None


@pytest.fixture
def poor(own_settings, monkeypatch, tmp_path):
    """Start a sandbox whose account can pay two of three videos."""
    with Sandbox(balance=0.6) as sandbox:
        point_to(sandbox, monkeypatch, tmp_path)
        monkeypatch.setenv("COMETAPI_PRICES", "catalogue")
        yield sandbox


@pytest.mark.server
@pytest.mark.heavy
def test_a_batch_that_the_balance_does_not_cover_is_not_begun(prefect_server, poor, tmp_path):
    """Nothing is sent; a smaller batch runs, and later only what is missing counts."""
    path = manifest(tmp_path, rows(3))
    with pytest.raises(QuotaExceeded, match=r"cost 0\.77 USD and the balance is 0\.60 USD"):
        generate_batch(path)
    assert creates(poor) == 0
    assert generate_batch(path, max_spend=0.55).succeeded == 2
    with pytest.raises(QuotaExceeded, match=r"cost 0\.26 USD and the balance is 0\.09 USD"):
        generate_batch(path)
    assert generate_batch(path, ignore_balance=True).succeeded == 3
    assert generate_batch(path).succeeded == 3


@pytest.mark.server
@pytest.mark.parametrize("fault", ["500", "html", "unauthorized"])
@pytest.mark.heavy
def test_an_unknown_balance_refuses_nothing(prefect_server, poor, tmp_path, fault):
    """A balance that cannot be read does not stop a batch."""
    poor.add_fault(f"billing:{fault}")
    assert generate_batch(manifest(tmp_path, rows(3))).succeeded == 3


@pytest.mark.server
@pytest.mark.heavy
def test_without_prices_no_balance_is_asked_for(prefect_server, sandbox, tmp_path):
    """Without an estimate there is nothing to compare."""
    generate_batch(manifest(tmp_path, rows(1)))
    assert {request.route for request in sandbox.requests}.isdisjoint({"billing", "models"})


@pytest.mark.server
def test_a_balance_in_dollars_is_not_compared_with_other_money(
    prefect_server, poor, tmp_path, monkeypatch
):
    """With prices in yen, a batch is not refused for a balance in US dollars."""
    monkeypatch.setenv("COMETAPI_PRICES", '{"gen3a_turbo": 38}')
    monkeypatch.setenv("COMETAPI_CURRENCY", "JPY")
    assert generate_batch(manifest(tmp_path, rows(1))).succeeded == 1


@pytest.mark.server
@pytest.mark.heavy
def test_the_prices_of_the_catalogue_are_read_once(
    prefect_server, sandbox, tmp_path, monkeypatch, history_mode
):
    """One request for a whole batch gives the estimate, which is in the ledger's limit, too."""
    monkeypatch.setenv("COMETAPI_PRICES", "catalogue")
    result = generate_batch(manifest(tmp_path, rows(3)), max_spend=0.6)
    assert (result.succeeded, result.not_bought) == (2, 1)
    assert result.spending.estimate == pytest.approx(0.768)
    assert result.spending.spent == pytest.approx(0.512)
    assert sum(request.route == "models" for request in sandbox.requests) == 1


@pytest.mark.server
@pytest.mark.heavy
def test_unknown_prices_are_said_and_not_guessed(
    prefect_server, sandbox, tmp_path, monkeypatch, caplog
):
    """Without the catalogue there is no estimate, and a limit in money refuses the batch."""
    monkeypatch.setenv("COMETAPI_PRICES", "catalogue")
    sandbox.add_fault("models:500:times=9")
    path = manifest(tmp_path, rows(1))
    assert generate_batch(path).spending.estimate is None
    assert "COMETAPI_PRICES=catalogue: the prices are unknown" in caplog.text
    with pytest.raises(Exception, match="max_spend needs the price of gen3a_turbo"):
        generate_batch(path, max_spend=5)


@pytest.mark.server
@pytest.mark.heavy
def test_a_model_that_is_not_sold_is_answered_with_those_that_are(
    prefect_server, sandbox, tmp_path
):
    """The error names the models of the route, if the catalogue answers."""
    wanted: list[dict[str, Any]] = [{**row, "model": "gen9"} for row in rows(1)]
    with pytest.raises(BatchFailed) as caught:
        generate_batch(manifest(tmp_path, wanted))
    assert caught.value.result
    (item,) = caught.value.result.results
    assert "catalogue has for image_to_video: gen3a_turbo, gen4.5" in str(item.message)
    sandbox.add_fault("models:500")
    with pytest.raises(BatchFailed) as caught:
        generate_batch(manifest(tmp_path, wanted), idempotency_key="again")
    assert caught.value.result
    assert "catalogue" not in str(caught.value.result.results[0].message)
