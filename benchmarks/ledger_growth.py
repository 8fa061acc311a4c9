# SPDX-License-Identifier: Apache-2.0
"""Measure how much slower a ledger with a million entries is than an empty one, on both databases.

``python benchmarks/ledger_growth.py [ROWS]``. The entries are written by SQL, a thousand for each
day. Then each statement that a run, a collector or a command needs is timed in an empty and in the
large ledger in turns, and the fastest of thirty counts. The goal is a ratio of at most 2. Both
ledgers have the same entries that are measured, so both return as much. PostgreSQL is left out
where it is not installed.
"""

import asyncio
import itertools
import sqlite3
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg

from prefect_cometapi.runway import Entry, Ledger, LedgerCorrupted, State
from prefect_cometapi.runway.ledger.billing import unbilled_entries
from prefect_cometapi.runway.ledger.budget import Budget
from prefect_cometapi.runway.ledger.entry import UNFINISHED, GenerationKind, Intent
from prefect_cometapi.runway.ledger.unresolved import (
    known_purchases,
    models_in_use,
    uncertain_entries,
    unresolved_entries,
)
from prefect_cometapi.runway.models.prices import Price

GOAL = 2.0
SINCE = datetime.now(UTC) - timedelta(minutes=1)
ROUNDS = 30
URL = "https://api.example.com"
RUN = "run-of-the-benchmark"
PRICES = {"gen4_turbo": Price(0.05, per_second=True)}
_COLUMNS = (
    "idempotency_key, state, task_id, claim, attempts, base_url, flow_run_id, route, model, "
    "fingerprint, request, billed_seconds, storage, created_at, changed_at, submitted_at, "
    "finished_at, stored_at, polls, outputs, videos, failure_code, note, charges, cost, currency, "
    "cost_source, claimed_at, evidence, resubmitted_by, task_id_checked, serial"
)
_VALUES = """
    'batch-' || (n / 500) || '/item-' || n, CASE WHEN n % 50 = 0 THEN 'failed' ELSE 'stored' END,
    'task-' || n, 'claim-' || n, 1, 'https://api.example.com', 'flow-run-' || (n / 500),
    'image_to_video', CASE WHEN n % 2 = 0 THEN 'gen4_turbo' ELSE 'gen4' END, 'f' || n,
    '{"promptText": "slow zoom"}', 5.0 + n % 2 * 5, '/videos', TIME, TIME, TIME, TIME,
    TIME, 9, '[]', '{}', '', '', 1, 0.25, 'USD', 'billed', TIME, '', '[]', TRUE, n
"""
_TIMES = {
    "sqlite": "strftime('%Y-%m-%d %H:%M:%S.000000', 'now', '-' || (AGE) || ' seconds')",
    "postgresql": "now() - make_interval(secs => AGE)",
}


def values(database: str, rows: int) -> str:
    """Return the values of a row; the newest is an hour old, and each day has a thousand."""
    return _VALUES.replace("TIME", _TIMES[database]).replace("AGE", f"({rows} - n) * 86 + 3600")


def fill_sqlite(file: Path, rows: int) -> None:
    """Write finished entries into a ledger's file."""
    numbers = f"WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < {rows}) "
    into = f"INSERT INTO cometapi_generations ({_COLUMNS})"
    with closing(sqlite3.connect(file)) as database:
        database.execute("PRAGMA synchronous=OFF")
        database.execute(f"{numbers}{into} SELECT {values('sqlite', rows)} FROM c")
        database.commit()


async def fill_postgres(url: str, rows: int) -> None:
    """Write finished entries into a ledger on a server."""
    database = await asyncpg.connect(url)
    await database.execute(
        f"INSERT INTO cometapi_generations ({_COLUMNS}) "
        f"SELECT {values('postgresql', rows)} FROM generate_series(1, {rows}) AS n"
    )
    await database.execute("VACUUM ANALYZE cometapi_generations")
    await database.close()


def wish(key: str) -> Intent:
    return Intent(
        idempotency_key=key,
        base_url=URL,
        route="image_to_video",
        model="gen4_turbo",
        fingerprint=key,
        request={"promptText": "slow zoom"},
        billed_seconds=5.0,
        cost=0.25,
    )


async def prepare(ledger: Ledger) -> None:
    """Write the entries that the measured statements find, the same in each ledger."""
    now = datetime.now(UTC)
    for number in range(10):
        owner = f"host:1:2:3|{RUN}"
        await ledger.insert_claim(wish(f"measured/open-{number}"), f"c{number}", owner)
        done = await ledger.insert_adopted(
            wish(f"measured/done-{number}"), f"d{number}", f"measured-{number}", checked=True
        )
        assert done
        claimed = {"claimed_at": now - timedelta(minutes=5), "submitted_at": now}
        finished = {"finished_at": now, "flow_run_id": RUN}
        await ledger._change(done.idempotency_key, State.SUCCEEDED, [], **claimed, **finished)
        unsure = await ledger.insert_claim(wish(f"measured/unsure-{number}"), f"u{number}", owner)
        assert unsure
        await ledger.mark_uncertain(unsure, "no answer")


