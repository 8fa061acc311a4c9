# SPDX-License-Identifier: Apache-2.0
"""A reconciliation with the sandbox's account adopts what was bought, and nothing else."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import SecretStr

from prefect_cometapi.runway import Entry, Ledger, LedgerUnavailable, State, SubmissionUncertain
from prefect_cometapi.runway.api import reconcile
from prefect_cometapi.runway.api.account import AccountClient
from prefect_cometapi.runway.api.reconcile import (
    Reconciled,
    carry_out,
    examine,
    nothing_listed,
    resolve_dead_claims,
)
from prefect_cometapi.runway.ledger import unresolved
from prefect_cometapi.runway.ledger.conditions import has_key
from prefect_cometapi.runway.ledger.reconciliation import Action, Tolerance, Verdict
from prefect_cometapi.runway.ledger.unresolved import uncertain_entries
from prefect_cometapi.runway.models.account import AccountTasks

from ..conftest import KEY
from ..factories import buy_once, dead_owner, distant_owner, intent, put

S = State
TOKEN = "sandbox-access-token"
HERE = Tolerance(slack=timedelta(0), delay=timedelta(0))
"""Tolerance where all clocks are the same one and the list has no delay."""


class World:
    """A sandbox with its account, and a ledger."""

    def __init__(self, ledger: Ledger, sandbox: Any, client: Any, account: AccountClient) -> None:
        self.ledger, self.sandbox = ledger, sandbox
        self.client, self.account = client, account

    async def buy(self, key: str, request: Any, fault: str = "") -> Entry | None:
        """Buy a generation; with a fault, its reply is lost."""
        if fault:
            self.sandbox.add_fault(fault)
        wish = intent(
            key, base_url=self.sandbox.url, model=request.model, fingerprint=request.fingerprint()
        )
        try:
            return await buy_once(
                self.ledger,
                wish,
                lambda check: self.client.create(request, before_sending=check),
                run="r",
            )
        except SubmissionUncertain:
            return None

    async def look(self, tolerance: Tolerance = HERE, ask: Any = None) -> dict[str, Reconciled]:
        """Return the decisions by key."""
        entries = await uncertain_entries(self.ledger)
        found = await examine(self.ledger, ask or self.account.tasks, entries, tolerance)
        return {one.entry.idempotency_key: one for one in found}

    async def act(self, key: str) -> Reconciled:
        """Look at one key, and carry out the decision."""
        return await carry_out(self.ledger, self.client, (await self.look())[key])

    async def age(self, key: str, **span: float) -> None:
        """Move the submission of a key into the past."""
        moment = datetime.now(UTC) - timedelta(**span)
        times = {"claimed_at": moment, "unresolved_since": moment, "changed_at": moment}
        await self.ledger.table.update([has_key(key)], times)

    @property
    def last_id(self) -> str:
        return self.sandbox.accepted[-1].task_id


@pytest.fixture
async def world(ledger, sandbox, client_of) -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        server = sandbox()
        account = AccountClient(access_token=SecretStr(TOKEN), base_url=server.url)
        opened = await stack.enter_async_context(account)
        yield World(ledger, server, await client_of(server.url), opened)


async def test_a_lost_reply_is_adopted_with_its_evidence(world, request_):
    """The task that fits alone is recorded, confirmed, and explained in the entry."""
    await world.buy("sku-17", request_, "create:reset-after")
    seen = (await world.look())["sku-17"].decision
    assert (seen.verdict, seen.task.task_id) == (Verdict.PROBABLY_THIS, world.last_id)
    assert (await world.ledger.get("sku-17")).state is S.UNCERTAIN  # looking changes nothing
    done = await world.act("sku-17")
    entry = await world.ledger.get("sku-17")
    assert done.done is Action.ADOPT
    assert done.entry == entry
    assert (entry.state, entry.task_id, entry.charges) == (S.SUBMITTED, world.last_id, 1)
    assert entry.task_id_checked
    assert entry.unresolved_since is None
    assert entry.evidence.startswith("probably this: ")
    assert world.last_id in entry.evidence


async def test_a_request_that_never_arrived_frees_its_key_after_15_minutes(world, request_):
    """The list without the task frees the key, once nothing can arrive any more."""
    await world.buy("known", request_)
    await put(world.ledger, S.UNCERTAIN, "never", base_url=world.sandbox.url, charges=1)
    await world.age("never", minutes=1)
    waits = await world.act("never")
    assert (waits.done, waits.decision.verdict) == (Action.NONE, Verdict.NOT_ACCEPTED)
    assert "may still be accepted until" in waits.why_not
    assert waits.entry.evidence.startswith("not accepted: ")
    await world.age("never", minutes=16)
    done = await world.act("never")
    entry = await world.ledger.get("never")
    assert (done.done, entry.state) == (Action.RESUBMIT, S.RESUBMIT_ALLOWED)
    assert entry.evidence.startswith("not accepted: ")
    assert entry.charges == 1  # stays counted
    assert entry.unresolved_since is None


@pytest.mark.parametrize(
    "fault",
    ["unauthorized", "500", "html", "truncated-silent", "changing-total", "late-rows:value=900",
     "foreign-rows:value=2"],
)  # fmt: skip
async def test_a_list_that_cannot_be_trusted_decides_nothing(world, request_, fault):
    """A failed, cut, late or ambiguous list leaves an accepted generation to a person."""
    await world.buy("known", request_)
    await world.buy("sku-17", request_, "create:reset-after")
    kind, _, options = fault.partition(":")
    options = ",".join(filter(None, [options, "times=9"]))
    world.sandbox.add_fault(f"tasks:{kind}:{options}")
    done = await world.act("sku-17")
    assert (done.done, done.decision.verdict) == (Action.NONE, Verdict.UNDECIDED)
    entry = await world.ledger.get("sku-17")
    assert (entry.state, entry.task_id) == (S.UNCERTAIN, None)
    assert entry.evidence.startswith("undecided: ")


async def test_an_account_that_cannot_be_asked_decides_nothing(world, request_):
    """Without a list, the reason is given and the entry stays."""
    await world.buy("sku-17", request_, "create:reset-after")
    made = (await world.look(ask=nothing_listed("there is no access token")))["sku-17"]
    assert made.decision.verdict is Verdict.UNDECIDED
    assert "there is no access token" in made.decision.reason
    assert await examine(world.ledger, world.account.tasks, [], HERE) == []


async def test_two_lost_replies_of_one_moment_are_left_to_a_person(world, request_):
    """Two submissions that overlap cannot be told apart in the list."""
    world.sandbox.add_fault("create:reset-after:times=2")
    await asyncio.gather(world.buy("a", request_), world.buy("b", request_))
    wide = Tolerance(slack=timedelta(seconds=5), delay=timedelta(0))
    made = await world.look(wide)
    assert {one.decision.verdict for one in made.values()} == {Verdict.UNDECIDED}
    assert len(made["a"].decision.candidates) == 2


async def test_a_task_that_the_api_key_does_not_confirm_is_not_adopted(world, request_):
    """An access token of another account cannot lead to an adoption."""
    await world.buy("sku-17", request_, "create:reset-after")
    world.sandbox.add_fault("task:not-visible:times=9")
    done = await world.act("sku-17")
    assert done.done is Action.NONE
    assert "the API key does not confirm it" in done.why_not
    assert (await world.ledger.get("sku-17")).state is S.UNCERTAIN


async def test_an_entry_that_was_decided_meanwhile_stays_as_it_is(world, request_):
    """A person's decision between the look and the change is kept."""
    await world.buy("known", request_)
    await world.buy("sku-17", request_, "create:reset-after")
    await put(world.ledger, S.UNCERTAIN, "never", base_url=world.sandbox.url)
    await world.age("never", minutes=16)
    seen = await world.look()
    for key in ("sku-17", "never"):
        await world.ledger.mark_written_off(await world.ledger.get(key), "by hand")
        done = await carry_out(world.ledger, world.client, seen[key])
        assert (done.done, done.why_not.endswith("changed meanwhile")) == (Action.NONE, True)
        assert (await world.ledger.get(key)).state is S.WRITTEN_OFF
    known = await world.ledger.get("known")
    assert await unresolved.allow_resubmission(world.ledger, known, seen["never"].decision) is None


