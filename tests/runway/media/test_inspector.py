# SPDX-License-Identifier: Apache-2.0
"""A video counts as delivered only if it is complete to its last packet."""

import io

import av
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prefect_cometapi.runway import InvalidOutput
from prefect_cometapi.runway.media.inspector import (
    ImageInfo,
    examine_output,
    inspect_image,
    inspect_video,
)

from ...pictures import animation, picture


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("clip.mp4", "h264"),
        ("index-last.mp4", "h264"),
        ("clip.mov", "h264"),
        ("clip.webm", "vp8"),
        ("live.webm", "vp8"),
        ("sound.webm", "vp8"),
    ],
)
def test_a_whole_video_is_described(clips, name, codec):
    """Size in pixels, seconds, frames and codec match the content of the file."""
    info = inspect_video(clips / name)
    assert (info.width, info.height, info.frames, info.codec) == (64, 48, 48, codec)
    assert info.duration == pytest.approx(2.0, abs=0.05)


@pytest.mark.parametrize("name", ["clip.mp4", "clip.webm"])
@given(kept=st.floats(0.0, 1.0, exclude_max=True))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
def test_a_video_that_was_cut_off_is_refused(clips, tmp_path, name, kept):
    """A truncated file is refused, although its header still states the full length."""
    whole = (clips / name).read_bytes()
    cut = tmp_path / name
    cut.write_bytes(whole[: int(len(whole) * kept)])
    with pytest.raises(InvalidOutput):
        inspect_video(cut)


def test_a_cut_video_is_told_how_much_is_there(clips, tmp_path):
    """The message shows that the download, not the generation, failed."""
    whole = (clips / "clip.mp4").read_bytes()
    (tmp_path / "half.mp4").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InvalidOutput, match=r"truncated: it has [\d,]+ of at least [\d,]+ bytes"):
        inspect_video(tmp_path / "half.mp4")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not an MP4 or WebM file; it begins with b''"),
        (
            b"<!doctype html><html></html>",
            "not an MP4 or WebM file; it begins with b'<!doctype ht'",
        ),
        (b"\xff\xd8\xff\xe0 a picture", "not an MP4 or WebM"),
        (b"#EXTM3U\nhttp://127.0.0.1/private", "not an MP4 or WebM"),
        (b"\0\0\0\x20ftypisom" + bytes(40), "not a readable video"),
        (b"\x1aE\xdf\xa3" + bytes(40), "not a readable video"),
    ],
    ids=["empty", "web page", "picture", "playlist", "bare MP4 head", "bare WebM head"],
)
def test_what_is_no_video_is_refused(tmp_path, content, reason):
    """Only MP4 and WebM are opened, so a playlist cannot reach the network."""
    (tmp_path / "output").write_bytes(content)
    with pytest.raises(InvalidOutput) as caught:
        inspect_video(tmp_path / "output")
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("sound.mp4", "contains no video"),
        ("unknown-codec.mp4", "an unknown codec"),
        ("no-size.mp4", "frames have no size"),
    ],
)
def test_a_container_without_a_usable_video_is_refused(clips, name, reason):
    """A well-formed file without a usable video is refused."""
    with pytest.raises(InvalidOutput, match=reason):
        inspect_video(clips / name)


@given(position=st.integers(40, 3000), value=st.integers(0, 255))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=80)
def test_a_damaged_header_never_breaks_the_inspection(clips, tmp_path, position, value):
    """Every damaged file gives a video or InvalidOutput."""
    damaged = bytearray((clips / "clip.mp4").read_bytes())
    damaged[position] = value
    (tmp_path / "damaged.mp4").write_bytes(damaged)
    try:
        described = inspect_video(tmp_path / "damaged.mp4")
    except InvalidOutput:
        return
    assert described.frames > 0
    assert described.width > 0


@pytest.mark.parametrize("name", ["clip.mp4", "clip.webm", "live.webm"])
def test_a_poster_is_a_jpeg_in_the_proportions_of_the_video(clips, name):
    """The poster has the requested width and comes with the description of the video."""
    info, poster = examine_output(clips / name, "video", poster_width=320)
    assert info == inspect_video(clips / name)
    assert poster.startswith(b"\xff\xd8\xff")
    with av.open(io.BytesIO(poster)) as picture:
        stream = picture.streams.video[0]
        assert (stream.width, stream.height) == (320, 240)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_an_image_is_described(tmp_path, kind):
    """Width and height come from the decoded image."""
    path = tmp_path / "image"
    path.write_bytes(picture(kind, 320, 200))
    assert inspect_image(path) == ImageInfo(320, 200)


def test_an_animated_image_is_not_described(tmp_path):
    """FFmpeg cannot decode an animated WebP, so nothing is known about it."""
    path = tmp_path / "image"
    path.write_bytes(animation("WEBP"))
    assert inspect_image(path) is None


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (animation("GIF"), "is not a JPEG, PNG or WebP"),
        (picture("JPEG", 640, 480)[:-200], "cannot be decoded"),
        (b"RIFF\0\0\0\0WAVEfmt ", "cannot be decoded"),
        (b"", "is not a JPEG, PNG or WebP; it begins with b''"),
    ],
)
def test_what_is_no_whole_image_is_refused(tmp_path, content, reason):
    """A broken picture breaks only the decoder's answer."""
    path = tmp_path / "image"
    path.write_bytes(content)
    with pytest.raises(InvalidOutput, match=reason):
        inspect_image(path)
