# SPDX-License-Identifier: Apache-2.0
"""A batch spends no more than the user allows, and counts each generation once."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from prefect_cometapi.runway import ImageToVideoRequest, State, VideoToVideoRequest
from prefect_cometapi.runway.budget import ASSUMED_SECONDS, Budget, estimate, seconds_of
from prefect_cometapi.runway.prices import Price, parse_price
from prefect_cometapi.runway.settings import CometAPISettings

from .made import entry

S = State
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
    """0.32 is for the whole, "0.05/s" for a second of video."""
    assert parse_price(written) == meant
    assert parse_price(str(meant)) == parse_price(meant) == meant


@pytest.mark.parametrize("written", ["", "free", "-1", "1e9", "0.05/m", True, None, [], "nan"])
def test_what_is_no_price_is_refused(written):
    """A misread price would be a wrong limit."""
    with pytest.raises(ValueError, match="write"):
        parse_price(written)


def test_prices_are_a_setting(monkeypatch):
    """As JSON in COMETAPI_PRICES; a wrong one is told before anything is bought."""
    monkeypatch.setenv("COMETAPI_PRICES", '{"gen3a_turbo": 0.32, "gen4_aleph": "0.15/s"}')
    assert CometAPISettings().prices == PRICES
    monkeypatch.setenv("COMETAPI_PRICES", '{"gen3a_turbo": "cheap"}')
    with pytest.raises(ValidationError, match=r"0\.05/s"):
        CometAPISettings()


def test_an_estimate_needs_a_price():
    """Without one there is none, and not zero."""
    assert estimate(IMAGE, PRICES) == 0.32
    assert estimate(LONG, PRICES) == 0.32
    assert estimate(VIDEO, PRICES) == pytest.approx(0.15 * ASSUMED_SECONDS)
    assert estimate(IMAGE, {}) is None
    assert (seconds_of(IMAGE), seconds_of(LONG), seconds_of(VIDEO)) == (5, 10, ASSUMED_SECONDS)


def test_what_would_pass_the_limit_is_refused_before():
    """Up to the limit itself, and not a cent more."""
    budget = Budget(PRICES, max_spend=0.96)
    assert [budget.reserve(f"k{n}", IMAGE) for n in range(4)] == [True, True, True, False]
    assert budget.spent == pytest.approx(0.96)


def test_seconds_of_video_can_be_limited_without_prices():
    """Prices are the user's own, and may be missing."""
    budget = Budget({}, max_seconds=12)
    assert budget.reserve("a", IMAGE)
    assert not budget.reserve("b", LONG)
    assert budget.reserve("c", IMAGE)
    assert (budget.spent, budget.spent_seconds) == (0.0, 10.0)


def test_a_retried_item_is_counted_once():
    """However often it asks, and whatever it was before."""
    budget = Budget(PRICES, max_spend=0.4)
    assert budget.reserve("a", IMAGE)
    assert budget.reserve("a", IMAGE)
    assert budget.spent == 0.32


def test_what_was_certainly_not_bought_is_given_back():
    """Another item may have it."""
    budget = Budget(PRICES, max_spend=0.4)
    assert budget.reserve("a", IMAGE)
    assert not budget.reserve("b", IMAGE)
    budget.give_back("a")
    budget.give_back("never asked")
    assert budget.reserve("b", IMAGE)
    assert budget.spent == pytest.approx(0.32)


def test_what_was_bought_before_is_not_given_back():
    """An item that is refused now may have cost money in an earlier run."""
    budget = Budget(PRICES, max_spend=0.4)
    budget.count(entry(S.UNCERTAIN, key="a"), IMAGE)
    assert budget.reserve("a", IMAGE)
    budget.give_back("a")
    assert budget.spent == pytest.approx(0.32)
    assert not budget.reserve("b", IMAGE)


@pytest.mark.parametrize("state", list(State))
def test_what_the_ledger_knows_counts_unless_it_is_free(state):
    """An unknown outcome and a failure may have been charged; a refusal was not."""
    budget = Budget(PRICES)
    budget.count(entry(state, billed_seconds=5.0), IMAGE)
    counts = state not in {S.REJECTED, S.RELEASED}
    assert budget.spent == (0.32 if counts else 0.0)
    assert budget.reserve("sku-17", IMAGE)
    assert budget.spent == 0.32


def test_one_id_under_two_keys_is_one_generation():
    """It was paid for once."""
    budget = Budget(PRICES)
    for key in ("a", "b"):
        budget.count(entry(S.STORED, key=key, task_id="task-1"), IMAGE)
    budget.count(entry(S.STORED, key="c", task_id="task-2"), IMAGE)
    assert budget.spent == pytest.approx(0.64)


@given(
    limit=st.floats(0, 20),
    asked=st.lists(st.tuples(st.integers(0, 9), st.sampled_from([IMAGE, LONG, VIDEO]))),
    back=st.sets(st.integers(0, 9)),
)
def test_no_order_of_asking_passes_the_limit(limit, asked, back):
    """Whatever is reserved and given back, the sum stays within and never below nothing."""
    budget = Budget(PRICES, max_spend=limit, max_seconds=10 * limit)
    for number, request in asked:
        budget.reserve(f"k{number}", request)
        assert budget.spent <= limit + 1e-6
        assert budget.spent_seconds <= 10 * limit + 1e-6
        if number in back:
            budget.give_back(f"k{number}")
    for number in range(10):
        budget.give_back(f"k{number}")
    assert budget.spent == pytest.approx(0, abs=1e-9)


@given(st.lists(st.floats(0, 100), min_size=2, max_size=5))
def test_a_larger_limit_never_buys_less(limits):
    """Of the same items."""

    def bought(limit: float) -> int:
        budget = Budget(PRICES, max_spend=limit)
        return sum(budget.reserve(f"k{n}", IMAGE) for n in range(20))

    counts = [bought(limit) for limit in sorted(limits)]
    assert all(before <= after for before, after in pairwise(counts))


def test_what_is_perhaps_bought_costs_again_when_it_is_sent_again():
    """Within one run, too; and once only, however often it is asked for."""
    budget = Budget(PRICES, max_spend=0.64, resubmits=True)
    assert budget.reserve("k", IMAGE)
    budget.doubt("k")
    assert budget.reserve("k", IMAGE)
    assert budget.reserve("k", IMAGE)
    assert budget.spent == pytest.approx(0.64)
    budget.doubt("k")
    assert not budget.reserve("k", IMAGE)
    budget.doubt("never asked")
    careful = Budget(PRICES, max_spend=0.32)
    assert careful.reserve("k", IMAGE)
    careful.doubt("k")
    assert careful.reserve("k", IMAGE)
    assert careful.spent == pytest.approx(0.32)


def test_what_is_bought_again_after_an_unknown_outcome_costs_again():
    """Who accepts a second charge still has a limit; who does not, is charged once at most."""
    doubtful = entry(S.UNCERTAIN, key="k")
    careful = Budget(PRICES, max_spend=0.64)
    careful.count(doubtful, IMAGE)
    assert careful.reserve("k", IMAGE)
    assert careful.spent == pytest.approx(0.32)
    daring = Budget(PRICES, max_spend=0.64, resubmits=True)
    daring.count(doubtful, IMAGE)
    assert daring.reserve("k", IMAGE)
    assert daring.spent == pytest.approx(0.64)
    daring.give_back("k")  # the second was refused; the first is as open as before
    assert daring.spent == pytest.approx(0.32)
    tight = Budget(PRICES, max_spend=0.5, resubmits=True)
    tight.count(doubtful, IMAGE)
    assert not tight.reserve("k", IMAGE)
