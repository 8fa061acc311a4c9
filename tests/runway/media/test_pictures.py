# SPDX-License-Identifier: Apache-2.0
"""A picture counts as delivered only if it is complete and can be decoded as a whole."""

import io
import struct
import zlib

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from prefect_cometapi.runway import InvalidOutput
from prefect_cometapi.runway.media import decoder, pictures
from prefect_cometapi.runway.media.inspector import examine_output

SIZE = (96, 64)
PICTURES = ("png", "jpeg", "webp")


def drawn(kind: str, mode: str = "RGB") -> bytes:
    """Return a picture with detail everywhere."""
    picture = Image.effect_mandelbrot(SIZE, (-2, -1, 1, 1), 40).convert(mode)
    written = io.BytesIO()
    picture.save(written, kind)
    return written.getvalue()


WHOLE = {kind: drawn(kind) for kind in PICTURES}


@pytest.fixture(params=[*PICTURES])
def kind(request):
    return request.param


def written(tmp_path, content):
    path = tmp_path / "output.png"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("makes", ["picture", None])
def test_a_whole_picture_is_described(tmp_path, kind, makes):
    """Size and kind match the content of the file; a picture has one frame and no duration."""
    info, _ = examine_output(written(tmp_path, WHOLE[kind]), makes)
    assert (info.width, info.height, info.frames, info.duration) == (*SIZE, 1, 0.0)
    assert info.codec == kind


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1"])
def test_a_png_of_any_colours_is_taken(tmp_path, mode):
    """A picture with a palette, an alpha channel or only grey is complete, and has a poster."""
    path = written(tmp_path, drawn("png", mode))
    info, poster = examine_output(path, "picture")
    assert info.codec == "png"
    assert poster.startswith(b"\xff\xd8\xff")


@pytest.mark.parametrize("name", [*PICTURES])
def test_the_decoder_describes_a_picture_and_draws_its_poster(name):
    """The functions of the decoder process work on an open file."""
    file = io.BytesIO(WHOLE[name])
    assert decoder.examine(file, "picture")[0]["codec"] == name
    facts, poster = decoder.examine(file, None, 48)
    assert facts["frames"] == 1
    assert poster.startswith(b"\xff\xd8\xff")
    for content, makes, reason in (
        (WHOLE[name], "video", "not an MP4"),
        (b"GIF89a", "picture", "not a PNG"),
        (WHOLE[name][:-9], "picture", "truncated|decoded"),
    ):
        with pytest.raises(decoder.InvalidVideo, match=reason):
            decoder.examine(io.BytesIO(content), makes)


@pytest.mark.parametrize("name", [*PICTURES])
@given(kept=st.floats(0.0, 1.0, exclude_max=True))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
def test_a_picture_that_was_cut_off_is_refused(tmp_path, name, kept):
    """A truncated picture is refused, wherever it was cut."""
    whole = WHOLE[name]
    path = written(tmp_path, whole[: int(len(whole) * kept)])
    with pytest.raises(InvalidOutput):
        examine_output(path, "picture")


@pytest.mark.parametrize("name", [*PICTURES])
@given(position=st.floats(0.0, 1.0, exclude_max=True), value=st.integers(0, 255))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=80)
def test_a_damaged_picture_never_breaks_the_inspection(tmp_path, name, position, value):
    """Every damaged file gives a picture or InvalidOutput; a changed PNG is always noticed."""
    damaged = bytearray(WHOLE[name])
    at = int(len(damaged) * position)
    was, damaged[at] = damaged[at], value
    try:
        described, _ = examine_output(written(tmp_path, damaged), "picture")
    except InvalidOutput:
        return
    assert described.width > 0
    assert name != "png" or was == value


def test_a_png_that_ends_without_its_image_is_refused(tmp_path):
    """A file with correct checksums and an end, but without data, is not a picture."""

    def chunk(name, content):
        summed = name + content
        return struct.pack(">I", len(content)) + summed + struct.pack(">I", zlib.crc32(summed))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0))
    empty = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IEND", b"")
    with pytest.raises(ValueError, match="cannot be decoded"):
        pictures.decode(io.BytesIO(empty), "png")
    with pytest.raises(InvalidOutput, match="cannot be decoded"):
        examine_output(written(tmp_path, empty), "picture")


def test_a_jpeg_without_its_end_is_refused():
    """Compressed data that runs to the end of the file has no end marker."""
    whole = WHOLE["jpeg"]
    with pytest.raises(ValueError, match="truncated"):
        pictures.require_end(io.BytesIO(whole[:-2]), "jpeg")
    pictures.require_end(io.BytesIO(whole + b"appended"), "jpeg")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (WHOLE["png"][:-12], "truncated"),
        (WHOLE["png"][:-20], "truncated"),
        (WHOLE["png"][:60] + b"?" + WHOLE["png"][61:], "a checksum is wrong at byte"),
    ],
)
def test_each_part_of_a_png_is_checked(content, reason):
    """A missing part, half of a part and a changed byte are told apart."""
    with pytest.raises(ValueError, match=reason):
        pictures.require_end(io.BytesIO(content), "png")


def test_a_huge_file_is_not_read(monkeypatch):
    """A file that is larger than any picture is refused before it is read."""
    monkeypatch.setattr(pictures, "MAX_SIZE", 10)
    with pytest.raises(ValueError, match="more than 10"):
        pictures.require_end(io.BytesIO(WHOLE["png"]), "png")


@pytest.mark.parametrize(
    ("content", "makes", "reason"),
    [
        (WHOLE["png"], "video", "not an MP4 or WebM"),
        (b"GIF89a and so on", "picture", "not a PNG, JPEG or WebP; it begins with b'GIF89a"),
        (b"<!doctype html>", "picture", "not a PNG, JPEG or WebP"),
        (b"<!doctype html>", None, "not an MP4 or WebM"),
    ],
)
def test_a_file_of_another_kind_is_refused(tmp_path, content, makes, reason):
    """A route that makes videos delivers no picture, and the other way round."""
    with pytest.raises(InvalidOutput, match=reason):
        examine_output(written(tmp_path, content), makes)


def test_a_video_of_an_unknown_route_is_taken(clips):
    """A generation whose route is not known may have made either kind of file."""
    assert examine_output(clips / "clip.mp4", None)[0].codec == "h264"
    with pytest.raises(InvalidOutput, match="not a PNG, JPEG or WebP"):
        examine_output(clips / "clip.mp4", "picture")


def test_the_poster_of_a_picture_is_a_scaled_copy(tmp_path, kind):
    """The poster has the requested width and the proportions of the picture."""
    _, drawn = examine_output(written(tmp_path, WHOLE[kind]), None, poster_width=48)
    with Image.open(io.BytesIO(drawn)) as poster:
        assert (poster.format, poster.size) == ("JPEG", (48, 32))
