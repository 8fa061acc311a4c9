# SPDX-License-Identifier: Apache-2.0
"""Runs whose process ends before their flow begins, under the automations of setup."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from prefect import flow
from prefect.automations import Automation
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import StateType
from prefect.states import Crashed, Pending, Scheduled

from prefect_cometapi.deployments import automations
from prefect_cometapi.flows import image_to_video
from prefect_cometapi.runway import ImageToVideoRequest

from .. import waiting

SHORTEST = timedelta(seconds=10)  # that Prefect accepts for the absence of an event
WINDOW = timedelta(hours=1)


@flow(name="a flow of the user")
def own_flow() -> None:
    """Do nothing."""


@pytest.fixture
def client(prefect_server: str) -> Iterator[SyncPrefectClient]:
    with get_client(sync_client=True) as client:
        yield client


@pytest.fixture
def arm() -> Iterator[Callable[..., None]]:
    """Create automations, and delete them after the test."""
    with ExitStack() as stack:

        def create(*wanted: Automation) -> None:
            for automation in wanted:
                created: Any = automation.create()
                stack.callback(created.delete)

        yield create


def state_is(client: SyncPrefectClient, run: UUID, kind: StateType) -> Callable[[], bool]:
    """Return a function that reads whether a run is in a state."""
    return lambda: client.read_flow_run(run).state_type is kind


def crash(client: SyncPrefectClient, run: UUID) -> None:
    """Set a run to Crashed as a worker does, without a start of its flow."""
    for state in (Pending(), Crashed()):
        client.set_flow_run_state(run, state)


@pytest.mark.server
def test_a_run_that_never_starts_is_not_restarted_for_ever(client, arm):
    """A run that crashes before its flow begins is restarted, and then fails with the next step."""
    arm(
        automations.restart_crashed_runs(WINDOW),
        automations.fail_runs_that_keep_crashing(2, WINDOW),
    )
    deployment: Any = own_flow.to_deployment(f"own-{uuid4()}", tags=["cometapi"])
    run = client.create_flow_run_from_deployment(deployment.apply()).id
    crash(client, run)
    waiting.until(state_is(client, run, StateType.SCHEDULED), "the restart", 60)
    crash(client, run)
    waiting.until(state_is(client, run, StateType.FAILED), "the end", 60)
    state = client.read_flow_run(run).state
    assert state is not None
    assert "crashed 2 times" in str(state.message)
    assert "collect stores what was bought" in str(state.message)
    assert "retry the run" in str(state.message)


@pytest.mark.server
def test_a_restart_that_leads_to_nothing_is_repeated(client, arm):
    """A run that is scheduled after a crash, and is neither claimed nor late, is restarted."""
    arm(automations.restart_runs_that_stay_crashed(SHORTEST))
    deployment: Any = own_flow.to_deployment(f"own-{uuid4()}", tags=["cometapi"])
    run = client.create_flow_run_from_deployment(deployment.apply()).id
    crash(client, run)
    never = client.set_flow_run_state(
        run, Scheduled(scheduled_time=datetime.now(UTC) + WINDOW)
    ).state
    assert never is not None
    waiting.until(lambda: client.read_flow_run(run).state_id != never.id, "the restart", 60)
    state = client.read_flow_run(run).state
    assert state is not None
    assert state.message == "Restarted after repeated crashes."
    start = client.read_flow_run(run).next_scheduled_start_time
    assert start is not None
    assert start < datetime.now(UTC)


@pytest.mark.parametrize("attempts", [2, 5, 20])
def test_the_bound_counts_slow_crashes_too(attempts):
    """Crashes that are each noticed only after the longest delays are within one period."""
    slowest = automations.RESTART_DELAY + automations.START_TIMEOUT
    window = automations.crash_window(attempts)
    assert attempts * slowest < window
    trigger: Any = automations.fail_runs_that_keep_crashing(attempts, window).trigger
    assert (trigger.threshold, trigger.within) == (attempts, window)


@pytest.mark.parametrize("tags", [None, ["nightly"], ["cometapi", "nightly"]])
def test_a_deployment_of_these_flows_is_covered_without_a_word(tags):
    """Deployments of the package's flows have the tag of the automations, beside the user's."""
    deployment: Any = image_to_video.to_deployment("ours", tags=tags)
    assert sorted(deployment.tags) == sorted({"cometapi", *(tags or ())})


@pytest.fixture
def worker(client, prefect_server, tmp_path) -> Iterator[str]:
    """Start a real worker; yield the name of its pool."""
    pool = f"field-{uuid4()}"
    client.create_work_pool(WorkPoolCreate(name=pool, type="process"))
    command = [Path(sys.executable).parent / "prefect", "worker", "start", "--pool", pool]
    env = {
        **os.environ,
        "PREFECT_API_URL": prefect_server,
        "PREFECT_HOME": str(tmp_path / "prefect"),
        "PREFECT_WORKER_QUERY_SECONDS": "1",
    }
    with subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL) as process:
        yield pool
        waiting.kill(process)
    client.delete_work_pool(pool)


@pytest.mark.heavy
@pytest.mark.server
@pytest.mark.parametrize(
    "command", ["/opt/another/python -m prefect.flow_engine", f"{sys.executable} -m no_such_module"]
)
def test_a_wrong_interpreter_is_started_a_few_times_with_a_delay(
    client, arm, worker, sandbox, command
):
    """On a real worker, a run with a wrong interpreter fails after three reports of a crash."""
    arm(
        automations.restart_crashed_runs(WINDOW),
        automations.restart_runs_that_stay_crashed(SHORTEST),
        automations.fail_runs_that_keep_crashing(3, WINDOW),
    )
    deployment: Any = image_to_video.to_deployment(
        f"broken-{uuid4()}",
        work_pool_name=worker,
        job_variables={"command": command},
        parameters={"request": ImageToVideoRequest(prompt_image="https://example.com/cat.jpg")},
    )
    run = client.create_flow_run_from_deployment(deployment.apply()).id
    waiting.until(state_is(client, run, StateType.FAILED), "the end", 240)
    states = sorted(client.read_flow_run_states(run), key=lambda state: state.timestamp)
    crashes = [state.timestamp for state in states if state.type is StateType.CRASHED]
    restarts = [state.timestamp for state in states if "Restarted after" in (state.message or "")]
    assert len(crashes) == 3
    assert len(restarts) in {1, 2}  # a worker may report one crash twice
    for restart in restarts[1:]:
        assert restart - crashes[1] >= SHORTEST
    assert sandbox.accepted == []
