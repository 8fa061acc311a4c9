# SPDX-License-Identifier: Apache-2.0
"""Only the user can allow a second submission, for one time."""

import asyncio
from datetime import UTC, datetime

import pytest

from prefect_cometapi.runway import InvalidRequest, State, SubmissionUncertain

from ..factories import Service, buy, change, entry, put

S = State


async def test_a_second_charge_that_the_user_accepts_is_sent_once(ledger):
    """After an unknown outcome, ``resubmit`` sends one more request and counts the attempts."""
    service = Service(SubmissionUncertain("?"))
    with pytest.raises(SubmissionUncertain):
        await buy(ledger, service)
    bought = await buy(ledger, service, resubmit=True)
    assert (bought.state, bought.task_id, bought.attempts) == (S.SUBMITTED, "task-2", 2)
    assert await buy(ledger, service, resubmit=True) == bought
    assert service.posts == 2


async def test_a_second_charge_is_accepted_by_many_and_sent_once(ledger):
    """Of twenty runs that may buy again, one does."""
    await put(ledger, S.UNCERTAIN)
    service = Service().silent()
    calls = [
        asyncio.create_task(buy(ledger, service, run=f"r{n}", resubmit=True)) for n in range(20)
    ]
    await service.asked.wait()
    service.answer.set()
    assert {each.task_id for each in await asyncio.gather(*calls)} == {"task-1"}
    assert service.posts == 1


async def test_a_second_charge_that_was_refused_leaves_the_doubt_about_the_first(ledger):
    """The key is not free, because the user accepted one more charge and not any number."""
    service = Service(SubmissionUncertain("?"), InvalidRequest("no"))
    with pytest.raises(SubmissionUncertain):
        await buy(ledger, service)
    with pytest.raises(InvalidRequest):
        await buy(ledger, service, resubmit=True)
    with pytest.raises(SubmissionUncertain):
        await buy(ledger, service)


async def test_a_second_charge_that_was_not_sent_leaves_the_doubt_about_the_first(ledger):
    """The run is cancelled after it got the key and before it sent anything."""
    service, change, claimed = Service(SubmissionUncertain("?")), ledger._change, asyncio.Event()
    with pytest.raises(SubmissionUncertain):
        await buy(ledger, service)

    async def slow(*arguments, **named):
        changed = await change(*arguments, **named)
        if changed and changed.state is S.CLAIMED:
            claimed.set()
            await asyncio.Event().wait()
        return changed

    ledger._change = slow
    buying = asyncio.create_task(buy(ledger, service, resubmit=True))
    await claimed.wait()
    buying.cancel()
    with pytest.raises(asyncio.CancelledError):
        await buying
    ledger._change = change
    with pytest.raises(SubmissionUncertain):
        await buy(ledger, service)
    assert service.posts == 1


async def test_what_was_lost_is_not_sent_again_even_so(ledger):
    """A lost submission is repeated only after a release."""
    await put(ledger, S.WRITTEN_OFF)
    service = Service()
    with pytest.raises(SubmissionUncertain):
        await buy(ledger, service, resubmit=True)
    await change(ledger, "sku-17", S.RESUBMIT_ALLOWED)
    assert (await buy(ledger, service)).task_id == "task-1"


async def test_a_second_purchase_starts_with_a_clean_record(ledger):
    """The new generation does not inherit the error of the failed one."""
    old = await put(ledger, S.SUBMITTED, task_id="task-0", submitted_at=datetime.now(UTC))
    error = entry(S.FAILED, failure_code="SAFETY.INPUT.TEXT", note="no cats").failure()
    await ledger.mark_failed(old.submission(), error)
    await change(ledger, "sku-17", S.RESUBMIT_ALLOWED)
    bought = await buy(ledger, Service("task-1"))
    assert (bought.task_id, bought.state) == ("task-1", S.SUBMITTED)
    assert bought.note == ""
    assert bought.failure_code == ""
    assert bought.finished_at is None
