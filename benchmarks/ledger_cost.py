# SPDX-License-Identifier: Apache-2.0
"""Measure the cost of the ledger per generation: flows with and without it take turns in one run.

``python benchmarks/ledger_cost.py [PAIRS]``. Both sides do the same four steps against the
same sandbox and Prefect server. The ledger of one side is a SQLite file; the other knows nothing
and keeps nothing. The goal is a median of at most 10 ms. Flows under Prefect differ from one to the
next by far more than that, so the median is shown with an interval (95 %, by resampling the pairs),
beside the time that a flow waited for the answers of the ledger.
"""

import asyncio
import os
import random
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from service import sandbox_process

from prefect_cometapi.runway import Entry, State
from prefect_cometapi.runway.ledger.claim_history import ClaimHistory
from prefect_cometapi.runway.ledger.database import Answer, Database
from prefect_cometapi.runway.ledger.entry import GenerationKind, Intent
from prefect_cometapi.runway.ledger.held_leases import HeldLeases
from prefect_cometapi.runway.ledger.leases import Leases
from prefect_cometapi.runway.ledger.marks import LedgerMark
from prefect_cometapi.runway.ledger.sqlite import SQLite
from prefect_cometapi.runway.ledger.statement import Sql
from prefect_cometapi.runway.ledger.store import Ledger

GOAL_MILLISECONDS = 10.0
IMAGE: Any = {"promptImage": "https://example.com/cat.jpg", "promptText": "slow zoom"}


class JustNow(dict[str, float]):
    """Ledger check that always reports a recent comparison, so that no flow compares again."""

    def get(self, _place: str, _default: Any = None) -> float:
        return time.monotonic()


class NoHistory(ClaimHistory):
    """Counts of a ledger without claims."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self.locations_checked = self.locations_marked = JustNow()

    async def mark(self) -> LedgerMark:
        return LedgerMark.of("0", 0, "")

    async def identity(self) -> str:
        return "0"

    async def check_once(self) -> None:
        return None

    def check_claim(self, claimed: Entry, newest_before: int) -> None:
        return None


class NoHeldLeases(HeldLeases):
    """Leases that are always held and valid."""

    def count(self, key: str, owner: str) -> int:
        return 1

    def is_valid(self, key: str, owner: str) -> bool:
        return True


class NoLeases(Leases):
    """Leases that every owner gets at once."""

    def __init__(self, ledger: "NoLedger") -> None:
        super().__init__(ledger.table, NoHeldLeases())
        self._ledger = ledger

    async def acquire(self, key: str, owner: str) -> Entry:
        return self._ledger.now

    async def release(self, key: str, owner: str, note: str | None = None) -> Entry:
        return self._ledger.now

    @contextmanager
    def renewing(self, key: str, owner: str) -> Iterator[None]:
        yield


class NoLedger(Ledger):
    """Ledger that never knows a key and keeps nothing."""

    now: Entry

    def __init__(self) -> None:
        super().__init__("sqlite:////nowhere/at/all.db")
        self.history = NoHistory(self.database)
        self.leases = NoLeases(self)

    async def insert_claim(self, intent: Intent, claim: str, owner: str, **_values: Any) -> Entry:
        now = datetime.now(UTC)
        self.now = Entry(
            **intent.columns(), state=State.CLAIMED, claim=claim, created_at=now, changed_at=now
        )
        return self.now

    async def _change(self, key: str, state: State, *_where: Any, **values: Any) -> Entry:
        values = {name: values[name] for name in ("task_id", "submitted_at") if name in values}
        changed = self.now.model_copy(update={"state": state, **values})
        if "task_id" in values:  # a late change of the flow before is not kept
            self.now = changed
        return changed

    async def get(self, key: str) -> None:
        return None

    async def durations(self, kind: GenerationKind, limit: int) -> list[tuple[float, int]]:
        return []


class Waiting:
    """Seconds that flows waited for a database's answers; for some changes they do not wait."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.statements = 0
        self.awaited = 0
        self.flows: list[float] = []
        self._execute = SQLite.execute_timed

    def next_flow(self) -> None:
        """Record the waiting time of the flow that ended and start counting for the next one."""
        self.flows.append(self.seconds)
        self.seconds = 0.0

    def install(self) -> None:
        waiting, execute = self, self._execute

        async def timed(self: SQLite, statement: Sql, lock: str | None = None) -> Answer:
            started = time.perf_counter()
            try:
                return await execute(self, statement, lock)
            finally:
                waiting.statements += 1
                if threading.current_thread() is threading.main_thread():
                    waiting.awaited += 1
                    waiting.seconds += time.perf_counter() - started

        SQLite.execute_timed = timed


