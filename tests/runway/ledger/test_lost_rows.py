# SPDX-License-Identifier: Apache-2.0
"""A run whose ledger row is lost writes it again, so that nothing is bought twice."""

import asyncio
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import pytest

from prefect_cometapi.runway import (
    Entry,
    GenerationFailed,
    Ledger,
    State,
    StorageError,
    SubmissionUncertain,
)
from prefect_cometapi.runway.ledger.purchase import buy_once

from ..factories import (
    Service,
    change,
    delete_row,
    finished,
    intent,
    put,
    set_columns,
    until,
    video,
)

S = State
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")


async def lose(ledger: Ledger, key: str = "sku-17") -> None:
    """Delete a row, as if a standby that took over too early never had it."""
    await delete_row(ledger, key)


async def as_an_older_copy_has_it(ledger: Ledger, before: State) -> dict[str, Any]:
    """Return the columns of a key before its next purchase, which is now allowed."""
    there = await put(ledger, before, attempts=1)
    if before is S.UNCERTAIN:
        await change(ledger, "sku-17", S.RESUBMIT_ALLOWED)
    return {"state": str(before), "claim": there.claim, "serial": there.serial, "attempts": 1}


class Buying:
    """A purchase with an unanswered request."""

    def __init__(self, ledger: Ledger, outcome: str | BaseException = "task-1") -> None:
        self.service = Service(outcome).silent()
        self.told: list[str] = []
        buying = buy_once(ledger, intent(), self.service.post, run="r", warn=self.told.append)
        self.task = asyncio.create_task(buying)

    async def answered(self) -> Entry:
        self.service.answer.set()
        return await self.task


async def test_a_claim_that_vanished_during_the_request_is_written_again_with_its_id(
    ledger,
):
    """The key stays bought, and no second submission is reported."""
    buying = Buying(ledger)
    await buying.service.asked.wait()
    await lose(ledger)
    bought = await buying.answered()
    assert (bought.idempotency_key, bought.task_id, bought.charges) == ("sku-17", "task-1", 1)
    (told,) = buying.told
    assert "had lost the row of key 'sku-17' (id task-1)" in told
    again = Service()
    assert (await buy_once(ledger, intent(), again.post, run="next")).task_id == "task-1"
    assert again.posts == 0


@pytest.mark.parametrize("before", [S.REJECTED, S.RESUBMIT_ALLOWED, S.UNCERTAIN])
async def test_a_claim_that_an_older_copy_forgot_gets_its_id_under_the_key(ledger, before):
    """The older copy has the key as it was before this purchase."""
    old = await as_an_older_copy_has_it(ledger, before)
    buying = Buying(ledger)
    await buying.service.asked.wait()
    await set_columns(ledger, "sku-17", **old, owner=None)
    bought = await buying.answered()
    assert (bought.idempotency_key, bought.task_id, bought.state) == (
        "sku-17",
        "task-1",
        S.SUBMITTED,
    )
    assert [entry.idempotency_key for entry in await ledger.entries()] == ["sku-17"]
    (told,) = buying.told
    assert "had forgotten that key 'sku-17' was being bought; its id is task-1" in told


async def unanswered(buying: Buying) -> None:
    """End the request of a purchase without an answer."""
    buying.service.answer.set()
    with pytest.raises(SubmissionUncertain):
        await buying.task


async def test_an_open_outcome_whose_claim_vanished_is_recorded(ledger):
    """The key is recorded as uncertain and is not bought again automatically."""
    buying = Buying(ledger, SubmissionUncertain("no answer"))
    await buying.service.asked.wait()
    await lose(ledger)
    await unanswered(buying)
    there = await ledger.get("sku-17")
    assert (there.state, there.note, there.charges) == (S.UNCERTAIN, "no answer", 1)
    again = Service()
    with pytest.raises(SubmissionUncertain):
        await buy_once(ledger, intent(), again.post, run="next")
    assert again.posts == 0


@pytest.mark.parametrize("before", [S.REJECTED, S.RESUBMIT_ALLOWED, S.UNCERTAIN])
async def test_an_open_outcome_that_an_older_copy_forgot_is_recorded_under_its_key(ledger, before):
    """The key looks free in the older copy, but it becomes uncertain."""
    old = await as_an_older_copy_has_it(ledger, before)
    buying = Buying(ledger, SubmissionUncertain("no answer"))
    await buying.service.asked.wait()
    await set_columns(ledger, "sku-17", **old, owner=None)
    await unanswered(buying)
    (found,) = await ledger.entries()
    assert (found.idempotency_key, found.state, found.note) == ("sku-17", S.UNCERTAIN, "no answer")
    assert found.serial > old["serial"]