async def test_one_id_is_never_recorded_for_two_keys(world, request_):
    """Two decisions for the same task at the same time are both taken back."""
    await world.buy("a", request_, "create:reset-after")
    seen = (await world.look())["a"]
    await put(
        world.ledger, S.SUBMITTED, "b", base_url=world.sandbox.url, task_id=world.last_id, charges=1
    )
    done = await carry_out(world.ledger, world.client, seen)
    assert done.done is Action.NONE
    entry = await world.ledger.get("a")
    assert (entry.state, entry.task_id) == (S.UNCERTAIN, None)


async def test_a_submission_in_progress_competes_for_a_task(world, request_):
    """A claim whose reply is on its way may own the task, so nothing is adopted meanwhile."""
    await put(
        world.ledger, S.CLAIMED, "busy", base_url=world.sandbox.url, owner="r", model=request_.model
    )
    await world.buy("sku-17", request_, "create:reset-after")
    made = (await world.look())["sku-17"].decision
    assert made.verdict is Verdict.UNDECIDED
    assert "also fits 1 other keys" in made.reason


async def test_claims_of_dead_runs_become_uncertain_first(world):
    """A claim whose process has ended is resolved, and one that is active stays."""
    here = {"base_url": world.sandbox.url}
    await put(world.ledger, S.CLAIMED, "dead", owner=dead_owner(), **here)
    await put(world.ledger, S.CLAIMED, "active", owner=distant_owner(), **here)
    await resolve_dead_claims(world.ledger, world.sandbox.url)
    assert (await world.ledger.get("dead")).state is S.UNCERTAIN
    assert (await world.ledger.get("active")).state is S.CLAIMED


