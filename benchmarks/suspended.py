# SPDX-License-Identifier: Apache-2.0
"""Measure the resources of runs that wait for a video, suspended or not, and their time to resume.

    python benchmarks/suspended.py --runs 200 [--report docs/benchmarks.md]

A process worker starts the runs of a deployment against a Prefect server on PostgreSQL and a
service whose videos are not ready before all runs wait. The resources of the worker and of all its
child processes are read from /proc. Then the videos become ready, and `collect` runs once.
"""

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))

from measuring import prefect

from prefect_cometapi.sandbox import Sandbox
from tests.chaos.harness import markdown

ROOT = Path(__file__).parents[1]
POOL = "waiting"
AT_A_TIME = 4
"""Runs that the worker has processes for; two cores take no more."""


def memory_of(processes: list[psutil.Process]) -> float:
    """Return the memory of these processes in MB, with their share of the common pages."""
    total = 0
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            total += process.memory_full_info().pss
    return total / 1e6


async def until(look: Callable[[], Any], seconds: float = 3600) -> Any:
    """Wait for a change that other processes make."""
    end = time.monotonic() + seconds
    while not (found := await look()):
        if time.monotonic() > end:
            raise TimeoutError
        await asyncio.sleep(0.5)
    return found


class Bench:
    """Server, worker and service of one measurement."""

    def __init__(self, client: Any, worker: Any, deployment: Any, sandbox: Sandbox) -> None:
        self.client = client
        self.worker = worker
        self.deployment = deployment
        self.sandbox = sandbox

    async def start(self, count: int, wait: bool | str, kind: str) -> list[Any]:
        """Start runs."""
        request = {"promptImage": "https://example.com/cat.jpg"}
        return [
            (
                await self.client.create_flow_run_from_deployment(
                    self.deployment,
                    parameters={
                        "request": request,
                        "idempotency_key": f"{kind}-{number}",
                        "wait": wait,
                    },
                )
            ).id
            for number in range(count)
        ]

    async def all_in(self, runs: list[Any], state: str) -> bool:
        """Return whether all runs are in a state."""
        from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

        seen = 0
        for start in range(0, len(runs), 100):
            some = FlowRunFilter(id=FlowRunFilterId(any_=runs[start : start + 100]))
            found = await self.client.read_flow_runs(flow_run_filter=some, limit=100)
            seen += sum(run.state_name == state for run in found)
        return seen == len(runs)

    def held(self) -> tuple[int, float]:
        """Return the number of flow run processes under the worker, and their memory in MB."""
        below = psutil.Process(self.worker.pid).children(recursive=True)
        return len(below), memory_of(below)

    @contextmanager
    def everything_ready(self) -> Iterator[None]:
        """Finish all videos upstream, now and later."""
        jobs = self.sandbox._app.jobs
        slow = jobs._config
        jobs._config = slow.model_copy(update={"render_seconds": 0.0})
        yield
        jobs._config = slow

    async def moments(self, run: Any, state: str) -> list[datetime]:
        """Return the time at which each run entered a state."""
        states = await self.client.read_flow_run_states(run)
        return sorted(one.timestamp for one in states if one.name == state)


