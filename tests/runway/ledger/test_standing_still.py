# SPDX-License-Identifier: Apache-2.0
"""A process that was suspended or stopped does not send a request that it may no longer send."""

import asyncio
import json
import os
import signal
import sys
import threading
import time
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from prefect_cometapi.runway import Ledger, RunwayClient, ServiceUnavailable, State
from prefect_cometapi.runway.ledger.clock import Instant
from prefect_cometapi.runway.ledger.loop_thread import in_background
from prefect_cometapi.runway.ledger.owners import owner_name
from prefect_cometapi.runway.ledger.purchase import buy_once, resolve_dead_claim

from ..factories import Service, buy, change, distant_owner, intent, put, until

S = State
ROOT = Path(__file__).parents[3]
LEASE = 2.0

PROCESS = """
import asyncio, json, os, signal, sys
from pydantic import SecretStr
from prefect_cometapi.runway import (
    CometAPIError, ImageToVideoRequest, Ledger, RunwayClient, ServiceUnavailable
)
from prefect_cometapi.runway.ledger.purchase import buy_once
from tests.runway.factories import intent

service, url, lease = sys.argv[1], sys.argv[2], float(sys.argv[3])


def say(**what):
    print(json.dumps(what), flush=True)


async def main():
    ledger, stops = Ledger(url, lease=lease), [True]
    async with RunwayClient(SecretStr("sandbox"), base_url=service) as client:

        async def post(check_lease):
            def last_moment():
                if stops:
                    stops.clear()
                    say(at="the last moment")
                    os.kill(os.getpid(), signal.SIGSTOP)
                check_lease()

            image = ImageToVideoRequest(prompt_image="https://example.com/cat.jpg")
            return await client.create(image, before_sending=last_moment)

        while True:
            try:
                entry = await buy_once(ledger, intent(), post, run="first")
            except ServiceUnavailable as error:
                say(refused=error.message, money=str(error.money))
            except CometAPIError as error:
                say(refused=error.message, money=str(error.money))
                return
            else:
                say(task_id=entry.task_id)
                return


asyncio.run(main())
"""


class Stopped:
    """A process that stopped itself just before it sent its request over an open connection."""

    def __init__(self, process: Any) -> None:
        self._process = process

    async def goes_on(self) -> list[dict[str, str]]:
        """Continue the process and return its output."""
        self._process.send_signal(signal.SIGCONT)
        async with asyncio.timeout(60):
            told, _ = await self._process.communicate()
        return [json.loads(line) for line in told.splitlines()]


