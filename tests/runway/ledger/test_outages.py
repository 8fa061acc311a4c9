# SPDX-License-Identifier: Apache-2.0
"""A database that is locked, restarts or crashes is waited for, and nothing is paid twice."""

import asyncio
import socket
import subprocess
import sys
import time
from typing import Any

import pytest

from prefect_cometapi.runway import Ledger, LedgerUnavailable, State, SubmissionUncertain
from prefect_cometapi.runway.ledger.loop_thread import run_in_background
from prefect_cometapi.runway.ledger.purchase import buy_once

from ..factories import Service, Told, finished, intent, put, until, video

S = State

LOCKS = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN EXCLUSIVE")
print("locked", flush=True)
sys.stdin.readline()
connection.execute("COMMIT")
"""

MODES = pytest.mark.parametrize("mode", ["fast", "immediate"])
on_postgres = pytest.mark.heavy


@pytest.fixture
async def shared(postgres):
    """Return a ledger in PostgreSQL with one entry."""
    ledger = Ledger(postgres.create_database())
    await put(ledger, S.SUBMITTED, "before", task_id="t")
    yield ledger
    await ledger.database.close()


@on_postgres
@MODES
async def test_a_restart_between_two_changes_is_not_noticed(shared, postgres, mode):
    """Every kind of change still works after its connection was lost."""
    service = Service()
    bought = await buy_once(shared, intent(), service.post, run="r")
    await asyncio.to_thread(postgres.restart, mode)
    assert await shared.get("sku-17") == bought
    await asyncio.to_thread(postgres.restart, mode)
    done = await shared.mark_succeeded(bought.submission(), finished())
    await asyncio.to_thread(postgres.restart, mode)
    stored = await shared.mark_stored(done, "task-1", "/a", [video()])
    await asyncio.to_thread(postgres.restart, mode)
    assert await buy_once(shared, intent(), service.post, run="r") == stored
    assert service.posts == 1


@on_postgres
@MODES
async def test_a_restart_in_the_midst_of_purchases_buys_nothing_twice(shared, postgres, mode):
    """Each key gets one id, even if connections break at any moment."""
    service, told = Service(), Told()
    going = True

    async def buyer(number: int) -> None:
        count = 0
        while going or count < 3:
            wish = intent(f"{number}-{count}")
            calls = [
                buy_once(shared, wish, service.post, run=f"{number}{name}", warn=told)
                for name in "ab"
            ]
            one, other = await asyncio.gather(*calls)
            assert one.task_id == other.task_id
            count += 1

    buyers = [asyncio.create_task(buyer(number)) for number in range(4)]
    await until(lambda: service.posts >= 4)
    await asyncio.to_thread(postgres.restart, mode)
    sent = service.posts
    await until(lambda: service.posts > sent)
    going = False
    async with asyncio.timeout(40):
        await asyncio.gather(*buyers)
    entries = [entry for entry in await shared.entries() if entry.idempotency_key != "before"]
    assert sorted(entry.task_id or "" for entry in entries) == sorted(service.accepted)
    assert service.posts == len(entries)
    assert all(entry.attempts == 1 for entry in entries)
    assert all(text.startswith("waiting for") for text in told)


@on_postgres
@MODES
async def test_an_id_that_arrives_while_the_server_is_away_is_recorded(shared, postgres, mode):
    """The id is recorded when the server is back, and the purchase is not given up before."""
    service = Service().silent()
    buying = asyncio.create_task(buy_once(shared, intent(), service.post, run="r"))
    await service.asked.wait()
    await asyncio.to_thread(postgres.stop, mode)
    service.answer.set()
    await asyncio.sleep(0)
    await asyncio.to_thread(postgres.start)
    async with asyncio.timeout(40):
        bought = await buying
    assert (bought.state, bought.task_id) == (S.SUBMITTED, "task-1")
    assert await shared.get("sku-17") == bought


@on_postgres
async def test_a_server_with_two_addresses_is_waited_for_as_well(postgres, monkeypatch):
    """On most machines `localhost` has an IPv6 and an IPv4 address."""
    resolve = socket.getaddrinfo

    def both(host, *arguments, **named):
        names = ["::1", "127.0.0.1"] if host == "localhost" else [host]
        return [found for name in names for found in resolve(name, *arguments, **named)]

    monkeypatch.setattr(socket, "getaddrinfo", both)
    ledger: Any = Ledger(postgres.create_database().replace("127.0.0.1", "localhost"))
    await put(ledger, S.SUBMITTED, "before", task_id="t")
    await asyncio.to_thread(postgres.stop)
    looking = asyncio.create_task(ledger.get("before"))
    await asyncio.wait([looking], timeout=0.5)
    await asyncio.to_thread(postgres.start)
    assert (await looking).task_id == "t"
    await ledger.database.close()


@on_postgres
async def test_a_claim_waits_for_a_server_that_comes_back(shared, postgres):
    """Nothing is sent before the claim is recorded."""
    await asyncio.to_thread(postgres.stop)
    service = Service()
    buying = asyncio.create_task(buy_once(shared, intent(), service.post, run="r"))
    done, _pending = await asyncio.wait([buying], timeout=0.5)
    assert not done
    assert service.posts == 0
    await asyncio.to_thread(postgres.start)
    async with asyncio.timeout(40):
        assert (await buying).task_id == "task-1"
    assert service.posts == 1


@on_postgres
async def test_a_server_that_stays_away_ends_the_purchase_before_it_is_sent(shared, postgres):
    """The error comes within the retry timeout, with the reason and without a charge."""
    hasty: Any = Ledger(postgres.create_database(), retry_timeout=0.5)
    await put(hasty, S.SUBMITTED, "before", task_id="t")
    service = Service()
    await asyncio.to_thread(postgres.stop)
    try:
        async with asyncio.timeout(5):
            with pytest.raises(LedgerUnavailable, match="cannot be used: ") as caught:
                await buy_once(hasty, intent(), service.post, run="r")
    finally:
        await asyncio.to_thread(postgres.start)
    assert "nothing was charged" in str(caught.value)
    assert service.posts == 0
    assert (await buy_once(hasty, intent(), service.post, run="r")).attempts == 1
    await hasty.database.close()


@on_postgres
async def test_a_server_that_goes_after_the_charge_leaves_the_id_with_the_run(shared, postgres):
    """The run continues and reports it, and the key is uncertain and not bought again."""
    hasty: Any = Ledger(postgres.create_database(), retry_timeout=0.5)
    service, told = Service().silent(), Told()
    buying = asyncio.create_task(buy_once(hasty, intent(), service.post, run="r", warn=told))
    await service.asked.wait()
    await asyncio.to_thread(postgres.stop, "immediate")
    try:
        service.answer.set()
        bought = await buying
    finally:
        await asyncio.to_thread(postgres.start)
    assert (bought.state, bought.task_id) == (S.SUBMITTED, "task-1")
    assert "task-1" in told[0]
    with pytest.raises(SubmissionUncertain):
        await buy_once(hasty, intent(), service.post, run="r")
    done = await hasty.mark_succeeded(bought.submission(), finished())
    assert (done.state, done.task_id) == (S.SUCCEEDED, "task-1")
    assert done.submitted_at == bought.submitted_at
    assert service.posts == 1
    await hasty.database.close()


@on_postgres
async def test_work_goes_on_through_a_restart_and_keeps_its_lease(shared, postgres):
    """The lease renewals continue when the server is back."""
    hasty: Any = Ledger(postgres.create_database(), lease=2)
    await put(hasty, S.SUBMITTED, task_id="task-1")
    async with hasty.leases.hold_exclusively("sku-17", "run") as entry:
        assert entry
        await asyncio.to_thread(postgres.restart, "immediate")

        async def renewed() -> bool:
            there = await hasty.get("sku-17")
            return there.lease_left > 1.2 and there.owner == entry.owner

        await until(renewed)
    assert (await hasty.get("sku-17")).owner is None
    await hasty.database.close()


@on_postgres
async def test_more_processes_than_the_server_takes_wait_for_each_other(shared, postgres):
    """Too many connections do not end a run."""
    name = shared.database.redacted_url.rpartition("/")[2]
    postgres.execute("DROP ROLE IF EXISTS limited")
    postgres.execute("CREATE ROLE limited LOGIN CONNECTION LIMIT 2")
    postgres.execute("GRANT ALL ON ALL TABLES IN SCHEMA public TO limited", name)
    url = postgres.url(name).replace("postgres@", "limited@")
    ledgers = [Ledger(url) for _ in range(5)]

    async def look(ledger: Ledger) -> str | None:
        found = await ledger.get("before")
        await ledger.database.close()
        return found.task_id if found else None

    async with asyncio.timeout(40):
        assert await asyncio.gather(*[look(ledger) for ledger in ledgers]) == ["t"] * 5


def locked(path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", LOCKS, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    assert process.stdout.readline() == "locked\n"
    return process


@pytest.mark.slow
@pytest.mark.heavy
async def test_a_file_that_another_process_locks_for_ten_seconds_is_waited_for(file_url, tmp_path):
    """The change is made as soon as a lock, such as that of a backup, is released."""
    ledger, service = Ledger(file_url), Service()
    await put(ledger, S.SUBMITTED, "before", task_id="t")
    locker = locked(tmp_path / "ledger.db")
    began = time.monotonic()
    buying = asyncio.create_task(buy_once(ledger, intent(), service.post, run="r"))
    await asyncio.sleep(10)
    assert not buying.done()
    assert service.posts == 0
    await asyncio.to_thread(locker.communicate, "\n")
    async with asyncio.timeout(10):
        assert (await buying).task_id == "task-1"
    assert 10 <= time.monotonic() - began < 20
    await ledger.database.close()


async def test_a_file_that_stays_locked_ends_the_purchase_before_it_is_sent(file_url, tmp_path):
    """The error comes within the retry timeout, with the reason."""
    ledger, service = Ledger(file_url, retry_timeout=0.5), Service()
    await put(ledger, S.SUBMITTED, "before", task_id="t")
    locker = locked(tmp_path / "ledger.db")
    async with asyncio.timeout(5):
        with pytest.raises(LedgerUnavailable, match="database is locked"):
            await buy_once(ledger, intent(), service.post, run="r")
    await asyncio.to_thread(locker.communicate, "\n")
    assert service.posts == 0
    assert (await buy_once(ledger, intent(), service.post, run="r")).attempts == 1
    await ledger.database.close()


async def test_a_fresh_file_that_is_locked_while_it_is_opened_is_waited_for(file_url, tmp_path):
    """Another process may be creating the table at that moment."""
    locker = locked(tmp_path / "ledger.db")
    ledger = Ledger(file_url)
    looking = asyncio.create_task(ledger.get("sku-17"))
    done, _pending = await asyncio.wait([looking], timeout=0.5)
    assert not done
    await asyncio.to_thread(locker.communicate, "\n")
    async with asyncio.timeout(20):
        assert await looking is None
    await ledger.database.close()


@on_postgres
async def test_a_connection_that_is_stuck_in_an_operation_is_replaced(shared):
    """A connection that broke during an operation is unusable, so a new one is opened."""

    async def leave_one_at_work() -> "asyncio.Future[Any]":
        async with (await shared.database._connected()).acquire() as connection:
            busy = asyncio.ensure_future(connection.fetch("SELECT pg_sleep(20)"))
            await asyncio.sleep(0)  # lets it send its query
            return busy

    busy = await run_in_background(leave_one_at_work())
    async with asyncio.timeout(10):
        assert (await shared.get("before")).task_id == "t"
    busy.cancel()
