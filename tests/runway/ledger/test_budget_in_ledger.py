# SPDX-License-Identifier: Apache-2.0
"""The limits of a batch are kept in the ledger, across runs, rows and user decisions."""

import asyncio
import tempfile
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefect_cometapi.runway import (
    BudgetExceeded,
    InvalidRequest,
    Ledger,
    LedgerUnavailable,
    NotSubmitted,
    State,
    SubmissionUncertain,
)
from prefect_cometapi.runway.ledger.budget import Budget
from prefect_cometapi.runway.ledger.statement import Sql
from prefect_cometapi.runway.models.prices import Price

from ..factories import Service, buy, change, intent, put

S = State
MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None
FIVE = Budget("b/", max_spend=5.0)


def wish(key: str, **changes):
    """Make an intent that costs one unit of money and five seconds."""
    return intent(f"b/{key}", **{"cost": 1.0, **changes})


async def spent(ledger: Ledger) -> float:
    return (await ledger.spent("b/", {})).money


async def test_a_submission_that_would_pass_the_limit_is_not_sent(ledger):
    """The error has the figures and says how to continue; other keys are not affected."""
    service = Service()
    for number in range(5):
        await buy(ledger, service, wish=wish(f"{number}"), budget=FIVE)
    with pytest.raises(BudgetExceeded) as caught:
        await buy(ledger, service, wish=wish("5"), budget=FIVE)
    assert isinstance(caught.value, NotSubmitted)
    assert "(5.00 of 5.00 spent, 1.00 more)" in caught.value.message
    assert "Money: nothing was charged" in str(caught.value)
    assert "raise max_spend" in caught.value.hint()
    assert caught.value.idempotency_key == "b/5"
    assert await ledger.get("b/5") is None
    await buy(ledger, service, wish=intent("other/5", cost=1.0), budget=None)
    assert service.posts == 6


async def test_seconds_of_video_are_limited_as_money_is(ledger):
    """Seconds are limited even without prices."""
    budget, service = Budget("b/", max_seconds=12), Service()
    for number in range(2):
        await buy(ledger, service, wish=wish(f"{number}", cost=None), budget=budget)
    with pytest.raises(BudgetExceeded, match="10 of 12 s of video, 5 more"):
        await buy(ledger, service, wish=wish("2", cost=None), budget=budget)
    unknown = wish("2", cost=None, billed_seconds=None)
    with pytest.raises(BudgetExceeded, match="10 more"):
        await buy(ledger, service, wish=unknown, budget=budget)
    assert service.posts == 2


async def test_rows_that_left_the_manifest_still_count(ledger):
    """A limit of five does not buy five of each manifest under one key."""
    service = Service()
    for number in range(5):
        await buy(ledger, service, wish=wish(f"old-{number}"), budget=FIVE)
    for number in range(5):
        with pytest.raises(BudgetExceeded):
            await buy(ledger, service, wish=wish(f"new-{number}"), budget=FIVE)
    assert service.posts == 5


async def test_each_submission_of_a_key_counts(ledger):
    """A released key was possibly charged before, so a limit of one buys it once."""
    one, service = Budget("b/", max_spend=1.0), Service(SubmissionUncertain("?"))
    with pytest.raises(SubmissionUncertain):
        await buy(ledger, service, wish=wish("1"), budget=one)
    for _ in range(2):
        await change(ledger, "b/1", S.RESUBMIT_ALLOWED)
        with pytest.raises(BudgetExceeded):
            await buy(ledger, service, wish=wish("1"), budget=one)
    assert service.posts == 1
    assert (await buy(ledger, service, wish=wish("1"), budget=FIVE)).charges == 2
    assert await spent(ledger) == 2.0


async def test_a_resubmission_after_an_unknown_outcome_needs_room(ledger):
    """Without room it stays uncertain, with the reason, and nothing is sent."""
    service = Service(SubmissionUncertain("no answer"))
    one = Budget("b/", max_spend=1.5)
    with pytest.raises(SubmissionUncertain) as first:
        await buy(ledger, service, wish=wish("1"), budget=one, resubmit=True)
    assert first.value.may_resubmit
    with pytest.raises(
        SubmissionUncertain, match=r"no answer.*exceed the spending limit"
    ) as caught:
        await buy(ledger, service, wish=wish("1"), budget=one, resubmit=True)
    assert not caught.value.may_resubmit
    assert service.posts == 1
    known = await ledger.get("b/1")
    assert known
    assert (known.state, known.charges, known.resubmitted_by) == (S.UNCERTAIN, 1, ())


