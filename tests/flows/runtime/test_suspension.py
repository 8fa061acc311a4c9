# SPDX-License-Identifier: Apache-2.0
"""A run that waits without a process is suspended, resumed by the collector, and paid for once."""

import logging

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.states import Suspended

from prefect_cometapi.flows import collect, finish_generation, image_to_video
from prefect_cometapi.flows.runtime.sync import run_sync
from prefect_cometapi.runway import State
from prefect_cometapi.runway.ledger.entry import Intent
from prefect_cometapi.sandbox import Fault

from ...runway.factories import set_columns

pytestmark = [pytest.mark.server, pytest.mark.slow]


@pytest.fixture(scope="module")
def worker(start_worker):
    return start_worker("suspending")


@pytest.fixture
def suspend(worker, sandbox, ledger_probe, image, finish_rendering, wait_until):
    """Make a run buy its generation and leave its process."""

    def begin():
        run = worker.run(request=image, idempotency_key="deployed", wait="suspend")
        wait_until(lambda: worker.state(run) == "Suspended" or None, seconds=120)
        return run

    return begin


def test_it_goes_on_when_the_collector_has_stored_its_video(
    worker, sandbox, ledger_probe, suspend, finish_rendering, wait_until, history
):
    """A suspended run holds no process or lease, buys once, and ends with result and artifacts."""
    suspended = suspend()
    assert ledger_probe["deployed"].owner is None
    assert ledger_probe["deployed"].state is State.SUBMITTED
    finish_rendering()
    assert collect().stored == 1
    wait_until(lambda: worker.state(suspended) == "Completed" or None, seconds=120)
    result = worker.client.read_flow_run(suspended).state.result()
    assert result.idempotency_key == "deployed"
    (kept,) = ledger_probe["deployed"].videos.values()
    assert result.videos == kept
    assert len(sandbox.accepted) == 1
    shown = history.artifacts(suspended)
    assert set(shown) == {"Poster", "Video", "Facts"}
    assert kept[0].uri in shown["Video"]["data"]


@pytest.mark.heavy
def test_it_fails_when_its_generation_failed(
    worker, sandbox, suspend, finish_rendering, wait_until
):
    """A suspended run whose generation failed fails with the reason."""
    sandbox.add_fault(Fault.parse("create:failed"))
    suspended = suspend()
    finish_rendering()
    assert collect().failed == 1
    wait_until(lambda: worker.state(suspended) == "Failed" or None, seconds=120)
    assert "GenerationFailed" in worker.client.read_flow_run(suspended).state.message


@pytest.mark.heavy
def test_one_that_was_suspended_too_late_is_resumed_by_the_next_collector(
    worker, sandbox, ledger_probe, suspend, finish_rendering, wait_until
):
    """A run that suspends after its video was stored is resumed by the next collector."""
    run = suspend()
    finish_rendering()
    finish_generation(ledger_probe["deployed"].task_id)
    assert worker.state(run) == "Suspended"
    collect()
    wait_until(lambda: worker.state(run) == "Completed" or None, seconds=120)


def test_somebody_elses_suspension_is_left_alone(worker, sandbox, prefect_server, wait_until):
    """A run that a person suspended is not resumed by the collector."""

    @flow
    def theirs() -> None:
        pass

    with get_client(sync_client=True) as client:
        run = client.create_flow_run(theirs, state=Suspended(pause_key="theirs"))
        collect()
        assert client.read_flow_run(run.id).state_name == "Suspended"


def test_one_whose_row_is_corrupted_sleeps_on_and_the_others_are_resumed(
    prefect_server, ledger_probe
):
    """A run with a corrupted ledger row stays suspended, and the others are resumed."""

    @flow
    def ours() -> None:
        pass

    with get_client(sync_client=True) as client:
        deployed = client.create_deployment(client.create_flow(ours), "ours")
        runs = [
            client.create_flow_run_from_deployment(
                deployed, state=Suspended(pause_key=f"cometapi-wait-{number}")
            )
            for number in range(3)
        ]
        for run in runs:
            intent = Intent(
                idempotency_key=str(run.id), base_url="https://x", flow_run_id=str(run.id)
            )
            run_sync(ledger_probe.ledger._insert(intent, State.STORED, "claim", task_id="t"))
        first, *others = sorted(runs, key=lambda run: run.id, reverse=True)
        run_sync(set_columns(ledger_probe.ledger, str(first.id), outputs="nonsense"))
        collect()
        assert client.read_flow_run(first.id).state_name == "Suspended"
        states = [client.read_flow_run(run.id).state_name for run in others]
        assert states == ["Resuming", "Resuming"]


def test_without_a_deployment_it_waits_in_place(prefect_server, sandbox, image, caplog):
    """Without a deployment, a run waits in its process and logs the reason."""
    with caplog.at_level(logging.WARNING):
        result = image_to_video(image, wait="suspend")
    assert result.videos
    assert "A run without a deployment cannot be started again" in caplog.text


@pytest.mark.heavy
def test_a_subflow_waits_in_place(prefect_server, sandbox, image, caplog):
    """A subflow waits in its process, as Prefect suspends whole runs only."""

    @flow
    def nightly():
        return image_to_video(image, wait="suspend")

    assert nightly().videos
    assert "A subflow cannot be suspended" in caplog.text
