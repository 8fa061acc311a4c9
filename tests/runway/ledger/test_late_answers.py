# SPDX-License-Identifier: Apache-2.0
"""A late answer, for a key about which others have already decided, is not lost."""

import asyncio

import asyncpg
import pytest

from prefect_cometapi.runway import InvalidRequest, Ledger, State, SubmissionUncertain
from prefect_cometapi.runway.ledger.purchase import attach, buy_once
from prefect_cometapi.runway.ledger.schema import COLUMNS

from ..factories import Service, Told, change, finished, intent, put, until, video

S = State


class Purchase:
    """One purchase with a request under way, whose answer comes when the test says so."""

    def __init__(self, ledger, *outcomes) -> None:
        self.ledger = ledger
        self.service = Service(*outcomes).silent()
        self.told = Told()
        self.task = asyncio.create_task(
            buy_once(ledger, intent(), self.service.post, run="first", warn=self.told)
        )

    async def resolve_dead_claim(self):
        """Mark the purchase as uncertain, as another machine does if it takes this one for dead."""
        await self.service.asked.wait()
        claimed = await self.ledger.get("sku-17")
        return await change(self.ledger, "sku-17", S.UNCERTAIN, seen=claimed, owner=None)

    async def answered(self):
        self.service.answer.set()
        async with asyncio.timeout(20):
            return await self.task


@pytest.fixture
async def purchase(ledger):
    return lambda *outcomes: Purchase(ledger, *outcomes)


async def ids(ledger) -> dict[str, str | None]:
    return {entry.idempotency_key: entry.task_id for entry in await ledger.entries()}


@pytest.mark.parametrize("decided", [None, S.WRITTEN_OFF, S.RESUBMIT_ALLOWED])
async def test_an_id_is_recorded_although_the_key_was_given_up(ledger, purchase, decided):
    """The key gets the id unless something else was bought, even after a release."""
    first = purchase("task-1")
    assert await first.resolve_dead_claim()
    if decided:
        assert await change(ledger, "sku-17", decided)
    bought = await first.answered()
    assert (bought.state, bought.task_id) == (S.SUBMITTED, "task-1")
    assert await ids(ledger) == {"sku-17": "task-1"}
    service = Service()
    assert (await buy_once(ledger, intent(), service.post, run="r")).task_id == "task-1"
    assert service.posts == 0
    assert first.told == []


async def test_both_ids_are_recorded_where_the_key_was_released_and_bought_again(ledger, purchase):
    """The first answer comes last and gets its own key, and the user is informed."""
    first = purchase("task-1")
    await first.resolve_dead_claim()
    await change(ledger, "sku-17", S.RESUBMIT_ALLOWED)
    second = await buy_once(ledger, intent(), Service("task-2").post, run="second")
    assert second.task_id == "task-2"
    bought = await first.answered()
    assert (bought.task_id, bought.state) == ("task-1", S.SUBMITTED)
    assert await ids(ledger) == {"sku-17": "task-2", "sku-17+task-1": "task-1"}
    (told,) = first.told
    assert "submitted twice" in told
    assert "task-1 is recorded as sku-17+task-1" in told


async def test_both_ids_are_recorded_where_the_second_answer_comes_last(ledger, purchase):
    """The first request is answered first, while the second one is still under way."""
    first = purchase("task-1")
    await first.resolve_dead_claim()
    await change(ledger, "sku-17", S.RESUBMIT_ALLOWED)
    service = Service("task-2").silent()
    second = asyncio.create_task(buy_once(ledger, intent(), service.post, run="second"))
    await service.asked.wait()
    assert (await first.answered()).idempotency_key == "sku-17+task-1"
    service.answer.set()
    assert (await second).idempotency_key == "sku-17"
    assert await ids(ledger) == {"sku-17": "task-2", "sku-17+task-1": "task-1"}


async def test_an_adopted_id_is_not_replaced_by_a_late_one(ledger, purchase):
    """Both generations were accepted, so both ids are kept."""
    first = purchase("task-1")
    await first.resolve_dead_claim()
    assert (await attach(ledger, intent(), "task-7")).task_id == "task-7"
    assert (await first.answered()).task_id == "task-1"
    assert await ids(ledger) == {"sku-17": "task-7", "sku-17+task-1": "task-1"}


@pytest.mark.parametrize("delivered", [False, True])
async def test_a_late_id_that_was_adopted_meanwhile_is_the_same_generation(
    ledger, purchase, delivered
):
    """The id is recorded once, and no second submission is reported."""
    first = purchase("task-1")
    await first.resolve_dead_claim()
    adopted = await attach(ledger, intent(), "task-1")
    if delivered:
        await ledger.mark_succeeded(adopted.submission(), finished())
        assert await ledger.mark_stored(adopted, "task-1", "/a", [video()])
    bought = await first.answered()
    assert bought.task_id == "task-1"
    assert bought.state is (S.STORED if delivered else S.SUBMITTED)
    assert await ids(ledger) == {"sku-17": "task-1"}
    assert first.told == []


