# SPDX-License-Identifier: Apache-2.0
"""Each route makes a stored and checked output, and one is the source of the next."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image
from prefect import flow

from prefect_cometapi import (
    Character,
    CharacterPerformanceRequest,
    ImageToVideoRequest,
    Keyframe,
    Performance,
    RunwayJob,
    TaggedImage,
    TextToImageRequest,
    VideoToVideoRequest,
    acharacter_performance,
    finish_generation,
    generate_batch,
    image_to_video,
    text_to_image,
    video_to_video,
)

pytestmark = pytest.mark.server

IMAGE, VIDEO = "http://127.0.0.1:9/cat.jpg", "http://127.0.0.1:9/cat.mp4"
PICTURE = TextToImageRequest(
    prompt_text="@cat in oil",
    ratio="1280:720",
    reference_images=[TaggedImage(uri=IMAGE, tag="cat")],
)


@pytest.mark.heavy
def test_a_picture_becomes_a_video_that_is_restyled(prefect_server, sandbox, history):
    """Three routes in one flow, each with the output of the one before as its source."""

    @flow
    def film():
        picture = text_to_image(PICTURE).videos[0]
        clip = image_to_video(
            ImageToVideoRequest(
                model="gen4.5",
                prompt_image=picture.data_uri(),
                prompt_text="slow zoom",
                duration=2,
                ratio="1280:720",
            )
        ).videos[0]
        return picture, video_to_video(
            VideoToVideoRequest(
                model="aleph2",
                video_uri=clip.data_uri(),
                keyframes=[Keyframe(uri=picture.data_uri(), seconds=1)],
            )
        ).videos[0]

    picture, restyled = film()
    assert [job.route for job in sandbox.accepted] == [
        "text_to_image",
        "image_to_video",
        "video_to_video",
    ]
    assert (picture.codec, picture.media_type, picture.duration) == ("png", "image/png", 0.0)
    with Image.open(picture.uri) as opened:
        assert (opened.format, opened.size) == ("PNG", (picture.width, picture.height))
    assert Path(picture.uri).suffix == ".png"
    with Image.open(str(picture.poster)) as poster:
        assert (poster.format, poster.width) == ("JPEG", 640)
    origin = json.loads(Path(picture.sidecar).read_text(encoding="utf-8"))
    assert origin["video"]["media_type"] == "image/png"
    assert origin["route"] == "text_to_image"
    assert (restyled.codec, restyled.media_type) == ("h264", "video/mp4")


async def test_a_character_performs(prefect_server, sandbox):
    """The async flow of a route stores its video."""
    request = CharacterPerformanceRequest(
        character=Character(type="image", uri=IMAGE),
        reference=Performance(uri=VIDEO),
        expression_intensity=4,
    )
    (video,) = (await acharacter_performance(request)).videos
    assert video.codec == "h264"
    (job,) = sandbox.accepted
    assert job.body["expressionIntensity"] == 4
    assert job.body["reference"] == {"type": "video", "uri": VIDEO}


def test_a_picture_of_an_unknown_route_is_finished(prefect_server, sandbox):
    """A task id that was bought elsewhere may name a picture, which is stored as one."""
    headers = {"Authorization": "Bearer any-key", "X-Runway-Version": "2024-11-06"}
    route = f"{sandbox.url}/runwayml/v1/text_to_image"
    bought = httpx.post(route, json=PICTURE.to_wire(), headers=headers).json()["id"]
    (video,) = finish_generation(bought).videos
    assert video.is_picture


def test_a_batch_makes_videos_and_pictures(prefect_server, sandbox):
    """Rows of several routes are one batch, and its gallery shows the picture as a picture."""
    rows = [
        {"id": "a", "promptImage": IMAGE},
        {"id": "b", **PICTURE.fields()},
        {"id": "c", "route": "character-performance", "character": {"type": "video", "uri": VIDEO},
         "reference": {"type": "video", "uri": VIDEO}},
    ]  # fmt: skip
    result = generate_batch(rows, idempotency_key="mixed")
    assert [item.route for item in result.results] == [
        "image_to_video",
        "text_to_image",
        "character_performance",
    ]
    picture = result.results[1]
    assert (picture.duration, picture.billed_seconds) == (None, 0.0)
    page = Path(str(result.gallery)).read_text(encoding="utf-8")
    assert f'<a class="stage" href="{Path(str(picture.uri)).name}"' in page
    assert page.count('class="play stage"') == 2


def test_a_saved_job_keeps_its_route(prefect_server):
    """A request in a block is read back as the request of its route."""
    RunwayJob(request=PICTURE).save("picture")
    loaded: Any = RunwayJob.load("picture")
    assert isinstance(loaded.request, TextToImageRequest)
    assert loaded.request == PICTURE
