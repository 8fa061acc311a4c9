# SPDX-License-Identifier: Apache-2.0
"""What Prefect does by itself about our runs, done by a real server."""

import asyncio
import json
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from uuid import uuid4

import pytest
from prefect import flow
from prefect.blocks.notifications import CustomWebhookNotificationBlock
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import StateType
from prefect.events import Event
from prefect.states import Crashed, Failed, Pending, Running

from prefect_cometapi.deployments import automations
from prefect_cometapi.flows import image_to_video
from prefect_cometapi.runway import ImageToVideoRequest, RunGivenUp

pytestmark = [pytest.mark.server, pytest.mark.slow]


@flow(name="an ordinary flow")
def ordinary(uri: str = "") -> str:
    return uri


@pytest.fixture
async def client(prefect_server):
    async with get_client() as client:
        yield client


@pytest.fixture
async def armed(client):
    """Makes an automation; it is gone afterwards."""
    made: list[Any] = []

    async def arm(automation):
        made.append(await automation.acreate())

    yield arm
    for automation in made:
        await automation.adelete()


async def until(look, seconds: float = 90) -> Any:
    """What the server does in its own time."""
    async with asyncio.timeout(seconds):
        while not (found := await look()):  # noqa: ASYNC110 -- the server tells nobody
            await asyncio.sleep(0.5)
    return found


async def running(client, *tags: str, begun: bool = True) -> Any:
    """The id of a flow run of a deployment that was taken somewhere, and is running there."""
    flow_id = await client.create_flow(ordinary)
    deployment = await client.create_deployment(flow_id, name=f"ordinary-{uuid4()}", tags=tags)
    run = await client.create_flow_run_from_deployment(deployment)
    for state in (Pending(), Running())[: 1 + begun]:
        await client.set_flow_run_state(run.id, state)
    return run.id


async def state_of(client, run: Any) -> StateType:
    return (await client.read_flow_run(run)).state.type


async def emit(client, event: str, resource: dict[str, str], *tags: str, **payload: Any) -> None:
    """An event as a run of ours emits it."""
    related = [
        {"prefect.resource.id": f"prefect.tag.{tag}", "prefect.resource.role": "tag"}
        for tag in tags
    ]
    sent = Event.model_validate(
        {
            "event": event,
            "id": uuid4(),
            "occurred": datetime.now(UTC),
            "resource": resource,
            "related": related,
            "payload": payload,
        }
    )
    body = [sent.model_dump(mode="json")]
    (await client._client.post("/events", json=body)).raise_for_status()


async def test_a_silent_run_of_ours_counts_as_crashed(client, armed):
    """Once its heartbeats stop; a run of somebody else's is left alone."""
    await armed(automations.silent_runs_crash(timedelta(seconds=10)))
    ours, other = await running(client, "cometapi"), await running(client)
    for run, tags in ((ours, ["cometapi"]), (other, [])):
        resource = {"prefect.resource.id": f"prefect.flow-run.{run}"}
        await emit(client, "prefect.flow-run.heartbeat", resource, *tags)

    async def crashed() -> bool:
        return await state_of(client, ours) is StateType.CRASHED

    await until(crashed)
    assert await state_of(client, other) is StateType.RUNNING


async def test_a_run_of_ours_that_never_began_counts_as_crashed(client, armed):
    """As when its worker died in that moment; one that began, or is somebody else's, stays."""
    await armed(automations.unbegun_runs_crash(timedelta(seconds=10)))
    other, begun = await running(client, begun=False), await running(client, "cometapi")
    unbegun = await running(client, "cometapi", begun=False)

    async def crashed() -> bool:
        return await state_of(client, unbegun) is StateType.CRASHED

    await until(crashed)
    assert await state_of(client, begun) is StateType.RUNNING
    assert await state_of(client, other) is StateType.PENDING


