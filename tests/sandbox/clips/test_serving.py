# SPDX-License-Identifier: Apache-2.0
"""Outputs are served as by a CDN."""

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_cometapi.sandbox.clips.serving import byte_range


@pytest.fixture
def output(talk):
    """Return the URL of a finished clip."""
    conversation = talk()
    return conversation.output(conversation.finished())


def test_a_clip_comes_whole(output):
    """A plain GET returns the video with its length and a strong ETag, without a key."""
    answer = httpx.get(output)
    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == "video/mp4"
    assert int(answer.headers["Content-Length"]) == len(answer.content)
    assert answer.headers["ETag"].startswith('"')
    assert answer.headers["Accept-Ranges"] == "bytes"


def test_head_says_what_get_would_bring(output):
    """HEAD has the headers of a GET and no body."""
    head, get = httpx.head(output), httpx.get(output)
    assert head.content == b""
    for name in ("Content-Length", "ETag", "Content-Type"):
        assert head.headers[name] == get.headers[name]


@pytest.mark.parametrize(
    ("asked", "part"),
    [
        ("bytes=100-", slice(100, None)),
        ("bytes=0-9", slice(0, 10)),
        ("bytes=-7", slice(-7, None)),
        ("bytes=5-99999999", slice(5, None)),
    ],
)
def test_a_part_can_be_asked_for(output, asked, part):
    """A Range request is answered with 206, the part and its position."""
    whole = httpx.get(output).content
    answer = httpx.get(output, headers={"Range": asked})
    assert answer.status_code == 206
    assert answer.content == whole[part]
    first, last, _ = part.indices(len(whole))
    assert answer.headers["Content-Range"] == f"bytes {first}-{last - 1}/{len(whole)}"


def test_a_download_can_be_resumed_only_of_the_same_file(output):
    """If-Range returns the rest if the ETag matches, and everything if it does not."""
    etag = httpx.get(output).headers["ETag"]
    rest, whole = (
        httpx.get(output, headers={"Range": "bytes=9-", "If-Range": condition})
        for condition in (etag, '"another"')
    )
    assert (rest.status_code, whole.status_code) == (206, 200)
    assert rest.content == whole.content[9:]


def test_a_part_behind_the_end_cannot_be_had(output):
    """A range beyond the end is answered with 416 and the length of the file."""
    size = len(httpx.get(output).content)
    answer = httpx.get(output, headers={"Range": f"bytes={size}-"})
    assert answer.status_code == 416
    assert answer.headers["Content-Range"] == f"bytes */{size}"


@pytest.mark.parametrize(
    "asked",
    [
        *("bytes=-", "bytes=1-2,4-5", "bytes=5-2", "items=1-2", "x"),
        *(f"bytes={'9' * 5000}-", f"bytes=0-{'9' * 5000}", f"bytes=-{'9' * 5000}"),
    ],
    ids=lambda asked: asked[:15],
)
@pytest.mark.heavy
def test_a_range_that_cannot_be_read_is_ignored(output, asked):
    """An invalid Range header returns the whole file."""
    assert httpx.get(output, headers={"Range": asked}).status_code == 200


@given(st.binary(min_size=1, max_size=50), st.integers(0, 60), st.integers(0, 60))
def test_parts_are_what_slices_are(content, first, last):
    """Every valid range is the slice of the same positions, or empty."""
    part = byte_range(f"bytes={first}-{last}", len(content))
    if first > last:
        assert part == "none"
    elif first >= len(content):
        assert part == "unsatisfiable"
    else:
        assert part == (first, min(last, len(content) - 1))


def test_a_signed_url_expires_and_a_fresh_one_works(talk):
    """Each reply of a task signs the output for `asset_ttl` seconds."""
    lasting, fleeting = talk(), talk(asset_ttl=0)
    task_id = lasting.finished()
    one, other = lasting.output(task_id), lasting.output(task_id)
    assert one != other
    assert [httpx.get(url).status_code for url in (one, other)] == [200, 200]
    assert httpx.get(fleeting.output(fleeting.finished())).status_code == 403


@pytest.mark.parametrize("spoil", [lambda url: url[:-4], lambda url: url.partition("?")[0]])
def test_an_unsigned_url_is_denied(output, spoil):
    """Without its token, or with an invalid one, an output is denied."""
    answer = httpx.get(spoil(output))
    assert answer.status_code == 403
    assert "AccessDenied" in answer.text


def test_a_token_opens_one_output_only(talk):
    """A token of one job is refused for another job's output."""
    conversation = talk()
    one, other = (conversation.output(conversation.finished()) for _ in range(2))
    mixed = one.partition("?")[0] + "?" + other.partition("?")[2]
    assert httpx.get(mixed).status_code == 403


def test_an_output_that_was_forgotten_is_gone(talk):
    """A valid URL of an output that was dropped from the cache is a 404."""
    conversation = talk()
    url = conversation.output(conversation.finished())
    conversation.sandbox.clear()
    assert httpx.get(url).status_code == 404