async def test_a_late_refusal_does_not_free_a_key_that_was_bought_again(ledger, purchase):
    """The refusal applies only to the first request."""
    first = purchase(InvalidRequest("no"))
    await first.resolve_dead_claim()
    await change(ledger, "sku-17", S.RESUBMIT_ALLOWED)
    await buy_once(ledger, intent(), Service("task-2").post, run="second")
    with pytest.raises(InvalidRequest):
        await first.answered()
    there = await ledger.get("sku-17")
    assert (there.state, there.task_id) == (S.SUBMITTED, "task-2")


@pytest.mark.parametrize("outcome", [InvalidRequest("no"), SubmissionUncertain("?")])
async def test_a_late_error_leaves_the_doubt_to_the_user(ledger, purchase, outcome):
    """The user was told that the key is uncertain, so it stays uncertain."""
    first = purchase(outcome)
    await first.resolve_dead_claim()
    with pytest.raises(type(outcome)):
        await first.answered()
    assert (await ledger.get("sku-17")).state is S.UNCERTAIN


async def test_an_id_is_recorded_although_the_run_is_cancelled_while_it_is_written(ledger):
    """A write that has begun is completed."""
    service, change = Service("task-1"), ledger._change
    writing = asyncio.Event()

    async def seen(*arguments, **named):
        writing.set()
        return await change(*arguments, **named)

    ledger._change = seen
    buying = asyncio.create_task(buy_once(ledger, intent(), service.post, run="r"))
    await writing.wait()
    buying.cancel()
    with pytest.raises(asyncio.CancelledError):
        await buying

    async def recorded():
        return (await ledger.get("sku-17")).task_id == "task-1"

    await until(recorded)


async def waits_for_a_lock(watcher: asyncpg.Connection) -> bool:
    """Return whether one of our statements waits for a lock."""
    found = await watcher.fetchval(
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'prefect-cometapi' "
        "AND datname = current_database() AND wait_event_type = 'Lock'"
    )
    return bool(found)


@pytest.mark.heavy
@pytest.mark.parametrize("isolation", ["read committed", "repeatable read", "serializable"])
async def test_an_id_is_recorded_however_strictly_the_server_isolates(postgres, isolation):
    """A lease renewal and an answer that change one row at the same time both succeed."""
    url, service, told = postgres.create_database(), Service().silent(), Told()
    name = url.rpartition("/")[2]
    postgres.execute(f"ALTER DATABASE {name} SET default_transaction_isolation = '{isolation}'")
    ledger = Ledger(url)
    buying = asyncio.create_task(buy_once(ledger, intent(), service.post, run="r", warn=told))
    await until(lambda: service.posts == 1)
    other, watcher = await asyncpg.connect(url), await asyncpg.connect(url)
    async with other.transaction():
        await other.execute("UPDATE cometapi_generations SET leased_until = leased_until + 1")
        service.answer.set()
        await until(lambda: waits_for_a_lock(watcher))
    assert (await buying).task_id == "task-1"
    assert [entry.task_id for entry in await ledger.entries()] == ["task-1"]
    assert told == []
    for each in (other, watcher):
        await each.close()
    await ledger.database.close()


@pytest.mark.heavy
async def test_a_claim_that_is_still_on_its_way_when_the_run_is_cancelled_is_withdrawn(postgres):
    """Nothing was sent under the claim, so the key is free."""
    url, service = postgres.create_database(), Service()
    ledger = Ledger(url)
    await put(ledger, S.REJECTED, "another")
    blocker, watcher = await asyncpg.connect(url), await asyncpg.connect(url)
    transaction = blocker.transaction()
    await transaction.start()
    own = {"idempotency_key", "serial"}
    others = ", ".join(column.name for column in COLUMNS if column.name not in own)
    await blocker.execute(
        f"INSERT INTO cometapi_generations (idempotency_key, {others}) "
        f"SELECT 'sku-17', {others} FROM cometapi_generations"
    )

    async def busy(condition: str = "TRUE") -> int:
        return await watcher.fetchval(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'prefect-cometapi' "
            f"AND state = 'active' AND datname = current_database() AND {condition}"
        )

    buying = asyncio.create_task(buy_once(ledger, intent(), service.post, run="r"))
    await until(lambda: busy("wait_event_type = 'Lock'"))
    buying.cancel()
    await asyncio.wait([buying], timeout=1)
    await transaction.rollback()
    with pytest.raises(asyncio.CancelledError):
        await buying

    async def idle() -> bool:
        return await busy() == 0

    await until(idle)
    await blocker.close()
    await watcher.close()
    try:
        assert (await buy_once(ledger, intent(), service.post, run="r")).task_id == "task-1"
        assert service.posts == 1
    finally:
        await ledger.database.close()
