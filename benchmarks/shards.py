# SPDX-License-Identifier: Apache-2.0
"""Measure a batch over several workers, against the same batch in one run.

    python benchmarks/shards.py --items 10000 --in-flight 1000 --shards 1 4 \
        [--report docs/benchmarks.md]

One run makes its videos itself. Several are started by a run that only waits for them and joins
their results; its own cost is measured. Ledger and Prefect's database are in PostgreSQL. Service,
Prefect's server, PostgreSQL and all workers share this machine, so more shards than free processors
gain nothing here.
"""

import argparse
import asyncio
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))

from contestants import GROUP, cpu_seconds, rows
from measuring import Server, prefect, settings_for
from service import draw_clip, lean_process

from tests.chaos.harness import markdown
from tests.chaos.harness.processes import SETTINGS_PREFIXES, inherited_environment
from tests.chaos.harness.servers import postgres_server
from tests.machine import how_to_get
from tests.waiting import stop

POOL = "shards"
MEGABYTE = 1e6


@dataclass(frozen=True)
class Figures:
    """Figures of one batch.

    Attributes:
        stored: Items whose video is stored.
        seconds: Seconds from the start of the flow run to its result.
        cpu: Processor seconds of the process that started the batch, without its imports.
        peak: Highest memory of that process, in bytes.
        busy: Part of the time of all processors of the machine that was used, from 0 to 1.
        accepted: Jobs that the service accepted.
    """

    stored: int
    seconds: float
    cpu: float
    peak: int
    busy: float
    accepted: int = 0


def coordinate(options: dict[str, Any]) -> Figures:
    """Run one batch in this process and measure it."""
    from prefect_cometapi.flows import generate_batch

    items = options.pop("items")
    wanted = [{"id": str(number), **row} for number, row in enumerate(rows(items))]
    before, started, machine = cpu_seconds(), time.perf_counter(), psutil.cpu_times()
    result: Any = generate_batch(wanted, idempotency_key="benchmark", **options)
    return Figures(
        stored=result.succeeded,
        seconds=time.perf_counter() - started,
        cpu=cpu_seconds() - before,
        peak=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        busy=_busy_since(machine),
    )


def _busy_since(before: Any) -> float:
    after: Any = psutil.cpu_times()
    waited = (after.idle + after.iowait) - (before.idle + before.iowait)
    return 1.0 - waited / (sum(after) - sum(before))


def deploy(folder: Path, api: str) -> None:
    """Create a work pool without limits, and the deployment of the shards."""
    programs = Path(sys.executable).parent
    commands = (
        ("prefect", "work-pool", "create", POOL, "--type", "process"),
        ("prefect-cometapi", "deploy", "--pool", POOL),
    )
    for program, *words in commands:
        subprocess.run(
            [programs / program, *words],
            env=inherited_environment(*SETTINGS_PREFIXES) | settings_for(folder, api),
            stdout=subprocess.DEVNULL,
            check=True,
        )


@contextmanager
def worker_processes(count: int, env: dict[str, str]) -> Iterator[None]:
    """Run workers that take one shard each while the block runs."""
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL, "--limit", "1"]
    workers = [
        subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(count)
    ]
    try:
        yield
    finally:
        for worker in workers:
            stop(worker)


