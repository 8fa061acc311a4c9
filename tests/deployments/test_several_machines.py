# SPDX-License-Identifier: Apache-2.0
"""Workers on several machines, two API servers, PostgreSQL and Redis: one purchase for each row."""

import json
from datetime import timedelta

import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import DeploymentUpdate
from prefect.client.schemas.objects import StateType

from prefect_cometapi.flows.runtime.sync import run_sync
from prefect_cometapi.runway import Entry, State
from prefect_cometapi.runway.ledger.store import get_ledger
from prefect_cometapi.sandbox import Sandbox

from ..cluster import Cluster, cluster, dumped, places_of, run_states, scheduled
from ..conftest import KEY
from ..waiting import until

pytestmark = [pytest.mark.server, pytest.mark.heavy]

ROWS = 12
PATIENCE = 240
"""Seconds to wait for the processes."""

EVERY = timedelta(seconds=20)
"""Interval of the same manifest, as in a catalogue that is processed each night."""

POOL = "machines"


@pytest.fixture
def service():
    """Start a sandbox whose jobs take long enough to be interrupted."""
    with Sandbox(render_seconds=4) as sandbox:
        yield sandbox


@pytest.fixture
def machines(redis_server, postgres, service, tmp_path):
    settings = {
        "COMETAPI_KEY": KEY,
        "COMETAPI_BASE_URL": service.url,
        "COMETAPI_POLL_INTERVAL": "0.5",
        "COMETAPI_MAX_IN_FLIGHT": "3",
    }
    folder = tmp_path / "machines"
    folder.mkdir()
    with cluster(folder, postgres, redis_server, **settings) as running:
        yield running


def point_to_catalogue(machines: Cluster, client: SyncPrefectClient):
    """Set the deployment's manifest, with signed addresses, as a user does in the form."""
    manifest = machines.folder.parent / "catalogue.jsonl"
    rows = [
        {"id": f"row-{n}", "promptImage": "https://example.com/cat.jpg?Signature=canary-signature"}
        for n in range(ROWS)
    ]
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    deployment = client.read_deployment_by_name("generate-batch/catalogue")
    parameters = {"requests": str(manifest), "idempotency_key": "catalogue"}
    client.update_deployment(deployment.id, DeploymentUpdate(parameters=parameters))
    return deployment.id


def decide(machines: Cluster, service: Sandbox, entries: list[Entry]) -> None:
    """Settle a submission that the kill interrupted, as a user does with the console's list."""
    known = {entry.task_id for entry in entries}
    found = [job.task_id for job in service.accepted if job.task_id not in known]
    for entry in entries:
        if entry.state is State.UNCERTAIN:
            words = (
                ["adopt", entry.idempotency_key, found.pop()]
                if found
                else ["resubmit", entry.idempotency_key, "--now"]
            )
            machines.run("ledger", *words)


def test_a_machine_that_dies_in_a_scheduled_batch_costs_nothing(machines, service, postgres):
    """A dead machine's run restarts elsewhere, buys only what is missing, and leaks no secret."""
    assert "created" in machines.run("setup", "--pool", POOL)
    machines.run("deploy", "--pool", POOL)
    machines.notice_silence_soon()
    machines.start_worker("first", POOL, machines.apis[0])
    ledger = get_ledger(machines.environment["COMETAPI_LEDGER_URL"])
    with machines.client(1) as client:
        deployment = point_to_catalogue(machines, client)
        struck = client.create_flow_run_from_deployment(deployment).id
        until(lambda: len(service.accepted) >= 4, "four purchases", PATIENCE)
        machines.kill_machine("first")
        assert len(service.accepted) < ROWS

        def completed() -> bool:
            return client.read_flow_run(struck).state_type is StateType.COMPLETED

        def all_stored() -> bool:
            return all(entry.state is State.STORED for entry in run_sync(ledger.entries()))

        with scheduled(client, deployment, EVERY):
            machines.start_worker("second", POOL, machines.apis[1])
            until(completed, "the end of the run that was struck", PATIENCE)
            history = run_states(client, struck)
            assert history.count("Running") == 2
            assert history.index("Crashed") < len(history) - 1
            decide(machines, service, run_sync(ledger.entries()))
            until(all_stored, "the last video", PATIENCE)
    assert len(run_sync(ledger.entries())) == len(service.accepted) == ROWS
    assert len(list(machines.videos.glob("*.mp4"))) == ROWS
    assert "✗" not in machines.run("doctor", "--pool", POOL)
    assert "row-0" in dumped(postgres)
    assert places_of((KEY, "canary-signature", "_jwt=ey"), machines.folder, postgres) == []
