# SPDX-License-Identifier: Apache-2.0
"""The ledger's tables are created once, and used in their own version only."""

import asyncio
from typing import Any

import asyncpg
import pytest

from prefect_cometapi.runway import Ledger, LedgerUnavailable, State
from prefect_cometapi.runway.ledger import schema
from prefect_cometapi.runway.ledger.postgres import CREATION_LOCK
from prefect_cometapi.runway.ledger.purchase import buy_once
from prefect_cometapi.runway.ledger.statement import Sql

from ..factories import Service, intent, put, until

S = State


@pytest.fixture
async def old(ledger_url):
    """Return the URL of a ledger of this version with one entry."""
    ledger = Ledger(ledger_url)
    await put(ledger, S.STORED, "old", task_id="task-0")
    await ledger.database.close()
    return ledger_url


async def rows(ledger: Ledger, statement: str) -> list[tuple[object, ...]]:
    return [tuple(row.values()) for row in await ledger.database.rows(Sql(statement))]


async def test_a_fresh_ledger_is_empty_and_of_the_present_version(ledger):
    """The table is created at the first use."""
    assert await ledger.entries() == []
    assert await rows(ledger, "SELECT version FROM cometapi_ledger_version") == [(schema.VERSION,)]


async def test_a_ledger_that_many_open_at_once_is_made_once(ledger_url):
    """All processes find the ledger ready."""
    ledgers = [Ledger(ledger_url) for _ in range(8)]
    assert await asyncio.gather(*[ledger.get("sku-17") for ledger in ledgers]) == [None] * 8
    assert await rows(ledgers[0], "SELECT count(*) FROM cometapi_ledger_version") == [(1,)]
    for ledger in ledgers:
        await ledger.database.close()


async def test_a_creation_that_breaks_off_leaves_no_table(ledger_url, monkeypatch):
    """The next attempt starts from an empty database."""

    def fail() -> None:
        raise ValueError("it broke off")

    with monkeypatch.context() as patched:
        patched.setattr(schema, "uuid4", fail)
        with pytest.raises(LedgerUnavailable, match="it broke off"):
            await Ledger(ledger_url, retry_timeout=0.2).get("old")
    ledger = Ledger(ledger_url)
    assert await ledger.get("old") is None
    assert await rows(ledger, "SELECT version FROM cometapi_ledger_version") == [(schema.VERSION,)]
    await ledger.database.close()


async def test_columns_that_are_missing_are_added_once(old):
    """Processes that open an older ledger at the same time all find its new columns and its row."""
    ledger = Ledger(old)
    newer = [column.name for column in schema.COLUMNS][-5:]
    for name in newer:
        await rows(ledger, f"ALTER TABLE cometapi_generations DROP COLUMN {name}")
    await ledger.database.close()
    ledgers = [Ledger(old) for _ in range(4)]
    found = await asyncio.gather(*[each.get("old") for each in ledgers])
    assert {(entry.task_id, entry.tags) for entry in found if entry} == {("task-0", None)}
    await rows(ledgers[0], f"SELECT {', '.join(newer)} FROM cometapi_generations")
    for each in ledgers:
        await each.database.close()


@pytest.mark.parametrize("version", [0, 99])
async def test_a_ledger_of_another_version_is_refused_and_left_as_it_is(old, version):
    """The error says what to do, and nothing is bought."""
    ledger, service = Ledger(old), Service()
    await rows(ledger, f"UPDATE cometapi_ledger_version SET version = {version}")
    before = await rows(ledger, "SELECT * FROM cometapi_generations")
    await ledger.database.close()
    newcomer: Any = Ledger(old)
    for _ in range(2):
        with pytest.raises(LedgerUnavailable) as caught:
            await buy_once(newcomer, intent(), service.post, run="r")
        assert (
            f"has version {version} and this package uses version {schema.VERSION}"
            in caught.value.message
        )
        assert "install the version of prefect-cometapi that wrote" in caught.value.message
    assert service.posts == 0

    versions, present = "SELECT version FROM cometapi_ledger_version", schema.VERSION
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(schema, "VERSION", version)
        assert await rows(ledger, versions) == [(version,)]
        assert await rows(ledger, "SELECT * FROM cometapi_generations") == before
        await rows(ledger, f"UPDATE cometapi_ledger_version SET version = {present}")
    assert (await newcomer.get("old")).task_id == "task-0"
    for each in (ledger, newcomer):
        await each.database.close()


