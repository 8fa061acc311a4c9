# SPDX-License-Identifier: Apache-2.0
"""Artifacts, events and logs of a run in the Prefect UI, without secrets."""

import asyncio
import base64
import json
import logging
from pathlib import Path
from typing import Any

import pytest
from prefect import flow
from prefect.runtime import flow_run
from prefect.settings import PREFECT_LOGGING_LEVEL, temporary_settings

from prefect_cometapi.flows import image_to_video
from prefect_cometapi.flows.batch.artifacts import BatchArtifacts
from prefect_cometapi.flows.batch.progress import BatchProgress
from prefect_cometapi.flows.ui import artifacts, formatting
from prefect_cometapi.runway import (
    Generation,
    GenerationResult,
    Status,
    StorageError,
    StoredVideo,
    Submission,
)
from prefect_cometapi.runway.batch.models import ItemResult, Outcome
from prefect_cometapi.runway.ledger.budget import Budget
from prefect_cometapi.runway.storage.folder import FolderStorage

pytestmark = pytest.mark.server


def test_the_run_page_shows_progress_poster_address_and_facts(
    prefect_server, sandbox, history, image
):
    """Four artifacts show the progress, the poster, the address and the facts of a clip."""
    state = image_to_video(image, return_state=True)
    shown = history.artifacts(state.state_details.flow_run_id)
    assert set(shown) == {"Rendering", "Poster", "Video", "Facts"}
    assert shown["Rendering"]["data"] == 100.0
    assert shown["Poster"]["data"].startswith("![](data:image/jpeg;base64,")
    assert len(shown["Poster"]["data"]) < 200_000
    facts = {row["what"]: row["value"] for row in json.loads(shown["Facts"]["data"])}
    assert facts["duration"] == "5.0 s"
    assert int(facts["polls"]) >= 1
    assert facts["idempotency key"].startswith("run-")


def test_titles_name_the_stored_file_and_no_artifact_is_a_fixed_tile(
    prefect_server, sandbox, history, image
):
    """Poster, address and facts are named after the stored file; none has a key, and so a tile."""
    state = image_to_video(image, idempotency_key="v1.5 über", return_state=True)
    name = Path(state.result().videos[0].uri).name
    shown = history.artifacts(state.state_details.flow_run_id)
    titles = {one["description"].partition("\n")[0] for one in shown.values()}
    assert titles >= {f"### {kind} {name}" for kind in ("Poster of", "Video", "Facts about")}
    assert {one["key"] for one in shown.values()} == {None}


def test_a_local_file_is_an_address_to_copy_and_not_a_link(prefect_server, sandbox, history, image):
    """The address of a file in a folder is code, since a browser opens no link to it."""
    state = image_to_video(image, return_state=True)
    address = history.artifacts(state.state_details.flow_run_id)["Video"]["data"]
    assert address == f"```text\n{state.result().videos[0].uri}\n```"


@pytest.mark.parametrize(
    ("uri", "link"),
    [
        ("https://videos.example.com/a.mp4", True),
        ("http://10.0.0.1/a.mp4", True),
        ("s3://videos/a.mp4", False),
        ("file:///videos/a.mp4", False),
        ("/videos/a.mp4", False),
        ("C:\\videos\\a.mp4", False),
        ("javascript://x", False),
    ],
)
def test_only_a_web_address_is_a_link(uri, link):
    """Only an address that a browser opens from the UI is shown as a link."""
    assert formatting.is_web_address(uri) is link


def test_a_run_that_finds_its_video_stored_ends_with_its_own_artifacts(
    prefect_server, sandbox, history, image
):
    """A run with a stored video, such as a resumed one, has the poster, address and facts."""
    first = image_to_video(image, idempotency_key="once", return_state=True)
    again = image_to_video(image, idempotency_key="once", return_state=True)
    before, after = (history.artifacts(state.state_details.flow_run_id) for state in (first, again))
    assert set(after) == {"Poster", "Video", "Facts"}
    for title, shown in after.items():
        assert shown["description"] == before[title]["description"]
        assert shown["data"] == before[title]["data"]
    assert len(sandbox.accepted) == 1


def test_a_poster_that_cannot_be_read_does_not_stop_a_run(
    prefect_server, sandbox, history, image, monkeypatch
):
    """A run that cannot read the stored poster ends with the address and the facts."""
    image_to_video(image, idempotency_key="once")

    read = FolderStorage.read

    def unreadable(storage: FolderStorage, name: str) -> bytes:
        if name.endswith(".jpg"):
            raise StorageError(f"{name} cannot be read")
        return read(storage, name)

    monkeypatch.setattr(FolderStorage, "read", unreadable)
    again = image_to_video(image, idempotency_key="once", return_state=True)
    assert again.is_completed()
    assert set(history.artifacts(again.state_details.flow_run_id)) == {"Video", "Facts"}


def test_an_event_tells_each_change(prefect_server, sandbox, history, image):
    """A submission, a success and a stored file each emit one event for automations."""
    state = image_to_video(image, return_state=True)
    flow_run_id = state.state_details.flow_run_id
    events = history.events(flow_run_id, until="prefect.asset.materialization.succeeded")
    names = [event["event"] for event in events]
    assert names[0] == "cometapi.generation.submitted"
    assert names[-4:] == [
        "cometapi.generation.succeeded",
        "cometapi.generation.stored",
        "prefect.asset.referenced",
        "prefect.asset.materialization.succeeded",
    ]
    assert len(names) == len(set(names))
    task_id = sandbox.accepted[0].task_id
    assert events[0]["resource"]["prefect.resource.id"] == f"cometapi.generation.{task_id}"
    source, asset = events[-2:]
    assert source["resource"]["prefect.resource.id"] == image["promptImage"]
    assert asset["resource"]["prefect.resource.id"].startswith("file:///")
    known = {"route": "image_to_video", "model": "gen3a_turbo", "seconds": 5.0}
    for event in (events[0], events[-3], asset):
        assert event["payload"].items() >= {"task_id": task_id, **known}.items()
        assert {"cost", "currency", "location"} <= event["payload"].keys()


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

    for name in (
        "acreate_progress_artifact",
        "acreate_markdown_artifact",
        "acreate_table_artifact",
    ):
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


@pytest.mark.heavy
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


def test_the_progress_of_a_batch_begins_with_its_items(prefect_server, history):
    """The artifacts of a batch count its items from the first moment, and never show 0 of 0."""
    progress = BatchProgress(Budget("b/"))
    shown = BatchArtifacts("lakes/[2026]")

    @flow
    async def batch() -> None:
        await shown.show(progress.snapshot())
        assert history.artifacts(flow_run.id) == {}
        progress.begin(ItemResult(id=name, outcome=Outcome.WAITING) for name in "ab")
        await shown.show(progress.snapshot())
        first = history.artifacts(flow_run.id)
        progress.put(ItemResult(id="a", outcome=Outcome.STORED))
        await shown.show(progress.snapshot())
        then = history.artifacts(flow_run.id)
        assert [one["Batch"]["data"] for one in (first, then)] == [0, 50]
        assert "0 of 2 items done" in first["Batch"]["description"]
        assert then["Batch"]["description"] == "### Batch lakes/\\[2026]\n\n1 of 2 items done"
        assert json.loads(then["Counts"]["data"])[0] == {"what": "waiting", "value": "1"}

    asyncio.run(batch())
