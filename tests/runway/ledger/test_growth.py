# SPDX-License-Identifier: Apache-2.0
"""No statement that a run, a collector or a command needs reads the whole table."""

from datetime import UTC, datetime
from typing import Any

import asyncpg
import pytest

from prefect_cometapi.runway import Ledger, State
from prefect_cometapi.runway.ledger.billing import unbilled_entries
from prefect_cometapi.runway.ledger.budget import Budget
from prefect_cometapi.runway.ledger.entry import UNFINISHED, GenerationKind
from prefect_cometapi.runway.ledger.schema import index_name
from prefect_cometapi.runway.ledger.statement import POSTGRESQL, SQLITE, Sql, render
from prefect_cometapi.runway.ledger.unresolved import (
    known_purchases,
    models_in_use,
    uncertain_entries,
    unresolved_entries,
)

from ..factories import BASE, Service, buy, finished, intent, put, video

NOW = datetime.now(UTC)
NAME = "cometapi_generations"


async def use(ledger: Ledger) -> None:
    """Call everything that is called often, or while somebody waits."""
    budget = Budget("b/", max_spend=10**6)
    async with ledger.leases.hold("b/1", "run"):
        bought = await buy(
            ledger, Service(), wish=intent("b/1", cost=0.1), budget=budget, run="run"
        )
        done = await ledger.mark_succeeded(bought.submission(), finished())
        assert done
        assert await ledger.leases.entries_of_run("run")
        await ledger.leases._renew()
        await ledger.mark_stored(done, "task-1", "/videos", [video()])
    await put(ledger, State.SUBMITTED, "held", task_id="t")
    await ledger.leases.acquire("held", "host|run")
    await ledger.leases.release("held", "host|run")
    await ledger.get_many(["b/1", "held"])
    await ledger.find_by_task_id("t", BASE)
    await ledger.known_ids(["t"])
    await ledger.entries(limit=50)
    await ledger.entries(flow_run_id="run", on_corrupted=lambda _error: None)
    await ledger.entries(states=UNFINISHED, on_corrupted=lambda _error: None)
    await ledger.entries(states=[State.STORED], since=NOW, limit=5)
    for seconds in (None, 5.0):
        await ledger.durations(GenerationKind(BASE, "image_to_video", "m", seconds), 10)
    await ledger.spent("b/", {})
    await ledger.history.mark()
    await ledger.history.claims_since(10**6)
    await uncertain_entries(ledger)
    await unresolved_entries(ledger, BASE)
    await known_purchases(ledger, BASE, None, NOW)
    await models_in_use(ledger, BASE)
    await unbilled_entries(ledger, NOW, 10)


@pytest.fixture
def used(monkeypatch) -> list[Sql]:
    """Return a list of the statements that ledgers run."""
    statements: list[Sql] = []

    def record(database: type[Any]) -> None:
        execute = database.execute_timed

        async def recording(self: Any, statement: Sql, lock: str | None = None) -> Any:
            if statement.text not in {known.text for known in statements}:
                statements.append(statement)
            return await execute(self, statement, lock)

        monkeypatch.setattr(database, "execute_timed", recording)

    from prefect_cometapi.runway.ledger.postgres import PostgreSQL
    from prefect_cometapi.runway.ledger.sqlite import SQLite

    record(SQLite)
    record(PostgreSQL)
    return statements


def reads_all(step: str, statement: str) -> bool:
    """Return True if a step of a plan of SQLite reads every row.

    The newest rows come from the index of times, until the limit is reached. The index of the rows
    with an unknown state has no others.
    """
    newest = step.endswith(index_name("created_at")) and "LIMIT" in statement
    few = step.endswith(index_name("unknown_state"))
    return f"SCAN {NAME}" in step and not newest and not few


async def test_no_statement_reads_the_whole_table_on_sqlite(file_ledger, used):
    """Each statement finds its rows by an index, whatever the ledger's size is."""
    await use(file_ledger)
    scans: list[str] = []
    for statement in list(used):
        plan = Sql(f"EXPLAIN QUERY PLAN {statement.text}", statement.values)
        scans += [
            f"{row['detail']}: {render(statement.text, SQLITE).text}"
            for row in await file_ledger.database.rows(plan)
            if reads_all(row["detail"], statement.text)
        ]
    assert len(used) > 20
    assert scans == []


@pytest.mark.heavy
async def test_no_statement_reads_the_whole_table_on_postgresql(postgres, used):
    """Each statement finds its rows by an index in a table that is not tiny."""
    url = postgres.create_database()
    ledger = Ledger(url)
    await use(ledger)
    connection = await asyncpg.connect(url)
    columns = "state, claim, attempts, base_url, model, created_at, changed_at, polls, outputs, "
    columns += (
        "videos, failure_code, note, charges, evidence, resubmitted_by, task_id_checked, serial"
    )
    await connection.execute(
        f"INSERT INTO {NAME} (idempotency_key, {columns}) "
        "SELECT 'key-' || n, 'stored', 'c', 1, $1, 'm' || n % 3, now() - n * interval '1 minute', "
        "now(), 1, '[]', '{}', '', '', 1, '', '[]', true, n FROM generate_series(1, 20000) AS n",
        BASE,
    )
    await connection.execute(f"ANALYZE {NAME}")
    scans: list[str] = []
    for statement in list(used):
        text, names = render(f"EXPLAIN {statement.text}", POSTGRESQL)
        plan = await connection.fetch(text, *[statement.values[name] for name in names])
        lines = "\n".join(row[0] for row in plan)
        if f"Seq Scan on {NAME}" in lines:
            scans.append(f"{text}\n{lines}")
    assert len(used) > 20
    assert scans == []
    await connection.close()
    await ledger.database.close()
