# SPDX-License-Identifier: Apache-2.0
"""Nothing is paid twice and no paid generation is lost, in any order of events."""

import asyncio
import tempfile
from contextlib import suppress
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from prefect_cometapi.runway import (
    CometAPIError,
    Entry,
    IdempotencyKeyConflict,
    InvalidRequest,
    Ledger,
    LedgerUnavailable,
    State,
    SubmissionUncertain,
)
from prefect_cometapi.runway.ledger import purchase
from prefect_cometapi.runway.ledger.entry import ALLOWED_PREDECESSORS
from prefect_cometapi.runway.ledger.purchase import Check, Step, attach, buy_once, next_step

from ..factories import change, dead_owner, intent, put, until

S = State
KEY = "sku-17"
MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None
OPEN = {S.CLAIMED, S.UNCERTAIN, S.WRITTEN_OFF}


class Killed(BaseException):
    """The process of an attempt was killed."""


@dataclass(eq=False)
class Attempt:
    """A run that wants the generation, with the faults of its ledger."""

    ledger: Ledger
    number: int
    resubmit: bool
    dies_with_claim: bool
    posted: bool = False
    accepted: str | None = None
    trouble: tuple[type[BaseException], bool] | None = None
    may_proceed: asyncio.Event = field(default_factory=asyncio.Event)
    outcome: BaseException | None = None
    dead: bool = False
    task: asyncio.Task[object] | None = None

    def __post_init__(self) -> None:
        """Put the faults into a copy of the ledger, which shares its parts with the others."""
        self._insert_claim, self._change = self.ledger.insert_claim, self.ledger._change
        own: Any = copy(self.ledger)
        own.insert_claim, own._change = self.insert_claim, self.change
        self.ledger = own

    async def insert_claim(self, *arguments, **named):
        made = await self._insert_claim(*arguments, **named)
        if made and self.dies_with_claim:
            self.dead = True
            raise Killed
        return made

    async def change(self, *arguments, **named):
        if self.dead:
            raise Killed
        kind, after = self.trouble or (None, False)
        if self.posted and kind and not after:
            self.dead = kind is Killed
            raise kind("trouble")
        changed = await self._change(*arguments, **named)
        if self.posted and kind:
            self.dead = kind is Killed
            raise kind("trouble")
        return changed

    async def post(self, _check: Check) -> str:
        self.posted = True
        await self.may_proceed.wait()
        if self.outcome:
            raise self.outcome
        assert self.accepted
        return self.accepted

    @property
    def is_over(self) -> bool:
        assert self.task
        return self.task.done()


