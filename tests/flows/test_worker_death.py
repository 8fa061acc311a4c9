# SPDX-License-Identifier: Apache-2.0
"""Runs of a deployment that are cancelled or killed under a real process worker."""

import os
import signal
from uuid import UUID

import pytest

from prefect_cometapi.flows import collect
from prefect_cometapi.runway import Entry, State
from prefect_cometapi.runway.processes import is_dead

from .conftest import Worker

pytestmark = [pytest.mark.server, pytest.mark.slow]


@pytest.fixture(scope="module")
def worker(start_worker) -> Worker:
    return start_worker("living")


@pytest.fixture
def bought(sandbox, ledger_probe, image, finish_rendering, monkeypatch, wait_until):
    """Return a function that runs the flow in a worker until it polls for its purchase."""
    monkeypatch.setenv("COMETAPI_GENERATION_TIMEOUT", "600")
    monkeypatch.setenv("COMETAPI_POLL_INTERVAL", "0.2")

    def begin(worker: Worker) -> tuple[UUID, Entry, int]:
        """Return the run, its ledger entry, and the id of the process that owns it."""
        run = worker.run(request=image, idempotency_key="deployed")
        polled = [r for r in sandbox.requests if r.route == "task"]
        wait_until(
            lambda: [r for r in sandbox.requests if r.route == "task"][len(polled) + 1 :] or None,
            seconds=120,
        )
        entry = ledger_probe["deployed"]
        assert entry.flow_run_id == str(run)
        assert entry.owner
        return run, entry, int(entry.owner.split(":")[1])

    return begin


def check_that_collect_finishes_it(sandbox, ledger_probe, finish_rendering) -> None:
    finish_rendering()
    assert collect().stored == 1
    assert (ledger_probe["deployed"].state, ledger_probe["deployed"].owner) == (State.STORED, None)
    assert len(sandbox.accepted) == 1


def advice(history, run: UUID, entry: Entry) -> None:
    """Check that the hook's message is in the run's logs, which the UI shows."""
    words = f"Generation {entry.task_id} is paid for and continues at CometAPI"
    (line, *_) = [line for line in history.logs(run, until=words) if words in line]
    assert "Finish it with `prefect-cometapi collect`" in line


@pytest.mark.heavy
def test_a_cancelled_run_hands_its_work_over(
    worker, bought, sandbox, ledger_probe, history, finish_rendering, wait_until
):
    """A run cancelled in the UI ends as Cancelled, releases its purchase, and logs the advice."""
    run, entry, _pid = bought(worker)
    worker.cancel(run)
    wait_until(lambda: worker.state(run) == "Cancelled" or None, seconds=120)
    wait_until(lambda: ledger_probe["deployed"].owner is None or None)
    assert "continues at the service" in ledger_probe["deployed"].note
    assert is_dead(entry.owner)
    advice(history, run, entry)
    check_that_collect_finishes_it(sandbox, ledger_probe, finish_rendering)


@pytest.mark.heavy
def test_a_killed_run_under_a_living_worker_hands_its_work_over(
    worker, bought, sandbox, ledger_probe, history, finish_rendering, wait_until
):
    """After SIGKILL of the flow's process, the worker's new process releases its leases."""
    run, entry, pid = bought(worker)
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: worker.state(run) == "Crashed" or None, seconds=120)
    wait_until(lambda: ledger_probe["deployed"].owner is None or None, seconds=60)
    assert ledger_probe["deployed"].note == "its run ended: Crashed"
    advice(history, run, entry)
    check_that_collect_finishes_it(sandbox, ledger_probe, finish_rendering)


@pytest.mark.heavy
def test_when_run_and_worker_are_killed_nobody_waits(
    start_worker, bought, sandbox, ledger_probe, finish_rendering
):
    """If both run and worker are killed, the next collector sees that the process is dead."""
    doomed = start_worker("doomed")
    run, entry, pid = bought(doomed)
    doomed.process.kill()
    doomed.process.wait()
    os.kill(pid, signal.SIGKILL)
    assert ledger_probe["deployed"].owner == entry.owner
    assert doomed.state(run) == "Running"
    check_that_collect_finishes_it(sandbox, ledger_probe, finish_rendering)