Work = Callable[[Ledger], Awaitable[object]]
_numbers = itertools.count()


async def claim(ledger: Ledger) -> Entry | None:
    """Claim a new key within a budget, as a batch does."""
    key = f"new/{next(_numbers)}"
    budget = Budget("new/", PRICES, max_spend=10**6)
    return await ledger.insert_claim(wish(key), key, "host:1:2:3|other", budget=budget)


async def acquire_and_release(ledger: Ledger) -> None:
    """Acquire and release the lease of an entry."""
    owner = "host:1:2:3|collector"
    assert await ledger.leases.acquire("measured/done-1", owner)
    assert await ledger.leases.release("measured/done-1", owner)


def skip(_error: LedgerCorrupted) -> None:
    """Leave out a corrupted row."""


def kind(seconds: float | None) -> GenerationKind:
    return GenerationKind(URL, "image_to_video", "gen4_turbo", seconds)


MEASURED: dict[str, Work] = {
    "get one": lambda ledger: ledger.get("measured/done-1"),
    "claim under a budget": claim,
    "acquire and release": acquire_and_release,
    "list the newest 20": lambda ledger: ledger.entries(limit=20, on_corrupted=skip),
    "collect": lambda ledger: ledger.entries(states=UNFINISHED, on_corrupted=skip),
    "failed lately": lambda ledger: ledger.entries(
        states=[State.FAILED], since=SINCE, on_corrupted=skip
    ),
    "entries of a flow run": lambda ledger: ledger.entries(flow_run_id=RUN),
    "entries held by a run": lambda ledger: ledger.leases.entries_of_run(RUN),
    "find by task id": lambda ledger: ledger.find_by_task_id("measured-1", URL),
    "known ids": lambda ledger: ledger.known_ids([f"measured-{n}" for n in range(100)]),
    "durations of a kind": lambda ledger: ledger.durations(kind(5.0), 10),
    "durations of any length": lambda ledger: ledger.durations(kind(None), 10),
    "durations of a new kind": lambda ledger: ledger.durations(kind(7.0), 10),
    "spent of a batch": lambda ledger: ledger.spent("measured/", PRICES),
    "uncertain": uncertain_entries,
    "reconcile: unresolved": lambda ledger: unresolved_entries(ledger, URL),
    "reconcile: purchases": lambda ledger: known_purchases(ledger, URL, None, datetime.now(UTC)),
    "reconcile: models": lambda ledger: models_in_use(ledger, URL),
    "bill": lambda ledger: unbilled_entries(ledger, SINCE, 10),
    "mark of the ledger": lambda ledger: ledger.history.mark(),
}


async def milliseconds(work: Work, ledger: Ledger) -> float:
    started = time.perf_counter()
    await work(ledger)
    return 1000 * (time.perf_counter() - started)


async def compare(name: str, empty: Ledger, large: Ledger) -> None:
    """Print the times in an empty ledger and in a large one."""
    print(f"{name:28}{'empty':>10}{'large':>10}{'ratio':>8}  (fastest of {ROUNDS}, milliseconds)")
    for what, work in MEASURED.items():
        times: tuple[list[float], list[float]] = ([], [])
        for _ in range(ROUNDS):
            for ledger, found in zip((empty, large), times, strict=True):
                found.append(await milliseconds(work, ledger))
        small, big = (min(found) for found in times)
        missed = "  missed" if big / small > GOAL else ""
        print(f"  {what:26}{small:10.2f}{big:10.2f}{big / small:8.2f}{missed}", flush=True)


@asynccontextmanager
async def server() -> AsyncIterator[Callable[[], str] | None]:
    """Provide a function that creates databases on a server, or None without PostgreSQL."""
    sys.path.insert(0, str(Path(__file__).parent.parent))
    from tests.postgres import Postgres, binaries

    found = binaries()
    if not found:
        yield None
        return
    running = Postgres(found)
    try:
        yield running.create_database
    finally:
        running.remove()


async def main() -> None:
    """Measure and print the results."""
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    with tempfile.TemporaryDirectory() as folder:
        empty, large = (Ledger(f"sqlite:///{folder}/{name}.db") for name in ("empty", "large"))
        await large.get("open")
        assert large.database.file
        fill_sqlite(large.database.file, rows)
        for ledger in (empty, large):
            await prepare(ledger)
        await compare(f"SQLite, {rows:,} rows", empty, large)
        for ledger in (empty, large):
            await ledger.database.close()
    async with server() as create:
        if create is None:
            return
        urls = create(), create()
        empty, large = (Ledger(url) for url in urls)
        await large.get("open")
        await fill_postgres(urls[1], rows)
        for ledger in (empty, large):
            await prepare(ledger)
        await compare(f"PostgreSQL, {rows:,} rows", empty, large)
        for ledger in (empty, large):
            await ledger.database.close()


if __name__ == "__main__":
    asyncio.run(main())
