# SPDX-License-Identifier: Apache-2.0
"""Only one run works on a generation at a time, and dead owners do not block others."""

import asyncio
import subprocess
import sys
import threading
import time

import pytest

from prefect_cometapi.runway import GenerationFailed, Ledger, LedgerUnavailable, State
from prefect_cometapi.runway.ledger.owners import owner_name

from ..factories import Told, change, dead_owner, distant_owner, put

S = State

WORKS_UNTIL_KILLED = """
import asyncio, sys
from prefect_cometapi.runway import Ledger

async def work():
    async with Ledger(sys.argv[1]).leases.hold_exclusively("sku-17", "the first run"):
        print("at work", flush=True)
        await asyncio.Event().wait()

asyncio.run(work())
"""


@pytest.fixture
async def bought(ledger):
    """Return a ledger with one purchased generation."""
    await put(ledger, S.SUBMITTED, task_id="task-1")
    return ledger


async def test_runs_work_on_a_generation_one_after_the_other(bought):
    """Ten concurrent runs each get the generation, but never two at once."""
    register_owner, most, done = 0, 0, []

    async def work(run: str):
        nonlocal register_owner, most
        async with bought.leases.hold_exclusively("sku-17", run) as entry:
            assert entry
            assert entry.owner == owner_name(run)
            register_owner += 1
            most = max(most, register_owner)
            await asyncio.sleep(0)
            register_owner -= 1
            done.append(run)

    async with asyncio.timeout(30):
        await asyncio.gather(*[work(f"run {number}") for number in range(10)])
    assert sorted(done) == sorted(f"run {number}" for number in range(10))
    assert most == 1
    assert (await bought.get("sku-17")).owner is None


