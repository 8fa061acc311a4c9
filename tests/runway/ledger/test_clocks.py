# SPDX-License-Identifier: Apache-2.0
"""Clock changes and clock differences do not make a live owner look dead.

Leases use the database's clock. To simulate a change of that clock, a test moves all leases the
other way, which has the same effect on comparisons and changes nothing else on this machine.
"""

import asyncio
import sys
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from prefect_cometapi.runway import Ledger, State
from prefect_cometapi.runway.ledger.owners import owner_name
from prefect_cometapi.runway.ledger.statement import Sql

from ..factories import Service, Told, buy, change, distant_owner, put, until

pytestmark = pytest.mark.slow

S = State
ROOT = Path(__file__).parents[3]
DAY = 86_400.0
LEASE = 3.0

OTHER_PROCESS = """
import asyncio, sys
from datetime import datetime, timedelta
from prefect_cometapi.runway import Ledger
from prefect_cometapi.runway.ledger import purchase as buying, store as ledger
from tests.runway.factories import intent

url, lease, what, ahead = sys.argv[1], float(sys.argv[2]), sys.argv[3], float(sys.argv[4])


class Clock(datetime):
    @classmethod
    def now(cls, tz=None):
        return datetime.now(tz) + timedelta(seconds=ahead)


async def told(_check=None):
    print("at work", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    return "task-1"


async def work():
    books = Ledger(url, lease=lease)
    if what == "buys":
        await buying.buy_once(books, intent(), told, run="first")
    else:
        async with books.leases.hold_exclusively("sku-17", "first"):
            await told()


ledger.datetime = buying.datetime = Clock
asyncio.run(work())
"""


async def set_clock(ledger: Ledger, ahead: float) -> None:
    """Simulate a jump of the database's clock by a number of seconds."""
    moved = "UPDATE cometapi_generations SET leased_until = leased_until - :ahead"
    await ledger.database.rows(Sql(moved, {"ahead": ahead}))


@asynccontextmanager
async def other_process(url: str, what: str, ahead: float = 0.0):
    """Start a process that works on a generation; return the function that lets it continue."""
    words = [url, str(LEASE), what, str(ahead)]
    process: Any = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", OTHER_PROCESS, *words),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        cwd=ROOT,
    )
    try:
        assert await process.stdout.readline() == b"at work\n"
        yield process
    finally:
        await process.communicate(b"\n")


@pytest.fixture
async def hasty(ledger_url):
    """Return a ledger with short leases."""
    ledger = Ledger(ledger_url, lease=LEASE)
    yield ledger
    await ledger.database.close()


JUMPS = pytest.mark.parametrize("jump", [DAY, -DAY], ids=["ahead", "back"])


@JUMPS
@pytest.mark.heavy
async def test_a_purchase_under_way_is_not_taken_for_an_uncertain_one(hasty, ledger_url, jump):
    """A clock change neither makes a purchase uncertain nor leads to a second one."""
    service, told = Service(), Told()
    async with other_process(ledger_url, "buys") as first:
        await set_clock(hasty, jump)
        second = asyncio.create_task(buy(hasty, service, resubmit=True, warn=told))
        await until(lambda: told or second.done())
        first.stdin.write(b"\n")
        bought = await second
    assert (bought.state, bought.task_id, bought.attempts) == (S.SUBMITTED, "task-1", 1)
    assert "waiting for first on " in told[0]
    assert service.posts == 0


@JUMPS
@pytest.mark.heavy
async def test_work_under_way_is_not_taken_over(hasty, ledger_url, jump):
    """The process is alive and renews its lease at the new time."""
    await put(hasty, S.SUBMITTED, task_id="task-1")
    async with other_process(ledger_url, "works"):
        await set_clock(hasty, jump)
        assert await hasty.leases.acquire("sku-17", owner_name("second")) is None
        there = await hasty.get("sku-17")
        assert "|first" in there.owner
        assert 0 < there.lease_left <= LEASE


@JUMPS
async def test_work_of_another_run_in_the_same_process_is_not_taken_over(hasty, jump):
    """Within a process the owner is known, whatever the clock says."""
    await put(hasty, S.SUBMITTED, task_id="task-1")
    async with hasty.leases.hold_exclusively("sku-17", "first"):
        await set_clock(hasty, jump)
        assert await hasty.leases.acquire("sku-17", owner_name("second")) is None


async def test_nobody_waits_a_day_for_a_lease_of_the_dead(ledger_url):
    """A lease that is too long, because the clock was set back, and is not renewed is ignored."""
    ledger = Ledger(ledger_url, lease=0.4)
    await put(ledger, S.SUBMITTED, task_id="task-1", owner=distant_owner())
    await set_clock(ledger, -DAY)
    async with asyncio.timeout(20), ledger.leases.hold_exclusively("sku-17", "run") as entry:
        assert entry
        assert entry.owner == owner_name("run")
    await ledger.database.close()


async def test_what_a_living_process_has_left_is_free_all_the_same(hasty, ledger_url):
    """A lease that could not be released, as on a full disk, expires when it is not renewed."""
    await put(hasty, S.SUBMITTED, task_id="task-1")
    async with other_process(ledger_url, "works") as first:
        name = (await hasty.get("sku-17")).owner.replace("|first", "|an earlier run")
        await change(hasty, "sku-17", S.SUBMITTED, owner=name)
        await set_clock(hasty, LEASE + 1)
        taken = await hasty.leases.acquire("sku-17", owner_name("second"))
        assert taken
        assert taken.owner == owner_name("second")
        assert first.returncode is None


@pytest.mark.parametrize("ahead", [3600.0, -3600.0])
@pytest.mark.heavy
async def test_machines_whose_clocks_differ_by_an_hour_share_a_ledger(hasty, ledger_url, ahead):
    """A lease has the same length on every machine, and its purchase is waited for."""
    service, told = Service(), Told()
    async with other_process(ledger_url, "buys", ahead) as first:
        there = await hasty.get("sku-17")
        assert 0 < there.lease_left <= LEASE
        off = (there.created_at - datetime.now(UTC)).total_seconds()
        assert abs(off - ahead) < 60
        second = asyncio.create_task(buy(hasty, service, warn=told))
        await until(lambda: told or second.done())
        first.stdin.write(b"\n")
        assert (await second).task_id == "task-1"
    assert service.posts == 0
