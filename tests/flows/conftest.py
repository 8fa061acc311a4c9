# SPDX-License-Identifier: Apache-2.0
"""Fixtures for tests of flows: records of the Prefect server, the ledger, and workers."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.states import Cancelling, Scheduled
from prefect.workers.process import ProcessWorker

from prefect_cometapi.flows import asubmit_generation
from prefect_cometapi.flows.runtime.sync import run_sync
from prefect_cometapi.runway import Entry, ImageToVideoRequest, Ledger, State, Submission
from prefect_cometapi.runway.ledger.conditions import is_unchanged_since
from prefect_cometapi.runway.ledger.store import get_ledger
from prefect_cometapi.sandbox import Sandbox

from .. import waiting

IMAGE = {"promptImage": "https://example.com/cat.jpg", "promptText": "slow zoom"}


@pytest.fixture
def bucket(s3: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Create a bucket that the usual environment variables lead to."""
    import boto3

    from ..s3 import environment

    for name, value in environment(s3).items():
        monkeypatch.setenv(name, value)
    resource: Any = boto3.resource("s3")
    made = resource.Bucket(f"videos-{uuid4().hex[:8]}")
    made.create()
    return made


class History:
    """Records of runs on the server, read over its API."""

    def __init__(self, api: str) -> None:
        self._http = httpx.Client(base_url=api, timeout=30)

    def filter(self, what: str, **query: Any) -> list[dict[str, Any]]:
        return self._http.post(f"/{what}/filter", json=query).raise_for_status().json()

    def task_runs(self, flow_run_id: Any) -> dict[str, dict[str, Any]]:
        """Return the final task runs of a flow run, by the first word of their names."""

        def all_final() -> dict[str, dict[str, Any]] | None:
            runs = self.filter("task_runs", flow_runs={"id": {"any_": [str(flow_run_id)]}})
            final = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}
            done = runs and all(run["state_type"] in final for run in runs)
            return {run["name"].partition(" ")[0]: run for run in runs} if done else None

        return waiting.until(all_final, "the end of all task runs")

    def states(self, task_run_id: str) -> list[str]:
        """Return the names of all states of a task run, in order."""
        answer = self._http.get("/task_run_states/", params={"task_run_id": task_run_id})
        states = sorted(answer.raise_for_status().json(), key=lambda state: state["timestamp"])
        return [state["name"] for state in states]

    def artifacts(self, flow_run_id: Any) -> dict[str, dict[str, Any]]:
        """Return the artifacts of a flow run, by the first words of their titles."""
        found = self.filter("artifacts", artifacts={"flow_run_id": {"any_": [str(flow_run_id)]}})
        titled = [artifact for artifact in found if artifact["description"]]  # not results
        named = {
            artifact["description"].removeprefix("### ").split()[0].rstrip(":"): artifact
            for artifact in titled
        }
        assert len(named) == len(titled)
        return named

    def events(self, flow_run_id: Any, until: str) -> list[dict[str, Any]]:
        """Return this package's events of a flow run, once the one named last has arrived."""
        related = {"resources_in_roles": [[f"prefect.flow-run.{flow_run_id}", "flow-run"]]}

        def arrived() -> list[dict[str, Any]] | None:
            query = {
                "filter": {
                    "event": {"prefix": ["cometapi.", "prefect.asset."]},
                    "related": related,
                    "order": "ASC",
                }
            }
            events = self._http.post("/events/filter", json=query).raise_for_status().json()
            found = events["events"]
            return found if any(event["event"] == until for event in found) else None

        return waiting.until(arrived, until)

    def logs(self, flow_run_id: Any, until: str, seconds: float = 30) -> list[str]:
        """Return the log messages of a flow run, once one that contains a text has arrived."""

        def arrived() -> list[str] | None:
            found = self.filter("logs", logs={"flow_run_id": {"any_": [str(flow_run_id)]}})
            messages = [log["message"] for log in found]
            return messages if any(until in message for message in messages) else None

        return waiting.until(arrived, until, seconds)


@pytest.fixture
def history(prefect_server: str) -> History:
    return History(prefect_server)


@pytest.fixture
def image() -> dict[str, Any]:
    """Return an image-to-video request as a dict."""
    return dict(IMAGE)


@pytest.fixture
def wait_until() -> Callable[..., Any]:
    """Return a function that waits for a change by another process or thread."""
    return waiting.until