async def test_evidence_that_cannot_be_written_is_no_error(world, request_, monkeypatch):
    """If the ledger is unavailable, the decision is returned without a change."""
    await world.buy("sku-17", request_, "create:reset-after")
    seen = (await world.look(ask=nothing_listed("HTTP 500")))["sku-17"]

    async def fail(*_arguments: Any) -> None:
        raise LedgerUnavailable("the ledger cannot be used")

    monkeypatch.setattr(reconcile, "record_evidence", fail)
    done = await carry_out(world.ledger, world.client, seen)
    assert (done.done, done.entry.evidence) == (Action.NONE, "")


async def test_a_key_that_was_freed_is_bought_once_more_and_its_first_charge_counts(
    world, request_
):
    """After the verdict, one more submission is sent, and both stay within the spending limit."""
    await world.buy("known", request_)
    await world.buy("never", request_, "create:silent-after:value=0.05")  # accepted, in fact
    listed = await world.account.tasks(datetime.now(UTC) - timedelta(hours=1), datetime.now(UTC))
    without = tuple(task for task in listed.tasks if task.task_id != world.last_id)
    await world.age("never", minutes=16)

    async def ask(_start: datetime, _end: datetime) -> AccountTasks:
        return listed.model_copy(update={"tasks": without})

    seen = (await world.look(ask=ask))["never"]
    await carry_out(world.ledger, world.client, seen)
    bought = await world.buy("never", request_)
    assert (bought.state, bought.charges, bought.attempts) == (S.SUBMITTED, 2, 2)


async def test_the_token_and_the_key_go_to_their_own_routes_only(world, request_):
    """A Runway route never sees the access token, and a list never sees the API key."""
    await world.buy("known", request_)
    await world.buy("sku-17", request_, "create:reset-after")
    await world.act("sku-17")
    seen = {(request.route, request.headers.get("authorization", "")) for request in
            world.sandbox.requests}  # fmt: skip
    assert {secret for route, secret in seen if route in {"create", "task"}} == {f"Bearer {KEY}"}
    assert {secret for route, secret in seen if route == "tasks"} == {f"Bearer {TOKEN}"}
    entry = await world.ledger.get("sku-17")
    assert not [secret for secret in (KEY, TOKEN) if secret in entry.model_dump_json()]
