# SPDX-License-Identifier: Apache-2.0
"""One clip end to end, in each way to call the flows."""

import asyncio
import hashlib
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, get_type_hints

import av
import pytest
from prefect import flow
from prefect.client.schemas.objects import State
from prefect.utilities.callables import parameter_schema
from pydantic import ValidationError

from prefect_cometapi import flows
from prefect_cometapi.flows import (
    afetch_output,
    aimage_to_video,
    apersist_output,
    apoll_generation,
    asubmit_generation,
    avideo_to_video,
    fetch_output,
    finish_generation,
    image_to_video,
    persist_output,
    poll_generation,
    submit_generation,
    video_to_video,
)
from prefect_cometapi.runway import (
    GenerationResult,
    ImageToVideoRequest,
    InvalidRequest,
    Status,
    VideoToVideoRequest,
)
from prefect_cometapi.runway.ledger.marks import FOLDER
from prefect_cometapi.runway.models.requests import ROUTES

pytestmark = pytest.mark.server


def test_an_image_becomes_a_stored_and_playable_video(prefect_server, sandbox, tmp_path):
    """The file has the requested ratio and duration, is H.264, and matches its result."""
    request = ImageToVideoRequest(
        prompt_image="https://example.com/cat.jpg", ratio="960:960", duration=5
    )
    result = image_to_video(request)
    (video,) = result.videos
    content = Path(video.uri).read_bytes()
    with av.open(video.uri) as container:
        stream = container.streams.video[0]
        assert (stream.width, stream.height) == (video.width, video.height) == (960, 960)
        assert stream.codec_context.name == video.codec == "h264"
        assert sum(1 for _ in container.decode(stream)) == video.frames
    assert video.duration == pytest.approx(5.0, abs=0.1)
    assert (video.size, video.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    assert Path(video.uri).parent == tmp_path / "videos"
    assert result.status is Status.SUCCEEDED
    assert result.task_id == sandbox.accepted[0].task_id
    assert result.polls >= 1


@pytest.mark.heavy
def test_a_video_is_restyled(prefect_server, sandbox, image):
    """Video to video restyles a clip that image to video made."""
    first = image_to_video(image)
    request = VideoToVideoRequest(
        video_uri=first.videos[0].uri, prompt_text="a warm dawn", seed=4294967295
    )
    second = video_to_video(request)
    assert second.videos[0].sha256 != first.videos[0].sha256
    assert second.videos[0].width == first.videos[0].width
    assert [job.route for job in sandbox.accepted] == ["image_to_video", "video_to_video"]


@pytest.mark.heavy
def test_the_sidecar_tells_the_origin_of_the_video(prefect_server, sandbox):
    """The sidecar has request, id, hash and timings, and no tokens of signed URLs."""
    request = ImageToVideoRequest(
        prompt_image="https://example.com/cat.jpg?Signature=canary-token", seed=7
    )
    result = image_to_video(request, idempotency_key="sku-17/2026-11-21")
    video = result.videos[0]
    text = Path(video.sidecar).read_text()
    origin = json.loads(text)
    assert origin["task_id"] == result.task_id
    assert origin["idempotency_key"] == "sku-17/2026-11-21"
    assert origin["request"]["seed"] == 7
    assert origin["request"]["promptImage"].startswith("https://example.com/cat.jpg?<sha256:")
    assert origin["video"]["sha256"] == video.sha256
    assert origin["polls"] == result.polls
    assert "canary-token" not in text
    assert video.poster
    assert Path(video.poster).read_bytes().startswith(b"\xff\xd8\xff")


def test_nothing_but_whole_files_is_left_in_the_storage(prefect_server, sandbox, image, tmp_path):
    """The storage has the video, poster and sidecar, and no temporary file."""
    image_to_video(image)
    files = [path for path in (tmp_path / "videos").rglob("*") if path.is_file()]
    files = [path for path in files if path.parent.name != FOLDER]
    assert sorted(path.suffix for path in files) == [".jpg", ".json", ".mp4"]


@pytest.mark.heavy
def test_every_reply_shape_leads_to_a_stored_video(prefect_server, monkeypatch, tmp_path, image):
    """The clip is stored for every documented reply shape."""
    from typing import get_args

    from prefect_cometapi.sandbox import ReplyShape, Sandbox

    shapes = get_args(ReplyShape)
    with Sandbox(shapes=shapes, not_visible_polls=1) as sandbox:
        monkeypatch.setenv("COMETAPI_BASE_URL", sandbox.url)
        monkeypatch.setenv("COMETAPI_KEY", "any")
        monkeypatch.setenv("COMETAPI_POLL_INTERVAL", "0.02")

        async def one_of_each() -> list[GenerationResult]:
            return await asyncio.gather(
                *(aimage_to_video(image, storage=str(tmp_path / shape)) for shape in shapes)
            )

        results = asyncio.run(one_of_each())
        assert len(sandbox.accepted) == len(shapes)
    assert [Path(result.videos[0].uri).exists() for result in results] == [True] * len(shapes)


def test_it_works_in_a_sync_flow(prefect_server, sandbox, image):
    """A sync flow calls the sync flow, as a subflow."""

    @flow
    def pipeline() -> str:
        return image_to_video(image).videos[0].uri

    assert Path(pipeline()).exists()


async def test_it_works_in_an_async_flow(prefect_server, sandbox, image):
    """An async flow awaits the async twin, also several times at once."""

    @flow
    async def pipeline() -> tuple[GenerationResult, GenerationResult]:
        video: Any = {"videoUri": "https://example.com/v.mp4", "promptText": "x"}
        return await asyncio.gather(aimage_to_video(image), avideo_to_video(video))

    results = await pipeline()
    assert all(Path(result.videos[0].uri).exists() for result in results)
    assert len(sandbox.accepted) == 2


async def test_it_works_where_an_event_loop_runs_already(prefect_server, sandbox, image):
    """A notebook cell, which runs inside an event loop, can call the sync flow."""
    result = image_to_video(image)
    assert Path(result.videos[0].uri).exists()


@pytest.mark.heavy
def test_the_tasks_compose_in_a_sync_flow(prefect_server, sandbox, history):
    """A sync flow of the four tasks works, and the history shows them by name."""

    @flow
    def pipeline() -> str:
        request = ImageToVideoRequest(prompt_image="https://example.com/dog.jpg")
        submission = submit_generation(request)
        finished = poll_generation(submission)
        videos = fetch_output(submission, finished)
        return persist_output(submission, finished, videos)[0].uri

    state: State[str] = pipeline(return_state=True)
    assert Path(asyncio.run(_result(state))).exists()
    short = sandbox.accepted[0].task_id[:8]
    names = {run["name"] for run in history.task_runs(state.state_details.flow_run_id).values()}
    assert names == {
        "submit image_to_video gen3a_turbo",
        f"poll {short}",
        f"fetch {short}",
        f"persist {short}",
    }


async def _result(state: State[str]) -> str:
    return await state.aresult()


def test_tasks_that_are_submitted_to_a_runner_belong_to_the_run(prefect_server, sandbox):
    """A task in a task runner's thread gets its key from the flow run and the request."""
    request = ImageToVideoRequest(prompt_image="https://example.com/fox.jpg")

    @flow
    def pipeline() -> list[str]:
        futures = [submit_generation.submit(request), asubmit_generation.submit(request)]
        return [future.result().idempotency_key for future in futures]

    first, second = pipeline()
    assert first == second


def test_a_task_needs_no_flow(prefect_server, sandbox):
    """A task outside of a flow needs a key, and each key is a generation of its own."""
    request = ImageToVideoRequest(prompt_image="https://example.com/fox.jpg")
    keys = [
        submit_generation(request, idempotency_key=key).idempotency_key
        for key in ("sku-17", "sku-18", "sku-17")
    ]
    assert keys == ["sku-17", "sku-18", "sku-17"]
    assert len(sandbox.accepted) == 2


async def test_the_functions_of_the_tasks_need_no_prefect(sandbox):
    """`.fn` runs a step without a server, for a script with its own orchestration."""
    request = ImageToVideoRequest(prompt_image="https://example.com/fox.jpg")
    submission = await asubmit_generation.fn(request, idempotency_key="sku-17")
    finished = await apoll_generation.fn(submission)
    videos = await afetch_output.fn(submission, finished)
    stored = await apersist_output.fn(submission, finished, videos)
    assert Path(stored[0].uri).exists()


TWINS = sorted({name for name in flows.__all__ if f"a{name}" in flows.__all__})


@pytest.mark.parametrize("name", TWINS)
def test_a_sync_flow_or_task_equals_its_async_twin(name):
    """Twins have one name, one parameter schema, one docstring and the same type hints."""
    sync, twin = getattr(flows, name), getattr(flows, f"a{name}")
    assert (sync.isasync, twin.isasync) == (False, True)
    assert (sync.name, sync.description) == (twin.name, twin.description)
    assert sync.fn.__name__ == name
    assert sync.fn.__module__ == twin.fn.__module__
    assert get_type_hints(sync.fn) == get_type_hints(twin.fn)
    assert parameter_schema(sync.fn) == parameter_schema(twin.fn)
    assert getattr(sync, "version", None) == getattr(twin, "version", None)


def test_each_flow_and_task_has_a_sync_twin():
    """Every async flow and task of the package has a sync one."""
    assert len(TWINS) == 8 + len(ROUTES)


@pytest.mark.heavy
def test_a_generation_that_was_bought_elsewhere_is_finished(prefect_server, sandbox, image):
    """A task id is polled, fetched and stored, and nothing is bought."""
    task_id = image_to_video(image).task_id
    result = finish_generation(task_id)
    assert result.task_id == task_id
    assert Path(result.videos[0].uri).exists()
    assert len(sandbox.accepted) == 1


def test_a_bad_request_is_refused_before_anything_is_sent(prefect_server, sandbox, image):
    """A bad request is refused with the field and the allowed values before it is sent."""
    from prefect.exceptions import ParameterTypeError

    with pytest.raises(ParameterTypeError, match="duration: 5 or 10 seconds, got 7"):
        image_to_video(image | {"duration": 7})
    assert sandbox.requests == []


@pytest.mark.heavy
def test_a_model_that_is_not_documented_is_passed_on(prefect_server, sandbox, image):
    """An undocumented model is sent to the service, and its own reply is shown."""
    with pytest.raises(InvalidRequest, match="No available channel for model gen9"):
        image_to_video(image | {"model": "gen9"})
    assert sandbox.accepted == []


def test_the_time_in_the_file_name_is_that_of_the_submission(prefect_server, sandbox, image):
    """The time in a file name is the time of the submission, so that files sort by purchase."""
    result = image_to_video(image, idempotency_key="sku-17")
    stamp = Path(result.videos[0].uri).name[:15]
    named = datetime.strptime(stamp, "%Y%m%d-%H%M%S").replace(tzinfo=UTC)
    assert abs(named - result.submitted_at) < timedelta(seconds=1)
    assert "-sku-17-" in Path(result.videos[0].uri).name


@pytest.mark.parametrize("field", ["promptImage", "videoUri"])
def test_a_task_takes_the_fields_of_a_request(prefect_server, sandbox, field):
    """A task accepts a request as a dict, and its run is named after the content."""

    @flow
    def own():
        future = submit_generation.submit({field: "https://example.com/a", "promptText": "dawn"})
        return future.result()

    assert own().task_id == sandbox.accepted[0].task_id


def test_fields_that_make_no_request_cost_nothing(prefect_server, sandbox):
    """Invalid fields are named in the error, and nothing is sent."""

    @flow
    def own():
        return submit_generation({"promptImage": "https://example.com/cat.jpg", "duration": 7})

    with pytest.raises(ValidationError, match="duration"):
        own()
    assert sandbox.accepted == []
