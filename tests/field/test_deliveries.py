# SPDX-License-Identifier: Apache-2.0
"""Files as services deliver them: a complete film is stored, whatever its labels say."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from starlette.responses import Response

from prefect_cometapi.flows import (
    afetch_output,
    aimage_to_video,
    apersist_output,
    asubmit_generation,
)
from prefect_cometapi.runway import ImageToVideoRequest, InvalidOutput
from prefect_cometapi.runway.models.generation import (
    AssetURL,
    CompletedGeneration,
    Generation,
    Status,
)
from prefect_cometapi.sandbox import Sandbox
from prefect_cometapi.sandbox.api import app
from prefect_cometapi.sandbox.clips.serving import clip_response

from ..pictures import picture
from ..runway.media.films import film, turned

REQUEST = ImageToVideoRequest(prompt_image="https://example.com/cat.jpg", duration=5)


@pytest.fixture
def deliver(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that makes the sandbox deliver a file of the test, with any label."""

    def replace(content: bytes, media_type: str = "video/mp4") -> None:
        def respond(*_args: Any, **_options: Any) -> Response:
            return Response(content, media_type=media_type)

        monkeypatch.setattr(app, "clip_response", respond)

    return replace


@pytest.mark.server
async def test_a_film_with_its_cover_listed_first_is_stored(prefect_server, deliver):
    """A person let an editor put a cover into the film; the film is stored, not refused."""
    deliver(film("fragments after a cover.mp4"), "text/plain")
    (video,) = (await aimage_to_video(REQUEST)).videos
    assert (video.width, video.height, video.frames) == (64, 48, 48)
    assert video.duration == pytest.approx(2.0, abs=0.05)


async def delivered(**options):
    """Return the files of a purchase without a flow, as the steps of a user's flow store them."""
    submission = await asubmit_generation.fn(REQUEST, idempotency_key="k")
    urls = options.get("urls") or [f"assets/{submission.task_id}/0.mp4"]
    outputs = tuple(AssetURL(url) for url in urls)
    ended = Generation(task_id=submission.task_id, status=Status.SUCCEEDED, outputs=outputs)
    finished = CompletedGeneration(generation=ended, polls=1, waited=0.0)
    fetched = await afetch_output.fn(submission, finished)
    return await apersist_output.fn(submission, finished, fetched)


@pytest.fixture
def signed(sandbox, monkeypatch):
    """Return URLs that the sandbox serves without a signature."""
    monkeypatch.setattr("prefect_cometapi.sandbox.clips.serving.Signer.accepts", lambda *_: True)
    monkeypatch.setattr(type(sandbox._app.jobs), "finished_clip", lambda *_: b"")
    return [f"{sandbox.url}/assets/task/{number}.mp4?_jwt={number}" for number in range(3)]


@pytest.mark.parametrize("label", ["text/plain", "text/html", "application/octet-stream", "", "x"])
async def test_a_film_that_is_labelled_as_something_else_is_stored(deliver, signed, label):
    """A storage gave a good MP4 the wrong type; it is stored after one download."""
    deliver(film("sound first.mp4"), label)
    (video,) = await delivered(urls=signed[:1])
    assert video.media_type == "video/mp4"
    assert Path(video.uri).read_bytes() == film("sound first.mp4")


@pytest.mark.parametrize(
    ("name", "suffix", "media_type"),
    [
        ("vp8.webm", ".webm", "video/webm"),
        ("film.mkv", ".mkv", "video/x-matroska"),
        ("timecode.mov", ".mov", "video/quicktime"),
    ],
)
async def test_a_file_is_named_after_its_content(deliver, signed, name, suffix, media_type):
    """A service delivered a WebM or a MOV as .mp4; players get it under its own name and type."""
    deliver(film(name))
    (video,) = await delivered(urls=signed[:1])
    assert (Path(video.uri).suffix, video.media_type) == (suffix, media_type)


async def test_an_old_mov_without_a_box_of_its_type_is_stored(deliver, signed):
    """A program wrote a MOV as in 1995; it is a complete film."""
    content = film("film.mov")
    deliver(content[:4] + b"wide" + content[8:])
    (video,) = await delivered(urls=signed[:1])
    assert (video.frames, Path(video.uri).suffix) == (48, ".mov")


async def test_a_film_that_was_taken_upright_has_an_upright_poster(deliver, signed):
    """A person turned the telephone; the poster shows the film as a player does."""
    deliver(turned(film("index first.mp4"), 0, 1, -1, 0))
    (video,) = await delivered(urls=signed[:1])
    with Image.open(str(video.poster)) as poster:
        assert poster.width < poster.height


@pytest.mark.parametrize("name", ["late fragments.mp4", "late.webm", "fragments.mp4"])
async def test_the_duration_is_that_of_the_film(deliver, signed, name):
    """A film was cut out of a live stream; its duration does not count from the stream's start."""
    deliver(film(name))
    (video,) = await delivered(urls=signed[:1])
    assert video.duration == pytest.approx(2.0, abs=0.05)


@pytest.fixture
def deliver_each(sandbox, monkeypatch):
    """Return a function that makes the sandbox deliver one file per output."""

    def replace(*contents: bytes) -> None:
        queue = list(contents)

        def respond(_clip, headers, **_options):
            return clip_response(queue.pop(0), headers)

        monkeypatch.setattr(app, "clip_response", respond)

    return replace


async def test_a_picture_listed_before_the_film_costs_no_film(deliver_each, signed):
    """A reply listed the thumbnail first; both are stored, and the film comes first."""
    deliver_each(picture("JPEG", 64, 48), film("index first.mp4"))
    first, second = await delivered(urls=signed[:2])
    assert (first.media_type, second.media_type) == ("video/mp4", "image/jpeg")


async def test_pictures_alone_are_no_film(deliver_each, signed):
    """A reply listed only pictures; that is not what was bought."""
    deliver_each(picture("JPEG", 64, 48), picture("PNG", 64, 48))
    with pytest.raises(InvalidOutput, match="none of the 2 outputs is a video"):
        await delivered(urls=signed[:2])


async def test_a_cut_film_is_refused_whatever_its_label_says(deliver, signed):
    """A download lost its end; nothing incomplete is stored."""
    deliver(film("cover first.mp4")[:-2000], "video/mp4")
    with pytest.raises(InvalidOutput, match=r"truncated|not a readable video"):
        await delivered(urls=signed[:1])