def test_runs_in_threads_with_loops_of_their_own_exclude_each_other(file_url):
    """The lease also excludes threads with their own event loops, as sync tasks use them."""
    ledger, register_owner, most = Ledger(file_url), [], []
    asyncio.run(put(ledger, S.SUBMITTED, task_id="task-1"))

    async def work(run: str):
        async with ledger.leases.hold_exclusively("sku-17", run):
            register_owner.append(run)
            most.append(len(register_owner))
            await asyncio.sleep(0.01)
            register_owner.remove(run)

    threads = [
        threading.Thread(target=lambda run=f"run {number}": asyncio.run(work(run)))
        for number in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert most == [1, 1, 1, 1]
    asyncio.run(ledger.database.close())


async def test_generations_do_not_wait_for_each_other(ledger):
    """Each key has its own lease."""
    for key in ("a", "b"):
        await put(ledger, S.SUBMITTED, key, task_id=f"task-{key}")
    async with (
        ledger.leases.hold_exclusively("a", "one") as a,
        ledger.leases.hold_exclusively("b", "two") as b,
    ):
        assert a
        assert b
        assert (a.idempotency_key, b.idempotency_key) == ("a", "b")


async def test_a_key_that_the_ledger_does_not_know_is_nobodys(ledger):
    """A key that is not in the ledger needs no lease."""
    async with ledger.leases.hold_exclusively("unknown", "run") as entry:
        assert entry is None
    assert await ledger.get("unknown") is None


async def test_who_waits_is_told_once_for_whom(bought):
    """A waiting run reports the owner's run and machine once, then gets the lease."""
    told, entered = Told(), asyncio.Event()

    async def second():
        async with bought.leases.hold_exclusively("sku-17", "second", report=told):
            entered.set()

    async with bought.leases.hold_exclusively("sku-17", "first"):
        waiting = asyncio.create_task(second())
        await told.heard.wait()
        assert not entered.is_set()
    async with asyncio.timeout(10):
        await waiting
    assert len(told) == 1
    assert told[0].startswith("waiting for first on ")
    assert told[0].endswith("which works on this generation")


async def test_what_a_killed_process_worked_on_is_taken_over_at_once(ledger_url):
    """The lease of a process that is known to be dead is taken over at once."""
    ledger = Ledger(ledger_url)
    await put(ledger, S.SUBMITTED, task_id="task-1")
    worker = subprocess.Popen(  # noqa: ASYNC220 -- it is killed, not awaited
        [sys.executable, "-c", WORKS_UNTIL_KILLED, ledger_url], stdout=subprocess.PIPE, text=True
    )
    assert worker.stdout
    assert worker.stdout.readline() == "at work\n"
    told, entered = Told(), asyncio.Event()

    async def second():
        async with ledger.leases.hold_exclusively("sku-17", "second", report=told):
            entered.set()

    waiting = asyncio.create_task(second())
    await told.heard.wait()
    assert "the first run" in told[0]
    assert not entered.is_set()
    worker.kill()
    worker.communicate()
    killed = time.monotonic()
    async with asyncio.timeout(10):
        await waiting
    assert time.monotonic() - killed < 3
    await ledger.database.close()


async def test_a_lease_of_another_machine_has_to_lapse(hasty):
    """A process on another machine cannot be checked, so its lease has to expire."""
    left = await hasty.leases.acquire("sku-17", distant_owner())
    began = time.monotonic()
    async with asyncio.timeout(10), hasty.leases.hold_exclusively("sku-17", "run") as entry:
        assert entry
        assert entry.owner == owner_name("run")
    assert 0.0 < left.lease_left <= 0.5
    assert time.monotonic() - began >= left.lease_left - 0.05


async def test_a_run_may_have_a_generation_several_times_at_once(bought):
    """A run may acquire its lease several times; the last release ends it."""
    async with bought.leases.hold_exclusively("sku-17", "run") as outer:
        async with bought.leases.hold_exclusively("sku-17", "run") as inner:
            assert inner
            assert outer
            assert inner.owner == outer.owner == owner_name("run")
        assert (await bought.get("sku-17")).owner == owner_name("run")
    assert (await bought.get("sku-17")).owner is None


async def test_a_step_of_a_run_that_lost_its_lease_waits_for_it_again(hasty):
    """Another run has the lease now, so the former owner has to wait."""
    async with hasty.leases.hold_exclusively("sku-17", "run"):
        await change(hasty, "sku-17", S.SUBMITTED, owner=distant_owner())
        told = Told()
        async with (
            asyncio.timeout(10),
            hasty.leases.hold_exclusively("sku-17", "run", report=told) as again,
        ):
            assert again
            assert again.owner == owner_name("run")
        assert "elsewhere on far-away" in told[0]


@pytest.mark.parametrize(
    ("error", "note"),
    [
        (GenerationFailed("no cats"), "no cats"),
        (ValueError("bug"), "the run ended (ValueError); the generation continues at the service"),
        (asyncio.CancelledError(), "the run ended (CancelledError)"),
        (SystemExit(), "the run ended (SystemExit)"),
    ],
    ids=lambda value: type(value).__name__,
)
async def test_who_leaves_with_an_error_leaves_a_note(bought, error, note):
    """The ledger keeps the error as a note, and the lease is released."""
    with pytest.raises(type(error)) as caught:
        async with bought.leases.hold_exclusively("sku-17", "run"):
            raise error
    assert caught.value is error
    there = await bought.get("sku-17")
    assert note in there.note
    assert (there.state, there.owner, there.lease_left) == (S.SUBMITTED, None, None)


async def test_who_leaves_without_an_error_leaves_the_note_as_it_is(bought):
    """The note stays unchanged if there is no error."""
    before = await change(bought, "sku-17", S.SUBMITTED, note="adopted")
    async with bought.leases.hold_exclusively("sku-17", "run"):
        pass
    assert (await bought.get("sku-17")).note == before.note == "adopted"


async def test_an_error_is_not_hidden_by_a_ledger_that_is_gone(bought, monkeypatch):
    """The error of the work is raised, and the lease expires by itself."""

    async def gone(*_arguments):
        raise LedgerUnavailable("gone")

    monkeypatch.setattr(bought.leases, "release", gone)
    with pytest.raises(GenerationFailed):
        async with bought.leases.hold_exclusively("sku-17", "run"):
            raise GenerationFailed("no cats")
    async with bought.leases.hold_exclusively("sku-17", "run") as entry:
        assert entry


@pytest.mark.parametrize("state", [S.STORED, S.FAILED, S.CANCELLED])
async def test_what_has_come_to_its_end_is_not_waited_for(ledger, state):
    """A finished generation needs no lease, and its owner keeps the one that it has."""
    await put(ledger, state, task_id="task-1", owner=distant_owner())
    async with asyncio.timeout(5), ledger.leases.hold_exclusively("sku-17", "run") as entry:
        assert entry
        assert (entry.state, entry.owner) == (state, distant_owner())
    assert (await ledger.get("sku-17")).owner == distant_owner()


async def test_an_end_that_comes_while_somebody_waits_ends_the_waiting(bought):
    """The wait ends although the other run still has the lease."""
    await bought.leases.acquire("sku-17", distant_owner())
    told, states = Told(), []

    async def second():
        async with bought.leases.hold_exclusively("sku-17", "second", report=told) as entry:
            states.append(entry and entry.state)

    waiting = asyncio.create_task(second())
    await told.heard.wait()
    await change(bought, "sku-17", S.FAILED)
    async with asyncio.timeout(10):
        await waiting
    assert states == [S.FAILED]


async def test_who_is_cancelled_while_waiting_takes_nothing(bought):
    """The other run keeps its lease, and no note is written."""
    await bought.leases.acquire("sku-17", distant_owner())
    told = Told()

    async def second():
        async with bought.leases.hold_exclusively("sku-17", "second", report=told):
            pytest.fail("it had it")

    waiting = asyncio.create_task(second())
    await told.heard.wait()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    there = await bought.get("sku-17")
    assert (there.owner, there.note) == (distant_owner(), "")


async def test_a_lease_that_was_lost_is_not_taken_back_on_leaving(hasty):
    """The new owner keeps its lease, without a note by the former owner."""
    async with hasty.leases.hold_exclusively("sku-17", "slow"):
        await change(hasty, "sku-17", S.SUBMITTED, owner=distant_owner())
    assert (await hasty.get("sku-17")).owner == distant_owner()


async def test_a_take_over_happens_once(ledger):
    """Of many runs that see a dead process, only one takes over."""
    await put(ledger, S.SUBMITTED, task_id="task-1", owner=dead_owner())
    runs = [owner_name(f"run {number}") for number in range(10)]

    def hold(run: str):
        return ledger.leases.renewing("sku-17", run)

    with hold(runs[0]), hold(runs[1]), hold(runs[2]), hold(runs[3]):
        taken = await asyncio.gather(*[ledger.leases.acquire("sku-17", run) for run in runs[:4]])
    assert len([entry for entry in taken if entry]) == 1


async def test_what_a_run_holds_is_found_by_its_name(ledger):
    """A run is found by its full name in any process, and not by a part of it."""
    await put(ledger, S.SUBMITTED, "a", task_id="1", owner="h:1:s:2|run-7")
    await put(ledger, S.CLAIMED, "b", owner=owner_name("run-7#claim"))
    await put(ledger, S.SUBMITTED, "c", task_id="2", owner=owner_name("other-run-7"))
    await put(ledger, S.SUBMITTED, "d", task_id="3", owner=owner_name("run%7"))
    await put(ledger, S.SUBMITTED, "e", task_id="4")
    assert {entry.idempotency_key for entry in await ledger.leases.entries_of_run("run-7")} == {
        "a",
        "b",
    }
    assert {entry.idempotency_key for entry in await ledger.leases.entries_of_run("run%7")} == {"d"}
