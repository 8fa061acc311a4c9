# SPDX-License-Identifier: Apache-2.0
"""Automations of Prefect for runs of this package, on a real server."""

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
from prefect_cometapi.runway import ImageToVideoRequest, TooManyRunAttempts

pytestmark = [pytest.mark.server, pytest.mark.heavy]


@flow(name="an ordinary flow")
def ordinary(uri: str = "") -> str:
    return uri


@pytest.fixture
async def client(prefect_server):
    async with get_client() as client:
        yield client


@pytest.fixture
async def armed(client):
    """Create automations; delete them after the test."""
    made: list[Any] = []

    async def arm(automation):
        made.append(await automation.acreate())

    yield arm
    for automation in made:
        await automation.adelete()


async def until(look, seconds: float = 90) -> Any:
    """Wait for a change that the server makes in its own time."""
    async with asyncio.timeout(seconds):
        while not (found := await look()):  # noqa: ASYNC110 -- the server tells nobody
            await asyncio.sleep(0.5)
    return found


async def running(client, *tags: str, begun: bool = True) -> Any:
    """Return the id of a deployment's flow run in the state Pending or Running."""
    flow_id = await client.create_flow(ordinary)
    deployment = await client.create_deployment(flow_id, name=f"ordinary-{uuid4()}", tags=tags)
    run = await client.create_flow_run_from_deployment(deployment)
    for state in (Pending(), Running())[: 1 + begun]:
        await client.set_flow_run_state(run.id, state)
    return run.id


async def state_of(client, run: Any) -> StateType:
    return (await client.read_flow_run(run)).state.type


async def emit(client, event: str, resource: dict[str, str], *tags: str, **payload: Any) -> None:
    """Emit an event as a run of this package does."""
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
    """A run of this package without heartbeats is marked as crashed, and other runs are not."""
    await armed(automations.mark_silent_runs_crashed(timedelta(seconds=10)))
    ours, other = await running(client, "cometapi"), await running(client)
    for run, tags in ((ours, ["cometapi"]), (other, [])):
        resource = {"prefect.resource.id": f"prefect.flow-run.{run}"}
        await emit(client, "prefect.flow-run.heartbeat", resource, *tags)

    async def crashed() -> bool:
        return await state_of(client, ours) is StateType.CRASHED

    await until(crashed)
    assert await state_of(client, other) is StateType.RUNNING


async def test_a_run_of_ours_that_never_began_counts_as_crashed(client, armed):
    """A run of this package that never began is marked as crashed, and other runs are not."""
    await armed(automations.mark_unstarted_runs_crashed(timedelta(seconds=10)))
    other, begun = await running(client, begun=False), await running(client, "cometapi")
    unbegun = await running(client, "cometapi", begun=False)

    async def crashed() -> bool:
        return await state_of(client, unbegun) is StateType.CRASHED

    await until(crashed)
    assert await state_of(client, begun) is StateType.RUNNING
    assert await state_of(client, other) is StateType.PENDING


async def test_a_crashed_run_of_ours_is_scheduled_again(client, armed):
    """The server reschedules a crashed run of this package within seconds, and no other run."""
    await armed(automations.restart_crashed_runs(timedelta(hours=1)))
    ours, other = await running(client, "cometapi"), await running(client)
    for run in (other, ours):
        await client.set_flow_run_state(run, Crashed())

    async def scheduled() -> bool:
        return await state_of(client, ours) is StateType.SCHEDULED

    await until(scheduled)
    assert await state_of(client, other) is StateType.CRASHED


async def test_a_stored_clip_runs_a_deployment_with_its_address(client, armed):
    """A stored clip runs a deployment with its address as a parameter."""
    flow_id = await client.create_flow(ordinary)
    deployment = await client.create_deployment(flow_id, name=f"load-{uuid4()}")
    await armed(automations.run_for_each_video(deployment, "load"))
    resource = {"prefect.resource.id": "cometapi.generation.one"}
    uri = "s3://videos/one.mp4"

    async def started() -> list[Any]:
        # The server ignores events until it has registered the automation.
        await emit(client, "cometapi.generation.stored", resource, uri=uri)
        runs = await client.read_flow_runs()
        return [run for run in runs if run.deployment_id == deployment]

    run, *_again = await until(started)
    assert run.parameters == {"uri": uri}


@pytest.fixture
def letterbox():
    """Start a web hook; yield its address and the posted bodies."""
    posted: list[dict[str, str]] = []

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            posted.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 -- its name there
            """Log nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Hook) as server:
        Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}/", posted
        server.shutdown()


@pytest.fixture
async def hook(letterbox):
    """Save a notification block that posts to the web hook; yield its id and the bodies."""
    address, posted = letterbox
    content = {"subject": "{{subject}}", "body": "{{body}}"}
    block = CustomWebhookNotificationBlock(
        name="letters", url=address, json_data=content, headers=None, cookies=None
    )
    name = f"letters-{uuid4()}"
    yield await block.asave(name), posted
    await CustomWebhookNotificationBlock.adelete(name)


async def test_a_failure_is_notified(client, armed, hook):
    """The notification of a failure has the run's name, its reason and its address."""
    block, posted = hook
    await armed(automations.notify_on_failure(block))
    ours, other = await running(client, "cometapi"), await running(client)
    for run in (other, ours):
        await client.set_flow_run_state(run, Failed(message="GenerationFailed: moderated"))

    async def told() -> list[dict[str, str]]:
        return posted

    (letter,) = await until(told)
    name = (await client.read_flow_run(ours)).name
    assert letter["subject"] == f"{name} failed"
    # This server does not know the address of its UI, so it sends the id.
    assert letter["body"] == f"GenerationFailed: moderated\nRun {ours}"


async def test_an_uncertain_submission_is_notified(client, armed, hook):
    """The notification of an uncertain submission has its key and the command that decides."""
    block, posted = hook
    await armed(automations.notify_on_uncertain(block))
    resource = {"prefect.resource.id": "cometapi.generation.unknown"}
    payload = {"idempotency_key": "sku-17", "message": "no answer says whether it was accepted"}

    async def told() -> list[dict[str, str]]:
        await emit(client, "cometapi.generation.uncertain", resource, **payload)
        return posted

    letter, *_again = await until(told)
    assert letter["subject"] == "Possibly charged: sku-17"
    assert "no answer says whether it was accepted" in letter["body"]
    assert "prefect-cometapi ledger list --state uncertain" in letter["body"]


def test_a_run_that_was_started_too_often_gives_up(prefect_server, sandbox, monkeypatch):
    """A run that kills its worker each time is not restarted forever, and buys nothing more."""
    monkeypatch.setenv("COMETAPI_MAX_RUN_ATTEMPTS", "1")
    sandbox.add_fault("create:unauthorized:times=1")
    again = image_to_video.with_options(retries=2, retry_delay_seconds=0)
    with pytest.raises(TooManyRunAttempts, match="times, and at most 1 are allowed"):
        again(
            ImageToVideoRequest(prompt_image="https://example.com/cat.jpg"),
            idempotency_key="unlucky",
        )
    assert sandbox.accepted == []
