# SPDX-License-Identifier: Apache-2.0
"""Several machines, simulated by processes: two API servers, Prefect services, databases, workers.

The databases are PostgreSQL and Redis. The setup is that of deployments/compose.yaml, with a folder
in place of its volumes.
"""

import os
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
from prefect.automations import Automation
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.schedules import IntervalSchedule
from prefect.settings import PREFECT_API_URL, temporary_settings

from prefect_cometapi.deployments import automations

from .postgres import Postgres
from .waiting import kill, until

PATIENCE = 120
"""Seconds within which a process must answer."""

HEARTBEAT = 30
"""Seconds between two heartbeats of a run: the minimum that Prefect accepts."""


def free_port() -> int:
    """Return a port on which nothing is listening."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@dataclass
class Cluster:
    """Running cluster, with the addresses and settings needed to use it.

    Attributes:
        folder: Home folders, logs and the shared storage.
        apis: Addresses of the two API servers.
        environment: Environment variables of a process on one of the machines.
        workers: Worker processes, by name.
    """

    folder: Path
    apis: tuple[str, str]
    environment: dict[str, str]
    stack: ExitStack
    workers: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def videos(self) -> Path:
        """Return the folder of the shared storage."""
        return self.folder / "videos"

    def run(self, *command: str) -> str:
        """Run a command of the package on the first machine and return its output."""
        done = subprocess.run(
            [Path(sys.executable).parent / "prefect-cometapi", *command],
            env=self.environment | {"PREFECT_API_URL": self.apis[0]},
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def start_worker(self, name: str, pool: str, api: str) -> None:
        """Start a worker with its own home folder, in its own process group."""
        home = self.folder / f"home-{name}"
        home.mkdir()
        own = {"HOME": str(home), "PREFECT_HOME": str(home / ".prefect"), "PREFECT_API_URL": api}
        self.workers[name] = start(
            self.stack,
            self.folder / f"{name}.log",
            self.environment | own | {"PREFECT_WORKER_QUERY_SECONDS": "1"},
            *("worker", "start", "--pool", pool, "--name", name),
        )

    def kill_machine(self, name: str) -> None:
        """Send SIGKILL to a worker and all its children, like a power failure."""
        kill(self.workers[name])

    @contextmanager
    def client(self, number: int = 0) -> Iterator[SyncPrefectClient]:
        """Return a client of one of the API servers."""
        with (
            temporary_settings({PREFECT_API_URL: self.apis[number]}),
            get_client(sync_client=True) as client,
        ):
            yield client

    def notice_silence_soon(self) -> None:
        """Mark a run as crashed after less than a minute without a heartbeat or a start."""
        soon = timedelta(seconds=HEARTBEAT + 15)
        with temporary_settings({PREFECT_API_URL: self.apis[0]}):
            for crash in (
                automations.mark_silent_runs_crashed,
                automations.mark_unstarted_runs_crashed,
            ):
                quick = crash(soon)
                quick.id = Automation.read(name=quick.name).id  # pyright: ignore[reportAttributeAccessIssue]
                quick.update()


def places_of(secrets: Iterable[str], folder: Path, postgres: Postgres) -> list[str]:
    """Return the locations of secrets in the files of a folder and in a PostgreSQL server."""
    everything = dumped(postgres)
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return [
        *(f"{secret} in a database" for secret in secrets if secret in everything),
        *(
            f"{secret} in {path}"
            for path in files
            for secret in secrets
            if secret.encode() in path.read_bytes()
        ),
    ]


def start(
    stack: ExitStack, log: Path, environment: dict[str, str], *words: str
) -> subprocess.Popen[bytes]:
    """Start ``prefect`` with these arguments; the end of the stack stops it and its children."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "prefect", *words],
            env=environment,
            cwd=log.parent,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    stack.callback(kill, process)
    return process