async def measure(pairs: int, ledger: Ledger) -> tuple[list[float], list[float], Waiting]:
    """Return the milliseconds of each flow with and without the ledger, and those spent in it."""
    from prefect_cometapi.flows import aimage_to_video
    from prefect_cometapi.flows.runtime import run_context

    waiting = Waiting()

    async def one(which: Any, key: str) -> float:
        async def chosen(*_args: Any) -> Any:
            return which

        run_context.open_ledger = chosen  # pyright: ignore[reportPrivateImportUsage]
        started = time.perf_counter()
        result = await aimage_to_video(IMAGE, idempotency_key=key)
        assert result.videos
        return 1000 * (time.perf_counter() - started)

    for name in ("warm-1", "warm-2"):
        await one(ledger, name)
        await one(NoLedger(), f"{name}-without")
    waiting.install()
    with_it: list[float] = []
    without: list[float] = []
    for pair in range(pairs):
        first_with = pair % 2 == 0
        for having in (first_with, not first_with):
            if having:
                with_it.append(await one(ledger, f"with-{pair}"))
                waiting.next_flow()
            else:
                without.append(await one(NoLedger(), f"without-{pair}"))
    return with_it, without, waiting


def interval(differences: list[float]) -> tuple[float, float]:
    """Return the 95 % interval of the median over the resamplings."""
    draw = random.Random(1).choices
    medians = (statistics.median(draw(differences, k=len(differences))) for _ in range(2000))
    cuts = statistics.quantiles(medians, n=40)
    return cuts[0], cuts[-1]


def main() -> None:
    """Measure and print the results."""
    pairs = int(sys.argv[1]) if len(sys.argv) > 1 else 30
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {
            "PREFECT_LOGGING_LEVEL": "CRITICAL",
            "PREFECT_SERVER_LOGGING_LEVEL": "CRITICAL",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "COMETAPI_KEY": "benchmark",
            "COMETAPI_POLL_INTERVAL": "0.01",
            "COMETAPI_STORAGE": f"{folder}/videos",
        }
        from prefect.testing.utilities import prefect_test_harness

        with sandbox_process() as url, prefect_test_harness(server_startup_timeout=120):
            os.environ["COMETAPI_BASE_URL"] = url
            ledger = Ledger(f"sqlite:///{folder}/ledger.db")
            with_it, without, waiting = asyncio.run(measure(pairs, ledger))
    differences = [a - b for a, b in zip(with_it, without, strict=True)]
    low, high = interval(differences)
    spent = 1000 * statistics.median(waiting.flows)
    print(f"{pairs} pairs of flows, median milliseconds")
    print(f"  with the ledger      {statistics.median(with_it):8.1f}")
    print(f"  without it           {statistics.median(without):8.1f}")
    print(f"  median difference    {statistics.median(differences):8.1f}   {low:.1f} to {high:.1f}")
    each = f"{waiting.awaited / pairs:.1f} of {waiting.statements / pairs:.1f} statements"
    print(f"  waiting for it       {spent:8.1f}   in {each}")
    print(f"  goal                 {GOAL_MILLISECONDS:8.1f}")


if __name__ == "__main__":
    main()