async def test_a_crashed_run_of_ours_is_scheduled_again(client, armed):
    """By the server itself, within seconds; a run of somebody else's stays crashed."""
    await armed(automations.crashed_runs_start_again())
    ours, other = await running(client, "cometapi"), await running(client)
    for run in (other, ours):
        await client.set_flow_run_state(run, Crashed())

    async def scheduled() -> bool:
        return await state_of(client, ours) is StateType.SCHEDULED

    await until(scheduled)
    assert await state_of(client, other) is StateType.CRASHED


async def test_a_stored_clip_runs_a_deployment_with_its_address(client, armed):
    """The next step of a pipeline needs no code of ours, and gets the clip."""
    flow_id = await client.create_flow(ordinary)
    deployment = await client.create_deployment(flow_id, name=f"load-{uuid4()}")
    await armed(automations.each_clip_runs(deployment, "load"))
    resource = {"prefect.resource.id": "cometapi.generation.one"}
    uri = "s3://videos/one.mp4"

    async def started() -> list[Any]:
        # A server that has not taken note of the automation yet lets the event pass.
        await emit(client, "cometapi.generation.stored", resource, uri=uri)
        runs = await client.read_flow_runs()
        return [run for run in runs if run.deployment_id == deployment]

    run, *_again = await until(started)
    assert run.parameters == {"uri": uri}


@pytest.fixture
def letterbox():
    """A web hook of the test's own; gives its address and what was posted there."""
    posted: list[dict[str, str]] = []

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            posted.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 -- its name there
            """Nothing is to be printed."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Hook) as server:
        Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}/", posted
        server.shutdown()


@pytest.fixture
async def hook(letterbox):
    """A notification block that posts there; gives its id and what was posted."""
    address, posted = letterbox
    content = {"subject": "{{subject}}", "body": "{{body}}"}
    block = CustomWebhookNotificationBlock(
        name="letters", url=address, json_data=content, headers=None, cookies=None
    )
    name = f"letters-{uuid4()}"
    yield await block.asave(name), posted
    await CustomWebhookNotificationBlock.adelete(name)


async def test_somebody_hears_of_a_failure(client, armed, hook):
    """The notification has the run's name, its reason and where it is."""
    block, posted = hook
    await armed(automations.failures_are_told(block))
    ours, other = await running(client, "cometapi"), await running(client)
    for run in (other, ours):
        await client.set_flow_run_state(run, Failed(message="GenerationFailed: moderated"))

    async def told() -> list[dict[str, str]]:
        return posted

    (letter,) = await until(told)
    name = (await client.read_flow_run(ours)).name
    assert letter["subject"] == f"{name} failed"
    # A server that knows no address of its UI, as this one, tells the id.
    assert letter["body"] == f"GenerationFailed: moderated\nRun {ours}"


async def test_somebody_hears_of_an_uncertain_one(client, armed, hook):
    """It was perhaps paid for, so the notification names its key and the command that decides."""
    block, posted = hook
    await armed(automations.uncertain_ones_are_told(block))
    resource = {"prefect.resource.id": "cometapi.generation.unknown"}
    payload = {"key": "sku-17", "what": "no answer says whether it was accepted"}

    async def told() -> list[dict[str, str]]:
        await emit(client, "cometapi.generation.uncertain", resource, **payload)
        return posted

    letter, *_again = await until(told)
    assert letter["subject"] == "Perhaps paid: sku-17"
    assert "no answer says whether it was accepted" in letter["body"]
    assert "prefect-cometapi ledger list --state uncertain" in letter["body"]


def test_a_run_that_was_started_too_often_gives_up(prefect_server, sandbox, monkeypatch):
    """A run that kills its worker each time does not go on for ever, and buys nothing more."""
    monkeypatch.setenv("COMETAPI_MAX_STARTS", "1")
    sandbox.add_fault("create:unauthorized:times=1")
    again = image_to_video.with_options(retries=2, retry_delay_seconds=0)
    with pytest.raises(RunGivenUp, match="times, and may be 1 times"):
        again(ImageToVideoRequest(prompt_image="https://example.com/cat.jpg"), key="unlucky")
    assert sandbox.accepted == []
