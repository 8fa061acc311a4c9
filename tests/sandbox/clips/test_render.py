# SPDX-License-Identifier: Apache-2.0
"""Rendered clips are real videos that match the request."""

import base64

import httpx
import pytest

from prefect_cometapi.sandbox.clips.cache import ClipStore
from prefect_cometapi.sandbox.clips.render import Recipe, render
from prefect_cometapi.sandbox.clips.sources import InvalidSourceError
from prefect_cometapi.sandbox.messages.requests import BODIES


def recipe(**changes):
    asked = {
        "route": "image_to_video",
        "uri": "https://example.com/cat.jpg",
        "prompt": "",
        "seed": 0,
        "width": 320,
        "height": 192,
        "seconds": 5,
    }
    return Recipe(**(asked | changes))


@pytest.mark.parametrize(("ratio", "duration"), [("1280:720", 5), ("720:1280", 10), ("960:960", 5)])
@pytest.mark.heavy
def test_a_clip_has_the_ratio_and_the_duration_that_were_asked_for(
    talk, clip, photo_uri, ratio, duration
):
    """A clip is H.264 in yuv420p with exactly the requested size and duration."""
    conversation = talk()
    task_id = conversation.finished(promptImage=photo_uri, ratio=ratio, duration=duration)
    video = clip(httpx.get(conversation.output(task_id)).content)
    assert (video.codec, video.pixel_format) == ("h264", "yuv420p")
    assert "{}:{}".format(*video.size) == ratio
    assert video.seconds == pytest.approx(duration, abs=0.1)


def test_a_clip_plays_before_it_is_complete():
    """The index of a clip comes before its frames, so that it plays during the download."""
    content = render(recipe(), None)
    assert 0 < content.index(b"moov") < content.index(b"mdat")


def test_a_clip_moves(clip, photo):
    """The camera moves over the image."""
    video = clip(render(recipe(), photo))
    assert video.difference(clip(render(recipe(), photo))) == 0
    first, last = video.thumbnails[0], video.thumbnails[-1]
    assert sum(abs(a - b) for a, b in zip(first, last, strict=True)) / len(first) > 3


@pytest.mark.parametrize("route", ["image_to_video", "video_to_video"])
def test_another_seed_gives_another_clip(route):
    """Two seeds give two clips, and one seed gives the same clip twice."""
    one, again, other = (render(recipe(route=route, seed=seed), None) for seed in (1, 1, 2))
    assert one == again != other


def test_another_prompt_gives_another_clip():
    """Another prompt gives another clip."""
    assert render(recipe(prompt="zoom in"), None) != render(recipe(prompt="zoom out"), None)


@pytest.mark.heavy
def test_a_video_keeps_its_size_and_length_and_changes_its_colours(talk, clip):
    """Video-to-video visibly restyles its source and keeps its size and length."""
    conversation = talk()
    source = conversation.output(conversation.finished(ratio="1104:832"))
    task_id = conversation.drawn(conversation.restyle(videoUri=source, ratio="1280:720"))
    before = clip(httpx.get(source).content)
    after = clip(httpx.get(conversation.output(task_id)).content)
    assert after.size == (1104, 832)
    assert after.seconds == pytest.approx(5, abs=0.1)
    assert all(after.difference(before, frame) > 15 for frame in (0, 60, 119))


def test_a_video_without_colours_is_restyled_visibly_too(clip, grey_photo):
    """A video without colours is visibly tinted."""
    grey = render(recipe(), grey_photo)
    restyled = render(recipe(route="video_to_video", seed=5), grey)
    assert clip(restyled).difference(clip(grey)) > 10


def test_a_long_video_is_cut_after_ten_seconds(clip):
    """A restyled clip is ten seconds long at most."""
    source = render(recipe(seconds=12), None)
    restyled = clip(render(recipe(route="video_to_video"), source))
    assert restyled.seconds == pytest.approx(10, abs=0.1)


@pytest.mark.parametrize("ratio", ["9999:9999", "9999:100", "100:9999", "1584:672", "640:480"])
def test_a_drawn_video_is_never_larger_than_runways(ratio):
    """An allowed but huge ratio is scaled down in proportion."""
    sent = {"videoUri": "https://a.invalid/a.mp4", "model": "gen4_aleph", "promptText": "x"}
    recipe = BODIES["video_to_video"][0].model_validate(sent | {"ratio": ratio}).recipe()
    width, height = map(int, ratio.split(":"))
    assert recipe.width * recipe.height <= 1584 * 672
    assert recipe.width / recipe.height == pytest.approx(width / height, rel=0.02)
    if width * height <= 1584 * 672:
        assert (recipe.width, recipe.height) == (width - width % 2, height - height % 2)


def test_a_source_out_of_reach_becomes_a_drawing_of_its_address(clip):
    """An unreachable image becomes a drawing that depends on its address."""
    one = clip(render(recipe(uri="https://example.com/one.jpg"), None))
    two = clip(render(recipe(uri="https://example.com/two.jpg"), None))
    assert one.difference(two) > 5
    assert one.size == (320, 192)


def test_a_video_out_of_reach_becomes_a_drawn_video(talk, clip):
    """An unreachable video becomes a drawn video in the requested ratio."""
    conversation = talk()
    task_id = conversation.drawn(conversation.restyle(ratio="848:480"))
    video = clip(httpx.get(conversation.output(task_id)).content)
    assert video.size == (848, 480)
    assert video.seconds == pytest.approx(5, abs=0.1)


@pytest.mark.parametrize(
    ("route", "media", "content"),
    [
        ("image_to_video", "image/png", b"no picture at all"),
        ("image_to_video", "image/png", b""),
        ("image_to_video", "image/jpeg", b"#EXTM3U\n#EXTINF:5,\nfile:///etc/passwd\n"),
        ("video_to_video", "video/mp4", b"no video at all"),
    ],
)
def test_a_source_that_is_no_picture_fails_the_job(talk, route, media, content):
    """A source that is not an image is accepted, as by Runway, and fails with ASSET.INVALID."""
    conversation = talk()
    uri = f"data:{media};base64,{base64.b64encode(content).decode()}"
    created = (
        conversation.create(promptImage=uri)
        if route == "image_to_video"
        else conversation.restyle(videoUri=uri)
    )
    task = conversation.task(conversation.drawn(created)).json()
    assert (task["status"], task["failureCode"]) == ("FAILED", "ASSET.INVALID")
    assert "output" not in task


def test_an_image_is_no_video(photo):
    """An image in place of a video is refused."""
    with pytest.raises(InvalidSourceError, match="could not be decoded"):
        render(recipe(route="video_to_video"), photo)


def test_a_clip_is_drawn_once_for_all_who_ask():
    """Equal requests share one rendering, and a full cache drops the oldest."""
    store = ClipStore(capacity=1)
    asked = recipe(uri="data:image/png;base64,")
    with pytest.raises(InvalidSourceError):
        store.clip(asked)
    drawn = recipe(uri="http://127.0.0.1:9/cat.jpg")
    assert store.clip(drawn) is not store.clip(drawn)
    roomy = ClipStore()
    assert roomy.clip(drawn) is roomy.clip(drawn)
