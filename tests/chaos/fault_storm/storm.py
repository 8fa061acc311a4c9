# SPDX-License-Identifier: Apache-2.0
"""Buy hundreds of videos from a faulty service, and check that none is paid twice or lost.

``python tests/chaos/fault_storm/storm.py --generations 300 --seed 1 2`` starts a Prefect server and
a stand-in for CometAPI. The exit status is 1 if a promise is broken.
"""

import argparse
import asyncio
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any


def arguments(words: list[str]) -> argparse.Namespace:
    """Parse the command line."""
    from tests.chaos.harness import command

    parser = command.parser(__doc__)
    add = parser.add_argument
    add("--generations", type=int, default=300, metavar="N", help="in each storm")
    add("--seed", type=int, nargs="+", default=[1], metavar="N", help="of the faults; a storm each")
    return parser.parse_args(words)


@asynccontextmanager
async def prefect(folder: Path) -> AsyncIterator[str]:
    """Start a Prefect server, and use it in this process; yield the address of its API."""
    from prefect.events.worker import EventsWorker
    from prefect.settings import (
        PREFECT_API_URL,
        PREFECT_LOCAL_STORAGE_PATH,
        PREFECT_LOGGING_TO_API_ENABLED,
        temporary_settings,
    )

    from tests.chaos.harness.servers import postgres_server, prefect_server

    with postgres_server() as postgres:
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


async def run(options: argparse.Namespace) -> int:
    """Run the storms and report the outcome; return the exit status."""
    from tests.chaos.fault_storm.report import markdown, summary
    from tests.chaos.fault_storm.run_storm import Outcome, run_storm
    from tests.chaos.harness import command

    def log(text: str) -> None:
        print(text, flush=True)

    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory(prefix="cometapi-storm-") as name:
        async with prefect(Path(name)) as api:
            for seed in options.seed:
                folder = Path(name) / f"seed-{seed}"
                folder.mkdir()
                log(f"seed {seed}")
                outcomes.append(await run_storm(options.generations, seed, folder, api, log))
    seeds = " ".join(map(str, options.seed))
    script = "python tests/chaos/fault_storm/storm.py"
    line = f"{script} --generations {options.generations} --seed {seeds}"
    return command.conclude(
        summary(outcomes),
        [violation for outcome in outcomes for violation in outcome.violations],
        options.report,
        lambda: markdown(line, options.generations, outcomes),
    )


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[3]))
    from tests.chaos.harness.command import isolate

    isolate()
    sys.exit(asyncio.run(run(arguments(sys.argv[1:]))))
