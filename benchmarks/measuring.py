# SPDX-License-Identifier: Apache-2.0
"""Races between contestants, one at a time, each with its own service."""

import asyncio
import hashlib
import heapq
import json
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from threading import Timer
from typing import Any, Literal, Protocol
from urllib.request import urlopen

from contestants import KEY, Report, Spec
from lean import Stats, rendering_times
from service import HERE, lean_process

QUIET_FOR = 6.0
"""Seconds without a new row after which Prefect's server has written all; it writes every five."""

SETTLED_BY = 90.0
"""Seconds after which the rows are counted in any case."""

LONGEST = 1800.0
"""Seconds beyond ten times the rendering after which a contestant counts as hung."""

DatabaseKind = Literal["sqlite", "postgres"]


@dataclass(frozen=True)
class Conditions:
    """Conditions that all contestants of a run share. Times are in seconds.

    Attributes:
        items: Videos to make.
        in_flight: Videos at a time.
        rendering: Mean duration of a job.
        variation: Standard deviation as a share of that mean.
        seed: Seed of the rendering times.
        clip: Video that every job returns.
    """

    items: int
    in_flight: int
    rendering: float
    variation: float
    seed: int
    clip: Path

    def shortest(self) -> float:
        """Return the seconds that the jobs take if each free slot is filled at once."""
        slots = [0.0] * min(self.in_flight, self.items)
        for takes in islice(rendering_times(self.rendering, self.variation, self.seed), self.items):
            heapq.heapreplace(slots, slots[0] + takes)
        return max(slots)


@dataclass(frozen=True)
class Census:
    """Size of a Prefect server's database: rows and bytes."""

    task_runs: int
    events: int
    logs: int
    size: int


@dataclass(frozen=True)
class Figures:
    """Figures of one contestant.

    Attributes:
        report: Report of the contestant.
        cpu: Processor seconds from ``go`` to its end as a process.
        ended: Seconds from ``go`` to its end as a process.
        on_top: Seconds beyond those that the jobs took.
        service: Statistics of the service.
        database: Growth of the Prefect server's database.
        complete: Number of files that are in place and equal to the clip.
    """

    report: Report
    cpu: float
    ended: float
    on_top: float
    service: Stats
    database: Census
    complete: int


class _Database(Protocol):
    def census(self) -> Census: ...


class _SQLite:
    def __init__(self, file: Path) -> None:
        self._file = file

    def census(self) -> Census:
        with closing(sqlite3.connect(f"file:{self._file}?mode=ro", uri=True)) as database:

            def one(statement: str) -> int:
                return database.execute(statement).fetchone()[0]

            return Census(
                *(one(f"SELECT count(*) FROM {table}") for table in ("task_run", "events", "log")),
                size=one("PRAGMA page_count") * one("PRAGMA page_size"),
            )


class _Postgres:
    def __init__(self, server: Any, url: str) -> None:
        self._server = server
        self._name = url.rpartition("/")[2]

    def census(self) -> Census:
        tables = ("task_run", "events", "log")
        counts = ", ".join(f"(SELECT count(*) FROM {table})" for table in tables)
        statement = f"SELECT {counts}, pg_database_size(current_database())"
        return Census(*map(int, self._server.execute(statement, self._name).split("|")))


@dataclass(frozen=True)
class Server:
    """Prefect server: the address of its API, and the size of its database."""

    api: str
    database: _Database


@asynccontextmanager
async def prefect(kind: DatabaseKind) -> AsyncIterator[Server]:
    """Start a fresh Prefect server with its database in a temporary folder."""
    from tests.chaos.harness.servers import postgres_server, prefect_server
    from tests.machine import how_to_get

    with _folder() as name, postgres_server(wanted=kind == "postgres") as postgres:
        folder = Path(name)
        if postgres:
            url = postgres.create_database()
            database = _Postgres(postgres, url)
        elif kind == "postgres":
            raise SystemExit(how_to_get("PostgreSQL", "postgresql"))
        else:
            url, database = None, _SQLite(folder / "prefect.db")
        async with prefect_server(folder, url) as api:
            _lower_priority()
            yield Server(api, database)


