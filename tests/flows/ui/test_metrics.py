# SPDX-License-Identifier: Apache-2.0
"""OpenTelemetry gets the number of purchases, their cost and their delays, and no secret."""

from collections.abc import Callable
from typing import Any

import pytest
from opentelemetry import metrics as api
from opentelemetry.sdk import metrics as sdk
from opentelemetry.sdk.metrics.export import AggregationTemporality, InMemoryMetricReader
from prefect import flow

from prefect_cometapi.flows import image_to_video
from prefect_cometapi.flows.ui import metrics
from prefect_cometapi.runway import State, SubmissionUncertain
from prefect_cometapi.runway.ledger.entry import CostSource
from prefect_cometapi.sandbox.config import ACCESS_TOKEN

from ...runway.factories import entry

pytestmark = pytest.mark.server

Points = dict[str, list[Any]]
KIND = {
    "cometapi.route": "image_to_video",
    "cometapi.model": "gen3a_turbo",
    "cometapi.service": "sandbox",
}


@pytest.fixture(scope="module")
def reader() -> InMemoryMetricReader:
    """Return a reader of what is counted from now on, as an exporter of the user is one."""
    kinds = (sdk.Counter, sdk.UpDownCounter, sdk.Histogram)
    reader = InMemoryMetricReader(dict.fromkeys(kinds, AggregationTemporality.DELTA))
    api.set_meter_provider(sdk.MeterProvider([reader]))
    return reader


@pytest.fixture
def points(reader) -> Callable[[], Points]:
    """Return a function that returns the points since its last call, by metric."""

    def since() -> Points:
        data = reader.get_metrics_data()
        found = [
            metric
            for resource in (data.resource_metrics if data else ())
            for scope in resource.scope_metrics
            if scope.scope.name == "prefect_cometapi"
            for metric in scope.metrics
        ]
        return {metric.name: list(metric.data.data_points) for metric in found}

    since()
    return since


def test_a_clip_is_counted_once(prefect_server, sandbox, image, points, monkeypatch):
    """One purchase, one stored file, its cost and its delays; a repeated run counts nothing."""
    monkeypatch.setenv("COMETAPI_PRICES", '{"gen3a_turbo": 0.25}')
    image_to_video(image, idempotency_key="sku-17")
    found = points()
    for name in ("bought", "stored"):
        (point,) = found[f"cometapi.generation.{name}"]
        assert (point.value, dict(point.attributes)) == (1, KIND)
    (cost,) = found["cometapi.generation.cost"]
    money = {"cometapi.currency": "USD", "cometapi.cost_source": "estimated"}
    assert (cost.value, dict(cost.attributes)) == (0.25, KIND | money)
    for name in ("wait", "lag"):
        (delay,) = found[f"cometapi.generation.{name}"]
        assert delay.count == 1
        assert 0 < delay.sum < 60
    assert "cometapi.generation.uncertain" not in found
    image_to_video(image, idempotency_key="sku-17")
    assert points() == {}


def test_an_uncertain_purchase_is_counted_once(prefect_server, sandbox, image, points):
    """A submission without an answer is counted, and its refused repetition is not."""
    sandbox.add_fault("create:reset-after")
    for _ in range(2):
        with pytest.raises(SubmissionUncertain):
            image_to_video(image, idempotency_key="sku-17")
    found = points()
    assert set(found) == {"cometapi.generation.uncertain"}
    assert [point.value for point in found["cometapi.generation.uncertain"]] == [1]


def test_the_bill_is_counted_beside_the_estimate(
    prefect_server, sandbox, image, points, monkeypatch
):
    """Money that CometAPI billed has a source of its own, so that it is not added to estimates."""
    monkeypatch.setenv("COMETAPI_ACCESS_TOKEN", ACCESS_TOKEN)
    image_to_video(image)
    (cost,) = points()["cometapi.generation.cost"]
    assert cost.attributes["cometapi.cost_source"] == "billed"
    assert cost.value > 0


def test_a_refund_lowers_the_bill(prefect_server, points):
    """The sum of the changes is what CometAPI charged in the end."""
    bill = {"currency": "USD", "cost_source": CostSource.BILLED, "charges": 1}
    before = entry(State.FAILED, cost=0.25, **bill)

    @flow
    async def refund() -> None:
        await metrics.count_billed(entry(State.FAILED, cost=0.3, charges=1), before)
        await metrics.count_billed(before, entry(State.FAILED, cost=0.0, **bill))
        await metrics.count_billed(before, entry(State.FAILED, charges=1))

    import asyncio

    asyncio.run(refund())
    (cost,) = points()["cometapi.generation.cost"]
    assert cost.value == 0.0


def test_a_bill_counts_once_for_a_key_that_was_sent_twice(prefect_server, points):
    """A bill is that of one task, however often its key was submitted."""
    bill = {"cost": 0.25, "currency": "USD", "cost_source": CostSource.BILLED, "charges": 2}

    @flow
    async def learn() -> None:
        await metrics.count_billed(entry(State.STORED, charges=2), entry(State.STORED, **bill))

    import asyncio

    asyncio.run(learn())
    (cost,) = points()["cometapi.generation.cost"]
    assert cost.value == 0.25


def test_attributes_hold_no_key_prompt_or_address(prefect_server, sandbox, points):
    """Each attribute is a kind, so that there are few series and no secret among them."""
    secret = "topsecret"
    image = {
        "promptImage": f"https://example.com/cat.jpg?X-Amz-Signature={secret}",
        "promptText": secret,
    }
    image_to_video(image, idempotency_key=secret)
    found = points()
    assert "cometapi.generation.stored" in found
    attributes = [dict(point.attributes) for some in found.values() for point in some]
    allowed = {*KIND, "cometapi.currency", "cometapi.cost_source"}
    assert all(set(one) <= allowed for one in attributes)
    assert secret not in repr(attributes)
