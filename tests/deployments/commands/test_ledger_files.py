# SPDX-License-Identifier: Apache-2.0
"""Command `ledger backup`: it copies a ledger in use, and only as a whole."""

import asyncio
import sqlite3
import stat
from contextlib import closing

import pytest

from prefect_cometapi.deployments.commands.ledger_files import backup, copy_ledger
from prefect_cometapi.runway import Ledger, LedgerUnavailable
from prefect_cometapi.runway.ledger.entry import Intent
from prefect_cometapi.runway.ledger.purchase import buy_once


async def bought(ledger: Ledger, key: str) -> None:
    async def post(_check: object) -> str:
        return f"task-{key}"

    await buy_once(
        ledger, Intent(idempotency_key=key, base_url="https://api.example.com"), post, run="r"
    )


def keys_in(file) -> list[str]:
    with closing(sqlite3.connect(file)) as connection:
        return [
            key for (key,) in connection.execute("SELECT idempotency_key FROM cometapi_generations")
        ]


def test_a_copy_has_what_was_bought_and_is_its_owners_alone(tmp_path, capsys):
    """A copy has every purchase and is readable by its owner only, even of a ledger in use."""
    ledger = Ledger(f"sqlite:///{tmp_path}/ledger.db")
    asyncio.run(bought(ledger, "a"))
    backup(tmp_path / "copy.db")
    assert str(tmp_path / "copy.db") in "".join(capsys.readouterr().out.split())
    asyncio.run(bought(ledger, "b"))
    assert keys_in(tmp_path / "copy.db") == ["a"]
    assert keys_in(tmp_path / "ledger.db") == ["a", "b"]
    assert stat.S_IMODE((tmp_path / "copy.db").stat().st_mode) == 0o600


def test_a_copy_in_a_folder_is_named_after_the_time(tmp_path):
    """A copy in a folder is named after the time, so that a schedule keeps several."""
    ledger = Ledger(f"sqlite:///{tmp_path}/ledger.db")
    asyncio.run(bought(ledger, "a"))
    (tmp_path / "backups").mkdir()
    backup(tmp_path / "backups")
    (copy,) = (tmp_path / "backups").iterdir()
    assert copy.name.startswith("ledger-20")
    assert keys_in(copy) == ["a"]


def test_no_file_is_overwritten_and_none_is_left_half(tmp_path):
    """An existing file is not overwritten, and no incomplete copy is left."""
    asyncio.run(bought(Ledger(f"sqlite:///{tmp_path}/ledger.db"), "a"))
    (tmp_path / "there.db").write_text("precious")
    with pytest.raises(LedgerUnavailable, match="File exists"):
        backup(tmp_path / "there.db")
    assert (tmp_path / "there.db").read_text() == "precious"
    (tmp_path / "broken.db").write_bytes(b"this is no database" * 100)
    with pytest.raises(sqlite3.DatabaseError):
        copy_ledger(tmp_path / "broken.db", tmp_path / "copy.db")
    assert not (tmp_path / "copy.db").exists()


@pytest.mark.heavy
def test_a_ledger_in_postgresql_is_left_to_its_own_tool(postgres, monkeypatch, tmp_path):
    """The command names PostgreSQL's own backup tool for a ledger there."""
    monkeypatch.setenv("COMETAPI_LEDGER_URL", postgres.create_database())
    with pytest.raises(LedgerUnavailable, match="pg_dump --table"):
        backup(tmp_path / "copy.db")
