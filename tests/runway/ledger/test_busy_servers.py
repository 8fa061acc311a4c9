# SPDX-License-Identifier: Apache-2.0
"""A database without free connections or in read-only mode is waited for, and nothing is lost."""

import asyncio
from contextlib import asynccontextmanager, suppress
from typing import Any

import asyncpg
import pytest

from prefect_cometapi.runway import Ledger, LedgerUnavailable, State
from prefect_cometapi.runway.ledger.statement import Sql

from ..factories import Service, Told, buy, put

S = State
pytestmark = pytest.mark.heavy


@pytest.fixture
async def shared(postgres):
    """Return a ledger in use."""
    ledger = Ledger(postgres.create_database())
    await put(ledger, S.SUBMITTED, "before", task_id="t")
    yield ledger
    await ledger.database.close()


@asynccontextmanager
async def all_connections(url: str):
    """Open all connections that the server has left and return them."""
    taken: list[asyncpg.Connection] = []
    try:
        with suppress(asyncpg.TooManyConnectionsError):
            while True:
                taken.append(await asyncpg.connect(url))
        yield taken
    finally:
        for connection in taken:
            await connection.close()


async def test_a_claim_waits_for_a_connection(postgres):
    """Nothing is sent before the claim is recorded."""
    url, service = postgres.create_database(), Service()
    ledger = Ledger(url)
    async with all_connections(url) as taken:
        buying = asyncio.create_task(buy(ledger, service))
        done, _ = await asyncio.wait([buying], timeout=0.5)
        assert not done
        assert service.posts == 0
        for _ in range(2):
            await taken.pop().close()
        assert (await buying).task_id == "task-1"
    assert service.posts == 1
    await ledger.database.close()


async def test_a_server_that_stays_crowded_ends_the_purchase_before_it_is_sent(postgres):
    """The error comes within the retry timeout, with the server's message and advice."""
    url, service = postgres.create_database(), Service()
    ledger = Ledger(url, retry_timeout=0.5)
    async with all_connections(url):
        with pytest.raises(LedgerUnavailable, match=r"too many clients.*; raise max_conn") as told:
            await buy(ledger, service)
    assert "nothing was charged" in str(told.value)
    assert service.posts == 0
    assert (await buy(ledger, service)).attempts == 1
    await ledger.database.close()


async def test_an_id_waits_for_a_connection_as_well(shared, postgres):
    """The ledger's own connection was lost and others took its place, so recording the id waits."""
    service, told = Service().silent(), Told()
    buying = asyncio.create_task(buy(shared, service, warn=told))
    await service.asked.wait()
    url = postgres.url(shared.database.redacted_url.rpartition("/")[2])
    async with all_connections(url) as taken:
        await taken[0].execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE application_name = 'prefect-cometapi' AND datname = current_database()"
        )
        async with all_connections(url):
            service.answer.set()
            done, _ = await asyncio.wait([buying], timeout=0.5)
            assert not done
        assert (await buying).task_id == "task-1"
    assert (await shared.get("sku-17")).task_id == "task-1"
    assert (told, service.posts) == ([], 1)


async def test_a_standby_that_takes_over_is_waited_for(shared, postgres):
    """The standby has the earlier purchases, and new ones wait until it takes over."""
    standby = await asyncio.to_thread(postgres.standby)
    ledger: Any = Ledger(standby.url(shared.database.redacted_url.rpartition("/")[2]))
    service = Service()
    try:
        assert (await ledger.get("before")).task_id == "t"
        buying = asyncio.create_task(buy(ledger, service))
        done, _ = await asyncio.wait([buying], timeout=0.5)
        assert not done
        assert service.posts == 0
        await asyncio.to_thread(standby.promote)
        assert (await buying).task_id == "task-1"
        assert service.posts == 1
    finally:
        await ledger.database.close()
        await asyncio.to_thread(standby.remove)


@pytest.fixture
def let_write(shared, postgres):
    """Make new connections to the ledger's database writable or read-only."""
    name = shared.database.redacted_url.rpartition("/")[2]

    def set_to(yes: bool) -> None:
        word = "off" if yes else "on"
        postgres.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = {word}")

    return set_to


async def test_a_server_that_takes_no_changes_ends_the_purchase_before_it_is_sent(
    shared, let_write
):
    """The error names the reason; once the server is writable, the same ledger works again."""
    service = Service()
    let_write(False)
    await shared.database.close()
    shared.database.retry_timeout = 0.5
    assert (await shared.get("before")).task_id == "t"
    with pytest.raises(LedgerUnavailable, match=r"in a read-only transaction; .* standby") as told:
        await buy(shared, service)
    assert "nothing was charged" in str(told.value)
    assert service.posts == 0
    let_write(True)
    shared.database.retry_timeout = 30
    assert (await buy(shared, service)).attempts == 1


async def test_an_id_is_recorded_once_the_server_takes_changes_again(shared, let_write):
    """The connection of the claim led to a server that has since become a standby."""
    service, told = Service().silent(), Told()
    buying = asyncio.create_task(buy(shared, service, warn=told))
    await service.asked.wait()
    let_write(False)
    await shared.database.close()
    await shared.database.rows(Sql("SELECT 1"))  # the read-only connection stays open
    service.answer.set()
    done, _ = await asyncio.wait([buying], timeout=0.5)
    assert not done
    let_write(True)
    assert (await buying).task_id == "task-1"
    assert (await shared.get("sku-17")).task_id == "task-1"
    assert (told, service.posts) == ([], 1)


async def test_a_new_ledger_waits_for_a_server_that_takes_changes(postgres):
    """Nothing is sent until the table of the ledger can be made."""
    url, service = postgres.create_database(), Service()
    name, ledger = url.rpartition("/")[2], Ledger(url)
    postgres.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    buying = asyncio.create_task(buy(ledger, service))
    done, _ = await asyncio.wait([buying], timeout=0.5)
    assert not done, buying.exception()
    assert service.posts == 0
    postgres.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = off")
    assert (await buying).task_id == "task-1"
    await ledger.database.close()
