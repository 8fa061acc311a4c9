# SPDX-License-Identifier: Apache-2.0
"""A resubmission that was not charged leaves the earlier charge as it was."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from prefect_cometapi.runway import InvalidRequest, State, SubmissionUncertain
from prefect_cometapi.runway.ledger.charged import is_uncertain, purchased_at
from prefect_cometapi.runway.ledger.entry import CostSource, Entry
from prefect_cometapi.runway.ledger.focus import focus_row
from prefect_cometapi.runway.ledger.purchase import attach

from ..factories import MOMENT, Service, buy, intent, put

S = State
EARLIER = MOMENT - timedelta(days=40)
CHARGE: dict[str, Any] = {
    "charges": 1,
    "claimed_at": EARLIER,
    "cost": 0.2,
    "currency": "USD",
    "cost_source": "billed",
    "list_cost": 0.25,
    "list_currency": "USD",
    "tags": ["team:web"],
    "flow_run_id": "run-1",
    "deployment": "nightly",
}
NOW = {"cost": 0.5, "currency": "USD", "cost_source": "estimated", "tags": ("team:print",)}
NOT_OF_THE_CHARGE = {"x_State", "x_IsUncertain", "ResourceId", "ResourceType"}


def charge(one: Entry) -> dict[str, Any]:
    """Return the row of an entry for finance, without the columns about its latest task."""
    return {name: it for name, it in focus_row(one).items() if name not in NOT_OF_THE_CHARGE}


async def refused(ledger: Any, **options: Any) -> Entry:
    """Return the entry of the key after a submission that the service refuses."""
    with pytest.raises(InvalidRequest):
        await buy(ledger, Service(InvalidRequest("no")), **options)
    found = await ledger.get("sku-17")
    assert found
    return found


async def test_a_refused_resubmission_leaves_the_uncertain_charge(ledger):
    """The first charge keeps its month and its cost, and is certain once its id is adopted."""
    before = await put(ledger, S.UNCERTAIN, unresolved_since=EARLIER, note="no answer", **CHARGE)
    after = await refused(ledger, wish=intent(**NOW), resubmit=True)
    assert (after.state, after.charges, after.resubmitted_by) == (S.UNCERTAIN, 1, ())
    assert charge(after) == charge(before)
    assert after.unresolved_since == before.unresolved_since
    assert is_uncertain(after)
    adopted = await attach(ledger, intent(), "task-1")
    assert (adopted.charges, purchased_at(adopted)) == (1, EARLIER)
    assert not is_uncertain(adopted)


async def test_a_refused_resubmission_keeps_a_known_bill(ledger):
    """The bill of a failed generation is not lost when its key is tried again in vain."""
    before = await put(ledger, S.RESUBMIT_ALLOWED, **CHARGE)
    after = await refused(ledger, wish=intent(**NOW))
    assert (after.state, after.charges, after.cost_source) == (S.REJECTED, 1, CostSource.BILLED)
    assert charge(after) == charge(before)
    again = await refused(ledger, wish=intent(**NOW))
    assert charge(again) == charge(before)


async def test_an_earlier_unknown_submission_stays_unresolved(ledger):
    """Of two submissions without an answer, the earlier one still begins the period to look in."""
    since = EARLIER - timedelta(days=1)
    values = CHARGE | {"charges": 2, "unresolved_since": since, "note": "no answer"}
    before = await put(ledger, S.UNCERTAIN, **values)
    after = await refused(ledger, wish=intent(**NOW), resubmit=True)
    assert (after.charges, after.unresolved_since, after.claimed_at) == (2, since, EARLIER)
    assert charge(after) == charge(before)


async def test_an_accepted_resubmission_moves_the_charges_to_its_day(ledger):
    """Only a submission that may have been charged changes the charges of its key."""
    await put(ledger, S.UNCERTAIN, unresolved_since=EARLIER, note="no answer", **CHARGE)
    with pytest.raises(SubmissionUncertain):
        await buy(ledger, Service(SubmissionUncertain("?")), wish=intent(**NOW), resubmit=True)
    found = await ledger.get("sku-17")
    assert (found.charges, found.cost, found.unresolved_since) == (2, 0.5, EARLIER)
    assert found.claimed_at > EARLIER


async def test_another_request_under_a_free_key_is_described_as_itself(ledger):
    """A refused request is not shown with the cost of the one before it."""
    await put(ledger, S.RESUBMIT_ALLOWED, **CHARGE)
    after = await refused(ledger, wish=intent(**NOW, fingerprint="0" * 64))
    assert (after.charges, after.cost, after.fingerprint) == (1, 0.5, "0" * 64)


async def test_a_first_submission_that_is_refused_has_no_earlier_charge(ledger):
    """A key without charges keeps the time of its refused claim."""
    after = await refused(ledger, wish=intent(**NOW))
    assert (after.state, after.charges, after.cost) == (S.REJECTED, 0, 0.5)
    assert after.claimed_at
    assert after.claimed_at > EARLIER


async def test_a_resubmission_that_was_not_sent_leaves_the_charge(ledger):
    """A run that is cancelled between its claim and its request changes nothing about the money."""
    before = await put(ledger, S.UNCERTAIN, unresolved_since=EARLIER, note="no answer", **CHARGE)
    change, claimed = ledger._change, asyncio.Event()

    async def slow(*arguments: Any, **named: Any) -> Any:
        changed = await change(*arguments, **named)
        if changed and changed.state is S.CLAIMED:
            claimed.set()
            await asyncio.Event().wait()
        return changed

    ledger._change = slow
    service = Service()
    buying = asyncio.create_task(buy(ledger, service, wish=intent(**NOW), resubmit=True))
    await claimed.wait()
    buying.cancel()
    with pytest.raises(asyncio.CancelledError):
        await buying
    after = await ledger.get("sku-17")
    assert (after.state, after.charges, service.posts) == (S.UNCERTAIN, 1, 0)
    assert charge(after) == charge(before)
    assert after.unresolved_since == EARLIER