async def main() -> None:
    """Measure and print the results."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--report", type=Path)
    options = parser.parse_args()
    async with workbench() as bench:
        figures = await _in_place(bench) + await _suspended(bench, options.runs)
    command = f"`python benchmarks/suspended.py --runs {options.runs}`"
    machine = markdown.machine("prefect")
    text = f"## Runs that wait\n\n{command}\n\n{machine}\n\n{figures}"
    print(text)
    if options.report:
        markdown.put_section(ROOT / options.report, "suspended", text)


@asynccontextmanager
async def workbench(**settings: str) -> AsyncIterator[Bench]:
    """Start a Prefect server on PostgreSQL, a worker, and a service whose videos take hours."""
    with tempfile.TemporaryDirectory() as name, Sandbox(render_seconds=36_000) as sandbox:
        folder = Path(name)
        async with prefect("postgres") as server:
            os.environ |= _environment(folder, server.api, sandbox.url) | settings
            # Prefect reads its settings once, at import, so the variables must be set before it.
            assert "prefect" not in sys.modules
            from prefect.client.orchestration import get_client
            from prefect.client.schemas.actions import WorkPoolCreate
            from prefect.workers.process import ProcessWorker

            async with get_client() as client:
                template = ProcessWorker.get_default_base_job_template()
                pool = WorkPoolCreate(name=POOL, type="process", base_job_template=template)
                await client.create_work_pool(pool)
                deployment = await client.create_deployment(
                    await client.create_flow_from_name("image-to-video"),
                    POOL,
                    work_pool_name=POOL,
                    entrypoint="prefect_cometapi.flows.image_to_video",
                )
                words = ("worker", "start", "--pool", POOL, "--limit", str(AT_A_TIME))
                worker = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", "prefect", *words),
                    cwd=folder,
                    stdout=asyncio.subprocess.DEVNULL,
                )
                try:
                    yield Bench(client, worker, deployment, sandbox)
                finally:
                    worker.kill()
                    await worker.wait()


def _environment(folder: Path, api: str, service: str) -> dict[str, str]:
    return {
        "PREFECT_API_URL": api,
        "PREFECT_HOME": str(folder / "home"),
        "PREFECT_LOCAL_STORAGE_PATH": str(folder / "results"),
        "PREFECT_WORKER_QUERY_SECONDS": "1",
        "PREFECT_LOGGING_LEVEL": "WARNING",
        "COMETAPI_KEY": "sk-of-the-benchmark",
        "COMETAPI_BASE_URL": service,
        "COMETAPI_LEDGER_URL": f"sqlite:///{folder}/ledger.db",
        "COMETAPI_STORAGE": str(folder / "videos"),
        "COMETAPI_GENERATION_TIMEOUT": "36000",
    }


async def _in_place(bench: Bench) -> str:
    """Measure the resources of runs that wait in their process."""
    runs = await bench.start(AT_A_TIME, True, "in-place")
    await until(lambda: bench.all_in(runs, "Running"))
    await asyncio.sleep(20)  # The last run needs this time to submit and start waiting.
    held = bench.held()
    with bench.everything_ready():
        await until(lambda: bench.all_in(runs, "Completed"))
    return _holds(f"{AT_A_TIME} runs that wait in place", *held)


async def _suspended(bench: Bench, count: int) -> str:
    """Measure the resources of suspended runs and their time to resume."""
    from prefect_cometapi.flows import acollect

    started = time.monotonic()
    runs = await bench.start(count, "suspend", "suspended")
    await until(lambda: bench.all_in(runs, "Suspended"))
    suspending = time.monotonic() - started
    await asyncio.sleep(5)  # The last process needs this time to end.
    told = _holds(f"{count} suspended runs", *bench.held())
    with bench.everything_ready():
        ready = datetime.now(UTC)
        collected = await acollect()
        collecting = (datetime.now(UTC) - ready).total_seconds()
        await until(lambda: bench.all_in(runs, "Completed"))
    on = sorted(
        [((await bench.moments(run, "Running"))[-1] - ready).total_seconds() for run in runs]
    )
    assert collected.stored == len(bench.sandbox.accepted) - AT_A_TIME == count
    return told + (
        f"\n{count} runs were started, bought their videos and had left their processes after "
        f"{suspending:.0f} s, {AT_A_TIME} at a time. Once all videos were ready, one `collect`\n"
        f"stored them in {collecting:.0f} s and resumed the runs as it went: the first went on "
        f"after {on[0]:.1f} s,\nhalf of them within {statistics.median(on):.0f} s, the last after "
        f"{on[-1]:.0f} s, since the worker has\nprocesses for {AT_A_TIME} at a time. Each was "
        "bought once.\n"
    )


def _holds(what: str, processes: int, memory: float) -> str:
    return f"- {what}: {processes} processes, {memory:.0f} MB\n"


if __name__ == "__main__":
    asyncio.run(main())