async def test_an_open_outcome_keeps_a_name_of_its_own_where_the_key_is_taken(ledger):
    """Two submissions were possibly charged, and both are reported."""
    buying = Buying(ledger, SubmissionUncertain("no answer"))
    await buying.service.asked.wait()
    await lose(ledger)
    await put(ledger, S.SUBMITTED, task_id="task-7")
    await unanswered(buying)
    states = {entry.idempotency_key: entry.state for entry in await ledger.entries()}
    (other,) = set(states) - {"sku-17"}
    assert states == {"sku-17": S.SUBMITTED, other: S.UNCERTAIN}
    assert other.startswith("sku-17+")
    (told,) = buying.told
    assert f"the attempt without an answer is recorded as {other}" in told


async def test_an_id_gets_a_name_of_its_own_only_where_the_key_is_taken(ledger):
    """A second submission was allowed meanwhile, and its outcome is unknown."""
    buying = Buying(ledger)
    await buying.service.asked.wait()
    await lose(ledger)
    await put(ledger, S.UNCERTAIN, attempts=1)
    bought = await buying.answered()
    assert bought.idempotency_key == "sku-17+task-1"
    there = await ledger.get("sku-17")
    assert there
    assert (there.state, there.task_id) == (S.UNCERTAIN, None)


@pytest.mark.parametrize("state", [S.SUBMITTED, S.SUCCEEDED])
async def test_a_row_that_vanishes_while_a_run_works_on_it_is_written_again(hasty, state, caplog):
    """The next renewal of the lease writes the row as last read."""
    if state is S.SUCCEEDED:
        there = await hasty.get("sku-17")
        await hasty.mark_succeeded(there.submission(), finished())
    async with hasty.leases.hold_exclusively("sku-17", "run") as entry:
        assert entry
        await lose(hasty)

        async def is_back() -> bool:
            return await hasty.get("sku-17") is not None and "had lost the row" in caplog.text

        await until(is_back)
        back = await hasty.get("sku-17")
        assert (back.state, back.task_id, back.owner) == (state, "task-1", entry.owner)
        assert back.outputs == entry.outputs


@pytest.mark.parametrize("fails", [True, False])
async def test_a_run_that_ends_before_the_next_renewal_leaves_what_it_bought(ledger, fails):
    """The key is not free afterwards, whether the run fails or succeeds."""
    made = await put(ledger, S.SUBMITTED, task_id="task-1", submitted_at=datetime.now(UTC))
    with suppress(StorageError):
        async with ledger.leases.hold_exclusively("sku-17", "run"):
            await lose(ledger)
            if fails:
                raise StorageError("the disk is full")
    there = await ledger.get("sku-17")
    assert (there.task_id, there.claim, there.owner) == ("task-1", made.claim, None)
    again = Service()
    assert (await buy_once(ledger, intent(), again.post, run="next")).task_id == "task-1"
    assert again.posts == 0


async def test_a_purchase_whose_key_was_bought_again_meanwhile_is_recorded_beside_it(hasty, caplog):
    """The next lease renewal writes the purchase beside the other one, so that neither is lost."""
    async with hasty.leases.hold_exclusively("sku-17", "run") as entry:
        assert entry
        await lose(hasty)
        await put(hasty, S.SUBMITTED, task_id="task-2")

        async def is_recorded() -> bool:
            return await hasty.get("sku-17+task-1") is not None

        await until(is_recorded)
    states = {found.idempotency_key: found.task_id for found in await hasty.entries()}
    assert states == {"sku-17": "task-2", "sku-17+task-1": "task-1"}
    told = "was submitted twice; task-1 is recorded as sku-17+task-1"
    assert caplog.text.count(told) == 1


async def test_an_id_that_the_service_has_not_confirmed_gives_way(ledger):
    """An unconfirmed id may be a typo that was replaced, so it is not a second purchase."""
    unconfirmed = await put(ledger, S.SUBMITTED, task_id="task-1", task_id_checked=False)
    await lose(ledger)
    await put(ledger, S.SUBMITTED, task_id="task-2")
    assert await ledger.restore(unconfirmed) is None
    assert [entry.idempotency_key for entry in await ledger.entries()] == ["sku-17"]


