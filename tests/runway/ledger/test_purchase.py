# SPDX-License-Identifier: Apache-2.0
"""A generation is bought at most once, and the outcome is recorded in the ledger."""

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest

from prefect_cometapi.runway import (
    AuthenticationError,
    CometAPIError,
    IdempotencyKeyConflict,
    InvalidRequest,
    Ledger,
    LedgerUnavailable,
    QuotaExceeded,
    ServiceUnavailable,
    State,
    SubmissionUncertain,
    UnexpectedResponse,
)
from prefect_cometapi.runway.ledger import purchase
from prefect_cometapi.runway.ledger.purchase import attach
from prefect_cometapi.runway.processes import this_process

from ..factories import (
    MOMENT,
    Service,
    Told,
    buy,
    dead_owner,
    delete_row,
    distant_owner,
    intent,
    put,
    until,
)

S = State
OTHER = intent(fingerprint="b" * 64, request={"promptText": "slow zoom", "duration": 10})


class Broken(BaseException):
    """An exception that is neither an error nor a cancellation."""


def out_of_order(ledger, method: str, times: int = 1000, *, after: bool = False):
    """Make a method of a ledger fail, before or after its work."""
    right = getattr(ledger, method)
    left = [times]

    async def wrong(*arguments, **named):
        if not left[0]:
            return await right(*arguments, **named)
        left[0] -= 1
        if after:
            await right(*arguments, **named)
        raise LedgerUnavailable("the ledger cannot be used")

    setattr(ledger, method, wrong)
    return lambda: setattr(ledger, method, right)


async def test_what_is_bought_is_recorded_with_its_request_and_its_id(ledger):
    """A claim is written before the request is sent, and the id right after the answer."""
    service = Service().silent()
    began = datetime.now(UTC)
    purchase = asyncio.create_task(buy(ledger, service, run="nightly"))
    await service.asked.wait()
    claimed = await ledger.get("sku-17")
    assert (claimed.state, claimed.task_id, claimed.attempts) == (S.CLAIMED, None, 1)
    assert claimed.owner.startswith(f"{this_process()}|nightly#")
    assert 50 < claimed.lease_left <= 60
    service.answer.set()
    bought = await purchase
    assert bought == await ledger.get("sku-17")
    assert bought.submitted_at
    assert (bought.state, bought.task_id, bought.owner) == (S.SUBMITTED, "task-1", None)
    assert began <= bought.created_at <= bought.submitted_at <= datetime.now(UTC)
    for name, value in intent().model_dump().items():
        assert getattr(bought, name) == value


async def test_twenty_callers_at_once_buy_one(ledger):
    """One request is sent, and all callers get its id."""
    service = Service().silent()
    told = [Told() for _ in range(20)]
    calls = [
        asyncio.create_task(buy(ledger, service, run=f"r{n}", warn=told[n])) for n in range(20)
    ]
    await until(lambda: sum(map(bool, told)) == 19)
    assert service.posts == 1
    service.answer.set()
    bought = await asyncio.gather(*calls)
    assert {each.task_id for each in bought} == {"task-1"}
    assert service.posts == 1
    waited = [text for texts in told for text in texts]
    assert len(waited) == 19
    assert all("which submits this key" in text for text in waited)


async def test_a_ledger_that_is_opened_twice_buys_once(ledger, ledger_url):
    """A process may use two URLs for one database, and neither ledger takes the other for dead."""
    service, told = Service().silent(), Told()
    first = asyncio.create_task(buy(ledger, service, run="one"))
    await until(lambda: service.posts == 1)
    again = Ledger(ledger_url)
    second = asyncio.create_task(buy(again, service, run="two", resubmit=True, warn=told))
    await until(lambda: bool(told) or service.posts > 1)
    service.answer.set()
    assert (await first).task_id == (await second).task_id
    assert service.posts == 1
    await again.database.close()