class LedgerProbe:
    """Ledger of the test, for sync and async tests, with purchases that nobody waits for."""

    @property
    def ledger(self) -> Ledger:
        return get_ledger(os.environ["COMETAPI_LEDGER_URL"])

    def __getitem__(self, key: str) -> Entry:
        entry = run_sync(self.ledger.get(key))
        assert entry, key
        return entry

    def all(self) -> list[Entry]:
        return run_sync(self.ledger.entries())

    def buy(self, key: str, **options: Any) -> Submission:
        """Buy a generation without a flow run, and release it."""
        request = ImageToVideoRequest.model_validate(IMAGE)
        return run_sync(asubmit_generation.fn(request, idempotency_key=key, **options))

    def decide(self, key: str, state: State) -> None:
        """Decide as the user does on the command line."""
        assert run_sync(self.ledger._change(key, state, is_unchanged_since(self[key])))


@pytest.fixture
def ledger_probe(sandbox: Sandbox) -> LedgerProbe:
    return LedgerProbe()


@pytest.fixture
def finish_rendering(sandbox: Sandbox) -> Iterator[Callable[[], None]]:
    """Let no generation finish before the test calls this."""
    jobs = sandbox._app.jobs
    quick = jobs._config
    jobs._config = quick.model_copy(update={"render_seconds": 600.0})

    def finish() -> None:
        jobs._config = quick

    yield finish
    finish()


@pytest.fixture
def start(prefect_server: str, tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start Python processes with the test's settings; kill them after the test."""
    with ExitStack() as stack:

        def start_python(*arguments: str, **env: str) -> subprocess.Popen[str]:
            home = str(tmp_path / "prefect")
            process = subprocess.Popen(
                [sys.executable, *arguments],
                env={**os.environ, "PREFECT_API_URL": prefect_server, "PREFECT_HOME": home, **env},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            stack.callback(process.communicate, timeout=waiting.GRACE)
            stack.callback(waiting.kill, process)
            return process

        yield start_python


@dataclass
class Worker:
    """Worker with a pool of its own, and the deployment that it runs."""

    process: subprocess.Popen[bytes]
    client: SyncPrefectClient
    deployment: UUID

    def run(self, **parameters: Any) -> UUID:
        """Start a run with the test's settings, as the form in the UI does."""
        env = {name: value for name, value in os.environ.items() if name.startswith("COMETAPI_")}
        return self.client.create_flow_run_from_deployment(
            self.deployment,
            parameters=parameters,
            state=Scheduled(),
            job_variables={"env": env, "working_dir": str(Path.cwd())},
        ).id

    def state(self, run: UUID) -> str | None:
        return self.client.read_flow_run(run).state_name

    def cancel(self, run: UUID) -> None:
        """Cancel a run as the button in the UI does."""
        self.client.set_flow_run_state(run, Cancelling())


@pytest.fixture(scope="module")
def start_worker(prefect_server, tmp_path_factory) -> Iterator[Callable[[str], Worker]]:
    """Start workers, each with a pool and a deployment; remove them after the test."""
    home = str(tmp_path_factory.mktemp("worker"))
    script = Path(sys.executable).parent / "prefect"
    env = {"PREFECT_API_URL": prefect_server, "PREFECT_HOME": home}
    template = ProcessWorker.get_default_base_job_template()
    with ExitStack() as stack:
        client = stack.enter_context(get_client(sync_client=True))

        def begin(pool: str) -> Worker:
            client.create_work_pool(
                WorkPoolCreate(name=pool, type="process", base_job_template=template)
            )
            deployment = client.create_deployment(
                client.create_flow_from_name("image-to-video"),
                pool,
                work_pool_name=pool,
                entrypoint="prefect_cometapi.flows.image_to_video",
            )
            process = subprocess.Popen(
                [script, "worker", "start", "--pool", pool],
                env={**os.environ, **env, "PREFECT_WORKER_QUERY_SECONDS": "1"},
                stdout=subprocess.DEVNULL,
            )
            stack.callback(waiting.kill, process)
            return Worker(process, client, deployment)

        yield begin


@pytest.fixture(
    params=[
        "four task runs each",
        pytest.param("one task run each", marks=pytest.mark.heavy),
        pytest.param("one task run for two", marks=pytest.mark.heavy),
    ]
)
def history_mode(request, monkeypatch):
    """Run the test with a small batch, which shows all steps, and with two kinds of large ones."""
    if request.param != "four task runs each":
        monkeypatch.setenv("COMETAPI_MAX_ITEMS_WITH_STEP_TASKS", "0")
    if request.param == "one task run for two":
        monkeypatch.setenv("COMETAPI_ITEMS_PER_TASK_RUN", "2")
    return request.param
