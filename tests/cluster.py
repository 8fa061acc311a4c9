# SPDX-License-Identifier: Apache-2.0
"""Several machines, as processes: two API servers, Prefect's services, PostgreSQL, Redis, workers.

It is what deployments/compose.yaml describes, with a folder in place of its volumes.
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
"""Seconds until a process must answer."""

HEARTBEAT = 30
"""Seconds between two heartbeats of a run: the least that Prefect takes."""


def free_port() -> int:
    """A port that nobody listens on just now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@dataclass
class Cluster:
    """What runs, and how to reach it.

    Attributes:
        folder: Homes, logs and the shared storage.
        apis: Addresses of the two API servers.
        environment: What a process on one of its machines has.
        workers: Their processes, by name.
    """

    folder: Path
    apis: tuple[str, str]
    environment: dict[str, str]
    stack: ExitStack
    workers: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def videos(self) -> Path:
        """The shared storage."""
        return self.folder / "videos"

    def run(self, *command: str) -> str:
        """What a command of the package prints, run on the first machine."""
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
        """A worker with a home of its own, in a process group of its own."""
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
        """SIGKILL for a worker and all that it started, as if the power went."""
        kill(self.workers[name])

    @contextmanager
    def client(self, number: int = 0) -> Iterator[SyncPrefectClient]:
        """A client of one of the API servers."""
        with (
            temporary_settings({PREFECT_API_URL: self.apis[number]}),
            get_client(sync_client=True) as client,
        ):
            yield client

    def notice_silence_soon(self) -> None:
        """A run that is silent or does not begin counts as crashed after less than a minute."""
        soon = timedelta(seconds=HEARTBEAT + 15)
        with temporary_settings({PREFECT_API_URL: self.apis[0]}):
            for crash in (automations.silent_runs_crash, automations.unbegun_runs_crash):
                quick = crash(soon)
                quick.id = Automation.read(name=quick.name).id  # pyright: ignore[reportAttributeAccessIssue]
                quick.update()


def places_of(secrets: Iterable[str], folder: Path, postgres: Postgres) -> list[str]:
    """Where secrets stand in the files of a folder, or in the databases of a PostgreSQL."""
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
    """Start ``prefect`` with these words; it and its children are gone at the end of the stack."""
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
    """Return once a server answers."""

    def answers() -> bool:
        with suppress(httpx.TransportError):
            return httpx.get(url).is_success
        return False

    until(answers, f"an answer of {url}", PATIENCE)


@contextmanager
def scheduled(client: SyncPrefectClient, deployment: UUID, every: timedelta) -> Iterator[None]:
    """An active schedule of a deployment; it ends with the block, so that no more runs come."""
    schedule = IntervalSchedule(interval=every)
    (made,) = client.create_deployment_schedules(deployment, [(schedule, True)])
    try:
        yield
    finally:
        client.delete_deployment_schedule(deployment, made.id)


@contextmanager
def redis(program: str) -> Iterator[int]:
    """A Redis that keeps nothing; gives its port."""
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
    """Start everything but the workers; ``settings`` go into the environment of all machines."""
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
    """All that stands in the databases of a PostgreSQL, as text."""
    names = postgres.execute("SELECT datname FROM pg_database WHERE NOT datistemplate").split()
    tables = "SELECT quote_ident(tablename) FROM pg_tables WHERE schemaname = 'public'"
    return "\n".join(
        postgres.execute(f"SELECT row_to_json(t) FROM {table} t", name)
        for name in names
        for table in postgres.execute(tables, name).split()
    )


def run_states(client: SyncPrefectClient, run: Any) -> list[str]:
    """What a flow run went through, in order."""
    answer = client._client.get("/flow_run_states/", params={"flow_run_id": str(run)})
    states = sorted(answer.raise_for_status().json(), key=lambda state: state["timestamp"])
    return [state["name"] for state in states]
