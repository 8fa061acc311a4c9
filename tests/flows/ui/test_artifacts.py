# SPDX-License-Identifier: Apache-2.0
"""Artifacts, events and logs of a run in the Prefect UI, without secrets."""

import base64
import json
import logging
from pathlib import Path
from typing import Any

import pytest
from prefect.settings import PREFECT_LOGGING_LEVEL, temporary_settings

from prefect_cometapi.flows import image_to_video
from prefect_cometapi.flows.ui import artifacts, formatting
from prefect_cometapi.runway import Generation, GenerationResult, Status, StoredVideo, Submission

pytestmark = pytest.mark.server


def test_the_run_page_shows_progress_poster_link_and_facts(prefect_server, sandbox, history, image):
    """Four artifacts show the progress, the poster, the link and the facts of a clip."""
    state = image_to_video(image, return_state=True)
    shown = history.artifacts(state.state_details.flow_run_id)
    assert set(shown) == {
        "cometapi-progress",
        "cometapi-poster",
        "cometapi-video",
        "cometapi-generation",
    }
    assert shown["cometapi-progress"]["data"] == 100.0
    assert shown["cometapi-poster"]["data"].startswith("data:image/jpeg;base64,")
    assert len(shown["cometapi-poster"]["data"]) < 200_000
    assert ".mp4" in shown["cometapi-video"]["data"]
    facts = {row["what"]: row["value"] for row in json.loads(shown["cometapi-generation"]["data"])}
    assert facts["duration"] == "5.0 s"
    assert int(facts["polls"]) >= 1
    assert facts["idempotency key"].startswith("run-")


def test_an_event_tells_each_change(prefect_server, sandbox, history, image):
    """A submission, a success and a stored file each emit one event for automations."""
    state = image_to_video(image, return_state=True)
    flow_run_id = state.state_details.flow_run_id
    events = history.events(flow_run_id, until="prefect.asset.materialization.succeeded")
    names = [event["event"] for event in events]
    assert names[0] == "cometapi.generation.submitted"
    assert names[-3:] == [
        "cometapi.generation.succeeded",
        "cometapi.generation.stored",
        "prefect.asset.materialization.succeeded",
    ]
    assert len(names) == len(set(names))
    task_id = sandbox.accepted[0].task_id
    assert events[0]["resource"]["prefect.resource.id"] == f"cometapi.generation.{task_id}"
    asset = events[-1]
    assert asset["resource"]["prefect.resource.id"].startswith("file:///")
    assert asset["payload"]["task_id"] == task_id


def test_the_log_tells_changes_and_not_polls(prefect_server, sandbox, history, image):
    """A wait of many polls logs one line for each state, not one for each poll."""
    for _ in range(6):
        sandbox.add_fault("task:unknown-status")
    state = image_to_video(image, return_state=True)
    lines = history.logs(state.state_details.flow_run_id, until="Stored ")
    ours = [line for line in lines if line.startswith("Generation ")]
    assert state.is_completed()
    assert len(ours) <= 4
    assert len([r for r in sandbox.requests if r.route == "task"]) >= 7