class OneKey(RuleBasedStateMachine):
    """Runs, crashes, other machines and a user, all working on one key."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory(dir=MEMORY)
        self.runner = asyncio.Runner()
        self.ledger = Ledger(f"sqlite:///{self.folder.name}/ledger.db", retry_timeout=0.05)
        self.attempts: list[Attempt] = []
        self.accepted: set[str] = set()
        self.waived: set[str] = set()
        self.known: dict[str, Entry] = {}
        self.allowed = 1
        self.count = 0

    def teardown(self) -> None:
        self.runner.run(self.end())
        self.runner.close()
        self.folder.cleanup()

    async def end(self) -> None:
        tasks = [attempt.task for attempt in self.attempts if attempt.task]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.ledger.database.close()

    # Known entries

    def look(self) -> None:
        self.known = {
            entry.idempotency_key: entry for entry in self.runner.run(self.ledger.entries())
        }

    def entry(self) -> Entry | None:
        return self.known.get(KEY)

    def under_way(self) -> list[Attempt]:
        return [attempt for attempt in self.attempts if attempt.posted and not attempt.is_over]

    def waiting(self) -> list[Attempt]:
        return [each for each in self.attempts if not each.is_over and not each.posted]

    def recorded(self) -> set[str | None]:
        return {entry.task_id for entry in self.known.values()}

    def decided_by_user(self) -> None:
        """Count accepted ids as lost by the user's decision if nothing records or reports them."""
        alive = {attempt.accepted for attempt in self.under_way()}
        self.waived |= self.accepted - self.recorded() - alive

    def settle(self) -> None:
        """Let every run continue until it ends, sends its request or waits with a reason."""

        async def settled() -> bool:
            there = await self.ledger.get(KEY)
            owner = self.owner_of_claim(there)
            waits = any(each.number == owner for each in self.under_way())
            return all(each.is_over or each.posted or waits for each in self.attempts)

        waited = self.waiting()
        self.runner.run(until(settled))
        self.look()
        if any(attempt.resubmit and attempt.posted for attempt in waited):
            self.decided_by_user()  # a second charge was accepted in advance
        for attempt in self.attempts:
            assert attempt.task
            if attempt.is_over and not attempt.task.cancelled():
                error = attempt.task.exception()
                assert error is None or isinstance(error, CometAPIError | Killed), error

    # Runs

    @precondition(lambda self: len(self.under_way()) < 3 and not self.waiting())
    @rule(resubmit=st.booleans(), dies=st.sampled_from([False, False, False, True]))
    def a_run_starts(self, resubmit: bool, dies: bool) -> None:
        self.count += 1
        self.allowed += resubmit
        attempt = Attempt(self.ledger, self.count, resubmit, dies)

        async def start() -> None:
            attempt.task = asyncio.create_task(
                buy_once(
                    attempt.ledger,
                    intent(KEY),
                    attempt.post,
                    run=f"run {attempt.number}",
                    resubmit_as=f"run {attempt.number}" if resubmit else None,
                )
            )

        self.runner.run(start())
        self.attempts.append(attempt)
        self.settle()

    @precondition(lambda self: self.under_way())
    @rule(
        which=st.integers(0, 2),
        accepted=st.booleans(),
        outcome=st.sampled_from(["answer", "answer", "answer", "none", "cancelled", "killed"]),
        trouble=st.none() | st.tuples(st.sampled_from([Killed, LedgerUnavailable]), st.booleans()),
    )
    def a_request_ends(self, which, accepted, outcome, trouble) -> None:
        attempt = self.under_way()[which % len(self.under_way())]
        assert attempt.task
        there = self.entry()
        if accepted:
            attempt.accepted = f"task-{attempt.number}"
            self.accepted.add(attempt.accepted)
        attempt.trouble = trouble
        is_refusal = outcome == "answer" and not accepted
        if is_refusal:
            attempt.outcome = InvalidRequest("no")
            self.allowed += 1
        elif outcome == "none":
            attempt.outcome = SubmissionUncertain("no answer")
        elif outcome == "killed":
            attempt.outcome, attempt.dead = Killed(), True
        if outcome == "cancelled":
            attempt.task.cancel()
        attempt.may_proceed.set()

        async def over() -> None:
            assert attempt.task
            with suppress(CometAPIError, Killed, asyncio.CancelledError):
                await attempt.task

        self.runner.run(over())
        spoke = outcome == "answer" and trouble is None
        if accepted and not spoke and not (there and there.state in OPEN):
            self.waived.add(f"task-{attempt.number}")  # no run is left that could report it
        if accepted and not spoke and attempt.number != self.owner_of_claim(there):
            self.waived.add(f"task-{attempt.number}")
        self.settle()

    def owner_of_claim(self, there) -> int | None:
        """Return the run that made the claim in the ledger."""
        if there is None or there.owner is None or "|run " not in there.owner:
            return None
        return int(there.owner.partition("|run ")[2].partition("#")[0])

    @precondition(lambda self: self.waiting())
    @rule()
    def a_waiting_run_is_cancelled(self) -> None:
        (waiting,) = self.waiting()
        assert waiting.task
        waiting.task.cancel()
        self.settle()

    @precondition(lambda self: self.entry() is None)
    @rule()
    def a_process_is_killed_between_its_claim_and_its_request(self) -> None:
        self.runner.run(put(self.ledger, S.CLAIMED, KEY, owner=dead_owner(), attempts=1))
        self.look()

    @rule()
    def another_machine_takes_the_run_for_dead(self) -> None:
        there = self.entry()
        if there and there.state is S.CLAIMED:
            changed = change(self.ledger, KEY, S.UNCERTAIN, seen=there, owner=None)
            assert self.runner.run(changed)
            self.settle()

    # Service and user

    @rule(state=st.sampled_from([S.WRITTEN_OFF, S.RESUBMIT_ALLOWED, S.ABANDONED]))
    def the_user_decides(self, state: State) -> None:
        there = self.entry()
        if there is None or there.state not in ALLOWED_PREDECESSORS[state]:
            return
        if state is S.RESUBMIT_ALLOWED:
            self.allowed += 1
            self.decided_by_user()
            self.waived.add(there.task_id or "")
        assert self.runner.run(change(self.ledger, KEY, state))
        self.settle()

    @rule(number=st.integers(0, 20), known=st.booleans())
    def the_user_adopts_an_id(self, number: int, known: bool) -> None:
        there = self.entry()
        if (
            there
            and there.state is S.CLAIMED
            and self.runner.run(self.ledger.leases.is_active(there))
        ):
            return
        missing = sorted(self.accepted - self.recorded())
        task_id = missing[0] if known and missing else f"other-{number}"
        self.accepted.add(task_id)
        try:
            self.runner.run(attach(self.ledger, intent(KEY), task_id))
        except IdempotencyKeyConflict:
            self.waived.add(task_id)
        else:
            self.decided_by_user()
        self.settle()

    @rule(state=st.sampled_from([S.SUCCEEDED, S.STORED, S.FAILED, S.CANCELLED]))
    def it_ends_upstream(self, state: State) -> None:
        there = self.entry()
        if (
            there
            and there.task_id
            and there.state in ALLOWED_PREDECESSORS[state] - {S.RESUBMIT_ALLOWED}
        ):
            assert self.runner.run(change(self.ledger, KEY, state))
            self.look()

    # Invariants

    @invariant()
    def every_request_was_allowed(self) -> None:
        """Allow one request, plus one per refusal, release and accepted second charge."""
        assert sum(attempt.posted for attempt in self.attempts) <= self.allowed

    @invariant()
    def no_accepted_id_is_lost(self) -> None:
        """An accepted id is in the ledger, a run still has it, or the key is uncertain."""
        alive = {attempt.accepted for attempt in self.under_way()}
        lost = self.accepted - self.recorded() - alive - self.waived
        there = self.entry()
        assert not lost or (there and there.state in OPEN), (lost, there)

    @invariant()
    def what_is_bought_has_an_id(self) -> None:
        """A bought entry has an id, and an uncertain one has none."""
        for entry in self.known.values():
            if entry.state in OPEN:
                assert entry.task_id is None
            elif not entry.is_free():
                assert entry.task_id


QUICK = settings(
    max_examples=settings().max_examples // 2,  # each is a whole life of a ledger
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)


def test_nothing_is_paid_twice_and_nothing_is_lost_in_any_order(monkeypatch):
    """Runs overlap, crash and are cancelled, while other machines and a user act as well."""
    monkeypatch.setattr(purchase, "CLAIM_POLL_INTERVAL", 0.002)
    run_state_machine_as_test(OneKey, settings=QUICK)


@pytest.mark.heavy
def test_a_purchase_without_leave_is_noticed(monkeypatch):
    """If an uncertain outcome counted as a refusal, the test above would fail."""

    def reckless(entry, *arguments, **named):
        step = next_step(entry, *arguments, **named)
        doubt = isinstance(step, SubmissionUncertain) and entry.state is S.UNCERTAIN
        return Step.BUY if doubt else step

    monkeypatch.setattr(purchase, "CLAIM_POLL_INTERVAL", 0.002)
    monkeypatch.setattr(purchase, "next_step", reckless)
    with pytest.raises(AssertionError):
        run_state_machine_as_test(
            OneKey, settings=settings(QUICK, max_examples=400, phases=[Phase.generate])
        )
