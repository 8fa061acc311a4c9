# SPDX-License-Identifier: Apache-2.0
"""Soak: hours of a busy day in minutes, with killed processes, database restarts, and faults."""

import asyncio
import json
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from uuid import UUID

import psutil
from prefect.client.schemas.actions import DeploymentUpdate
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId

from prefect_cometapi.flows.runtime.sync import run_sync
from prefect_cometapi.runway import Entry, State
from prefect_cometapi.runway.ledger.entry import UNFINISHED
from prefect_cometapi.runway.ledger.store import get_ledger
from prefect_cometapi.sandbox import Sandbox

from ...cluster import Cluster, places_of
from ...postgres import Postgres
from ...waiting import kill
from ..harness.checker import Ending, Violation, ViolationKind, find_violations
from ..harness.collect_state import collect_snapshot
from ..harness.processes import COMMAND, python_path
from ..harness.service import end_faults, faulty_service, settle_uncertain
from ..harness.sources import batch_rows, key_of, serve_sources
from .resource_monitor import ResourceMonitor, Scheduler, Trend, child_of

KEY = "sk-soak-4f6e2b90c1d7"
SHARE = 0.1
"""Share of each route's requests that meet a fault."""

RESIDENT = (sys.executable, "-m", "tests.chaos.soak.resident")
FLOW_TIMEOUT = 300.0
"""Seconds within which all flows in progress must end."""

UNSETTLED = {State.CLAIMED, State.UNCERTAIN, *UNFINISHED}
ROUNDS = 5
"""Rounds of the user's decisions and collections; the leases of killed processes must expire."""

MAX_RUNS = 2
"""Flow runs of the workers at a time."""

SETTINGS = {
    "COMETAPI_KEY": KEY,
    "COMETAPI_POLL_INTERVAL": "0.5",
    "COMETAPI_NOT_FOUND_GRACE": "5",
    "COMETAPI_GENERATION_TIMEOUT": "60",
    "COMETAPI_MAX_RUN_ATTEMPTS": "20",
}


def soak_service() -> Sandbox:
    """Return a faulty service that fails no generation, since each purchase must end as a file."""
    return faulty_service(
        SHARE, without={"failed", "cancelled"}, render_seconds=1, not_visible_polls=1
    )


@dataclass(frozen=True)
class Plan:
    """Intervals of the soak, in seconds.

    Attributes:
        measure: Time between two measurements.
        flow: Time between two flows of a resident process.
        kill: Time between two kills of the second resident process.
        restart: Time between two restarts of PostgreSQL; every second one is a crash.
    """

    measure: float = 5.0
    flow: float = 1.0
    kill: float = 60.0
    restart: float = 180.0


