# SPDX-License-Identifier: Apache-2.0
"""A poster shows a film as a player does: turned, mirrored and with the shape of its pixels."""

import io
import re
from functools import cache
from typing import Any

import av
import pytest
from PIL import Image, ImageChops, ImageStat

from prefect_cometapi.runway.media import decoder
from prefect_cometapi.runway.media.decoder import InvalidVideo, examine, orientation_of

from .films import film, turned

Turn = Image.Transpose
TURNS: list[tuple[tuple[float, float, float, float], Turn | None]] = [
    ((1, 0, 0, 1), None),
    ((0, 1, -1, 0), Turn.ROTATE_270),
    ((-1, 0, 0, -1), Turn.ROTATE_180),
    ((0, -1, 1, 0), Turn.ROTATE_90),
    ((-1, 0, 0, 1), Turn.FLIP_LEFT_RIGHT),
    ((1, 0, 0, -1), Turn.FLIP_TOP_BOTTOM),
    ((0, 1, 1, 0), Turn.TRANSPOSE),
    ((0, -1, -1, 0), Turn.TRANSVERSE),
    ((0.98, 0.17, -0.17, 0.98), None),
    ((0, 0, 0, 0), None),
]

whole = cache(film)


def poster(content: bytes, width: int = 64) -> Image.Image:
    _, drawn = examine(io.BytesIO(content), None, width)
    return Image.open(io.BytesIO(drawn)).convert("RGB")


def difference(one: Image.Image, other: Image.Image) -> float:
    """Return the mean difference of two pictures, from 0 to 255."""
    assert one.size == other.size
    return max(ImageStat.Stat(ImageChops.difference(one, other)).mean)


@pytest.mark.parametrize(("matrix", "turn"), TURNS)
def test_a_poster_is_turned_as_its_film(matrix, turn):
    """A film of a telephone is stored lying down, with a note how to turn it."""
    plain, shown = (
        poster(whole("index first.mp4")),
        poster(turned(whole("index first.mp4"), *matrix)),
    )
    expected = plain.transpose(turn) if turn is not None else plain
    if expected.size != plain.size:
        expected, shown = expected.resize((48, 64)), shown.resize((48, 64))
    assert difference(expected, shown) < 12
    others = [each for _, each in TURNS if each not in {turn, None}]
    assert all(
        difference(expected, shown) < difference(plain.transpose(each), shown)
        for each in others
        if each is not None and plain.transpose(each).size == shown.size
    )


def test_a_poster_has_the_shape_of_the_films_pixels():
    """A film with pixels twice as wide as high has a poster in the proportions that are seen."""
    assert poster(whole("wide pixels.mp4")).size == (64, 24)


@pytest.mark.parametrize("name", ["index first.mp4", "fragments.mp4", "hevc.mp4"])
def test_the_size_of_a_film_is_that_of_its_frames(name):
    """A header that states another size is not believed."""
    content = whole(name)
    entry = re.search(rb"(avc1|hev1).{24}\0\x40\0\x30", content, re.DOTALL)
    assert entry
    wrong = content[: entry.end() - 4] + b"\0\x80\0\x60" + content[entry.end() :]
    for width in (0, 64):
        facts, _ = examine(io.BytesIO(wrong), "video", width)
        assert (facts["width"], facts["height"]) == (64, 48)


def test_a_frame_is_decoded_once(monkeypatch):
    """A file is opened without a decoded frame, if one is decoded for its poster anyway."""
    content, known = whole("index last.mp4"), []

    def spied(*arguments: Any, open_: Any = av.open, **options: Any) -> Any:
        container = open_(*arguments, **options)
        known.append(container.streams.video[0].codec_context.pix_fmt)
        return container

    monkeypatch.setattr(av, "open", spied)
    for width in (0, 64):
        examine(io.BytesIO(content), "video", width)
    assert known == ["yuv420p", None]  # the format of pixels is known from a decoded frame


def test_an_absurd_shape_of_pixels_is_not_believed(monkeypatch):
    """The height of a poster stays within bounds."""
    monkeypatch.setattr(decoder, "MAX_PIXEL_RATIO", 1.5)
    assert poster(whole("wide pixels.mp4")).size == (64, 48)


def test_a_picture_is_turned_as_its_camera_says():
    """Photographs carry their orientation too."""
    photograph, exif = Image.new("RGB", (96, 64)), Image.Exif()
    exif[0x0112] = 6
    written = io.BytesIO()
    photograph.save(written, "JPEG", exif=exif)
    assert poster(written.getvalue()).size == (64, 96)


@pytest.mark.parametrize("name", ["cover first.mp4", "cover first.mov", "cover first.mkv"])
def test_a_poster_shows_the_film_and_not_its_cover(name):
    """The cover is black and listed first."""
    assert max(ImageStat.Stat(poster(whole(name))).stddev) > 20


def test_a_film_that_begins_late_has_a_poster_of_its_middle():
    """The time of the first frame need not be zero."""
    assert difference(poster(whole("late.mp4")), poster(whole("no B-frames.mp4"))) < 12


def test_a_film_whose_middle_cannot_be_decoded_has_a_poster_of_its_beginning():
    """One damaged frame does not cost the poster."""
    content = bytearray(whole("no B-frames.mp4"))
    start = content.index(b"mdat") + 4
    end = content.index(b"moov") - 4
    middle = start + (end - start) * 2 // 5
    content[middle:end] = b"\x01" * (end - middle)
    assert poster(bytes(content)).size == (64, 48)
    content[start:end] = b"\x01" * (end - start)
    with pytest.raises(InvalidVideo):
        poster(bytes(content))


def test_a_key_frame_that_cannot_be_decoded_does_not_cost_the_poster():
    """The poster then shows the first frame that can be decoded."""
    content = whole("vp8.webm")
    opened: Any = av.open(io.BytesIO(content))
    with opened as container:
        first, *later = [bytes(packet) for packet in container.demux() if packet.is_keyframe]
    head, _, tail = content.partition(first)
    for key_frame in later:
        tail = tail.replace(key_frame, key_frame[:1] + b"\x01" * (len(key_frame) - 1))
    assert poster(head + first + tail).size == (64, 48)


def test_an_orientation_is_known_without_a_film():
    """A matrix is read to the nearest right angle."""
    assert orientation_of(bytes(36)) == (False, False, False)