def _lower_priority() -> None:
    """Lower the priority of the child processes, so that they run only on an idle processor.

    Prefect's server takes 40 ms of a processor for a task run, whatever its client. In
    production it has a machine of its own; here it would compete with the contestants.
    """
    for child in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
        os.setpriority(os.PRIO_PROCESS, int(child), 19)


def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="cometapi-benchmark-")


def _settled(database: _Database) -> Census:
    """Wait until the server writes nothing new and return its census."""
    last, since = database.census(), time.monotonic()
    end = since + SETTLED_BY
    while time.monotonic() < min(end, since + QUIET_FOR):
        time.sleep(0.5)
        now = database.census()
        if now != last:
            last, since = now, time.monotonic()
    return last


def settings_for(folder: Path, api: str) -> dict[str, str]:
    """Return the settings of a measured process: its server, its key, and its files in a folder."""
    return {
        "PREFECT_API_URL": api,
        "PREFECT_HOME": str(folder / "home"),
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
        "COMETAPI_KEY": KEY,
        "COMETAPI_LEDGER_URL": f"sqlite:///{folder}/ledger.db",
    }


def _environment(folder: Path, api: str, url: str) -> dict[str, str]:
    """Return an environment without the machine's own settings, which must not matter."""
    from tests.chaos.harness.processes import SETTINGS_PREFIXES, inherited_environment

    inherited = inherited_environment(*SETTINGS_PREFIXES, "RUNWAYML_")
    return inherited | settings_for(folder, api) | {"DO_NOT_TRACK": "1", "COMETAPI_BASE_URL": url}


def _stats(url: str) -> Stats:
    with urlopen(f"{url}/_stats") as reply:
        return Stats(**json.load(reply))


def _count_complete(folder: Path, clip: Path) -> int:
    expected = hashlib.sha256(clip.read_bytes()).digest()
    files = folder.rglob("*.mp4")
    return sum(hashlib.sha256(path.read_bytes()).digest() == expected for path in files)


def _race(who: str, conditions: Conditions, folder: Path, server: Server) -> Figures | str:
    counted = server.database.census if who == "bare" else lambda: _settled(server.database)
    videos = folder / "videos"
    videos.mkdir()
    with (
        lean_process(
            conditions.clip,
            rendering=conditions.rendering,
            variation=conditions.variation,
            seed=conditions.seed,
        ) as url,
        (folder / "errors").open("w+") as errors,
    ):
        spec = Spec(url, conditions.items, conditions.in_flight, str(videos))
        process = subprocess.Popen(
            [sys.executable, str(HERE / "contestants.py"), who, json.dumps(asdict(spec))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            cwd=folder,
            env=_environment(folder, server.api, url),
        )
        assert process.stdin
        assert process.stdout
        first = process.stdout.readline()
        if first.startswith("{"):
            process.wait()
            return json.loads(first)["skipped"]
        before = counted()
        started = time.perf_counter()
        if first:
            process.stdin.write("go\n")
            process.stdin.flush()
        limit = Timer(LONGEST + 10 * conditions.shortest(), process.kill)
        limit.start()
        last = process.stdout.readline()
        limit.cancel()
        _, _, usage = os.wait4(process.pid, 0)
        process.returncode = 0
        ended = time.perf_counter() - started
        process.stdin.close()
        process.stdout.close()
        if not last:
            errors.seek(0)
            raise SystemExit(f"{who} failed:\n{errors.read()[-4000:]}")
        report, stats = Report(**json.loads(last)), _stats(url)
    after = counted()
    rendering = 0.0 if not stats.accepted else conditions.shortest()
    return Figures(
        report=report,
        cpu=usage.ru_utime + usage.ru_stime - report.cpu_before,
        ended=ended,
        on_top=report.seconds - rendering,
        service=stats,
        database=Census(
            *(now - then for now, then in zip(_tuple(after), _tuple(before), strict=True))
        ),
        complete=_count_complete(videos, conditions.clip),
    )


def _tuple(census: Census) -> tuple[int, ...]:
    return tuple(asdict(census).values())


async def race(who: str, conditions: Conditions, server: Server) -> Figures | str:
    """Run a contestant; return its figures, or the reason why it cannot take part."""
    with _folder() as name:
        return await asyncio.to_thread(_race, who, conditions, Path(name), server)
