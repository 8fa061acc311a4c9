# SPDX-License-Identifier: Apache-2.0
"""A truncated or incomplete film is refused, and a complete one never is."""

import io
import re
import struct
from functools import cache
from types import SimpleNamespace
from typing import Any

import av
import pytest
from av.stream import Disposition
from hypothesis import example, given
from hypothesis import strategies as st

from prefect_cometapi.runway.media import decoder
from prefect_cometapi.runway.media.decoder import InvalidVideo, examine_video

from .films import FILMS, film

whole = cache(film)
LIVE = [name for name in FILMS if "live" in name]
FRAGMENTED = [name for name in FILMS if "fragments" in name]
CUT = [name for name in FILMS if name not in {*LIVE, *FRAGMENTED}]
FILLED = [name for name in FILMS if "av1" not in name and "one frame" not in name]
GAPS = ["index first.mp4", "fragments.mp4", "vp8.webm", "live.webm"]
DAMAGED = ["fragments with indexes.mp4", "live with sound.webm", "sound.mp4"]
places = st.integers(0, 10**9)


def inspected(content: bytes) -> dict[str, object]:
    return examine_video(io.BytesIO(content))[0]


def boxes(content: bytes) -> list[tuple[int, bytes]]:
    """Return the names and positions of the boxes of an MP4."""
    found, at = [], 0
    while at < len(content):
        found.append((at, content[at + 4 : at + 8]))
        at += int.from_bytes(content[at : at + 4])
    return found


@cache
def elements(content: bytes) -> list[int]:
    """Return the ends of packets; FFmpeg reports where one of a WebM begins, before its header."""
    head = 0 if content[4:8] == b"ftyp" else 4
    opened: Any = av.open(io.BytesIO(content))
    with opened as container:
        return [packet.pos + head + packet.size for packet in container.demux() if packet.size]


@pytest.mark.parametrize("name", FILMS)
def test_a_whole_film_is_never_refused(name):
    """Films of any encoder, container, sound and layout are accepted."""
    assert inspected(whole(name))["frames"] == FILMS[name].get("frames", 48)


