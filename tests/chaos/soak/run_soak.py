# SPDX-License-Identifier: Apache-2.0
"""Soak: hours of a busy day in minutes, with killed processes, database restarts, and faults."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import get_args
from uuid import UUID

import psutil
from prefect.client.schemas.actions import DeploymentUpdate
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId

from prefect_cometapi.flows.runtime.sync import run_sync
from prefect_cometapi.runway import Entry, State
from prefect_cometapi.runway.ledger.entry import UNFINISHED
from prefect_cometapi.runway.ledger.store import get_ledger
from prefect_cometapi.sandbox import FaultPlan, ReplyShape, Sandbox

from ...cluster import Cluster, places_of
from ...postgres import Postgres
from ...waiting import kill
from ..fault_storm.checker import Ending, Violation, Wrong, violations
from ..fault_storm.collect_state import found_in, shown
from ..fault_storm.fault_profile import weather
from ..fault_storm.run_storm import settled, sources
from ..kill_matrix.fork_client import ROOT
from .wanted import rows
from .watching import Now, Trend, Watch, child_of

KEY = "sk-soak-4f6e2b90c1d7"
SHARE = 0.1
"""Share of each route's requests that meet a fault."""

RESIDENT = (sys.executable, "-m", "tests.chaos.soak.resident")
PATIENCE = 300.0
"""Seconds within which all flows in progress must end."""

OPEN = {State.CLAIMED, State.UNCERTAIN, *UNFINISHED}
ROUNDS = 5
"""Rounds of the user's decisions and collections; the leases of killed processes must expire."""

MOST_RUNS = 2
"""Flow runs of the workers at a time."""

SETTINGS = {
    "COMETAPI_KEY": KEY,
    "COMETAPI_POLL_INTERVAL": "0.5",
    "COMETAPI_NOT_FOUND_GRACE": "5",
    "COMETAPI_GENERATION_TIMEOUT": "60",
    "COMETAPI_MAX_RUN_ATTEMPTS": "20",
}


@contextmanager
def service() -> Iterator[Sandbox]:
    """Start a faulty service that fails no generation, since each purchase must end as a file."""
    faults = weather(SHARE, without={"failed", "cancelled"})
    shapes = get_args(ReplyShape)
    with Sandbox(shapes=shapes, faults=faults, render_seconds=1, not_visible_polls=1) as sandbox:
        yield sandbox


@dataclass(frozen=True)
class Plan:
    """Intervals of the soak, in seconds.

    Attributes:
        look: Time between two measurements.
        pace: Time between two flows of a resident process.
        kill: Time between two kills of the second resident process.
        restart: Time between two restarts of PostgreSQL; every second one is a crash.
    """

    look: float = 5.0
    pace: float = 1.0
    kill: float = 60.0
    restart: float = 180.0