@pytest.mark.heavy
async def test_who_may_make_no_table_is_told_so(postgres):
    """The error has PostgreSQL's own message and comes at once."""
    url = postgres.create_database()
    postgres.execute("DROP ROLE IF EXISTS guest")
    postgres.execute("CREATE ROLE guest LOGIN")
    ledger = Ledger(url.replace("postgres@", "guest@"))
    async with asyncio.timeout(10):
        with pytest.raises(LedgerUnavailable, match="permission denied for schema public"):
            await ledger.get("sku-17")


@pytest.mark.heavy
@pytest.mark.parametrize("mode", ["fast", "immediate"])
async def test_a_server_that_restarts_while_the_table_is_made_is_waited_for(postgres, mode):
    """Opening the ledger is tried again."""
    url = postgres.create_database()
    blocker = await asyncpg.connect(url)
    await blocker.execute(f"SELECT pg_advisory_lock({CREATION_LOCK})")
    ledger = Ledger(url)
    opening = asyncio.create_task(ledger.get("sku-17"))

    async def waits() -> bool:
        locks = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        return await blocker.fetchval(locks) > 0

    await until(waits)
    await asyncio.to_thread(postgres.restart, mode)
    async with asyncio.timeout(20):
        assert await opening is None
    await ledger.database.close()


@pytest.mark.heavy
async def test_two_roles_with_search_paths_of_their_own_share_one_ledger(postgres):
    """Otherwise each role would buy what the other one has."""
    url = postgres.create_database()
    name = url.rpartition("/")[2]
    for role in ("alice", "bob"):
        postgres.execute(f"DROP ROLE IF EXISTS {role}")
        postgres.execute(f"CREATE ROLE {role} LOGIN SUPERUSER")
        postgres.execute(f"CREATE SCHEMA {role}", name)
        postgres.execute(f"ALTER ROLE {role} SET search_path = {role}")
    alice, bob = (Ledger(url.replace("postgres@", f"{role}@")) for role in ("alice", "bob"))
    service = Service()
    for ledger in (alice, bob):
        assert (await buy_once(ledger, intent(), service.post, run="r")).task_id == "task-1"
    assert service.posts == 1
    assert (await alice.history.mark()).identity == (await bob.history.mark()).identity
    for ledger in (alice, bob):
        await ledger.database.close()


@pytest.mark.heavy
async def test_the_url_may_name_a_schema_of_its_own(postgres):
    """The URL names the schema as in libpq, and the tables are created there."""
    url = postgres.create_database()
    postgres.execute("CREATE SCHEMA videos", url.rpartition("/")[2])
    ledger = Ledger(f"{url}?options=-csearch_path%3Dvideos")
    await put(ledger, S.SUBMITTED, task_id="task-1")
    found = "SELECT schemaname FROM pg_tables WHERE tablename = 'cometapi_generations'"
    assert await rows(ledger, found) == [("videos",)]
    await ledger.database.close()


async def test_tables_that_another_process_creates_meanwhile_stay_as_they_are(ledger_url):
    """The second look, in the transaction, finds them, and the ledger keeps one identity."""
    ledger = Ledger(ledger_url)
    identity = (await ledger.history.mark()).identity
    steps = schema.creation(["BEGIN"])
    assert next(steps).text == "{relations}"
    assert steps.send([]).text == "BEGIN"  # there were no tables yet
    assert steps.send([]).text == "{relations}"
    found = await ledger.database.rows(Sql("{relations}"))
    version = steps.send(found)
    assert steps.send(await ledger.database.rows(version)).text == "COMMIT"
    assert (await ledger.history.mark()).identity == identity
    await ledger.database.close()