async def test_a_purchase_that_is_recorded_already_is_not_recorded_again(ledger):
    """A purchase that is recorded under any key is not recorded again."""
    made = await put(ledger, S.SUBMITTED, task_id="task-1")
    await lose(ledger)
    await put(ledger, S.SUBMITTED, task_id="task-2")
    await put(ledger, S.SUBMITTED, "adopted", task_id="task-1")
    restored: Any = await ledger.restore(made)
    assert restored.idempotency_key == "adopted"
    assert len(await ledger.entries()) == 2


async def test_a_claim_that_vanishes_while_its_answer_is_awaited_cannot_be_bought_by_others(
    ledger_url,
):
    """The claim is written again before the answer comes."""
    ledger = Ledger(ledger_url, lease=0.5)
    buying = Buying(ledger)
    await buying.service.asked.wait()
    await lose(ledger)

    async def is_back() -> bool:
        return await ledger.get("sku-17") is not None

    await until(is_back)
    there = await ledger.get("sku-17")
    assert there
    assert there.state is S.CLAIMED
    assert (await buying.answered()).idempotency_key == "sku-17"
    await ledger.database.close()


async def test_what_was_deleted_and_is_not_worked_on_stays_deleted(hasty):
    """Only a run that works on a generation writes its row again."""
    async with hasty.leases.hold_exclusively("sku-17", "run"):
        pass
    await put(hasty, S.SUBMITTED, "sku-18", task_id="task-2")
    async with hasty.leases.hold_exclusively("sku-18", "run") as entry:
        assert entry
        await lose(hasty)
        before = entry.leased_until

        async def renewed() -> bool:
            return (await hasty.get("sku-18")).leased_until > before

        await until(renewed)
    assert await hasty.get("sku-17") is None


async def test_a_restored_entry_is_the_same_entry(ledger):
    """A restored entry has all its fields."""
    made = await put(ledger, S.SUBMITTED, task_id="task-1", submitted_at=datetime.now(UTC))
    done = await ledger.mark_succeeded(made.submission(), finished())
    whole: Any = await ledger.mark_stored(done, "task-1", "/videos", [video()])
    assert await ledger.restore(whole) is None
    await lose(ledger)
    assert await ledger.restore(whole) == whole


async def test_a_late_failure_of_an_older_purchase_leaves_the_newer_claim_alone(ledger):
    """A poller that was paused reports an id that the key no longer has."""
    old = await put(ledger, S.SUBMITTED, task_id="task-0")
    await change(ledger, "sku-17", S.FAILED, note="no cats")
    await change(ledger, "sku-17", S.RESUBMIT_ALLOWED)
    buying = Buying(ledger)
    await buying.service.asked.wait()
    late = GenerationFailed("it failed")
    assert await ledger.mark_failed(old.submission(), late) is None
    assert await ledger.mark_succeeded(old.submission(), finished("task-0")) is None
    assert await ledger.mark_stored(old, "task-0", "/videos", [video()]) is None
    bought = await buying.answered()
    assert (bought.task_id, bought.state) == ("task-1", S.SUBMITTED)


@pytest.mark.parametrize("outcome", ["task-1", SubmissionUncertain("no answer")], ids=str)
async def test_a_key_that_changes_while_an_outcome_is_recorded_keeps_the_other_one(
    ledger, monkeypatch, outcome
):
    """The outcome is recorded under its own name and is not lost."""
    await put(ledger, S.REJECTED, attempts=1)
    buying = Buying(ledger, outcome)
    await buying.service.asked.wait()
    stale = {"state": str(S.REJECTED), "claim": "another", "owner": None}
    await set_columns(ledger, "sku-17", **stale)
    get = ledger.table.get

    async def get_and_change(key: str) -> Entry | None:
        seen = await get(key)
        claimed = {"state": str(S.UNCERTAIN), "claim": "yet another"}
        await set_columns(ledger, "sku-17", **claimed)
        return seen

    monkeypatch.setattr(ledger.table, "get", get_and_change)
    buying.service.answer.set()
    await asyncio.gather(buying.task, return_exceptions=True)
    keys = {entry.idempotency_key for entry in await ledger.entries()}
    assert len(keys) == 2
    assert all(key.startswith("sku-17") for key in keys)
    assert "submitted twice" in buying.told[0]