@pytest.mark.heavy
def test_no_secret_is_left_anywhere(prefect_server, sandbox, tmp_path, caplog, capfd, monkeypatch):
    """API key, access token, signed URLs and data URIs are in no row, result, log or file."""
    from prefect.settings import PREFECT_LOCAL_STORAGE_PATH, get_current_settings

    broken, canary = "Y2FuYXJ5LXBpY3R1cmU", "Y2FuYXJ5LXBpY3R1cmUK"  # The base64 of a picture.
    key, access_token = "sk-canary0f7b1d3c5e9a", "at-canary0f7b1d3c5e9a"
    monkeypatch.setenv("COMETAPI_ACCESS_TOKEN", access_token)
    monkeypatch.setenv("COMETAPI_PRICES", "catalogue")
    caplog.set_level(logging.DEBUG)
    with temporary_settings({PREFECT_LOGGING_LEVEL: "DEBUG"}):
        for request in (
            {"promptImage": f"data:image/png;base64,{canary}"},
            {"promptImage": f"data:image/png;base64,{broken}"},
            {"promptImage": "https://example.com/cat.jpg?X-Amz-Signature=canary-signature"},
        ):
            image_to_video(request, return_state=True)
    sandbox.add_fault("asset:expired:times=20")
    image_to_video({"promptImage": "https://example.com/owl.jpg"}, return_state=True)
    tokens = {r.path.partition("?")[2] for r in sandbox.requests if r.route == "asset"} - {""}
    printed = capfd.readouterr()
    written = [printed.out, printed.err, caplog.text]
    places = [tmp_path, Path(str(PREFECT_LOCAL_STORAGE_PATH.value()))]
    database = str(get_current_settings().server.database.connection_url)
    places += [Path(database.partition("///")[2]).parent]
    for place in places:
        written += [
            path.read_bytes().decode("latin-1")
            for path in place.rglob("*")
            if path.is_file() and path.suffix not in {".mp4", ".jpg"}
        ]
    everything = "\n".join(written)
    assert len(everything) > 100_000
    assert key not in everything
    assert access_token not in everything
    others = [request for request in sandbox.requests if request.route not in {"tasks", "log"}]
    assert not any(access_token in str(request.headers) for request in others)
    assert broken not in everything
    for token in tokens:
        assert token not in everything
    # Prefect stores a run's parameters as they were given; elsewhere the signature is redacted.
    assert "canary-signature" not in caplog.text + printed.out + printed.err


def test_what_cannot_be_shown_costs_no_video(prefect_server, sandbox, image, monkeypatch):
    """A clip is bought once and stored even if artifacts fail."""

    async def broken(*_args: object, **_kwargs: object) -> None:
        raise ConnectionError("the server is away")

    for name in ("acreate_progress_artifact", "acreate_image_artifact", "acreate_link_artifact"):
        monkeypatch.setattr(f"prefect.artifacts.{name}", broken)
    result = image_to_video(image)
    assert Path(result.videos[0].uri).exists()


def test_a_listener_hears_each_reply(prefect_server, sandbox, image):
    """A listener gets each reply, from which the command line draws its progress."""
    heard: list[Status] = []
    token = artifacts.progress_listener.set(lambda _submission, reply: heard.append(reply.status))
    try:
        image_to_video(image)
    finally:
        artifacts.progress_listener.reset(token)
    assert heard[-1] is Status.SUCCEEDED


async def test_outside_of_a_run_nothing_is_shown(own_settings):
    """The steps' functions work in a plain script, without artifacts."""
    from datetime import UTC, datetime

    submission = Submission(idempotency_key="k", task_id="t", submitted_at=datetime.now(UTC))
    await artifacts.show_reply(submission, Generation(task_id="t", status=Status.RUNNING), None)
    video = StoredVideo(
        uri="/v/a.mp4",
        sidecar="/v/a.json",
        sha256="0" * 64,
        size=1,
        width=1,
        height=1,
        duration=1.0,
        frames=1,
        codec="h264",
    )
    result = GenerationResult(
        idempotency_key="k",
        task_id="t",
        status=Status.SUCCEEDED,
        videos=(video,),
        polls=1,
        waited=1.0,
        submitted_at=submission.submitted_at,
    )
    await artifacts.show_result(submission, result)


@pytest.mark.parametrize(
    ("size", "text"), [(500, "0.5 kB"), (1_500_000, "1.5 MB"), (31_200_000_000, "31.2 GB")]
)
def test_sizes_read_well(size, text):
    """Sizes are shown in common units."""
    assert formatting.shown_size(size) == text


def test_parameters_are_stored_without_pictures(prefect_server, sandbox, history):
    """A data URI in the parameters, even in a dict, is stored as its type, hash and size."""
    from prefect_cometapi.deployments.commands.demo import PICTURE

    content = base64.b64encode(PICTURE.read_bytes()).decode()
    picture = f"data:image/jpeg;base64,{content}"
    request: Any = {"promptImage": picture, "seed": 3}
    state = image_to_video.with_options(retries=1)(request, return_state=True)
    assert state.is_completed()
    assert sandbox.accepted[0].body["promptImage"] == picture
    runs = history.filter(
        "flow_runs", flow_runs={"id": {"any_": [str(state.state_details.flow_run_id)]}}
    )
    stored = runs[0]["parameters"]["request"]
    assert stored["promptImage"].startswith("data:image/jpeg;base64,<sha256:")
    assert stored["seed"] == 3