async def test_a_certain_refusal_gives_its_money_back(ledger):
    """The refunded amount is available to any key, including the same one."""
    one = Budget("b/", max_spend=1.0)
    service = Service(InvalidRequest("no"), InvalidRequest("no"))
    for _ in range(2):
        with pytest.raises(InvalidRequest):
            await buy(ledger, service, wish=wish("1"), budget=one)
        assert await spent(ledger) == 0.0
    await buy(ledger, service, wish=wish("2"), budget=one)
    with pytest.raises(BudgetExceeded):
        await buy(ledger, service, wish=wish("1"), budget=one)
    assert await spent(ledger) == 1.0


async def test_another_request_under_a_key_costs_what_both_cost(ledger):
    """A cheaper request does not reduce the cost of the first, possibly charged one."""
    budget = Budget("b/", max_spend=10.0, max_seconds=100)
    service = Service(SubmissionUncertain("?"))
    with pytest.raises(SubmissionUncertain):
        await buy(ledger, service, wish=wish("1", cost=3.0, billed_seconds=10.0), budget=budget)
    await change(ledger, "b/1", S.RESUBMIT_ALLOWED)
    cheaper = wish("1", cost=1.0, billed_seconds=5.0, fingerprint="b" * 64)
    await buy(ledger, service, wish=cheaper, budget=budget)
    total = await ledger.spent("b/", {})
    assert total.money >= 4.0
    assert total.seconds >= 15.0
    assert total.charges == 2


async def test_what_is_attached_needs_no_room(ledger):
    """An attached generation is already bought."""
    service = Service()
    first = await buy(ledger, service, wish=wish("1"), budget=FIVE)
    none_left = Budget("b/", max_spend=0.0)
    assert await buy(ledger, service, wish=wish("1"), budget=none_left) == first


async def test_a_key_that_another_run_buys_at_the_limit_is_attached_to(ledger):
    """Two runs that want the last one at the same time both get it."""
    one, service = Budget("b/", max_spend=1.0), Service().silent()
    calls = [
        asyncio.create_task(buy(ledger, service, wish=wish("1"), budget=one, run=f"r{n}"))
        for n in range(2)
    ]
    await service.asked.wait()
    service.answer.set()
    assert {bought.task_id for bought in await asyncio.gather(*calls)} == {"task-1"}


async def test_room_that_comes_free_at_the_same_moment_is_used(ledger, monkeypatch):
    """A refund that comes just after the budget seemed used up is noticed."""
    one, get = Budget("b/", max_spend=1.0), ledger.get
    await put(ledger, S.CLAIMED, "b/0", charges=1, cost=1.0)

    async def refused_meanwhile(key):
        if key == "b/1":
            await change(ledger, "b/0", S.REJECTED, charges=0)
        return await get(key)

    monkeypatch.setattr(ledger, "get", refused_meanwhile)
    assert (await buy(ledger, Service(), wish=wish("1"), budget=one)).charges == 1
    assert await spent(ledger) == 1.0


async def test_two_runs_at_once_keep_to_one_limit(ledger, ledger_url):
    """Two runs with separate connections and keys buy five in total, and never nine."""
    other, service = Ledger(ledger_url), Service()
    await other.get("b/1")

    async def attempt(where: Ledger, key: str) -> bool:
        with suppress(BudgetExceeded):
            await buy(where, service, wish=wish(key), budget=FIVE)
            return True
        return False

    runs = [(ledger, f"a{n}") for n in range(9)] + [(other, f"b{n}") for n in range(9)]
    bought = await asyncio.gather(*(attempt(*run) for run in runs))
    assert sum(bought) == service.posts == 5
    assert await spent(ledger) == 5.0
    await other.database.close()