@dataclass
class Soak:
    """Running processes of a soak, and the measurements of them.

    Attributes:
        folder: Folder for everything that is written.
        environment: Environment of each process.
        monitor: Measurements of the resident process, of workers and of the database.
        watched: Processes that are measured, by name.
        disturbances: Counts of the disturbances, by name.
    """

    folder: Path
    environment: Mapping[str, str]
    sandbox: Sandbox
    postgres: Postgres
    pictures: str
    videos: str
    stack: ExitStack
    log: Callable[[str], None]
    monitor: ResourceMonitor = field(default_factory=ResourceMonitor)
    watched: dict[str, psutil.Process] = field(default_factory=dict)
    disturbances: Counter[str] = field(default_factory=Counter)
    _number: int = 0
    _victim: subprocess.Popen[bytes] | None = None

    def start_resident(self, name: str, interval: float) -> subprocess.Popen[bytes]:
        """Start a process that buys until SIGTERM; it writes its flows' results to a file."""
        home = {"PREFECT_HOME": str(self.folder / f"home-{name}"), "PYTHONPATH": python_path()}
        with (self.folder / f"{name}.jsonl").open("ab") as out, self._open_log(name) as log:
            process = subprocess.Popen(
                [*RESIDENT, name, self.pictures, self.videos, str(interval)],
                env={**self.environment, **home},
                cwd=self.folder,
                stdout=out,
                stderr=log,
            )
        self.stack.callback(kill, process)
        return process

    def replace_victim(self, interval: float) -> None:
        """SIGKILL the second resident process once it buys, and start another one in its place."""
        if self._victim and not self._has_bought(f"victim-{self._number}-"):
            return
        if self._victim:
            kill(self._victim)
            self.disturbances["resident processes killed"] += 1
        self._number += 1
        self._victim = self.start_resident(f"victim-{self._number}", interval)

    def _has_bought(self, name: str) -> bool:
        return any(key_of(job).startswith(name) for job in self.sandbox.accepted)

    def stop(self, *processes: subprocess.Popen[bytes]) -> None:
        """Stop resident processes after the flows that they have started."""
        running = [*processes, *filter(None, [self._victim])]
        for process in running:
            process.send_signal(signal.SIGTERM)
        for process in running:
            process.wait(FLOW_TIMEOUT)

    def restart_postgres(self) -> None:
        """Restart PostgreSQL, in turns as for an upgrade and as if its machine crashed."""
        crash = self.disturbances["PostgreSQL restarted"] % 2
        self.postgres.restart("immediate" if crash else "fast")
        self.disturbances["PostgreSQL restarted"] += 1

    def measure(self, resident: subprocess.Popen[bytes]) -> None:
        """Measure the resources of all watched processes."""
        self.watched["resident"] = psutil.Process(resident.pid)
        if decoder := child_of(self.watched["resident"], "decoder.py"):
            self.watched["its decoder"] = decoder
        self.monitor.measure(self.watched)
        counted = self.postgres.execute(
            "SELECT datname, count(*) FROM pg_stat_activity WHERE datname IS NOT NULL GROUP BY 1"
        )
        names = {self.environment["COMETAPI_LEDGER_URL"].rpartition("/")[2]: "the ledger"}
        for line in counted.splitlines():
            name, _, number = line.partition("|")
            if owner := names.get(name, "" if name == "postgres" else "Prefect's database"):
                self.monitor.record(owner, "connections", int(number))

    def command(self, *words: str) -> None:
        """Run a command of the package to its end."""
        with self._open_log("commands") as log:
            subprocess.run(
                [COMMAND, *words],
                env=dict(self.environment),
                cwd=self.folder,
                stdout=log,
                stderr=log,
                check=True,
                timeout=FLOW_TIMEOUT,
            )

    def endings(self) -> list[Ending]:
        """Return the results of the resident processes' flows."""
        lines = [
            json.loads(line)
            for file in sorted(self.folder.glob("*.jsonl"))
            for line in file.read_text().splitlines()
        ]
        return [Ending(**line) for line in lines]

    def entries(self) -> list[Entry]:
        """Return all rows of the ledger."""
        return run_sync(get_ledger(self.environment["COMETAPI_LEDGER_URL"]).entries())

    async def finish(self) -> Sequence[Violation]:
        """Settle uncertain generations without faults, collect, and check all promises."""
        end_faults(self.sandbox)
        ledger = get_ledger(self.environment["COMETAPI_LEDGER_URL"])
        entries: list[Entry] = []
        unsettled: list[str] = []
        for _ in range(ROUNDS):
            adopted, resubmitted = await settle_uncertain(ledger, self.sandbox)
            self.disturbances["uncertain, adopted"] += len(adopted)
            self.disturbances["uncertain, not accepted"] += len(resubmitted)
            await asyncio.to_thread(self.command, "collect")
            entries = await ledger.entries()
            unsettled = [entry.idempotency_key for entry in entries if entry.state in UNSETTLED]
            if not unsettled:
                break
        keys = [entry.idempotency_key for entry in entries]
        storage = Path(self.environment["COMETAPI_STORAGE"])
        snapshot = await collect_snapshot(
            keys, self.sandbox, entries, storage, self.endings(), listed=frozenset()
        )
        of_batches = (".gallery.html", ".jsonl")
        files = {
            name: sha256 for name, sha256 in snapshot.files.items() if not name.endswith(of_batches)
        }
        return [
            *find_violations(replace(snapshot, files=files)),
            *(Violation(ViolationKind.UNSETTLED, key) for key in unsettled),
            *(
                Violation(ViolationKind.UNTYPED, f"a secret was written: {location}")
                for location in places_of((KEY, "_jwt=ey"), self.folder, self.postgres)
            ),
        ]

    def _open_log(self, name: str):
        return (self.folder / f"{name}.log").open("ab")


@dataclass(frozen=True)
class Outcome:
    """Outcome of a soak.

    Attributes:
        seconds: Duration of the soak without its end.
        flows: Counts of the resident processes' flow results.
        states: Counts of the ledger's states at the end.
        accepted: Jobs that would have been charged for.
        requests: Requests per route.
        faulted: Requests that met a fault.
        disturbances: Counts of the other disturbances.
        trends: Trend of each resource, by process and measure.
        growing: Resources that grew, in words.
        violations: All violations.
    """

    seconds: float
    flows: Counter[str]
    states: Counter[str]
    accepted: int
    requests: Counter[str]
    faulted: int
    disturbances: Counter[str]
    trends: Mapping[tuple[str, str], Trend]
    growing: Sequence[str]
    violations: Sequence[Violation]


