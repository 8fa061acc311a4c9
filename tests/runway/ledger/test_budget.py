# SPDX-License-Identifier: Apache-2.0
"""A batch spends no more than the user allows, and each submission counts at its cost."""

import pytest
from pydantic import ValidationError

from prefect_cometapi.runway import ImageToVideoRequest, VideoToVideoRequest
from prefect_cometapi.runway.ledger.budget import (
    ASSUMED_SECONDS,
    Budget,
    Spent,
    estimate,
    seconds_of,
)
from prefect_cometapi.runway.models.prices import Price, parse_price
from prefect_cometapi.runway.settings import CometAPISettings

IMAGE = ImageToVideoRequest(prompt_image="https://example.com/cat.jpg", duration=5)
LONG = IMAGE.model_copy(update={"duration": 10})
VIDEO = VideoToVideoRequest(video_uri="https://example.com/a.mp4", prompt_text="cinematic")
PRICES = {"gen3a_turbo": Price(0.32), "gen4_aleph": Price(0.15, per_second=True)}


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (0.32, Price(0.32)),
        ("0.32", Price(0.32)),
        (1, Price(1.0)),
        ("0.05/s", Price(0.05, per_second=True)),
        (" 0.05 / s ", Price(0.05, per_second=True)),
    ],
)
def test_a_price_is_of_a_generation_or_of_a_second(written, meant):
    """A price is per generation, like "0.32", or per second of video, like "0.05/s"."""
    assert parse_price(written) == meant
    assert parse_price(str(meant)) == parse_price(meant) == meant


@pytest.mark.parametrize("written", ["", "free", "-1", "1e9", "0.05/m", True, None, [], "nan"])
def test_what_is_no_price_is_refused(written):
    """A misread price would lead to a wrong limit."""
    with pytest.raises(ValueError, match="write"):
        parse_price(written)


def test_prices_are_a_setting(monkeypatch):
    """COMETAPI_PRICES is JSON, and an invalid value is refused before anything is bought."""
    monkeypatch.setenv("COMETAPI_PRICES", '{"gen3a_turbo": 0.32, "gen4_aleph": "0.15/s"}')
    assert CometAPISettings().prices == PRICES
    monkeypatch.setenv("COMETAPI_PRICES", '{"gen3a_turbo": "cheap"}')
    with pytest.raises(ValidationError, match=r"0\.05/s"):
        CometAPISettings()


@pytest.mark.parametrize("word", ["catalogue", " Catalogue "])
def test_prices_can_come_from_the_catalogue(monkeypatch, word):
    """The word takes the prices of CometAPI's catalogue, and any other word is refused."""
    monkeypatch.setenv("COMETAPI_PRICES", word)
    assert CometAPISettings().prices == "catalogue"
    monkeypatch.setenv("COMETAPI_PRICES", "catalog")
    with pytest.raises(ValidationError, match="or the word catalogue"):
        CometAPISettings()
    assert CometAPISettings(prices={"gen3a_turbo": Price(1)}).prices == {"gen3a_turbo": Price(1)}


def test_an_estimate_needs_a_price():
    """Without a price there is no estimate, rather than zero."""
    assert estimate(IMAGE, PRICES) == 0.32
    assert estimate(LONG, PRICES) == 0.32
    assert estimate(VIDEO, PRICES) == pytest.approx(0.15 * ASSUMED_SECONDS)
    assert estimate(IMAGE, {}) is None
    assert (seconds_of(IMAGE), seconds_of(LONG), seconds_of(VIDEO)) == (5, 10, ASSUMED_SECONDS)


ROW = {"cost": 0.32, "billed_seconds": 5.0, "charges": 1, "model": "gen3a_turbo"}


@pytest.mark.parametrize(
    ("changes", "counts"),
    [
        ({}, (0.32, 5.0)),
        ({"charges": 3}, (0.96, 15.0)),
        ({"charges": 0}, (0.0, 0.0)),
        ({"cost": 0.0}, (0.0, 5.0)),
        ({"cost": None}, (0.32, 5.0)),
        ({"cost": None, "model": "gen4_aleph"}, (0.75, 5.0)),
        ({"cost": None, "model": "gen4_aleph", "billed_seconds": None}, (1.5, ASSUMED_SECONDS)),
        ({"cost": None, "model": None}, (0.75, 5.0)),
        ({"billed_seconds": 0.0}, (0.32, 0.0)),
    ],
)
def test_a_submission_counts_at_its_cost_or_at_a_price_of_today(changes, counts):
    """Every possibly charged submission counts, and an unknown cost never counts as zero."""
    assert Budget("b/", PRICES, 1.0).cost_of({**ROW, **changes}) == pytest.approx(counts)


def test_without_prices_an_unknown_cost_is_nothing():
    """A limit in money needs prices before anything is bought."""
    assert Budget("b/", max_seconds=10).cost_of({**ROW, "cost": None}) == (0.0, 5.0)


@pytest.mark.parametrize(
    ("limits", "spent", "why"),
    [
        ({}, Spent(money=99, seconds=99), None),
        ({"max_spend": 1.0}, Spent(money=0.68, seconds=99), None),
        ({"max_spend": 1.0}, Spent(money=0.7), "0.70 of 1.00 spent, 0.32 more"),
        ({"max_seconds": 10.0}, Spent(money=99, seconds=5), None),
        ({"max_seconds": 10.0}, Spent(seconds=5.5), "5.5 of 10 s of video, 5 more"),
        ({"max_spend": 0.0, "max_seconds": 0.0}, Spent(), "0.00 of 0.00 spent, 0.32 more"),
    ],
)
def test_what_passes_a_limit_is_refused_with_the_figures(limits, spent, why):
    """A batch may reach its limit but not exceed it by a cent."""
    budget = Budget("b/", PRICES, **limits)
    assert budget.is_limited == bool(limits)
    objection = budget.objection(spent, *budget.cost_of(ROW))
    assert objection == (why and f"it would exceed the spending limit of the batch ({why})")


def test_ten_times_a_tenth_is_one():
    """Amounts are exact decimals."""
    budget = Budget("b/", {}, max_spend=1.0)
    assert budget.objection(Spent(money=sum([0.1] * 9)), 0.1, 0) is None
    assert budget.objection(Spent(money=sum([0.1] * 10)), 0.1, 0)
