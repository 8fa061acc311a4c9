# SPDX-License-Identifier: Apache-2.0
"""A firewall, a portal or another server between a pipeline and CometAPI costs no video."""

import json
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from prefect_cometapi.flows import generate_batch, image_to_video
from prefect_cometapi.runway import AuthenticationError, BatchFailed, GenerationTimeout
from prefect_cometapi.runway.batch.models import Outcome

server = pytest.mark.server
IMAGE: Any = {"promptImage": "https://example.com/cat.jpg", "promptText": "slow zoom"}


def manifest(folder: Path, count: int) -> str:
    path = folder / "wanted.jsonl"
    rows = [{"id": f"sku-{n}", **IMAGE, "promptText": f"{n}"} for n in range(count)]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return str(path)


def creates(sandbox) -> int:
    return sum(request.route == "create" for request in sandbox.requests)


@server
def test_a_firewalls_page_on_a_poll_stops_no_batch(prefect_server, sandbox, tmp_path):
    """A batch met "Just a moment…" under 403 on some polls; it goes on and stores all videos."""
    sandbox.add_fault("task:firewall:after=1,times=3")
    result = generate_batch(manifest(tmp_path, 3), max_in_flight=2)
    assert (result.succeeded, len(sandbox.accepted)) == (3, 3)


@server
@pytest.mark.parametrize("fault", ["html:times=7", "firewall:times=7,value=501", "unauthorized"])
def test_bad_polls_in_a_row_end_no_wait(prefect_server, sandbox, fault):
    """A bought video was polled through seven pages, or one stray 401; it is stored."""
    sandbox.add_fault(f"task:{fault}")
    assert Path(image_to_video(IMAGE).videos[0].uri).exists()
    assert len(sandbox.accepted) == 1


@server
def test_a_page_that_stays_is_named_when_the_time_is_over(prefect_server, sandbox, monkeypatch):
    """A portal stood in between until the timeout; the error names its page, and how to finish."""
    monkeypatch.setenv("COMETAPI_GENERATION_TIMEOUT", "1")
    sandbox.add_fault("task:firewall:rate=1")
    with pytest.raises(GenerationTimeout, match="Just a moment") as told:
        image_to_video(IMAGE)
    assert "HTTP 403" in str(told.value)
    assert f"prefect-cometapi finish {sandbox.accepted[0].task_id}" in str(told.value)


@server
def test_an_api_key_that_is_refused_for_minutes_is_told(prefect_server, sandbox, monkeypatch):
    """A key was revoked after the purchase; the wait ends once CometAPI itself repeats that."""
    monkeypatch.setenv("COMETAPI_NOT_FOUND_GRACE", "0.5")
    sandbox.add_fault("task:unauthorized:rate=1")
    with pytest.raises(AuthenticationError, match="Invalid token") as told:
        image_to_video(IMAGE)
    assert f"prefect-cometapi finish {sandbox.accepted[0].task_id}" in str(told.value)
    assert sum(request.route == "task" for request in sandbox.requests) > 2


@server
def test_a_stray_401_loses_no_finished_video(prefect_server, sandbox):
    """The video's address had expired, and one request for a new one got a 401; it is stored."""
    image_to_video(IMAGE, idempotency_key="finished", wait=False)
    sandbox.settle(30)
    for fault in ("asset:expired", "task:unauthorized:after=1"):
        sandbox.add_fault(fault)
    assert Path(image_to_video(IMAGE, idempotency_key="finished").videos[0].uri).exists()
    refused = [it for it in sandbox.requests if it.fault == "unauthorized"]
    assert (len(refused), len(sandbox.accepted)) == (1, 1)


@server
def test_a_batch_pauses_in_front_of_a_firewall_and_goes_on(prefect_server, sandbox, tmp_path):
    """A firewall came up during a batch; one item is uncertain, and the others are bought later."""
    sandbox.add_fault("create:firewall:after=1,times=1")
    sandbox.add_fault("task:firewall:after=2,times=4")
    result = generate_batch(manifest(tmp_path, 5), max_in_flight=1)
    assert (result.succeeded, result.uncertain) == (4, 1)
    assert creates(sandbox) == 5


@server
@pytest.mark.parametrize("step_tasks", ["300", pytest.param("0", marks=pytest.mark.heavy)])
def test_a_batch_waits_for_a_service_that_is_away(
    prefect_server, sandbox, tmp_path, monkeypatch, step_tasks
):
    """The service was overloaded for longer than a submission is retried; every item is bought."""
    monkeypatch.setenv("COMETAPI_MAX_ITEMS_WITH_STEP_TASKS", step_tasks)
    sandbox.add_fault("create:503:times=14")
    result = generate_batch(manifest(tmp_path, 2), max_in_flight=1)
    assert (result.succeeded, len(sandbox.accepted)) == (2, 2)


@server
@pytest.mark.heavy
def test_a_batch_that_is_never_reached_buys_nothing_more(
    prefect_server, sandbox, tmp_path, monkeypatch
):
    """The service stayed away; the batch ends with what it did not buy, and a rerun buys that."""
    monkeypatch.setenv("COMETAPI_GENERATION_TIMEOUT", "1")
    monkeypatch.setenv("COMETAPI_BASE_URL", "http://127.0.0.1:9")
    path = manifest(tmp_path, 3)
    with pytest.raises(BatchFailed, match=r"CometAPI at .* accepted nothing for 1 s") as told:
        generate_batch(path, max_in_flight=1)
    assert told.value.result
    assert {item.outcome for item in told.value.result.results} == {Outcome.NOT_BOUGHT}
    monkeypatch.setenv("COMETAPI_BASE_URL", sandbox.url)
    monkeypatch.setenv("COMETAPI_GENERATION_TIMEOUT", "30")
    assert generate_batch(path).succeeded == len(sandbox.accepted) == 3


@server
@pytest.mark.parametrize(("times", "stored"), [(1, 2), (9, 0)])
def test_one_stray_401_stops_no_batch(prefect_server, sandbox, tmp_path, times, stored):
    """One submission was refused a valid API key; only a repeated refusal stops the batch."""
    sandbox.add_fault(f"create:unauthorized:times={times}")
    path = manifest(tmp_path, 2)
    if stored:
        assert generate_batch(path, max_in_flight=1).succeeded == stored
        return
    with pytest.raises(BatchFailed, match="the account cannot buy more"):
        generate_batch(path, max_in_flight=1)
    assert creates(sandbox) == 2


@pytest.fixture
def other_server() -> Iterator[str]:
    """Start a web server that is not CometAPI and refuses every method with a 501 page."""

    class Refusing(BaseHTTPRequestHandler):  # it has no method for any request, which is a 501
        def log_message(self, format: str, *args: object) -> None: ...  # noqa: A002

    web = HTTPServer(("127.0.0.1", 0), Refusing)
    thread = Thread(target=web.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{web.server_port}"
    web.shutdown()
    web.server_close()
    thread.join()


def test_another_web_server_is_no_refusal_of_the_request(sandbox, other_server, monkeypatch):
    """`doctor` met a 501 page of another web server; it says that this is not CometAPI."""
    monkeypatch.setenv("COMETAPI_BASE_URL", other_server)
    command = [Path(sys.executable).parent / "prefect-cometapi", "doctor"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    shown = " ".join(done.stdout.split())
    assert "does not respond like CometAPI" in shown
    assert "correct the request" not in shown
    assert "rejected" not in shown