async def test_keys_do_not_wait_for_each_other(ledger):
    """Twenty generations are bought concurrently."""
    service = Service().silent()
    calls = [asyncio.create_task(buy(ledger, service, wish=intent(f"k{n}"))) for n in range(20)]
    await until(lambda: service.posts == 20)
    service.answer.set()
    bought = await asyncio.gather(*calls)
    assert sorted(each.task_id or "" for each in bought) == sorted(service.accepted)


@pytest.mark.parametrize("state", [S.SUBMITTED, S.SUCCEEDED, S.STORED, S.FAILED, S.CANCELLED])
@pytest.mark.parametrize("resubmit", [False, True])
async def test_what_was_bought_is_attached_to(file_ledger, state, resubmit):
    """A bought generation is attached in any later state, even if a second charge is allowed."""
    known = await put(file_ledger, state, task_id="task-0")
    service = Service()
    assert await buy(file_ledger, service, resubmit=resubmit) == known
    assert service.posts == 0


@pytest.mark.parametrize(
    "kind",
    [InvalidRequest, QuotaExceeded, AuthenticationError, ServiceUnavailable, UnexpectedResponse],
)
async def test_a_refusal_leaves_the_key_free(ledger, kind):
    """Nothing was bought, so the next attempt may buy the same or another request."""
    service = Service(kind("no"), kind("no"), "task-3")
    with pytest.raises(kind):
        await buy(ledger, service)
    rejected = await ledger.get("sku-17")
    assert (rejected.state, rejected.task_id, rejected.owner) == (S.REJECTED, None, None)
    assert rejected.note == "no"
    with pytest.raises(kind):
        await buy(ledger, service)
    bought = await buy(ledger, service, wish=OTHER)
    assert (bought.state, bought.task_id, bought.attempts) == (S.SUBMITTED, "task-3", 3)
    assert (bought.request, bought.fingerprint) == (OTHER.request, OTHER.fingerprint)
    assert bought.note == ""
    assert service.posts == 3


@pytest.mark.parametrize(
    "outcome",
    [SubmissionUncertain("the line went dead"), RuntimeError("bug"), Broken(), SystemExit()],
    ids=lambda outcome: type(outcome).__name__,
)
async def test_an_unknown_outcome_is_never_sent_again(ledger, outcome):
    """A request that ended early was possibly accepted, whatever the cause."""
    service = Service(outcome)
    caught: list[BaseException] = []

    async def attempt():
        try:
            await buy(ledger, service)
        except BaseException as error:  # noqa: BLE001 -- also the end of the program
            caught.append(error)

    await attempt()
    assert caught == [outcome]
    known = await ledger.get("sku-17")
    assert (known.state, known.owner, known.attempts) == (S.UNCERTAIN, None, 1)
    assert ("the line went dead" in known.note) == isinstance(outcome, SubmissionUncertain)
    for _ in range(2):
        with pytest.raises(SubmissionUncertain) as refused:
            await buy(ledger, service)
        assert refused.value.idempotency_key == "sku-17"
    assert service.posts == 1


async def test_a_cancelled_request_is_uncertain(ledger):
    """The request was sent, but its answer is no longer awaited."""
    service = Service().silent()
    purchase = asyncio.create_task(buy(ledger, service))
    await service.asked.wait()
    purchase.cancel()
    with pytest.raises(asyncio.CancelledError):
        await purchase
    assert (await ledger.get("sku-17")).state is S.UNCERTAIN
    with pytest.raises(SubmissionUncertain):
        await buy(ledger, service)
    assert service.posts == 1


async def test_a_cancellation_that_is_repeated_at_every_step_loses_nothing(ledger):
    """A cancel scope, for example, cancels every later await."""
    service = Service().silent()
    purchase = asyncio.create_task(buy(ledger, service))
    await service.asked.wait()
    while not purchase.done():
        purchase.cancel()
        await asyncio.sleep(0)
    assert purchase.cancelled()

    async def noted():
        return (await ledger.get("sku-17")).state is S.UNCERTAIN

    await until(noted)


