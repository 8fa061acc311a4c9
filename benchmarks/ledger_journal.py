# SPDX-License-Identifier: Apache-2.0
"""Compare the cost of a rollback journal with that of a write-ahead log, per generation.

``python benchmarks/ledger_journal.py [GENERATIONS] [FOLDER]``. Two ledgers take turns. Each
generation is claimed, gets its id, is finished and is stored. These are four statements, each
flushed to the disk. One ledger uses the rollback journal, as the package does. The other one uses
the log that the package used before; it loses purchases when its file is copied or moved.
"""

import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from sqlite3 import Connection

from prefect_cometapi.runway import CompletedGeneration, Generation, Ledger, Status, StoredVideo
from prefect_cometapi.runway.ledger import sqlite
from prefect_cometapi.runway.ledger.entry import Intent
from prefect_cometapi.runway.ledger.purchase import Check, buy_once
from prefect_cometapi.runway.models.generation import AssetURL

VIDEO = StoredVideo(
    uri="/videos/a.mp4",
    sidecar="/videos/a.json",
    sha256="0" * 64,
    size=1000,
    width=64,
    height=48,
    duration=5.0,
    frames=120,
    codec="h264",
)


def with_log(prepare: Callable[[Connection], None]) -> Callable[[Connection], None]:
    """Return the function that prepares a connection with a write-ahead log."""

    def prepared(connection: Connection) -> None:
        prepare(connection)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")

    return prepared


async def generate(ledger: Ledger, key: str) -> float:
    """Return the milliseconds that the ledger takes for one generation."""

    async def post(_check: Check) -> str:
        return f"task-{key}"

    intent = Intent(idempotency_key=key, base_url="https://api.example.com", fingerprint="a" * 64)
    started = time.perf_counter()
    entry = await buy_once(ledger, intent, post, run="benchmark")
    generation = Generation(
        task_id=f"task-{key}",
        status=Status.SUCCEEDED,
        outputs=(AssetURL("https://cdn.example.com/a.mp4"),),
    )
    done = await ledger.mark_succeeded(
        entry.submission(), CompletedGeneration(generation=generation, polls=3, waited=1.5)
    )
    assert done
    assert await ledger.mark_stored(done, f"task-{key}", "/videos", [VIDEO])
    return 1000 * (time.perf_counter() - started)


async def measure(generations: int, folder: str) -> tuple[list[float], list[float]]:
    """Return the milliseconds per generation with a rollback journal, and with a log."""
    journal, log = (Ledger(f"sqlite:///{folder}/{name}.db") for name in ("journal", "log"))
    await generate(journal, "first")
    usual = sqlite._configure
    sqlite._configure = with_log(usual)
    try:
        await generate(log, "first")
    finally:
        sqlite._configure = usual
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(generations):
        for which, ledger in enumerate((journal, log)):
            times[which].append(await generate(ledger, f"key-{number}"))
    for ledger in (journal, log):
        await ledger.database.close()
    return times


def main() -> None:
    """Measure and print the results."""
    generations = int(sys.argv[1]) if len(sys.argv) > 1 else 300
    parent = sys.argv[2] if len(sys.argv) > 2 else None
    with tempfile.TemporaryDirectory(dir=parent) as folder:
        journal, log = asyncio.run(measure(generations, folder))
    ours, theirs = statistics.median(journal), statistics.median(log)
    print(f"{generations} generations of four statements each, median milliseconds")
    print(f"  rollback journal     {ours:8.2f}")
    print(f"  write-ahead log      {theirs:8.2f}")
    print(f"  ratio                {ours / theirs:8.2f}")
    print(f"  more per generation  {ours - theirs:8.2f}")


if __name__ == "__main__":
    main()
