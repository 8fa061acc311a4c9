# SPDX-License-Identifier: Apache-2.0
"""The ledger records for which deployment and under which tags a generation was bought."""

import os
from typing import Any

import pytest
from prefect import flow, tags
from prefect.client.orchestration import get_client
from prefect.flow_engine import run_flow
from prefect.states import Scheduled

from prefect_cometapi.flows import aimage_to_video, generate_batch, image_to_video
from prefect_cometapi.flows.runtime.identity import Deployment, current_tags, this_deployment

from ...conftest import KEY

pytestmark = pytest.mark.server


def test_outside_of_a_run_there_is_neither():
    """A script has no deployment, and only the tags that it sets."""
    assert this_deployment() == Deployment(None, None)
    with tags("blue"):
        assert current_tags() == ("blue",)
    assert current_tags() == ()


def test_a_secret_in_a_tag_is_hidden():
    """A tag is stored in the ledger and in exports, where no API key belongs."""
    with tags(KEY):
        (tag,) = current_tags()
    assert KEY not in tag


def test_a_deployment_that_prefect_does_not_tell_stops_no_purchase(monkeypatch):
    """A server that is away when the deployment is looked up leaves it unknown."""
    monkeypatch.setenv("PREFECT__FLOW_RUN_ID", "0f8fad5b-d9cb-469f-a165-70867728950e")
    monkeypatch.setattr("prefect.runtime.deployment.FIELDS", {"id": lambda: 1 / 0})
    assert this_deployment() == Deployment(None, None)


def test_the_tags_around_a_call_are_recorded(prefect_server, sandbox, image, ledger_probe):
    """Tags of the code around a flow, and of one around a batch, are in the rows."""
    with tags("blue", "red"):
        image_to_video(image, idempotency_key="clip")
        generate_batch([image], idempotency_key="shop")
    assert [entry.tags for entry in ledger_probe.all()] == [("blue", "red")] * 2


@flow
def theirs(image: dict[str, Any]) -> None:
    """Run the flow of this package in a flow of the user."""
    image_to_video(image, idempotency_key="theirs")


@flow
async def theirs_async(image: dict[str, Any]) -> None:
    """Run the async flow of this package in a flow of the user."""
    await aimage_to_video(image, idempotency_key="theirs_async")


@pytest.mark.parametrize("parent", [theirs, theirs_async], ids=lambda parent: parent.fn.__name__)
async def test_a_subflow_has_the_tags_of_its_parent(
    prefect_server, sandbox, image, ledger_probe, parent
):
    """The tags of a run, for example from its deployment, are those of what its subflows buy."""
    async with get_client() as client:
        run = await client.create_flow_run(parent, parameters={"image": image}, tags=["team:web"])
    done: Any = run_flow(parent, flow_run=run, parameters={"image": image})
    if parent is theirs_async:
        await done
    assert ledger_probe[parent.fn.__name__].tags == ("team:web",)
    assert current_tags() == ()


@pytest.mark.heavy
def test_a_run_of_a_worker_has_its_deployment(
    prefect_server, sandbox, image, ledger_probe, start_worker, wait_until
):
    """The id and the name of the deployment, and the tags of its run, are in the row."""
    worker = start_worker("finance")
    env = {name: value for name, value in os.environ.items() if "COMETAPI" in name}
    run = worker.client.create_flow_run_from_deployment(
        worker.deployment,
        parameters={"request": image, "idempotency_key": "sku-17"},
        tags=["blue"],
        state=Scheduled(),
        job_variables={"env": env},
    ).id
    wait_until(lambda: worker.state(run) == "Completed", seconds=120)
    entry = ledger_probe["sku-17"]
    assert (entry.deployment_id, entry.deployment) == (str(worker.deployment), "finance")
    assert entry.tags == ("blue",)