def measure(
    shards: int, options: argparse.Namespace, clip: Path, server: Server, ledger: str
) -> Figures:
    """Run one batch, with its own service and ledger, and return its figures."""
    with (
        tempfile.TemporaryDirectory(prefix="cometapi-benchmark-") as name,
        lean_process(clip, rendering=options.rendering) as url,
    ):
        env = inherited_environment(*SETTINGS_PREFIXES)
        env |= settings_for(Path(name), server.api) | {
            "COMETAPI_BASE_URL": url,
            "COMETAPI_LEDGER_URL": ledger,
            "COMETAPI_STORAGE": str(Path(name) / "videos"),
            "COMETAPI_MAX_ITEMS_WITH_STEP_TASKS": "0",
            "COMETAPI_ITEMS_PER_TASK_RUN": str(GROUP),
            "PREFECT_WORKER_QUERY_SECONDS": "1",
        }
        given = {"items": options.items, "max_in_flight": options.in_flight, "shards": shards}
        with worker_processes(shards if shards > 1 else 0, env):
            done = subprocess.run(
                [sys.executable, __file__, "--coordinate", json.dumps(given)],
                env=env,
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
        with urlopen(f"{url}/_stats") as reply:
            accepted = json.load(reply)["accepted"]
    return Figures(**json.loads(done.stdout.splitlines()[-1]) | {"accepted": accepted})


def shown(options: argparse.Namespace, found: Sequence[tuple[int, Figures]]) -> str:
    """Return the section of the page."""
    base = found[0][1]
    head = ["shards", "seconds", "speed", "accepted", "stored", "CPU s", "peak, MB", "busy"]
    lines = [
        [
            str(shards),
            f"{one.seconds:.1f}",
            f"{base.seconds / one.seconds:.2f}\N{MULTIPLICATION SIGN}",
            f"{one.accepted:,}",
            f"{one.stored:,}",
            f"{one.cpu:.1f}",
            f"{one.peak / MEGABYTE:.0f}",
            f"{one.busy:.0%}",
        ]
        for shards, one in found
    ]
    return _SECTION.format(
        items=options.items,
        command=" ".join(
            [
                f"python benchmarks/shards.py --items {options.items}",
                f"--in-flight {options.in_flight} --rendering {options.rendering:g} --shards",
                *map(str, options.shards),
            ]
        ),
        in_flight=options.in_flight,
        rendering=options.rendering,
        table=markdown.table(head, lines),
        machine=markdown.machine("prefect", "asyncpg"),
    )


_SECTION = """## A batch of {items:,} videos over several workers

`{command}`

{in_flight:,} in flight, each rendering for {rendering:g} s. CPU time and memory are those of the
process that starts the batch: with one shard it also makes the videos, with several it only starts
the shards and joins their results. "Busy" counts all processors: service, Prefect's server
and PostgreSQL use them, too.

{table}

{machine}"""


async def run(options: argparse.Namespace) -> str:
    """Measure each number of shards and return the section of the page."""
    found: list[tuple[int, Figures]] = []
    with (
        tempfile.TemporaryDirectory(prefix="cometapi-benchmark-") as name,
        postgres_server() as postgres,
    ):
        if postgres is None:
            raise SystemExit(how_to_get("PostgreSQL", "postgresql"))
        folder = Path(name)
        clip = draw_clip(folder / "clip.mp4")
        async with prefect("postgres") as server:
            await asyncio.to_thread(deploy, folder, server.api)
            for shards in options.shards:
                ledger = postgres.create_database()
                figures = await asyncio.to_thread(measure, shards, options, clip, server, ledger)
                found.append((shards, figures))
                print(f"{shards} shards: {figures}", file=sys.stderr, flush=True)
    return shown(options, found)


def main() -> None:
    """Measure, print, and write the section where requested."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--items", type=int, default=10_000, metavar="N", help="videos")
    add("--in-flight", type=int, default=1000, metavar="N", help="videos at a time")
    add("--rendering", type=float, default=2.0, metavar="S", help="seconds that a job takes")
    add("--shards", type=int, nargs="+", default=[1, 4], metavar="N", help="shards of each batch")
    add("--report", type=Path, metavar="FILE", help="page to write the section to")
    add("--coordinate", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.coordinate:
        print(json.dumps(asdict(coordinate(options.coordinate))))
        return
    page = options.report and options.report.absolute()
    text = asyncio.run(run(options))
    print(f"\n{text}")
    if page:
        markdown.put_section(page, f"shards {options.items}", text)


if __name__ == "__main__":
    main()