async def test_a_claim_that_the_database_did_not_confirm_is_found_again(ledger, monkeypatch):
    """The insert is repeated under the same claim and counts once."""
    asked, lost = ledger.database.execute_timed, []

    async def loses_the_first_answer(statement, lock=None):
        answer = await asked(statement, lock)
        if lock and not lost:
            lost.append(answer)
            return await asked(statement, lock)
        return answer

    monkeypatch.setattr(ledger.database, "execute_timed", loses_the_first_answer)
    one = Budget("b/", max_spend=1.0)
    assert (await buy(ledger, Service(), wish=wish("1"), budget=one)).charges == 1
    assert lost


@pytest.mark.heavy
async def test_a_claim_that_fails_midway_leaves_no_lock(postgres):
    """Another claim under the same prefix does not have to wait."""
    ledger = Ledger(postgres.create_database(), retry_timeout=0.1)
    await ledger.get("b/1")
    with pytest.raises(LedgerUnavailable):
        await ledger.database.execute_timed(Sql("no statement"), "b/")
    async with asyncio.timeout(20):
        await buy(ledger, Service(), wish=wish("1"), budget=FIVE)
    await ledger.database.close()


async def test_a_price_of_a_second_is_applied_to_the_length_of_the_video(ledger):
    """Once stored, the real length of a video replaces the assumed ten seconds."""
    from ..factories import video

    price = Price(0.2, per_second=True)
    there = await put(ledger, S.SUBMITTED, "b/1", task_id="task-1", charges=1, cost=2.0)
    there = there.model_copy(update={"billed_seconds": None})
    await ledger.mark_stored(there, "task-1", "/videos", [video(seconds=6.0)], price=price)
    assert await spent(ledger) == pytest.approx(1.2)


@dataclass
class Model:
    """The requests that were really sent, compared with the ledger."""

    ledgers: list[Ledger]
    budget: Budget
    real: dict[str, float] = field(default_factory=dict)

    async def claim(self, which: int, key: str, cost: float, outcome: str, again: bool) -> None:
        async def post(_check: object) -> str:
            self.real[claim] = cost
            assert sum(self.real.values()) <= (self.budget.max_spend or 0.0) + 1e-6
            await asyncio.sleep(0)
            if outcome == "refused":
                del self.real[claim]
                raise InvalidRequest("no")
            if outcome == "uncertain":
                raise SubmissionUncertain("?")
            return f"task-{claim}"

        claim = f"{len(self.real)}-{key}-{id(post)}"
        service = Service()
        service.post = post
        asked = {"wish": wish(key, cost=cost), "budget": self.budget, "run": f"r{which}"}
        with suppress(BudgetExceeded, InvalidRequest, SubmissionUncertain):
            await buy(self.ledgers[which], service, resubmit=again, **asked)

    async def release(self, key: str) -> None:
        await change(self.ledgers[0], f"b/{key}", S.RESUBMIT_ALLOWED)


claims = st.tuples(
    st.integers(0, 1),
    st.sampled_from("abcd"),
    st.sampled_from([0.1, 0.5, 1.0, 2.5]),
    st.sampled_from(["accepted", "refused", "uncertain"]),
    st.booleans(),
)


@settings(max_examples=settings().max_examples // 5)  # each opens two ledgers
@given(limit=st.floats(0, 6), rounds=st.lists(st.lists(claims | st.sampled_from("abcd"))))
def test_no_order_of_claims_passes_the_limit(limit, rounds):
    """The limit holds for two ledgers with refusals, lost answers, resubmissions and new prices."""

    async def play() -> None:
        url = f"sqlite:///{folder}/ledger.db"
        model = Model([Ledger(url), Ledger(url)], Budget("b/", max_spend=limit))
        for steps in rounds:
            await asyncio.gather(
                *(
                    model.release(step) if isinstance(step, str) else model.claim(*step)
                    for step in steps
                )
            )
            recorded = await spent(model.ledgers[0])
            assert sum(model.real.values()) - 1e-6 <= recorded <= limit + 1e-6
        for ledger in model.ledgers:
            await ledger.database.close()

    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        asyncio.run(play())