StartWorkers = Callable[[Soak, Scheduler], Callable[[], None]]
"""Function that starts workers, and returns one that waits until their runs have ended."""


def run_soak(
    is_done: Callable[[Soak, float], bool],
    plan: Plan,
    folder: Path,
    environment: Mapping[str, str],
    sandbox: Sandbox,
    postgres: Postgres,
    log: Callable[[str], None],
    start_workers: StartWorkers | None = None,
) -> Outcome:
    """Run everything until ``is_done`` of the soak and the seconds is true; then stop and check."""
    with ExitStack() as stack:
        pictures, videos = stack.enter_context(serve_sources(folder))
        soak = Soak(folder, environment, sandbox, postgres, pictures, videos, stack, log)
        scheduler, started = Scheduler(), time.monotonic()
        resident = soak.start_resident("resident", plan.flow)
        soak.replace_victim(plan.flow)
        scheduler.every(plan.kill, lambda: soak.replace_victim(plan.flow))
        scheduler.every(plan.restart, soak.restart_postgres)
        scheduler.every(plan.measure, lambda: soak.measure(resident))
        scheduler.every(60, lambda: log(_progress(soak, started)))
        wait_for_workers = start_workers(soak, scheduler) if start_workers else lambda: None
        while not is_done(soak, time.monotonic() - started):
            scheduler.run_due()
            time.sleep(0.1)
        seconds = time.monotonic() - started
        soak.stop(resident)
        wait_for_workers()
        log(f"stopped after {seconds:.0f} s; finishing")
        violations = asyncio.run(soak.finish())
        return Outcome(
            seconds=seconds,
            flows=Counter(ending.error or "succeeded" for ending in soak.endings()),
            states=Counter(str(entry.state) for entry in soak.entries()),
            accepted=len(sandbox.accepted),
            requests=Counter(request.route for request in sandbox.requests),
            faulted=sum(request.fault is not None for request in sandbox.requests),
            disturbances=soak.disturbances,
            trends=soak.monitor.trends(),
            growing=soak.monitor.growing(),
            violations=violations,
        )


def _progress(soak: Soak, started: float) -> str:
    memory = {
        owner: values[-1] for (owner, what), values in soak.monitor.series.items() if "MB" in what
    }
    used = ", ".join(f"{owner} {value:.0f} MB" for owner, value in memory.items())
    seconds, accepted = time.monotonic() - started, len(soak.sandbox.accepted)
    return f"{seconds:5.0f} s: {accepted} accepted, {dict(soak.disturbances)}; {used}"


def workers_of(machines: Cluster, pool: str) -> StartWorkers:
    """Return a function that starts two workers and batches for them, and kills one repeatedly."""

    def start(soak: Soak, scheduler: Scheduler) -> Callable[[], None]:
        numbers = count()

        def start_worker(name: str) -> None:
            machines.start_worker(name, pool, machines.apis[len(machines.workers) % 2])

        def kill_worker() -> None:
            machines.kill_machine(list(machines.workers)[-1])
            soak.disturbances["workers killed"] += 1
            start_worker(f"worker-{len(machines.workers)}")

        def submit() -> None:
            if len(_unfinished_runs(machines, deployment)) > MAX_RUNS:
                return
            key = f"worker-batch-{next(numbers)}"
            parameters = {"requests": batch_rows(soak.pictures, key, 4), "idempotency_key": key}
            with machines.client() as client:
                client.create_flow_run_from_deployment(deployment, parameters=parameters)
            soak.disturbances["runs for workers"] += 1

        with machines.client() as client:
            deployment = client.read_deployment_by_name("generate-batch/catalogue").id
            client.update_deployment(deployment, DeploymentUpdate(concurrency_limit=MAX_RUNS))
        start_worker("worker")
        soak.watched["worker"] = psutil.Process(machines.workers["worker"].pid)
        start_worker("worker-1")
        scheduler.every(20, submit)
        scheduler.every(150, kill_worker)

        def wait() -> None:
            end = time.monotonic() + FLOW_TIMEOUT
            while unfinished := _unfinished_runs(machines, deployment):
                assert time.monotonic() < end, unfinished
                time.sleep(1)

        return wait

    return start


def _unfinished_runs(machines: Cluster, deployment: UUID) -> list[str]:
    """Return the runs of a deployment that have not ended, and their states."""
    wanted = DeploymentFilter(id=DeploymentFilterId(any_=[deployment]))
    with machines.client() as client:
        runs = client.read_flow_runs(deployment_filter=wanted, limit=200)
    unfinished = [run for run in runs if run.state is None or not run.state.is_final()]
    return [f"{run.name}: {run.state_name}" for run in unfinished]