@given(name=st.sampled_from(CUT), place=places)
def test_a_film_that_was_cut_in_its_last_two_percent_is_refused(name, place):
    """A film is refused if a single byte or an optional index is missing."""
    content = whole(name)
    with pytest.raises(InvalidVideo):
        inspected(content[: -1 - place % max(1, len(content) // 50)])


@given(name=st.sampled_from([*CUT, *FRAGMENTED, *LIVE]), place=places)
def test_a_film_that_was_cut_anywhere_is_refused(name, place):
    """A cut is accepted only between fragments or live WebM blocks, where a film could end."""
    content = whole(name)
    kept = place % len(content)
    ends = [at for at, _ in boxes(content)] if name in FRAGMENTED else []
    if kept in (ends if name in FRAGMENTED else elements(content) if name in LIVE else []):
        return
    with pytest.raises(InvalidVideo):
        inspected(content[:kept])


@given(name=st.sampled_from([*FRAGMENTED, *LIVE]), place=places)
def test_a_fragmented_film_that_was_cut_near_its_end_is_refused(name, place):
    """A cut between two fragments or blocks is accepted, because no length shows it."""
    content = whole(name)
    kept = len(content) - 1 - place % (len(content) // 50)
    ends = [at for at, _ in boxes(content)] if name in FRAGMENTED else elements(content)
    if kept in ends:
        return
    with pytest.raises(InvalidVideo, match=r"truncated|not a readable video"):
        inspected(content[:kept])


def test_a_film_with_an_index_of_its_fragments_is_refused_if_one_is_missing():
    """The index shows a cut between two fragments."""
    content = whole("fragments with an index.mp4")
    found = boxes(content)
    last = max(at for at, kind in found if kind == b"mdat")
    for at, kind in found:
        if kind in {b"moof", b"mdat"} and at <= last:
            with pytest.raises(InvalidVideo, match="truncated"):
                inspected(content[:at])


def with_stated_duration(content: bytes, seconds: float, version: int) -> bytes:
    """Add the box with the duration of all fragments (mehd); the time scale is 1000."""
    ticks = struct.pack(">Q" if version else ">I", round(seconds * 1000))
    stated = struct.pack(">I4sI", 12 + len(ticks), b"mehd", version << 24) + ticks
    moov, mvex = content.index(b"moov") - 4, content.index(b"mvex") - 4
    grown = bytearray(content)
    for at in (moov, mvex):
        grown[at : at + 4] = (int.from_bytes(grown[at : at + 4]) + len(stated)).to_bytes(4)
    return bytes(grown[: mvex + 8] + stated + grown[mvex + 8 :])


@pytest.mark.parametrize("version", [0, 1])
def test_a_film_that_states_how_long_its_fragments_last_is_refused_if_one_is_missing(version):
    """The stated duration shows a cut between two fragments, to about one frame."""
    content = with_stated_duration(whole("fragments of one base.mp4"), 2.0, version)
    assert inspected(content)["frames"] == 48
    fragments = [at for at, kind in boxes(content) if kind == b"moof"]
    with pytest.raises(InvalidVideo, match=r"truncated: it has [0-9.]+ s of 2 s"):
        inspected(content[: fragments[-6]])


@pytest.mark.parametrize("name", ["small clusters.webm", "uneven.webm", "longer sound.webm"])
def test_a_live_film_that_states_its_duration_is_refused_if_a_cluster_is_missing(name):
    """The stated duration shows a cut between two clusters, although the segment has no length."""
    content = bytearray(whole(name))
    segment = content.index(b"\x18\x53\x80\x67")
    content[segment + 4 : segment + 12] = b"\x01" + b"\xff" * 7  # unknown length
    assert inspected(bytes(content))["frames"] == 48
    clusters = [found.start() for found in re.finditer(b"\x1f\x43\xb6\x75", content)]
    with pytest.raises(InvalidVideo, match=r"truncated: it has [0-9.]+ s of [0-9.]+ s"):
        inspected(bytes(content[: clusters[-4]]))


@given(name=st.sampled_from(FILLED), place=places)
def test_a_film_whose_last_kilobytes_are_zeros_is_refused(name, place):
    """A download may set the length first and never write the end."""
    content = whole(name)
    trailing = len(content) - max(elements(content))  # an index without media data
    zeros = trailing + 1024 + place % (len(content) - trailing - 2048)
    with pytest.raises(InvalidVideo):
        inspected(content[:-zeros] + bytes(zeros))


@given(name=st.sampled_from(GAPS), place=places)
@example(name="vp8.webm", place=3)  # the first block loses the number of its track
def test_a_film_with_a_gap_is_refused(name, place):
    """A download in parts may lack one of them."""
    content = whole(name)
    first = min(elements(content))
    at = first + place % (max(elements(content)) - first - 1024)
    with pytest.raises(InvalidVideo):
        inspected(content[:at] + bytes(1024) + content[at + 1024 :])


@pytest.mark.parametrize(
    "appended", [b"\n", b"\0" * 600, b"\0\0\0\x03junk" * 9, b"</body></html>\n"], ids=str
)
def test_what_was_appended_takes_nothing_away(appended):
    """The tables of the film show that it is complete."""
    assert inspected(whole("index first.mp4") + appended)["frames"] == 48


def test_what_follows_a_webm_takes_nothing_away():
    """The segment states its own end."""
    assert inspected(whole("vp8.webm") + b"\0" * 600)["frames"] == 48


def test_a_film_that_ends_with_the_file_is_whole():
    """A box may extend to the end of the file, and state its length in 64 bits."""
    content = whole("index first.mp4")
    free = next(at for at, kind in boxes(content) if kind == b"free")
    assert inspected(content[: free + 8] + bytes(4) + content[free + 12 :])["frames"] == 48
    length = len(content) - free
    wide = struct.pack(">I4sQ", 1, b"mdat", length)
    wide_content = content[:free] + wide + content[free + 16 :]
    assert inspected(wide_content)["frames"] == 48
    for kept in (*range(free + 8, free + 17), len(content) - 1):
        with pytest.raises(InvalidVideo):
            inspected(wide_content[:kept])
    with pytest.raises(InvalidVideo, match="truncated"):
        inspected(content[: free + 8] + bytes(4) + content[free + 12 : -1])


def test_a_film_without_the_box_of_its_type_is_read():
    """Old MOV files begin with another box."""
    content = whole("film.mov")
    _, (second, _), *_ = boxes(content)
    renamed = content[:4] + b"free" + content[8:]
    assert content[4:8] == b"ftyp"
    assert second
    assert inspected(renamed)["frames"] == 48


@given(name=st.sampled_from(DAMAGED), place=places, value=st.integers(0, 255))
def test_a_damaged_structure_never_breaks_the_inspection(name, place, value):
    """Every damaged file gives a film or is refused."""
    damaged = bytearray(whole(name))
    damaged[place % len(damaged)] = value
    try:
        assert inspected(bytes(damaged))["frames"]
    except InvalidVideo:
        return


def test_a_film_that_was_cut_in_the_name_of_a_fragment_is_refused():
    """The remaining bytes are too few for a box."""
    content = whole("fragments without an end.mp4")
    *_, last = [at for at, kind in boxes(content) if kind == b"moof"]
    for kept in range(last + 1, last + 8):
        with pytest.raises(InvalidVideo, match="truncated"):
            inspected(content[:kept])


def test_a_film_without_a_fragment_is_refused():
    """A valid header alone is not a film."""
    content = whole("fragments.mp4")
    first = next(at for at, kind in boxes(content) if kind == b"moof")
    with pytest.raises(InvalidVideo, match="it has no frames"):
        inspected(content[:first])


@pytest.mark.parametrize("head", [b"\x1aE\xdf\xa3\xff", b"\x1aE\xdf\xa3\0", b"\x1aE\xdf\xa3\x80\0"])
def test_what_is_no_element_is_refused(head):
    """A length that is missing, or unknown where it must be known, is an error."""
    with pytest.raises(InvalidVideo, match="element"):
        inspected(head + bytes(20))


def test_a_cover_picture_is_not_the_film():
    """A stream that is marked as a cover picture is not the film."""
    cover, film = (SimpleNamespace(disposition=one) for one in (Disposition.attached_pic, 0))
    container = SimpleNamespace(streams=SimpleNamespace(video=[cover, film]))
    assert decoder._films(container) == [film]


def test_a_live_film_that_was_cut_in_the_head_of_an_element_is_refused():
    """The name of the last element is present, but its length is missing."""
    content = whole("live.webm")
    cluster = content.index(b"\x1f\x43\xb6\x75")
    for kept in range(cluster + 1, cluster + 5):
        with pytest.raises(InvalidVideo, match="truncated"):
            inspected(content[:kept])
