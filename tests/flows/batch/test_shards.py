# SPDX-License-Identifier: Apache-2.0
"""A batch in shards is one batch: bought once, within its limits, with one result."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.states import Cancelling
from prefect.workers.process import ProcessWorker

from prefect_cometapi.flows import collect
from prefect_cometapi.runway import BatchFailed
from prefect_cometapi.runway.ledger.entry import State
from prefect_cometapi.sandbox import Fault

from ... import waiting
from ...written_results import read_results
from .catalogue import creates, make_batch, manifest, rows

pytestmark = [pytest.mark.server, pytest.mark.slow, pytest.mark.heavy]


class Workers:
    """Work pool with a deployment of the shards, and its workers."""

    def __init__(self, client: SyncPrefectClient, stack: ExitStack, home: Path, api: str) -> None:
        self.pool = f"shards-{uuid4().hex[:6]}"
        self._client = client
        self._stack = stack
        self._env = {"PREFECT_API_URL": api, "PREFECT_HOME": str(home)}
        template = ProcessWorker.get_default_base_job_template()
        client.create_work_pool(
            WorkPoolCreate(name=self.pool, type="process", base_job_template=template)
        )
        self.deployment = self._deploy("generate-batch-shard")

    def _deploy(self, flow: str) -> UUID:
        return self._client.create_deployment(
            self._client.create_flow_from_name(flow),
            self.pool,
            work_pool_name=self.pool,
            entrypoint=f"prefect_cometapi.flows.{flow.replace('-', '_')}",
            tags=["cometapi"],
            job_variables={"working_dir": str(Path.cwd())},
        )

    def run_batch(self, requests: str, **options: Any) -> UUID:
        """Schedule a run of a batch in this pool."""
        deployment = self._deploy("generate-batch")
        parameters = {"requests": requests, "shard_deployment": self.pool, **options}
        run = self._client.create_flow_run_from_deployment(deployment, parameters=parameters)
        return run.id

    def cancel(self, run: UUID) -> None:
        """Request the cancellation of a run, as the button of the UI does."""
        self._client.set_flow_run_state(run, Cancelling())

    def state(self, run: UUID) -> str | None:
        """Return the name of the state of a run."""
        return self._client.read_flow_run(run).state_name

    def start(self, *, limit: int = 1, **env: str) -> subprocess.Popen[bytes]:
        """Start a worker with the settings of the test."""
        script = Path(sys.executable).parent / "prefect"
        process = subprocess.Popen(
            [script, "worker", "start", "--pool", self.pool, "--limit", str(limit)],
            env={**os.environ, **self._env, "PREFECT_WORKER_QUERY_SECONDS": "1", **env},
            stdout=subprocess.DEVNULL,
        )
        self._stack.callback(waiting.kill, process)
        return process

    def states(self, history: Any) -> list[str]:
        """Return the names of the states of all runs of shards."""
        found = history.filter("flow_runs", deployments={"id": {"any_": [str(self.deployment)]}})
        return sorted(run["state_name"] for run in found)


@pytest.fixture
def workers(prefect_server, sandbox, tmp_path, tmp_path_factory) -> Iterator[Workers]:
    with ExitStack() as stack:
        client = stack.enter_context(get_client(sync_client=True))
        yield Workers(client, stack, tmp_path_factory.mktemp("worker"), prefect_server)


@pytest.fixture
def patient(monkeypatch) -> None:
    """Let generations render for as long as the test needs, in a large batch."""
    monkeypatch.setenv("COMETAPI_GENERATION_TIMEOUT", "600")
    monkeypatch.setenv("COMETAPI_POLL_INTERVAL", "0.2")
    monkeypatch.setenv("COMETAPI_MAX_ITEMS_WITH_STEP_TASKS", "0")
    monkeypatch.setenv("COMETAPI_ITEMS_PER_TASK_RUN", "50")


@pytest.fixture
def shared_ledger(postgres, monkeypatch, own_settings) -> None:
    """Keep the ledger in PostgreSQL."""
    monkeypatch.setenv("COMETAPI_LEDGER_URL", postgres.create_database())


BATCH = """
import json, sys
from prefect_cometapi.flows import generate_batch
result = generate_batch(sys.argv[1], **json.loads(sys.argv[2]))
print(result.succeeded, result.output)
"""


def test_a_manifest_becomes_videos(workers, sandbox, tmp_path, history):
    """Each row has its video, once and in order, and no file of a shard is left."""
    workers.start(limit=3)
    options = {"shards": 3, "max_in_flight": 6, "shard_deployment": workers.pool}
    result = make_batch(manifest(tmp_path, rows(12)), **options)
    assert [item.id for item in result.results] == [f"sku-{n}" for n in range(12)]
    assert result.succeeded == len(sandbox.accepted) == 12
    assert result.spending.run_seconds == result.spending.spent_seconds == 60
    assert result.output
    assert read_results(result.output) == list(result.results)
    assert not list((tmp_path / "videos" / ".cometapi-shards").iterdir())
    again = make_batch(manifest(tmp_path, rows(12)), **options)
    assert again.results == result.results
    assert workers.states(history) == ["Completed"] * 3


def test_a_killed_shard_is_taken_over(
    workers,
    sandbox,
    tmp_path,
    shared_ledger,
    start,
    finish_rendering,
    wait_until,
    ledger_probe,
    patient,
    history,
):
    """Of three workers one is killed with its shard; all 200 rows are bought once and stored."""
    doomed, *_others = [workers.start() for _ in range(3)]
    options = {"shards": 3, "max_in_flight": 30, "shard_deployment": workers.pool}
    alike = [row | {"promptText": "the sandbox draws it once"} for row in rows(200)]
    batch = start("-c", BATCH, manifest(tmp_path, alike), json.dumps(options))
    wait_until(
        lambda: [entry.state for entry in ledger_probe.all()] == [State.SUBMITTED] * 30 or None,
        seconds=300,
    )
    assert workers.states(history) == ["Running"] * 3
    waiting.kill(doomed)
    finish_rendering()
    output, _ = batch.communicate(timeout=400)
    assert batch.returncode == 0
    assert output.splitlines()[-1].startswith("200 ")
    assert len(sandbox.accepted) == 200
    assert {entry.state for entry in ledger_probe.all()} == {State.STORED}
    assert workers.states(history) == ["Completed"] * 3


def test_a_batch_that_was_killed_attaches_to_its_shards(
    workers, sandbox, tmp_path, start, finish_rendering, wait_until, patient, history
):
    """Shards outlive the run that started them, and the next run of the batch waits for them."""
    workers.start(limit=2)
    options = {"shards": 2, "max_in_flight": 4, "shard_deployment": workers.pool}
    arguments = ("-c", BATCH, manifest(tmp_path, rows(10)), json.dumps(options))
    first = start(*arguments)
    wait_until(lambda: len(sandbox.accepted) == 4 or None, seconds=120)
    waiting.kill(first)
    second = start(*arguments)
    runs = {"flows": {"name": {"any_": ["generate-batch"]}}, "sort": "START_TIME_DESC"}
    wait_until(
        lambda: (
            any(
                "is in progress as" in log["message"]
                for log in history.filter(
                    "logs",
                    logs={"flow_run_id": {"any_": [history.filter("flow_runs", **runs)[0]["id"]]}},
                )
            )
            or None
        ),
        seconds=120,
    )
    finish_rendering()
    output, _ = second.communicate(timeout=240)
    assert output.splitlines()[-1].startswith("10 ")
    assert len(sandbox.accepted) == 10
    assert workers.states(history) == ["Completed"] * 2


def test_a_batch_that_is_cancelled_in_the_ui_buys_nothing_more(
    workers, sandbox, tmp_path, finish_rendering, wait_until, ledger_probe, patient, history
):
    """The worker cancels the run and its shards; what was bought is handed over, and collected."""
    workers.start(limit=3)
    run = workers.run_batch(manifest(tmp_path, rows(12)), shards=2, max_in_flight=4)
    wait_until(
        lambda: [entry.state for entry in ledger_probe.all()] == [State.SUBMITTED] * 4 or None,
        seconds=120,
    )
    workers.cancel(run)
    wait_until(lambda: workers.states(history) == ["Cancelled"] * 2 or None, seconds=120)
    assert workers.state(run) == "Cancelled"
    wait_until(lambda: not any(entry.owner for entry in ledger_probe.all()) or None, seconds=60)
    finish_rendering()
    assert collect().stored == 4
    assert len(sandbox.accepted) == 4


def test_all_shards_keep_to_one_limit(workers, sandbox, tmp_path):
    """The spending limit of a batch is one for all of its shards together."""
    workers.start(limit=3)
    options = {"shards": 3, "max_in_flight": 6, "shard_deployment": workers.pool}
    result = make_batch(manifest(tmp_path, rows(12)), max_seconds=25, **options)
    assert (result.succeeded, result.not_bought, len(sandbox.accepted)) == (5, 7, 5)


def test_failures_of_all_shards_count_together(workers, sandbox, tmp_path):
    """Too many failures in all shards fail the batch, and most rows are not bought."""
    sandbox.add_fault(Fault.parse("create:invalid-request:times=99"))
    workers.start(limit=2)
    options = {"shards": 2, "max_in_flight": 2, "shard_deployment": workers.pool}
    with pytest.raises(BatchFailed, match="items failed, but at most 2 may fail") as caught:
        make_batch(manifest(tmp_path, rows(20)), max_failures=2, **options)
    assert caught.value.result
    assert caught.value.result.failed == creates(sandbox) <= 6
    assert caught.value.result.failed + caught.value.result.not_bought == 20


def test_a_worker_with_another_ledger_fails_the_batch(workers, sandbox, tmp_path):
    """A worker whose ledger is not the one of the batch buys nothing, and the error says why."""
    workers.start(limit=2, COMETAPI_LEDGER_URL=f"sqlite:///{tmp_path}/another.db")
    options = {"shards": 2, "shard_deployment": workers.pool}
    with pytest.raises(BatchFailed, match="does not have the ledger of the machine") as caught:
        make_batch(manifest(tmp_path, rows(4)), **options)
    assert caught.value.result
    assert caught.value.result.not_bought == 4
    assert not sandbox.accepted
