# SPDX-License-Identifier: Apache-2.0
"""Buy hundreds of videos from a faulty service, and check that none is paid twice or lost.

``python tests/chaos/fault_storm/storm.py --generations 300 --seed 1 2`` starts a Prefect server and
a stand-in for CometAPI. The exit status is 1 if a promise is broken.
"""

import argparse
import asyncio
import os
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]


def arguments(words: list[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--generations", type=int, default=300, metavar="N", help="in each storm")
    add(
        "--seed",
        type=int,
        nargs="+",
        default=[1],
        metavar="N",
        help="of the faults; more: a run each",
    )
    add("--report", type=Path, metavar="FILE", help="where to write the result as Markdown")
    return parser.parse_args(words)


@asynccontextmanager
async def prefect(folder: Path) -> AsyncIterator[str]:
    """Start a Prefect server with its files in a folder; yield the address of its API.

    It uses PostgreSQL if that is installed: with SQLite it answers 503 when two clients write at
    once, and a client then waits for seconds.
    """
    from prefect.events.worker import EventsWorker
    from prefect.settings import (
        PREFECT_API_URL,
        PREFECT_LOCAL_STORAGE_PATH,
        PREFECT_LOGGING_TO_API_ENABLED,
        temporary_settings,
    )

    from tests.chaos.kill_matrix.fork_client import prefect_server
    from tests.postgres import Postgres, binaries

    found = binaries()
    postgres = Postgres(found) if found else None
    try:
        database = postgres.create_database() if postgres else None
        async with prefect_server(folder / "prefect", database) as api:
            settings: dict[Any, Any] = {
                PREFECT_API_URL: api,
                PREFECT_LOCAL_STORAGE_PATH: folder / "results",
                PREFECT_LOGGING_TO_API_ENABLED: False,
            }
            # One worker sends the events of a process, to the server that its first event went to.
            await asyncio.to_thread(EventsWorker.drain_all)
            try:
                with temporary_settings(settings):
                    yield api
            finally:
                await asyncio.to_thread(EventsWorker.drain_all)
    finally:
        if postgres:
            postgres.remove()


async def run(asked: argparse.Namespace) -> int:
    """Run the storms and report the outcome; return the exit status."""
    from tests.chaos.fault_storm.report import markdown, summary
    from tests.chaos.fault_storm.run_storm import Outcome, play

    def tell(text: str) -> None:
        print(text, flush=True)

    report = asked.report and asked.report.absolute()
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory(prefix="cometapi-storm-") as name:
        folder = Path(name)
        async with prefect(folder) as api:
            for seed in asked.seed:
                here = folder / f"seed-{seed}"
                here.mkdir()
                tell(f"seed {seed}")
                outcomes.append(await play(asked.generations, seed, here, api, tell))
    seeds = " ".join(map(str, asked.seed))
    command = (
        f"python tests/chaos/fault_storm/storm.py --generations {asked.generations} --seed {seeds}"
    )
    tell(summary(outcomes))
    wrong = [str(violation) for outcome in outcomes for violation in outcome.found]
    for violation in wrong:
        print(violation, file=sys.stderr)
    if report:
        report.write_text(markdown(command, asked.generations, outcomes), encoding="utf-8")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    from tests.chaos.kill_matrix.fork_client import QUIET
    from tests.limits import usual_signals

    usual_signals()
    for name in [name for name in os.environ if name.startswith(("COMETAPI_", "PREFECT_"))]:
        del os.environ[name]
    os.environ.update(QUIET)
    sys.exit(asyncio.run(run(arguments(sys.argv[1:]))))