@asynccontextmanager
async def stopped(service: str, ledger: str):
    process: Any = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", PROCESS, service, ledger, str(LEASE)),
        stdout=asyncio.subprocess.PIPE,
        cwd=ROOT,
    )
    try:
        assert json.loads(await process.stdout.readline()) == {"at": "the last moment"}
        await asyncio.to_thread(os.waitid, os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
        yield Stopped(process)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.fixture
async def books(ledger_url):
    """Return a ledger with short leases."""
    ledger = Ledger(ledger_url, lease=LEASE)
    yield ledger
    await ledger.database.close()


async def lapsed(ledger: Ledger) -> Any:
    """Wait until the lease of the claim expires, and return the entry."""

    async def is_over() -> Any:
        entry = await ledger.get("sku-17")
        return entry if entry and (entry.lease_left or 0) < 0 else None

    return await until(is_over)


async def buys(ledger_url: str, service: str, request_: Any) -> str | None:
    """Buy the generation in another run, with a lease of normal length, and return its id."""
    ledger = Ledger(ledger_url)
    async with RunwayClient(SecretStr("sandbox"), base_url=service) as client:
        entry = await buy_once(
            ledger,
            intent(),
            lambda check: client.create(request_, before_sending=check),
            run="second",
        )
    await ledger.database.close()
    return entry.task_id


@pytest.mark.slow
async def test_a_key_that_was_released_meanwhile_is_not_bought_again(
    sandbox, books, ledger_url, request_
):
    """The user has released the key and another run bought it, so the stopped process attaches."""
    service = sandbox()
    async with stopped(service.url, ledger_url) as sleeper:
        await resolve_dead_claim(books, await lapsed(books))
        uncertain = await books.get("sku-17")
        assert uncertain
        assert uncertain.state is S.UNCERTAIN
        assert await change(books, "sku-17", S.RESUBMIT_ALLOWED, seen=uncertain)
        second = await buys(ledger_url, service.url, request_)
        refusal, outcome = await sleeper.goes_on()
    assert "stood still" in refusal["refused"]
    assert "nothing was sent" in refusal["refused"]
    assert refusal["money"] == "nothing was charged for this call."
    assert outcome == {"task_id": second}
    assert [job.task_id for job in service.accepted] == [second]


@pytest.mark.slow
@pytest.mark.heavy
async def test_a_sleeper_whose_key_nobody_wanted_buys_it_once(sandbox, books, ledger_url):
    """The stopped process claims its key again, or continues if its lease is still valid."""
    service = sandbox()
    async with stopped(service.url, ledger_url) as sleeper:
        await lapsed(books)
        *refusals, outcome = await sleeper.goes_on()
    assert all("nothing was sent" in refusal["refused"] for refusal in refusals)
    assert [job.task_id for job in service.accepted] == [outcome["task_id"]]
    entry = await books.get("sku-17")
    assert entry
    assert (entry.state, entry.task_id) == (S.SUBMITTED, outcome["task_id"])


@pytest.mark.slow
@pytest.mark.heavy
async def test_a_sleeper_whose_key_is_in_doubt_leaves_the_doubt_to_the_user(
    sandbox, books, ledger_url
):
    """The user was told that the key is uncertain, so nothing is bought without asking."""
    service = sandbox()
    async with stopped(service.url, ledger_url) as sleeper:
        await resolve_dead_claim(books, await lapsed(books))
        refusal, outcome = await sleeper.goes_on()
    assert "nothing was sent" in refusal["refused"]
    assert "an earlier attempt is uncertain" in outcome["refused"]
    assert service.accepted == []


async def test_a_claim_that_is_renewed_is_not_given_up_by_who_saw_it_lapse(ledger):
    """The owner may renew its lease between the check and the decision."""
    await put(ledger, S.CLAIMED, owner=distant_owner(), attempts=1)
    lapsed_ = await ledger.get("sku-17")
    assert lapsed_

    async def is_renewed() -> bool:
        """Renew the lease until its end changes, because SQLite's clock has only milliseconds."""
        renewed = await ledger.leases.acquire("sku-17", distant_owner())
        return renewed.leased_until != lapsed_.leased_until

    await until(is_renewed)
    await resolve_dead_claim(ledger, lapsed_)
    there = await ledger.get("sku-17")
    assert there
    assert there.state is S.CLAIMED


async def test_a_cancelled_claim_is_withdrawn_also_where_it_is_renewed_just_then(
    ledger, monkeypatch
):
    """Otherwise the claim would look like a submission without an answer."""
    add, get, claimed = ledger.insert_claim, ledger.get, asyncio.Event()

    async def added_without_an_answer(*args, **values):
        await add(*args, **values)
        claimed.set()
        await asyncio.Event().wait()

    async def seen_right_before_a_renewal(key):
        entry = await get(key)
        await ledger.leases.acquire(key, entry.owner)
        return entry

    monkeypatch.setattr(ledger, "insert_claim", added_without_an_answer)
    monkeypatch.setattr(ledger, "get", seen_right_before_a_renewal)
    buying = asyncio.create_task(buy(ledger, Service()))
    await claimed.wait()
    buying.cancel()
    with pytest.raises(asyncio.CancelledError):
        await buying
    there = await get("sku-17")
    assert there
    assert (there.state, there.note) == (S.REJECTED, "nothing was sent")


@pytest.mark.parametrize("clock", ["clock_gettime", "time"])
async def test_either_clock_tells_that_time_was_lost(ledger, monkeypatch, clock):
    """The clock that includes suspend detects a pause, and so does the one set after it."""
    service = Service()
    true = getattr(time, clock)

    async def post(check):
        check()
        monkeypatch.setattr(time, clock, lambda *which: true(*which) + ledger.leases.duration)
        check()
        return await service.post(check)

    with pytest.raises(ServiceUnavailable, match="stood still"):
        await buy_once(ledger, intent(), post, run="r")
    assert service.posts == 0
    monkeypatch.undo()
    assert (await buy(ledger, service)).task_id == "task-1"


async def test_a_claim_that_waited_for_its_turn_counts_from_when_it_was_made(ledger, monkeypatch):
    """With a thousand runs and a slow disk, a claim may wait for longer than a lease."""
    service, wanted = Service(), threading.Event()
    true, asked = time.clock_gettime, ledger.database.execute_timed

    async def an_hour_passes() -> None:
        wanted.wait()
        monkeypatch.setattr(time, "clock_gettime", lambda which: true(which) + 3600)

    def ask_soon(statement, lock=None):
        wanted.set()
        return asked(statement, lock)

    async def post(check):
        check()
        return await service.post(check)

    await ledger.get("sku-17")  # opens the ledger
    monkeypatch.setattr(ledger.database, "execute_timed", ask_soon)
    busy = in_background(an_hour_passes())
    assert (await buy_once(ledger, intent(), post, run="r")).task_id == "task-1"
    assert busy.done()


async def test_a_long_wait_for_a_connection_is_no_pause(ledger_url):
    """The lease is renewed during the wait, so the request is sent even after a long wait."""
    books, service = Ledger(ledger_url, lease=1.0), Service()
    others = Ledger(ledger_url)  # so that the owner learns of renewals only by renewing

    async def lease_ends() -> float:
        there = await others.get("sku-17")
        assert there
        assert there.leased_until
        return there.leased_until

    async def post(check):
        first = await lease_ends()

        async def renewed_for_longer_than_a_lease():
            return await lease_ends() > first + books.leases.duration

        def may_be_sent():
            with suppress(ServiceUnavailable):  # if this machine was slower than the lease
                check()
                return True

        await until(renewed_for_longer_than_a_lease)
        await until(may_be_sent)
        return await service.post(check)

    assert (await buy_once(books, intent(), post, run="r")).task_id == "task-1"
    for opened in (books, others):
        await opened.database.close()


async def test_who_holds_nothing_is_sure_of_nothing(ledger):
    """A lease is valid only if this run has acquired it."""
    assert not ledger.leases.held.is_valid("sku-17", owner_name("r"))
    with ledger.leases.renewing("sku-17", owner_name("r")):
        assert not ledger.leases.held.is_valid("sku-17", owner_name("r"))
        await put(ledger, S.SUBMITTED, task_id="task-1", owner=owner_name("other"))
        assert not ledger.leases.held.is_valid("sku-17", owner_name("r"))


@given(seconds=st.floats(0.001, 1e6))
def test_a_moment_passes_when_its_seconds_have(seconds):
    """A point in time is past only after its seconds are over."""
    now = Instant.now()
    assert not now.later(seconds + 60).has_passed()
    assert now.later(-seconds).has_passed()
    assert Instant(now.monotonic + 60, now.wall - seconds).has_passed()
    assert Instant(now.monotonic - seconds, now.wall + 60).has_passed()
