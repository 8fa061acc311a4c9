# SPDX-License-Identifier: Apache-2.0
"""A ledger that an earlier release wrote is read, continued and given the newer indexes."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from prefect_cometapi.runway import Ledger
from prefect_cometapi.runway.ledger.entry import Entry
from prefect_cometapi.runway.ledger.schema import COLUMNS, index_name

from ..factories import intent

HERE = Path(__file__).parent
KNOWN: dict[str, Any] = json.loads((HERE / "ledger_version_1.json").read_text(encoding="utf-8"))


@pytest.fixture
async def old(tmp_path):
    """Return a ledger whose file SQLAlchemy wrote, from its dump."""
    dump = (HERE / "ledger_version_1.sql").read_text(encoding="utf-8")
    with closing(sqlite3.connect(tmp_path / "ledger.db")) as database:
        database.executescript(dump)
    ledger = Ledger(f"sqlite:///{tmp_path}/ledger.db")
    yield ledger
    await ledger.database.close()


def raw(file: Path, query: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(file)) as database:
        return database.execute(query).fetchall()


async def test_every_entry_of_an_older_ledger_is_read_as_it_was(old):
    """Nothing that was bought is forgotten or read differently."""
    found = [entry.model_copy(update={"lease_left": None}) for entry in await old.entries()]
    assert found == [Entry.model_validate(entry) for entry in KNOWN["entries"]]
    assert (await old.history.mark()).serial == KNOWN["serial"]
    assert (await old.spent("batch/", {})).charges == 4


async def test_an_older_ledger_is_continued_in_the_same_form(old):
    """A new row has the same types and forms, so that the earlier release reads it, too."""
    known = raw(old.database.file, "SELECT name FROM pragma_table_info('cometapi_generations')")
    claimed = await old.insert_claim(intent("batch/new"), "claim-new", "host.example:1:2:3:4|run")
    assert claimed.serial == KNOWN["serial"] + 1
    types = ", ".join(f"typeof({name})" for (name,) in known)
    before, after = (
        raw(old.database.file, f"SELECT {types} FROM cometapi_generations WHERE {where}")
        for where in ("idempotency_key = 'batch/claimed'", "idempotency_key = 'batch/new'")
    )
    assert before == after
    ((times,),) = raw(
        old.database.file,
        "SELECT count(*) FROM cometapi_generations WHERE created_at GLOB "
        "'[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9] [0-9][0-9]:[0-9][0-9]:[0-9][0-9].[0-9][0-9]"
        "[0-9][0-9][0-9][0-9]'",
    )
    assert times == len(KNOWN["entries"]) + 1


async def test_an_older_ledger_gets_the_newer_columns(old):
    """A column is added while the ledger is opened, and the rows from before lack its value."""
    before = raw(old.database.file, "SELECT name FROM pragma_table_info('cometapi_generations')")
    assert ("tags",) not in before
    entry = await old.get("adopted")
    assert (entry.tags, entry.deployment, entry.list_cost) == (None, None, None)
    wanted = intent("batch/new", tags=("blue",), deployment="nightly", list_cost=0.5)
    claimed = await old.insert_claim(wanted, "claim-new", "host|run")
    assert (claimed.tags, claimed.deployment, claimed.list_cost) == (("blue",), "nightly", 0.5)
    names = raw(old.database.file, "SELECT name FROM pragma_table_info('cometapi_generations')")
    assert [name for (name,) in names][-5:] == [column.name for column in COLUMNS][-5:]
    assert raw(old.database.file, "SELECT version FROM cometapi_ledger_version") == [(1,)]


async def test_an_older_ledger_gets_the_newer_indexes(old):
    """An index is added while the ledger is opened, and the version stays."""
    assert await old.get("adopted")
    names = {name for (name,) in raw(old.database.file, "SELECT name FROM sqlite_master")}
    assert {index_name("unresolved"), index_name("kind_seconds")} <= names
    assert raw(old.database.file, "SELECT version FROM cometapi_ledger_version") == [(1,)]


async def test_an_older_ledger_without_room_for_an_index_is_used_as_it_is(old, monkeypatch):
    """An index only saves time; the ledger works without it."""
    from prefect_cometapi.runway.ledger import schema

    monkeypatch.setitem(schema._INDEXES, "impossible", "(no_such_column)")
    assert await old.get("adopted")
    assert await old.insert_claim(intent("batch/new"), "claim-new", "host|run")