def wait_for(url: str) -> None:
    """Wait until a server answers."""

    def answers() -> bool:
        with suppress(httpx.TransportError):
            return httpx.get(url).is_success
        return False

    until(answers, f"an answer of {url}", PATIENCE)


@contextmanager
def scheduled(client: SyncPrefectClient, deployment: UUID, every: timedelta) -> Iterator[None]:
    """Keep a schedule of a deployment active; remove it at the end to start no more runs."""
    schedule = IntervalSchedule(interval=every)
    (made,) = client.create_deployment_schedules(deployment, [(schedule, True)])
    try:
        yield
    finally:
        client.delete_deployment_schedule(deployment, made.id)


@contextmanager
def redis(program: str) -> Iterator[int]:
    """Start a Redis server without persistence and yield its port."""
    port = free_port()
    words = ("--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no")
    process = subprocess.Popen([program, *words], stdout=subprocess.DEVNULL)

    def listens() -> bool:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return True
        return False

    try:
        until(listens, "Redis", PATIENCE)
        yield port
    finally:
        kill(process)


@contextmanager
def cluster(
    folder: Path, postgres: Postgres, redis_server: str, **settings: str
) -> Iterator[Cluster]:
    """Start everything but the workers; ``settings`` extend the environment of all machines."""
    prefect, ledger = postgres.create_database(), postgres.create_database()
    with ExitStack() as stack:
        broker = stack.enter_context(redis(redis_server))
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("PREFECT_", "COMETAPI_"))
        }
        base = kept | {
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_LOCAL_STORAGE_PATH": str(folder / "results"),
            "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT),
            "PYTHONUNBUFFERED": "1",
        }
        server = base | {
            "PREFECT_HOME": str(folder / "home-server"),
            "PREFECT_SERVER_DATABASE_CONNECTION_URL": prefect.replace(
                "postgresql:", "postgresql+asyncpg:"
            ),
            "PREFECT_MESSAGING_BROKER": "prefect_redis.messaging",
            "PREFECT_MESSAGING_CACHE": "prefect_redis.messaging",
            "PREFECT_SERVER_EVENTS_CAUSAL_ORDERING": "prefect_redis.ordering",
            "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect_redis.lease_storage",
            "PREFECT_REDIS_MESSAGING_HOST": "127.0.0.1",
            "PREFECT_REDIS_MESSAGING_PORT": str(broker),
        }
        upgrade = ("server", "database", "upgrade", "-y")
        start(stack, folder / "migration.log", server, *upgrade).wait(PATIENCE)
        ports = (free_port(), free_port())
        for port in ports:
            words = ("server", "start", "--no-services", "--port", str(port))
            start(stack, folder / f"server-{port}.log", server, *words)
        start(stack, folder / "services.log", server, "server", "services", "start")
        for port in ports:
            wait_for(f"http://127.0.0.1:{port}/api/health")
        ours = {"COMETAPI_LEDGER_URL": ledger, "COMETAPI_STORAGE": str(folder / "videos")}
        yield Cluster(
            folder=folder,
            apis=(f"http://127.0.0.1:{ports[0]}/api", f"http://127.0.0.1:{ports[1]}/api"),
            environment=base | ours | settings,
            stack=stack,
        )


def dumped(postgres: Postgres) -> str:
    """Return a dump of all databases of a PostgreSQL server, as text."""
    names = postgres.execute("SELECT datname FROM pg_database WHERE NOT datistemplate").split()
    tables = "SELECT quote_ident(tablename) FROM pg_tables WHERE schemaname = 'public'"
    return "\n".join(
        postgres.execute(f"SELECT row_to_json(t) FROM {table} t", name)
        for name in names
        for table in postgres.execute(tables, name).split()
    )


def run_states(client: SyncPrefectClient, run: Any) -> list[str]:
    """Return the states of a flow run, in order."""
    answer = client._client.get("/flow_run_states/", params={"flow_run_id": str(run)})
    states = sorted(answer.raise_for_status().json(), key=lambda state: state["timestamp"])
    return [state["name"] for state in states]
