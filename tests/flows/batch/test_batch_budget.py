# SPDX-License-Identifier: Apache-2.0
"""A batch never exceeds its budget, whatever is refused, repeated or uncertain."""

import asyncio
from collections import Counter
from typing import Any

import pytest

from prefect_cometapi.flows import agenerate_batch, generate_batch
from prefect_cometapi.flows.batch import report
from prefect_cometapi.runway import BatchFailed, InvalidRequest, Ledger, State
from prefect_cometapi.runway.batch.models import Outcome
from prefect_cometapi.runway.ledger.budget import Spent
from prefect_cometapi.sandbox import Fault

from .catalogue import creates, manifest, rows

pytestmark = pytest.mark.server


@pytest.mark.heavy
def test_no_more_than_the_budget_is_bought(prefect_server, sandbox, tmp_path, monkeypatch):
    """No POST is sent that would pass the limit, and a second run does not get a fresh budget."""
    monkeypatch.setenv("COMETAPI_PRICES", '{"gen3a_turbo": 0.32}')
    path = manifest(tmp_path, rows(4))
    for bought in (2, 0):
        result = generate_batch(path, max_spend=0.7)
        assert (result.succeeded, result.not_bought) == (2, 2)
        assert result.spending.model_dump() == {
            "seconds": 20.0,
            "estimate": 1.28,
            "spent_seconds": 10.0,
            "spent": 0.64,
            "run_seconds": 5.0 * bought,
            "run_spent": 0.32 * bought,
            "max_seconds": None,
            "max_spend": 0.7,
            "remaining": 0.06,
        }
    assert creates(sandbox) == 2
    rest = generate_batch(path, max_spend=1.28)
    assert (rest.succeeded, rest.spending.remaining) == (4, 0.0)


@pytest.mark.heavy
def test_the_ledger_adds_up_a_batch_only_near_its_limit(
    prefect_server, sandbox, tmp_path, monkeypatch
):
    """An item that fits into what is left needs no other look at all rows of the batch."""
    asked: list[int] = []
    counts = Ledger.spent

    async def spent(ledger: Ledger, *arguments: Any) -> Spent:
        asked.append(len(sandbox.accepted))
        return await counts(ledger, *arguments)

    monkeypatch.setattr(Ledger, "spent", spent)
    monkeypatch.setattr(report, "SHOW_EVERY", 3600.0)
    result = generate_batch(manifest(tmp_path, rows(5)), max_seconds=20, max_in_flight=1)
    assert (result.succeeded, result.not_bought) == (4, 1)
    assert not {1, 2, 3} & set(asked)
    assert 4 in asked


@pytest.mark.heavy
def test_a_refused_item_leaves_its_money_to_the_next(prefect_server, sandbox, tmp_path):
    """A submission that was certainly refused costs nothing, so the next item is bought."""
    sandbox.add_fault(Fault.parse("create:invalid-request:times=1"))
    result = generate_batch(manifest(tmp_path, rows(3)), max_seconds=10, max_in_flight=1)
    assert Counter(item.outcome for item in result.results) == {
        Outcome.FAILED: 1,
        Outcome.STORED: 2,
    }


@pytest.mark.heavy
def test_a_possible_charge_of_an_earlier_run_stays_spent(prefect_server, sandbox, tmp_path):
    """A possibly charged item stays spent, even if its changed row is refused now."""
    sandbox.add_fault(Fault.parse("create:reset-after"))
    with pytest.raises(BatchFailed, match="1 uncertain"):
        generate_batch(manifest(tmp_path, rows(1)), max_seconds=5)
    changed = [{**rows(1)[0], "promptText": "another"}, rows(2)[1]]
    with pytest.raises(BatchFailed, match="1 failed, 1 not bought"):
        generate_batch(manifest(tmp_path, changed), max_seconds=5, max_in_flight=1)
    assert len(sandbox.accepted) == 1


def test_a_limit_in_money_needs_prices(prefect_server, sandbox, tmp_path):
    """A limit in money without prices is refused before any request, with the setting for them."""
    with pytest.raises(InvalidRequest, match="COMETAPI_PRICES"):
        generate_batch(manifest(tmp_path, rows(1)), max_spend=1)
    assert not sandbox.requests


