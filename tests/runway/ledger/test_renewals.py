# SPDX-License-Identifier: Apache-2.0
"""A lease is renewed during the work, even if other leases end or renewals fail."""

import asyncio
import itertools
import sys
import threading
import time
from contextlib import ExitStack
from typing import Any

import asyncpg
import pytest

from prefect_cometapi.runway import Ledger, LedgerUnavailable, State
from prefect_cometapi.runway.ledger.owners import owner_name

from ..factories import distant_owner, put, until

S = State


async def test_work_that_takes_longer_than_the_lease_keeps_it(hasty):
    """The lease is renewed even if the event loop of the run is busy."""
    async with hasty.leases.hold_exclusively("sku-17", "run"):
        for _ in range(3):
            time.sleep(0.4)  # noqa: ASYNC251 -- the loop is kept busy on purpose
            assert (await hasty.get("sku-17")).lease_left > 0
        async with asyncio.timeout(0.4):
            assert await hasty.leases.acquire("sku-17", distant_owner()) is None
    assert (await hasty.get("sku-17")).lease_left is None


def breaks_once(ledger, monkeypatch, error: Exception) -> asyncio.Event:
    """Make the next renewal statement of a ledger fail; the event is set after that."""
    execute, broken = ledger.database.execute_timed, asyncio.Event()
    loop = asyncio.get_running_loop()

    async def once_broken(statement, lock=None):
        if not broken.is_set():
            loop.call_soon_threadsafe(broken.set)
            raise error
        return await execute(statement, lock)

    monkeypatch.setattr(ledger.database, "execute_timed", once_broken)
    return broken


async def test_a_lease_is_renewed_again_after_the_ledger_was_out_of_reach(hasty, monkeypatch):
    """A failed renewal does not stop the later ones."""
    async with hasty.leases.hold_exclusively("sku-17", "run"):
        await breaks_once(hasty, monkeypatch, LedgerUnavailable("out of reach")).wait()
        before = (await hasty.get("sku-17")).lease_left

        async def renewed():
            return (await hasty.get("sku-17")).lease_left > before

        await until(renewed)


async def test_renewals_that_broke_down_begin_anew_with_the_next_block(hasty, monkeypatch):
    """Any failure of the renewals is repaired when the next block acquires a lease."""
    async with hasty.leases.hold_exclusively("sku-17", "run"):
        broken = breaks_once(hasty, monkeypatch, RuntimeError("nobody has thought of this"))
        async with asyncio.timeout(10):
            await broken.wait()
        before = (await hasty.get("sku-17")).lease_left

        async def renewed():
            async with hasty.leases.hold_exclusively("sku-17", "run"):
                return (await hasty.get("sku-17")).lease_left > before

        await until(renewed)


async def test_who_goes_during_a_renewal_does_not_end_it(hasty, monkeypatch):
    """The lease that was just released is ignored, and the others are renewed."""
    await put(hasty, State.SUBMITTED, "sku-18", task_id="task-2")
    execute, asked, gone = hasty.database.execute_timed, asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    async def answered_late(statement, lock=None):
        rows = await execute(statement, lock)
        loop.call_soon_threadsafe(asked.set)
        await asyncio.to_thread(gone.wait)
        return rows

    async with hasty.leases.hold_exclusively("sku-18", "stays"):
        async with hasty.leases.hold_exclusively("sku-17", "goes"):
            monkeypatch.setattr(hasty.database, "execute_timed", answered_late)
            await asked.wait()
            monkeypatch.setattr(hasty.database, "execute_timed", execute)
        gone.set()
        before = (await hasty.get("sku-18")).leased_until

        async def renewed():
            return (await hasty.get("sku-18")).leased_until > before

        await until(renewed)
    assert hasty.leases.held.owners() == []


def test_who_comes_during_a_renewal_does_not_end_it(file_ledger):
    """Otherwise the leases of all others would expire during their work."""
    usual, come, over = sys.getswitchinterval(), threading.Event(), threading.Event()

    def come_and_go():
        for number in itertools.count():
            with file_ledger.leases.renewing("sku-17", owner_name(f"run {number}")):
                come.set()
            if over.is_set():
                return

    others = threading.Thread(target=come_and_go)
    sys.setswitchinterval(1e-6)
    try:
        with ExitStack() as held:
            for number in range(1000):
                held.enter_context(file_ledger.leases.renewing("sku-17", f"{number}"))
            others.start()
            come.wait()
            for _ in range(300):
                assert len(file_ledger.leases.held.owners()) >= 1000
    finally:
        over.set()
        others.join()
        sys.setswitchinterval(usual)


@pytest.mark.heavy
async def test_a_row_that_somebody_has_locked_keeps_no_other_from_being_renewed(postgres):
    """An operator's transaction may stay open for hours."""
    url = postgres.create_database()
    ledger: Any = Ledger(url, lease=0.5)
    for number in (1, 2):
        await put(ledger, State.SUBMITTED, f"sku-{number}", task_id=f"task-{number}")
    operator = await asyncpg.connect(url)
    async with (
        ledger.leases.hold_exclusively("sku-1", "one"),
        ledger.leases.hold_exclusively("sku-2", "two"),
    ):
        transaction = operator.transaction()
        await transaction.start()
        await operator.execute(
            "SELECT 1 FROM cometapi_generations WHERE idempotency_key = 'sku-1' FOR UPDATE"
        )
        for _ in range(3):
            before = (await ledger.get("sku-2")).leased_until

            async def renewed(before=before):
                return (await ledger.get("sku-2")).leased_until > before

            await until(renewed)
        await transaction.rollback()
    await operator.close()
    await ledger.database.close()


def drop_a_loop_at_work(ledger, *, close: bool) -> tuple[asyncio.AbstractEventLoop, Any]:
    """Let a run work on a generation in an event loop that is stopped and dropped."""
    loop, working = asyncio.new_event_loop(), asyncio.Event()

    async def work():
        async with ledger.leases.hold_exclusively("sku-17", "dropped"):
            working.set()
            await asyncio.Event().wait()

    task = loop.create_task(work())
    loop.run_until_complete(working.wait())
    if close:
        loop.close()
    return loop, task


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("close", [True, False], ids=["closed", "stopped"])
async def test_a_loop_that_was_dropped_at_work_holds_nothing_for_ever(hasty, close):
    """The lease expires, so the next run takes over, even one with the same name."""
    dropped = await asyncio.to_thread(drop_a_loop_at_work, hasty, close=close)
    assert hasty.leases.held.owners() == []
    for run in ("dropped", "next"):
        async with asyncio.timeout(20), hasty.leases.hold_exclusively("sku-17", run) as entry:
            assert entry
            assert entry.owner == owner_name(run)
    assert (await hasty.get("sku-17")).owner is None
    del dropped  # a task that is collected would let go of its lease