@dataclass
class Soak:
    """Running processes of a soak, and the measurements of them.

    Attributes:
        folder: Folder for everything that is written.
        environment: Environment of each process.
        watch: Measurements of the resident process, of workers and of the database.
        happened: Counts of the disturbances, by name.
    """

    folder: Path
    environment: Mapping[str, str]
    sandbox: Sandbox
    postgres: Postgres
    picture: str
    video: str
    stack: ExitStack
    tell: Callable[[str], None]
    watch: Watch = field(default_factory=Watch)
    watched: dict[str, psutil.Process] = field(default_factory=dict)
    happened: Counter[str] = field(default_factory=Counter)
    _number: int = 0
    _victim: subprocess.Popen[bytes] | None = None

    def start_resident(self, name: str, pace: float) -> subprocess.Popen[bytes]:
        """Start a process that buys until SIGTERM; it writes its flows' results to a file."""
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        home = {"PREFECT_HOME": str(self.folder / f"home-{name}"), "PYTHONPATH": path}
        with (self.folder / f"{name}.jsonl").open("ab") as out, self._log(name) as log:
            process = subprocess.Popen(
                [*RESIDENT, name, self.picture, self.video, str(pace)],
                env={**self.environment, **home},
                cwd=self.folder,
                stdout=out,
                stderr=log,
            )
        self.stack.callback(kill, process)
        return process

    def replace_victim(self, pace: float) -> None:
        """SIGKILL the second resident process once it buys, and start another one in its place."""
        if self._victim and not self._buys(f"victim-{self._number}-"):
            return
        if self._victim:
            kill(self._victim)
            self.happened["resident processes killed"] += 1
        self._number += 1
        self._victim = self.start_resident(f"victim-{self._number}", pace)

    def _buys(self, name: str) -> bool:
        return any(shown(job).startswith(name) for job in self.sandbox.accepted)

    def stop(self, *processes: subprocess.Popen[bytes]) -> None:
        """Stop resident processes after the flows that they have started."""
        running = [*processes, *filter(None, [self._victim])]
        for process in running:
            process.send_signal(signal.SIGTERM)
        for process in running:
            process.wait(PATIENCE)

    def restart_postgres(self) -> None:
        """Restart PostgreSQL, in turns as for an upgrade and as if its machine crashed."""
        crash = self.happened["PostgreSQL restarted"] % 2
        self.postgres.restart("immediate" if crash else "fast")
        self.happened["PostgreSQL restarted"] += 1

    def look(self, resident: subprocess.Popen[bytes]) -> None:
        """Measure the resources of all watched processes."""
        self.watched["resident"] = psutil.Process(resident.pid)
        if decoder := child_of(self.watched["resident"], "decoder.py"):
            self.watched["its decoder"] = decoder
        self.watch.look(self.watched)
        counted = self.postgres.execute(
            "SELECT datname, count(*) FROM pg_stat_activity WHERE datname IS NOT NULL GROUP BY 1"
        )
        names = {self.environment["COMETAPI_LEDGER_URL"].rpartition("/")[2]: "the ledger"}
        for line in counted.splitlines():
            name, _, number = line.partition("|")
            if who := names.get(name, "" if name == "postgres" else "Prefect's database"):
                self.watch.note(who, "connections", int(number))

    def command(self, *words: str) -> None:
        """Run a command of the package to its end."""
        script = Path(sys.executable).parent / "prefect-cometapi"
        with self._log("commands") as log:
            subprocess.run(
                [script, *words],
                env=dict(self.environment),
                cwd=self.folder,
                stdout=log,
                stderr=log,
                check=True,
                timeout=PATIENCE,
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
        self.sandbox._app.plan = FaultPlan(())
        ledger = get_ledger(self.environment["COMETAPI_LEDGER_URL"])
        entries: list[Entry] = []
        left: list[str] = []
        for _ in range(ROUNDS):
            adopted, released = await settled(ledger, self.sandbox)
            self.happened["uncertain, adopted"] += len(adopted)
            self.happened["uncertain, not accepted"] += len(released)
            await asyncio.to_thread(self.command, "collect")
            entries = await ledger.entries()
            left = [entry.idempotency_key for entry in entries if entry.state in OPEN]
            if not left:
                break
        keys = [entry.idempotency_key for entry in entries]
        storage = Path(self.environment["COMETAPI_STORAGE"])
        found = await found_in(
            keys, self.sandbox, entries, storage, self.endings(), listed=frozenset()
        )
        of_batches = (".gallery.html", ".jsonl")
        files = {
            name: sha256 for name, sha256 in found.files.items() if not name.endswith(of_batches)
        }
        return [
            *violations(replace(found, files=files)),
            *(Violation(Wrong.UNSETTLED, key) for key in left),
            *(
                Violation(Wrong.UNTYPED, f"a secret is told: {where}")
                for where in places_of((KEY, "_jwt=ey"), self.folder, self.postgres)
            ),
        ]

    def _log(self, name: str):
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
        struck: Requests that met a fault.
        happened: Counts of the other disturbances.
        trends: Trend of each resource, by process and measure.
        growing: Resources that grew, in words.
        found: All violations.
    """

    seconds: float
    flows: Counter[str]
    states: Counter[str]
    accepted: int
    requests: Counter[str]
    struck: int
    happened: Counter[str]
    trends: Mapping[tuple[str, str], Trend]
    growing: Sequence[str]
    found: Sequence[Violation]


def play(
    enough: Callable[[Soak, float], bool],
    plan: Plan,
    folder: Path,
    environment: Mapping[str, str],
    sandbox: Sandbox,
    postgres: Postgres,
    tell: Callable[[str], None],
    crew: "Callable[[Soak, Now], Callable[[], None]] | None" = None,
) -> Outcome:
    """Run everything until ``enough`` of the soak and the seconds is true; then stop and check.

    A crew starts workers, and returns a function that waits until their runs have ended.
    """
    with ExitStack() as stack:
        picture, video = stack.enter_context(sources(folder))
        soak = Soak(folder, environment, sandbox, postgres, picture, video, stack, tell)
        now, began = Now(), time.monotonic()
        resident = soak.start_resident("resident", plan.pace)
        soak.replace_victim(plan.pace)
        now.every(plan.kill, lambda: soak.replace_victim(plan.pace))
        now.every(plan.restart, soak.restart_postgres)
        now.every(plan.look, lambda: soak.look(resident))
        now.every(60, lambda: tell(_standing(soak, began)))
        wait_for_crew = crew(soak, now) if crew else lambda: None
        while not enough(soak, time.monotonic() - began):
            now.run_due()
            time.sleep(0.1)
        took = time.monotonic() - began
        soak.stop(resident)
        wait_for_crew()
        tell(f"stopped after {took:.0f} s; finishing")
        found = asyncio.run(soak.finish())
        return Outcome(
            seconds=took,
            flows=Counter(ending.error or "ended well" for ending in soak.endings()),
            states=Counter(str(entry.state) for entry in soak.entries()),
            accepted=len(sandbox.accepted),
            requests=Counter(request.route for request in sandbox.requests),
            struck=sum(request.fault is not None for request in sandbox.requests),
            happened=soak.happened,
            trends=soak.watch.trends(),
            growing=soak.watch.growing(),
            found=found,
        )


def _standing(soak: Soak, began: float) -> str:
    held = {who: found[-1] for (who, what), found in soak.watch.series.items() if "MB" in what}
    told = ", ".join(f"{who} {value:.0f} MB" for who, value in held.items())
    seconds, accepted = time.monotonic() - began, len(soak.sandbox.accepted)
    return f"{seconds:5.0f} s: {accepted} accepted, {dict(soak.happened)}; {told}"


def crew_of(machines: Cluster, pool: str) -> "Callable[[Soak, Now], Callable[[], None]]":
    """Start two workers of a cluster with batches for them; kill one now and then."""

    def start(soak: Soak, now: Now) -> Callable[[], None]:
        numbers = count()

        def worker(name: str) -> None:
            machines.start_worker(name, pool, machines.apis[len(machines.workers) % 2])

        def strike() -> None:
            machines.kill_machine(list(machines.workers)[-1])
            soak.happened["workers killed"] += 1
            worker(f"worker-{len(machines.workers)}")

        def submit() -> None:
            if len(_under_way(machines, deployment)) > MOST_RUNS:
                return
            key = f"worker-batch-{next(numbers)}"
            parameters = {"requests": rows(soak.picture, key, 4), "idempotency_key": key}
            with machines.client() as client:
                client.create_flow_run_from_deployment(deployment, parameters=parameters)
            soak.happened["runs for workers"] += 1

        with machines.client() as client:
            deployment = client.read_deployment_by_name("generate-batch/catalogue").id
            client.update_deployment(deployment, DeploymentUpdate(concurrency_limit=MOST_RUNS))
        worker("worker")
        soak.watched["worker"] = psutil.Process(machines.workers["worker"].pid)
        worker("worker-1")
        now.every(20, submit)
        now.every(150, strike)

        def wait() -> None:
            end = time.monotonic() + PATIENCE
            while left := _under_way(machines, deployment):
                assert time.monotonic() < end, left
                time.sleep(1)

        return wait

    return start


def _under_way(machines: Cluster, deployment: UUID) -> list[str]:
    """Return the runs of a deployment that have not ended, and their states."""
    wanted = DeploymentFilter(id=DeploymentFilterId(any_=[deployment]))
    with machines.client() as client:
        runs = client.read_flow_runs(deployment_filter=wanted, limit=200)
    left = [run for run in runs if run.state is None or not run.state.is_final()]
    return [f"{run.name}: {run.state_name}" for run in left]