@pytest.fixture
def resubmits(monkeypatch):
    """Allow a second charge, at a known price."""
    monkeypatch.setenv("COMETAPI_PRICES", '{"gen3a_turbo": 0.32}')
    monkeypatch.setenv("COMETAPI_ON_UNCERTAIN", "resubmit")


@pytest.mark.heavy
def test_what_is_sent_again_within_a_run_is_paid_from_the_budget(
    prefect_server, sandbox, tmp_path, history_mode, resubmits
):
    """A resubmission is paid from the budget, as both submissions may be charged."""
    sandbox.add_fault("create:reset-after:times=1")
    result = generate_batch(manifest(tmp_path, rows(2)), max_spend=0.7, max_in_flight=1)
    assert [item.outcome for item in result.results] == [Outcome.STORED, Outcome.NOT_BOUGHT]
    assert result.spending.spent == pytest.approx(0.64)
    assert len(sandbox.accepted) == 2


def test_what_the_budget_does_not_allow_is_not_sent_again(
    prefect_server, sandbox, tmp_path, history_mode, resubmits
):
    """An item without budget for a resubmission stays uncertain and is not sent again."""
    sandbox.add_fault("create:reset-after:times=1")
    with pytest.raises(BatchFailed) as caught:
        generate_batch(manifest(tmp_path, rows(1)), max_spend=0.5)
    assert caught.value.result
    (item,) = caught.value.result.results
    assert item.outcome is Outcome.UNCERTAIN
    assert caught.value.result.spending.spent == pytest.approx(0.32)
    assert creates(sandbox) == len(sandbox.accepted) == 1


@pytest.mark.heavy
def test_rows_that_left_the_manifest_count_against_the_limit(prefect_server, sandbox, tmp_path):
    """A manifest with new rows each day does not get a fresh budget under the same key."""
    bought, others = rows(3)[:2], [dict(row, id=f"new-{row['id']}") for row in rows(2)]
    assert (
        generate_batch(
            manifest(tmp_path, bought), max_seconds=10, idempotency_key="daily"
        ).succeeded
        == 2
    )
    with pytest.raises(BatchFailed, match="2 not bought"):
        generate_batch(manifest(tmp_path, others), max_seconds=10, idempotency_key="daily")
    assert creates(sandbox) == 2


@pytest.mark.heavy
def test_each_resubmission_counts_against_the_limit(
    prefect_server, sandbox, tmp_path, ledger_probe
):
    """A key that was released three times may have been charged three times."""
    sandbox.add_fault("create:reset-after:times=3")
    path = manifest(tmp_path, rows(1))
    with pytest.raises(BatchFailed, match="1 uncertain"):
        generate_batch(path, max_seconds=5, idempotency_key="one")
    ledger_probe.decide("one/sku-0", State.RESUBMIT_ALLOWED)
    with pytest.raises(BatchFailed, match="1 not bought") as caught:
        generate_batch(path, max_seconds=5, idempotency_key="one")
    assert caught.value.result
    (item,) = caught.value.result.results
    assert "(5 of 5 s of video, 5 more)" in str(item.message)
    assert len(sandbox.accepted) == 1


@pytest.mark.heavy
async def test_two_batches_at_once_keep_to_one_limit(prefect_server, sandbox, history_mode):
    """Two batches under one key share one limit, and the rows beyond it are not failures."""
    groups = [[dict(row, id=f"{name}-{row['id']}") for row in rows(5)] for name in "ab"]
    both: list[Any] = await asyncio.gather(
        *(
            agenerate_batch(group, max_seconds=25, idempotency_key="both", max_failures=0)
            for group in groups
        ),
        return_exceptions=True,
    )
    # One of them fails if the other one has bought all five.
    results: list[Any] = [each.result if isinstance(each, BatchFailed) else each for each in both]
    assert creates(sandbox) == len(sandbox.accepted) == 5
    assert sum(result.succeeded for result in results) == 5
    assert sum(result.not_bought for result in results) == 5
    assert [result.failed for result in results] == [0, 0]
