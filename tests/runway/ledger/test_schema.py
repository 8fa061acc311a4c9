# SPDX-License-Identifier: Apache-2.0
"""The ledger's table is created once, migrated safely, and never used by an older package."""

import asyncio
from typing import Any

import asyncpg
import pytest
from sqlalchemy import text

from prefect_cometapi.runway import Ledger, LedgerUnavailable, State
from prefect_cometapi.runway.ledger import schema
from prefect_cometapi.runway.ledger.purchase import buy_once

from ..factories import Service, intent, put, until

S = State
ADD = "ALTER TABLE cometapi_generations ADD COLUMN colour TEXT"
FILL = "UPDATE cometapi_generations SET colour = 'blue'"


@pytest.fixture
async def old(ledger_url):
    """Return the URL of a ledger of this version with one entry."""
    ledger = Ledger(ledger_url)
    await put(ledger, S.STORED, "old", task_id="task-0")
    await ledger.database.close()
    return ledger_url


async def rows(ledger: Ledger, statement: str) -> list[tuple[object, ...]]:
    return [tuple(row.values()) for row in await ledger.database.rows(text(statement))]


def next_version(monkeypatch, *statements: str) -> None:
    monkeypatch.setattr(schema, "VERSION", schema.VERSION + 1)
    monkeypatch.setattr(schema, "MIGRATIONS", {**schema.MIGRATIONS, schema.VERSION: statements})


async def test_a_fresh_ledger_is_empty_and_of_the_present_version(ledger):
    """The table is created at the first use."""
    assert await ledger.entries() == []
    assert await rows(ledger, "SELECT version FROM cometapi_ledger_version") == [(schema.VERSION,)]


def test_every_version_has_the_way_that_leads_to_it():
    """There is one migration for every version, and none for a later one."""
    assert sorted(schema.MIGRATIONS) == list(range(2, schema.VERSION + 1))


async def test_a_ledger_that_many_open_at_once_is_made_once(ledger_url):
    """All processes find the ledger ready."""
    ledgers = [Ledger(ledger_url) for _ in range(8)]
    assert await asyncio.gather(*[ledger.get("sku-17") for ledger in ledgers]) == [None] * 8
    assert await rows(ledgers[0], "SELECT count(*) FROM cometapi_ledger_version") == [(1,)]
    for ledger in ledgers:
        await ledger.database.close()


async def test_an_older_ledger_is_brought_up_to_date_once(old, monkeypatch):
    """Eight processes open the ledger concurrently, and no entry is lost."""
    next_version(monkeypatch, ADD, FILL)
    ledgers = [Ledger(old) for _ in range(8)]
    found = await asyncio.gather(*[ledger.get("old") for ledger in ledgers])
    assert {entry.task_id for entry in found if entry} == {"task-0"}
    assert await rows(ledgers[0], "SELECT colour FROM cometapi_generations") == [("blue",)]
    versions = await rows(ledgers[0], "SELECT version FROM cometapi_ledger_version")
    assert versions == [(schema.VERSION,)]
    for ledger in ledgers:
        await ledger.database.close()


async def test_a_ledger_several_versions_old_takes_each_step(old, monkeypatch):
    """The migrations run in their order."""
    next_version(monkeypatch, ADD)
    next_version(monkeypatch, FILL)
    next_version(monkeypatch, "UPDATE cometapi_generations SET colour = colour || 'ish'")
    ledger = Ledger(old)
    assert await rows(ledger, "SELECT colour FROM cometapi_generations") == [("blueish",)]
    await ledger.database.close()


async def test_an_update_that_breaks_off_leaves_the_ledger_as_it_was(old, monkeypatch):
    """The next attempt starts from the unchanged ledger."""
    with monkeypatch.context() as patched:
        next_version(patched, ADD, "UPDATE nonsense SET a = 1")
        with pytest.raises(LedgerUnavailable, match="nonsense"):
            await Ledger(old).get("old")
    ledger: Any = Ledger(old)
    assert (await ledger.get("old")).task_id == "task-0"
    assert await rows(ledger, "SELECT version FROM cometapi_ledger_version") == [(schema.VERSION,)]
    await ledger.database.close()
    next_version(monkeypatch, ADD, FILL)
    assert await rows(ledger, "SELECT colour FROM cometapi_generations") == [("blue",)]
    await ledger.database.close()


async def test_a_newer_ledger_is_refused_and_left_as_it_is(old):
    """The error says what to do, and nothing is bought."""
    ledger, service = Ledger(old), Service()
    await rows(ledger, "UPDATE cometapi_ledger_version SET version = 99")
    before = await rows(ledger, "SELECT * FROM cometapi_generations")
    await ledger.database.close()
    newcomer: Any = Ledger(old)
    for _ in range(2):
        with pytest.raises(LedgerUnavailable) as caught:
            await buy_once(newcomer, intent(), service.post, run="r")
        assert f"has version 99 and this package knows {schema.VERSION}" in caught.value.message
        assert "newer prefect-cometapi" in caught.value.message
    assert service.posts == 0

    def known() -> int:
        return 99

    versions, present = "SELECT version FROM cometapi_ledger_version", schema.VERSION
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(schema, "VERSION", known())
        assert await rows(ledger, versions) == [(99,)]
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
    await blocker.execute(f"SELECT pg_advisory_lock({schema._LOCK})")
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


FIRST_VERSION = (
    "DROP INDEX ix_cometapi_generations_kind",
    "DROP INDEX ix_cometapi_generations_serial",
    "DROP INDEX ix_cometapi_generations_spending",
    *(
        f"ALTER TABLE cometapi_generations DROP COLUMN {name}"
        for name in ("charges", "cost", "claimed_at", "resubmitted_by", "task_id_checked", "serial")
    ),
    "ALTER TABLE cometapi_ledger_version DROP COLUMN identity",
    "ALTER TABLE cometapi_ledger_version DROP COLUMN serial_floor",
    "UPDATE cometapi_ledger_version SET version = 1",
)
"""Statements that turn a current ledger into one of the first version."""


async def test_a_ledger_of_the_first_version_is_brought_up_to_date(ledger_url):
    """The entries are kept, and their possible costs are counted."""
    first = Ledger(ledger_url)
    await put(first, S.STORED, "old", task_id="task-0", attempts=2)
    await put(first, S.REJECTED, "refused", attempts=1)
    await put(first, S.RESUBMIT_ALLOWED, "again", attempts=1)
    for statement in FIRST_VERSION:
        await rows(first, statement)
    await first.database.close()
    later = Ledger(ledger_url)
    found = await later.get_many(["old", "refused", "again"])
    assert (found["old"].task_id, found["old"].charges) == ("task-0", 2)
    assert found["old"].claimed_at == found["old"].created_at
    assert (found["refused"].charges, found["refused"].resubmitted_by) == (0, ())
    assert found["again"].charges == 1
    (identity,) = await rows(later, "SELECT length(identity) FROM cometapi_ledger_version")
    assert identity == (32,)
    await rows(later, "DROP INDEX ix_cometapi_generations_kind")
    await rows(later, "DROP INDEX ix_cometapi_generations_spending")
    await later.database.close()


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
