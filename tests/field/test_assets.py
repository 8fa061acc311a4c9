# SPDX-License-Identifier: Apache-2.0
"""Assets: the source is upstream of the clip, and the clip of what a user makes from it."""

from typing import Any

import pytest
from prefect import flow, task
from prefect.assets import materialize

from prefect_cometapi.flows import (
    RunwayJob,
    aimage_to_video,
    fetch_output,
    image_to_video,
    persist_output,
    poll_generation,
    submit_generation,
)
from prefect_cometapi.flows.runtime.assets import asset_key
from prefect_cometapi.runway import GenerationResult, StoredVideo

pytestmark = pytest.mark.server

PICTURE = "https://example.com/cat.jpg"
SIGNED = {"promptImage": f"{PICTURE}?X-Amz-Signature=canary"}
POSTER = "s3://bucket/poster.png"


@pytest.fixture
def emitted(monkeypatch) -> list[dict[str, Any]]:
    """Return the list of the asset events that this process emits."""
    events: list[dict[str, Any]] = []

    def emit_event(event: str, resource: Any, **details: Any) -> None:
        events.append({"event": event, "key": resource["prefect.resource.id"], **details})

    monkeypatch.setattr("prefect.events.emit_event", emit_event)
    return events


def upstream(events: list[dict[str, Any]], key: str) -> list[str]:
    """Return the upstream assets of the asset that was materialized last under a key."""
    found = [it for it in events if it["event"].endswith("succeeded") and it["key"] == key]
    related = found[-1]["related"]
    return [it["prefect.resource.id"] for it in related if it["prefect.resource.role"] == "asset"]


@materialize(POSTER)
def poster(_clip: object) -> None:
    """Make a poster from a clip."""


def test_steps_in_a_flow_of_their_own_emit_assets(prefect_server, sandbox, emitted):
    """A user calls the four steps: source, clip and the user's own asset are one lineage."""

    @flow
    def steps() -> StoredVideo:
        submission = submit_generation(SIGNED)
        finished = poll_generation(submission)
        (video,) = persist_output(submission, finished, fetch_output(submission, finished))
        poster(video.uri)
        return video

    clip = asset_key(steps().uri)
    assert clip
    assert upstream(emitted, clip) == [PICTURE]
    assert upstream(emitted, POSTER) == [clip]
    assert "canary" not in str(emitted)


def test_the_clip_of_a_subflow_is_upstream_of_the_next_task(prefect_server, sandbox, emitted):
    """A user gives the result of our flow, its video or its location to materializing tasks."""
    made = [f"{POSTER}/{number}" for number in range(3)]

    @flow
    def teaser() -> GenerationResult:
        result = image_to_video(SIGNED)
        for key, part in zip(made, (result, result.videos[0], result.videos[0].uri), strict=True):
            poster.with_options(assets=[key])(part)
        return result

    result = teaser()
    clip = asset_key(result.videos[0].uri)
    assert clip
    assert upstream(emitted, clip) == [PICTURE]
    assert [upstream(emitted, key) for key in made] == [[clip]] * 3
    (payload,) = (it["payload"] for it in emitted if it["key"] == clip and "payload" in it)
    assert payload["route"] == "image_to_video"
    assert payload["model"] == "gen3a_turbo"
    assert payload["seconds"] == 5.0
    assert payload["location"] in payload["uri"]
    assert {"cost", "currency", "cost_source", "duration"} <= payload.keys()


async def test_an_async_flow_and_a_state_keep_the_lineage(prefect_server, sandbox, emitted):
    """A user awaits our flow with return_state=True and gives the state to a task."""

    @flow
    async def teaser() -> GenerationResult:
        call: Any = aimage_to_video(SIGNED, return_state=True)
        state = await call
        poster(state)
        return await state.aresult()

    clip = asset_key((await teaser()).videos[0].uri)
    assert upstream(emitted, POSTER) == [clip]


def test_a_clip_that_is_stored_already_is_upstream_too(prefect_server, sandbox, emitted):
    """A nightly flow with a fixed key finds its clip stored, and makes a poster of it again."""

    @flow
    def nightly() -> GenerationResult:
        job = RunwayJob(request=SIGNED, idempotency_key="nightly")
        result = job.trigger().fetch_result()
        poster(result.videos[0])
        return result

    nightly()
    emitted.clear()
    clip = asset_key(nightly().videos[0].uri)
    assert upstream(emitted, POSTER) == [clip]
    assert clip not in [it["key"] for it in emitted if "materialization" in it["event"]]


def test_a_clip_that_a_task_makes_is_upstream_of_its_asset(prefect_server, sandbox, emitted):
    """A user calls our flow within a materializing task, or within a task before it."""
    made: list[GenerationResult] = []

    @materialize(POSTER)
    def poster_with_clip() -> None:
        made.append(image_to_video(SIGNED))

    @task
    def clip_of() -> str:
        made.append(image_to_video(SIGNED))
        return made[-1].videos[0].uri

    @flow
    def at_once() -> None:
        poster_with_clip()

    @flow
    def in_two() -> None:
        poster.submit(clip_of.submit()).wait()

    for run in (at_once, in_two):
        run()
        assert upstream(emitted, POSTER) == [asset_key(made[-1].videos[0].uri)]
