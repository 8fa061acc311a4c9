# SPDX-License-Identifier: Apache-2.0
"""A generation that was bought elsewhere is attached to a key, if the key allows it."""

import asyncio

import pytest

from prefect_cometapi.runway import IdempotencyKeyConflict, State
from prefect_cometapi.runway.ledger.purchase import attach, buy_once

from ..factories import MOMENT, Service, dead_owner, distant_owner, intent, put, until

S = State
ID_ONLY = intent(route=None, model=None, fingerprint=None, request=None, billed_seconds=None)


async def attached(ledger, task_id="task-1", wish=ID_ONLY):
    async with asyncio.timeout(20):
        return await attach(ledger, wish, task_id)


@pytest.mark.parametrize("wish", [ID_ONLY, intent()])
async def test_an_id_is_attached_to_a_new_key(ledger, wish):
    """The entry has the request, if it is known, and nothing is posted."""
    made = await attached(ledger, wish=wish)
    assert (made.state, made.task_id, made.attempts) == (S.SUBMITTED, "task-1", 0)
    assert (made.owner, made.request) == (None, wish.request)
    assert made.submitted_at
    assert await attached(ledger, wish=wish) == made == await ledger.get("sku-17")


async def test_twenty_who_attach_the_same_id_get_the_same_entry(ledger):
    """Twenty concurrent callers get one entry."""
    made = await asyncio.gather(*[attached(ledger) for _ in range(20)])
    assert {each.claim for each in made} == {made[0].claim}
    assert len(await ledger.entries()) == 1


@pytest.mark.parametrize("state", [S.SUBMITTED, S.SUCCEEDED, S.STORED, S.FAILED, S.CANCELLED])
async def test_an_id_that_the_key_has_already_is_found(file_ledger, state):
    """The same id is found in any state, and another id is refused."""
    known = await put(file_ledger, state, task_id="task-1")
    assert await attached(file_ledger) == known
    with pytest.raises(IdempotencyKeyConflict, match="task id was 'task-1', is 'task-2'"):
        await attached(file_ledger, "task-2")


@pytest.mark.parametrize("state", [S.REJECTED, S.RESUBMIT_ALLOWED, S.UNCERTAIN, S.WRITTEN_OFF])
async def test_an_id_is_adopted_where_the_key_has_none(ledger, state):
    """An uncertain entry becomes certain, and nothing more is sent for it."""
    await put(ledger, state, attempts=2)
    made = await attached(ledger)
    assert (made.state, made.task_id, made.attempts) == (S.SUBMITTED, "task-1", 2)
    assert (made.request, made.fingerprint) == (intent().request, intent().fingerprint)
    assert made.submitted_at
    service = Service()
    assert await buy_once(ledger, intent(), service.post, run="r") == made
    assert service.posts == 0


async def test_an_id_is_adopted_in_place_of_one_that_failed_and_was_released(ledger):
    """A release by the user makes the key free."""
    await put(ledger, S.RESUBMIT_ALLOWED, task_id="task-0")
    assert (await attached(ledger)).task_id == "task-1"


async def test_an_id_of_another_service_is_attached_to_a_free_key(ledger):
    """The entry names the service at which the generation was bought, and is polled there."""
    await put(ledger, S.REJECTED)
    elsewhere = intent(base_url="https://other.example.com")
    made = await attached(ledger, wish=elsewhere)
    assert (made.base_url, made.task_id) == (elsewhere.base_url, "task-1")
    assert await ledger.find_by_task_id("task-1", elsewhere.base_url) == made


@pytest.mark.parametrize("state", [S.UNCERTAIN, S.WRITTEN_OFF])
async def test_an_id_of_another_service_is_no_answer_to_a_doubt(ledger, state):
    """An uncertain submission cannot have been bought at another service."""
    await put(ledger, state)
    with pytest.raises(IdempotencyKeyConflict, match="base URL"):
        await attached(ledger, wish=intent(base_url="https://other.example.com"))
    assert (await ledger.get("sku-17")).state is state


async def test_an_id_is_adopted_for_a_submission_whose_process_is_dead(ledger):
    """The id completes the entry of a dead process that left no answer."""
    await put(ledger, S.CLAIMED, owner=dead_owner(), attempts=1)
    made = await attached(ledger)
    assert (made.state, made.task_id, made.owner) == (S.SUBMITTED, "task-1", None)


async def test_an_id_waits_for_the_submission_that_is_under_way(ledger, monkeypatch):
    """The key gets the id of that submission, so the attached id needs another key."""
    theirs = await put(ledger, S.CLAIMED, owner=distant_owner(), attempts=1)
    get, looks = ledger.get, []

    async def seen(key):
        looks.append(key)
        return await get(key)

    monkeypatch.setattr(ledger, "get", seen)
    waiting = asyncio.create_task(attached(ledger))
    await until(lambda: len(looks) >= 3)
    assert not waiting.done()
    await ledger.mark_submitted(theirs, "task-9", MOMENT, None)
    with pytest.raises(IdempotencyKeyConflict, match="task id was 'task-9', is 'task-1'"):
        await waiting


async def test_a_request_is_not_bought_under_the_key_of_an_attached_id(ledger):
    """An attached id has no known request, so any request under its key is refused."""
    await attached(ledger)
    service = Service()
    with pytest.raises(IdempotencyKeyConflict, match="request was 'unknown', is 'another'"):
        await buy_once(ledger, intent(), service.post, run="r")
    assert service.posts == 0


async def test_of_two_ids_that_are_attached_at_once_the_key_gets_one(ledger):
    """The other id is refused with an error and is not lost silently."""
    await put(ledger, S.UNCERTAIN)
    names = [f"task-{number}" for number in range(8)]
    made = await asyncio.gather(*[attached(ledger, name) for name in names], return_exceptions=True)
    won = [each for each in made if not isinstance(each, BaseException)]
    assert len(won) == 1
    assert all(isinstance(each, IdempotencyKeyConflict) for each in made if each not in won)
    assert (await ledger.get("sku-17")).task_id == won[0].task_id


async def test_an_id_and_a_purchase_that_meet_do_not_both_get_the_key(ledger):
    """The first one wins, the other is informed, and an accepted id is kept either way."""
    await put(ledger, S.REJECTED)
    service = Service("task-9")
    made = await asyncio.gather(
        attached(ledger),
        *[buy_once(ledger, intent(), service.post, run=f"r{n}") for n in range(4)],
        return_exceptions=True,
    )
    there = {each.task_id for each in await ledger.entries()}
    if isinstance(made[0], IdempotencyKeyConflict):
        assert there == {"task-9"}
        assert service.posts == 1
    else:
        assert there == {"task-1"}
        assert service.posts == 0
