# SPDX-License-Identifier: Apache-2.0
"""The spending of a batch is computed from the rows of the ledger alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_cometapi.runway import State
from prefect_cometapi.runway.batch.rows import batch_keys, batch_prefix
from prefect_cometapi.runway.ledger.budget import Spent
from prefect_cometapi.runway.ledger.spending import after_prefix
from prefect_cometapi.runway.models.prices import Price

from ..factories import intent

S = State
PRICES = {"gen4_turbo": Price(0.5), "gen4_aleph": Price(0.2, per_second=True)}


async def bought(ledger, key, charges=1, **wanted):
    """Add a row with a number of charges to the ledger."""
    assert await ledger._insert(intent(key, **wanted), S.SUBMITTED, key, charges=charges)


@pytest.mark.parametrize(
    "others",
    [
        ["batch", "batch0", "batch.", "batcH/a", "Batch/a", "a/batch/a"],
        ["batc%/a", "b_tch/a", "batch%", "batch\\/a"],
    ],
)
async def test_only_keys_that_begin_with_the_prefix_count(ledger, others):
    """Keys with a similar prefix, or one in another case, are not counted."""
    for key in ["batch/a", "batch/", "batch/\U0010ffff", "batch/ä/b", *others]:
        await bought(ledger, key)
    assert await ledger.spent("batch/", PRICES) == Spent(money=2.0, seconds=20.0, charges=4)


@pytest.mark.parametrize("prefix", ["100%/", "a_c/", "a\\_c/", "'/", "[a]*/", "ünï/", "日本/"])
async def test_no_character_of_a_prefix_is_a_wildcard(ledger, prefix):
    """Each character of a prefix matches only itself."""
    for key in ["100 percent/x", "abc/x", "a\\bc/x", "a/x", "uni/x", "日木/x", "1000/x"]:
        await bought(ledger, key)
    await bought(ledger, f"{prefix}x")
    assert (await ledger.spent(prefix, PRICES)).charges == 1


async def test_every_charge_counts_at_what_it_was_estimated_to_cost(ledger):
    """A key that was submitted three times counts three times, and a refused one not at all."""
    await bought(ledger, "b/thrice", charges=3, cost=0.4, billed_seconds=5.0)
    await bought(ledger, "b/refused", charges=0, cost=0.4)
    spent = await ledger.spent("b/", PRICES)
    assert (spent.money, spent.seconds, spent.charges) == (pytest.approx(1.2), 15.0, 3)


@pytest.mark.parametrize(
    ("wanted", "money"),
    [
        ({"model": "gen4_turbo"}, 0.5),
        ({"model": "gen4_aleph", "billed_seconds": 5.0}, 1.0),
        ({"model": "gen4_aleph", "billed_seconds": None}, 2.0),
        ({"model": "unknown", "billed_seconds": 5.0}, 1.0),
        ({"model": None, "billed_seconds": 1.0}, 0.5),
    ],
)
async def test_a_row_without_a_cost_counts_at_the_price_of_its_model(ledger, wanted, money):
    """A model without a price counts at the highest price, so that the limit still holds."""
    await bought(ledger, "b/1", **wanted)
    assert (await ledger.spent("b/", PRICES)).money == pytest.approx(money)
    assert (await ledger.spent("b/", {})).money == 0.0


async def test_nothing_is_spent_in_an_empty_ledger(ledger):
    """The spending of an empty ledger is zero, not None."""
    assert await ledger.spent("b/", PRICES) == Spent()


def test_the_keys_of_a_batch_begin_with_its_prefix(request_):
    """Generated keys and keys with an id have the prefix."""
    key_of = batch_keys("sku")
    for key in (key_of("17", request_, 1), key_of(None, request_, 2)):
        assert key.startswith(batch_prefix("sku"))


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)


@given(prefix=texts, text=texts, rest=texts)
def test_the_range_of_a_prefix_holds_what_begins_with_it(prefix, text, rest):
    """The range compares byte by byte and holds no other keys."""
    end = after_prefix(prefix)
    for key in (text, prefix + rest):
        encoded = key.encode()
        inside = encoded >= prefix.encode() and (end is None or encoded < end.encode())
        assert inside == key.startswith(prefix)


def test_the_range_of_a_prefix_ends_at_no_surrogate():
    """No database can store a surrogate."""
    assert after_prefix("a\ud7ff".encode("utf-8", "surrogatepass").decode()) == "a\ue000"
    assert after_prefix("a\U0010ffff") == "b"
    assert after_prefix("\U0010ffff") is None