async def test_another_request_under_the_key_is_refused_with_what_differs(ledger):
    """The error shows the differences, and nothing is sent."""
    service = Service()
    await buy(ledger, service)
    with pytest.raises(IdempotencyKeyConflict, match="duration was 5, is 10") as caught:
        await buy(ledger, service, wish=OTHER)
    assert (caught.value.idempotency_key, caught.value.task_id) == ("sku-17", "task-1")
    assert service.posts == 1


@pytest.mark.parametrize("claimed_by", [dead_owner, distant_owner])
@pytest.mark.heavy
async def test_the_claim_of_a_dead_process_is_uncertain_at_once(ledger_url, claimed_by):
    """The process died between claim and id; on another machine the lease must expire first."""
    ledger: Any = Ledger(ledger_url, lease=0.3)
    await put(ledger, S.CLAIMED, owner=claimed_by(), attempts=1)
    service = Service()
    with pytest.raises(SubmissionUncertain, match="left no answer"):
        await buy(ledger, service)
    known = await ledger.get("sku-17")
    assert (known.state, known.owner, service.posts) == (S.UNCERTAIN, None, 0)
    assert (await buy(ledger, service, resubmit=True)).attempts == 2
    await ledger.database.close()


async def test_an_id_that_stands_for_another_request_is_no_receipt(ledger):
    """The outcome is uncertain, and the other generation's video is not used."""
    service = Service("task-1", "task-1")
    first = await buy(ledger, service)
    other = intent("sku-18", fingerprint="b" * 64)
    with pytest.raises(
        SubmissionUncertain, match=r"id task-1, .* already belongs to .* of key 'sku-17'"
    ):
        await buy(ledger, service, wish=other)
    there = await ledger.get("sku-18")
    assert (there.state, there.task_id, there.owner) == (S.UNCERTAIN, None, None)
    assert "task-1" in there.note
    assert (await ledger.get("sku-17")).state is first.state is S.SUBMITTED
    with pytest.raises(SubmissionUncertain, match="an earlier attempt is uncertain"):
        await buy(ledger, service, wish=other)
    assert service.posts == 2


@pytest.mark.parametrize(
    "there",
    [
        {"fingerprint": "a" * 64},
        {"fingerprint": None, "request": None},
        {"fingerprint": "b" * 64, "base_url": "https://elsewhere.example.com"},
    ],
    ids=["the same request", "adopted by its id", "of another service"],
)
async def test_an_id_that_may_stand_for_both_is_a_receipt(ledger, there):
    """A service may answer two equal requests with one id, which is unique within that service."""
    await attach(ledger, intent("sku-16", **there), "task-1")
    bought = await buy(ledger, Service("task-1"))
    assert (bought.state, bought.task_id) == (S.SUBMITTED, "task-1")


async def test_a_claim_elsewhere_is_waited_for_until_its_answer_comes(ledger, monkeypatch):
    """The id of the other run is used, and the expected wait is reported once."""
    monkeypatch.setattr(purchase, "CLAIM_POLL_INTERVAL", 0.01)
    theirs = await put(ledger, S.CLAIMED, owner=distant_owner("nightly"), attempts=1)
    told, service = Told(), Service()
    looks, add = asyncio.Semaphore(0), ledger.insert_claim

    async def counted(*arguments, **values):
        looks.release()
        return await add(*arguments, **values)

    monkeypatch.setattr(ledger, "insert_claim", counted)
    waiting = asyncio.create_task(buy(ledger, service, warn=told))
    for _ in range(4):
        await looks.acquire()
    await ledger.mark_submitted(theirs, "task-9", MOMENT, None)
    assert (await waiting).task_id == "task-9"
    assert told == ["waiting for nightly on far-away, process 17, which submits this key"]
    assert service.posts == 0


async def test_who_is_cancelled_while_waiting_disturbs_nothing(ledger):
    """The other run's claim stays unchanged."""
    theirs = await put(ledger, S.CLAIMED, owner=distant_owner(), attempts=1)
    told, service = Told(), Service()
    waiting = asyncio.create_task(buy(ledger, service, warn=told))
    await told.heard.wait()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    there = await ledger.get("sku-17")
    assert (there.state, there.claim, there.owner) == (S.CLAIMED, theirs.claim, theirs.owner)
    assert service.posts == 0


