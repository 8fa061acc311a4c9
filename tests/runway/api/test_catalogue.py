# SPDX-License-Identifier: Apache-2.0
"""The catalogue says what is sold, or that it does not know."""

import json
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_cometapi.runway.api.catalogue import Catalogue
from prefect_cometapi.runway.models.catalogue import (
    CatalogueModel,
    CatalogueReply,
    read_catalogue,
)
from prefect_cometapi.runway.models.model_limits import known_models
from prefect_cometapi.runway.models.prices import Price


def model(**fields: Any) -> dict[str, Any]:
    """Return a model as the catalogue lists it."""
    return {"id": "gen4.5", "provider": "Runway", "pricing": {"per_second": 0.096}} | fields


async def test_what_is_sold_is_known(sandbox):
    """Models, prices and Runway's routes come from the catalogue, without a key."""
    running = sandbox()
    found = await Catalogue(running.url).models()
    assert (found.is_complete, found.problem) == (True, None)
    assert {model.id for model in found.runway_models} == set(known_models())
    assert found.sold_for("image_to_video") == ("gen3a_turbo", "gen4.5", "gen4_turbo")
    prices = {model.id: model.price for model in found.models}
    assert prices["gen3a_turbo"] == Price(0.256)
    assert prices["gen4_aleph"] == Price(0.12, per_second=True)
    assert prices["gpt-5-mini"] is None
    assert found.prices() == {name: price for name, price in prices.items() if price}
    assert (found.is_sold("gen4.5"), found.is_sold("gen9")) == (True, False)
    (request,) = running.requests
    assert "authorization" not in request.headers


@pytest.mark.parametrize(
    "fault", ["500", "502", "html", "cloudflare", "redirect", "error-in-200", "truncated", "429"]
)
async def test_a_catalogue_that_goes_wrong_is_unknown(sandbox, fault):
    """No failure raises an error, and no model counts as not sold."""
    found = await Catalogue(sandbox(f"models:{fault}").url).models()
    assert found.models == ()
    assert found.problem
    assert found.is_sold("gen4.5") is None


async def test_the_catalogue_is_kept_for_an_hour(answers, monkeypatch):
    """A second question within the hour sends nothing; a failure is kept for a minute."""
    now = 1000.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    service = answers((500, {}), {"data": [model()]})
    client = Catalogue(transport=service)
    assert not (await client.models()).models
    now += 59
    assert not (await client.models()).models
    now += 1
    assert (await client.models()).models
    now += 3599
    assert (await client.models()).models
    assert len(service.requests) == 2
    now += 1
    await client.models()
    assert len(service.requests) == 3


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ({}, "the reply has no list of models"),
        ({"data": {}}, "the reply has no list of models"),
        ({"data": []}, "the list of models is empty"),
        ({"data": [model(), 3]}, "1 of 2 models cannot be read"),
        ({"data": [model(), model(id=None)]}, "1 of 2 models cannot be read"),
        ({"data": [model(id="a b")]}, "the list of models is empty"),
        ({"data": [model()], "page_size": 1}, "returned 1 models and may have more"),
        ({"data": [model()], "total": 2}, "returned 1 models and may have more"),
        ({"data": [model()], "page_size": 1, "total": 1}, None),
        ({"data": [model()], "page_size": 2}, None),
        ({"data": [model()]}, None),
    ],
)
def test_only_a_whole_catalogue_proves_that_a_model_is_not_sold(body, problem):
    """A catalogue with an unreadable row or a full page does not say what is missing."""
    found = read_catalogue(body)
    assert found.is_complete == (problem is None)
    assert problem is None or problem in found.problem
    assert found.is_sold("gen9") is (False if problem is None else None)


@pytest.mark.parametrize(
    ("endpoints", "routes"),
    [
        (json.dumps({"a": {"path": "/runwayml/v1/image_to_video"}}), ("image_to_video",)),
        ({"a": {"path": "/runwayml/v1/video_to_video"}}, ("video_to_video",)),
        (json.dumps(["/runwayml/v1/image_to_video", 3]), ("image_to_video",)),
        ("/runwayml/v1/image_to_video", ("image_to_video",)),
        (json.dumps("/runwayml/v1/image_to_video"), ("image_to_video",)),
        (json.dumps({"runway": None}), ()),
        ("[" * 100_000, ()),
        (None, ()),
        (7, ()),
    ],
)
def test_routes_are_found_in_every_notation(endpoints, routes):
    """The endpoints are JSON inside a string, JSON, or a plain text."""
    (found,) = read_catalogue({"data": [model(endpoints=endpoints)]}).models
    assert found.routes == routes
    assert found.is_runway


@pytest.mark.parametrize(
    ("pricing", "price"),
    [
        ({"per_request": 0.256}, Price(0.256)),
        ({"per_request": "0.256", "per_second": None}, Price(0.256)),
        ({"per_request": 1, "per_second": 0.1}, Price(0.1, per_second=True)),
        ({"per_request": 0, "per_second": -1}, None),
        ({"per_request": True}, None),
        ([], None),
        (None, None),
    ],
)
def test_prices_are_read_or_unknown(pricing, price):
    """A price of zero is no price, and a price per second goes first."""
    (found,) = read_catalogue({"data": [model(pricing=pricing, name=3)]}).models
    assert (found.price, found.name) == (price, "")


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["data", "id", "pricing", "endpoints"]), inner, max_size=3
        )
    ),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from(["data", "total", "page_size"]), JSON))
def test_no_json_of_a_catalogue_raises(body):
    """An odd reply is an unknown catalogue."""
    found = read_catalogue(body)
    assert found.is_complete == (found.problem is None)


def test_a_model_of_another_company_is_no_runway_model():
    """The provider or an endpoint has to name Runway."""
    reply = CatalogueReply(models=(CatalogueModel(id="other"),))
    assert reply.runway_models == ()
    (found,) = read_catalogue({"data": [model(provider="OpenAI", provider_code=None)]}).models
    assert not found.is_runway


async def test_an_unreachable_catalogue_is_unknown(closed_port):
    """Without a server, the reason is named."""
    found = await Catalogue(closed_port).models()
    assert "no answer" in (found.problem or "")
    transport = httpx.MockTransport(lambda _: httpx.Response(200, json={"data": [model()]}))
    assert (await Catalogue(transport=transport).models()).models
