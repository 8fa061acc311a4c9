# SPDX-License-Identifier: Apache-2.0
"""Runs of a deployment that are cancelled or killed under a real process worker."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect import get_client
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.states import Cancelling, Scheduled
from prefect.workers.process import ProcessWorker

from prefect_cometapi.flows import collect
from prefect_cometapi.runway import Entry, State
from prefect_cometapi.runway.holders import is_certainly_gone

pytestmark = [pytest.mark.server, pytest.mark.slow]


@dataclass
class Worker:
    """A worker of a pool of its own, and the deployment that it runs."""

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
        """What the button in the UI does."""
        self.client.set_flow_run_state(run, Cancelling())


@pytest.fixture(scope="module")
def start_worker(prefect_server, tmp_path_factory) -> Iterator[Callable[[str], Worker]]:
    """Starts workers, each with a pool and a deployment; they are gone afterwards."""
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
            stack.callback(process.wait)
            stack.callback(process.kill)
            return Worker(process, client, deployment)

        yield begin


@pytest.fixture(scope="module")
def worker(start_worker) -> Worker:
    return start_worker("living")


@pytest.fixture
def bought(sandbox, book, image, finish_rendering, monkeypatch, wait_until):
    """Has a worker run the flow until it has bought a generation and polls for it."""
    monkeypatch.setenv("COMETAPI_DEADLINE", "600")
    monkeypatch.setenv("COMETAPI_POLL_INTERVAL", "0.2")

    def begin(worker: Worker) -> tuple[UUID, Entry, int]:
        """The run, its entry in the ledger, and the number of the process that holds it."""
        run = worker.run(request=image, key="deployed")
        polled = [r for r in sandbox.requests if r.route == "task"]
        wait_until(
            lambda: [r for r in sandbox.requests if r.route == "task"][len(polled) + 1 :] or None,
            seconds=120,
        )
        entry = book["deployed"]
        assert entry.flow_run_id == str(run)
        assert entry.holder
        return run, entry, int(entry.holder.split(":")[1])

    return begin


def check_that_collect_finishes_it(sandbox, book, finish_rendering) -> None:
    finish_rendering()
    assert collect().stored == 1
    assert (book["deployed"].state, book["deployed"].holder) == (State.STORED, None)
    assert len(sandbox.accepted) == 1


def advice(history, run: UUID, entry: Entry) -> None:
    """The hook's words are among the run's logs, for whoever looks at it in the UI."""
    words = f"Generation {entry.task_id} is paid for and goes on upstream"
    (line, *_) = [line for line in history.logs(run, until=words) if words in line]
    assert "`prefect-cometapi collect` finishes it" in line


def test_a_cancelled_run_hands_its_work_over(
    worker, bought, sandbox, book, history, finish_rendering, wait_until
):
    """Cancelled in the UI, it ends as Cancelled; what it bought is free, and its log says so."""
    run, entry, _pid = bought(worker)
    worker.cancel(run)
    wait_until(lambda: worker.state(run) == "Cancelled" or None, seconds=120)
    wait_until(lambda: book["deployed"].holder is None or None)
    assert "goes on upstream" in book["deployed"].note
    assert is_certainly_gone(entry.holder)
    advice(history, run, entry)
    check_that_collect_finishes_it(sandbox, book, finish_rendering)


def test_a_killed_run_under_a_living_worker_hands_its_work_over(
    worker, bought, sandbox, book, history, finish_rendering, wait_until
):
    """SIGKILL of the flow's process: the worker's fresh process frees what it left."""
    run, entry, pid = bought(worker)
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: worker.state(run) == "Crashed" or None, seconds=120)
    wait_until(lambda: book["deployed"].holder is None or None, seconds=60)
    assert book["deployed"].note == "its run ended: Crashed"
    advice(history, run, entry)
    check_that_collect_finishes_it(sandbox, book, finish_rendering)


def test_when_run_and_worker_are_killed_nobody_waits(
    start_worker, bought, sandbox, book, finish_rendering
):
    """With nobody left to run a hook, the next collector sees that the process is dead."""
    doomed = start_worker("doomed")
    run, entry, pid = bought(doomed)
    doomed.process.kill()
    doomed.process.wait()
    os.kill(pid, signal.SIGKILL)
    assert book["deployed"].holder == entry.holder
    assert doomed.state(run) == "Running"
    check_that_collect_finishes_it(sandbox, book, finish_rendering)