async def test_who_is_cancelled_before_sending_leaves_the_key_free(ledger, monkeypatch):
    """Nothing was sent under the claim, so it is withdrawn."""
    add, made = ledger.insert_claim, asyncio.Event()

    async def slow(*arguments, **named):
        await add(*arguments, **named)
        made.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(ledger, "insert_claim", slow)
    service = Service()
    purchase = asyncio.create_task(buy(ledger, service))
    await made.wait()
    purchase.cancel()
    with pytest.raises(asyncio.CancelledError):
        await purchase
    monkeypatch.undo()
    assert (await ledger.get("sku-17")).state is S.REJECTED
    assert (await buy(ledger, service)).attempts == 2
    assert service.posts == 1


@pytest.mark.parametrize("after", [False, True])
async def test_without_a_claim_nothing_is_sent(ledger, after):
    """Nothing is sent if the claim failed or its confirmation was lost."""
    repair = out_of_order(ledger, "insert_claim", after=after)
    service = Service()
    with pytest.raises(LedgerUnavailable, match="nothing was charged"):
        await buy(ledger, service)
    assert service.posts == 0
    repair()
    assert (await buy(ledger, service)).attempts == 1 + after
    assert service.posts == 1


async def test_an_entry_that_is_deleted_while_it_is_looked_at_is_made_anew(ledger, monkeypatch):
    """The purchase starts again if someone deletes the row in the database."""
    await put(ledger, S.SUBMITTED, task_id="task-0")
    await put(ledger, S.SUBMITTED, "newer", task_id="task-9")
    get = ledger.get

    async def deleted(key):
        await delete_row(ledger, "sku-17")
        return await get(key)

    monkeypatch.setattr(ledger, "get", deleted)
    service = Service()
    assert (await buy(ledger, service)).task_id == "task-1"
    assert service.posts == 1


async def test_a_claim_that_could_not_even_be_withdrawn_is_withdrawn_later(ledger):
    """This process knows that it sent nothing, so it frees the key when the ledger is back."""
    repairs = [out_of_order(ledger, "insert_claim", after=True), out_of_order(ledger, "_change")]
    service = Service()
    with pytest.raises(LedgerUnavailable):
        await buy(ledger, service)
    for repair in repairs:
        repair()
    assert (await ledger.get("sku-17")).state is S.CLAIMED
    assert (await buy(ledger, service)).attempts == 2
    assert service.posts == 1


async def test_an_id_that_cannot_be_recorded_is_used_all_the_same(ledger):
    """The run continues and reports it, and nothing is bought again."""
    service, told = Service().silent(), Told()
    ledger.database.retry_timeout = 0.3
    purchase = asyncio.create_task(buy(ledger, service, warn=told))
    await service.asked.wait()
    repair = out_of_order(ledger, "_change")
    service.answer.set()
    bought = await purchase
    assert (bought.state, bought.task_id) == (S.SUBMITTED, "task-1")
    assert bought.submission().task_id == "task-1"
    assert len(told) == 1
    assert "task-1" in told[0]
    repair()
    with pytest.raises(SubmissionUncertain):
        await buy(ledger, service)
    assert service.posts == 1


@pytest.mark.parametrize("outcome", [InvalidRequest("no"), SubmissionUncertain("?")])
async def test_an_outcome_that_cannot_be_recorded_is_on_the_safe_side(ledger, outcome):
    """The original error is raised, the user is warned, and the key is not free."""
    service, told = Service(outcome).silent(), Told()
    purchase = asyncio.create_task(buy(ledger, service, warn=told))
    await service.asked.wait()
    repair = out_of_order(ledger, "_change")
    service.answer.set()
    with pytest.raises(CometAPIError) as caught:
        await purchase
    assert caught.value is outcome
    assert len(told) == 1
    assert "SubmissionUncertain" in told[0]
    repair()
    with pytest.raises(SubmissionUncertain):
        await buy(ledger, service)
    assert service.posts == 1
