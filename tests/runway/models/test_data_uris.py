# SPDX-License-Identifier: Apache-2.0
"""A data URI is read however it is written, and its type comes from its content."""

import base64
import textwrap
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from prefect_cometapi.runway import ImageToVideoRequest, VideoToVideoRequest
from prefect_cometapi.runway.models.data_uris import checked_data_uri, data_uri_of_base64

from ...pictures import animation, picture

FILM = b"\0\0\0\x18ftypisom" + b"\xfb\xff" * 60
PICTURES = {"jpeg": picture("JPEG"), "png": picture("PNG"), "webp": picture("WEBP")}


def as_base64(content: bytes) -> str:
    """Return content in base64."""
    return base64.b64encode(content).decode()


WAYS = {
    "the usual one": lambda data: f"data:image/png;base64,{data}",
    "image/jpg": lambda data: f"data:image/jpg;base64,{data}",
    "upper case": lambda data: f"DATA:IMAGE/JPG;BASE64,{data}",
    "the name of the file": lambda data: f"data:image/png;name=cat.jfif;base64,{data}",
    "no type": lambda data: f"data:;base64,{data}",
    "any type": lambda data: f"data:application/octet-stream;base64,{data}",
    "a film's type": lambda data: f"data:video/mp4;base64,{data}",
    "wrapped": lambda data: f"data:image/png;base64,\n{textwrap.fill(data, 76)}\r\n",
    "for URLs": lambda data: f"data:image/png;base64,{data.translate(str.maketrans('+/', '-_'))}",
    "no padding": lambda data: f"data:image/png;base64,{data.rstrip('=')}",
    "escaped": lambda data: f"data:image/png;base64,{quote(data, safe='')}",
    "no head": lambda data: data,
    "no head, wrapped": lambda data: textwrap.fill(data, 76),
}


@pytest.mark.parametrize("kind", PICTURES)
@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_write_a_picture_is_the_same_request(way, kind):
    """The picture is sent with its own type, in plain base64, and has one fingerprint."""
    data = as_base64(PICTURES[kind])
    request = ImageToVideoRequest(prompt_image=WAYS[way](data))
    assert request.prompt_image == f"data:image/{kind};base64,{data}"
    assert request.stored_sources() == {}


@pytest.mark.parametrize(
    ("uri", "problem"),
    [
        ("data:image/heic;base64,AAAA", "it is image/heic, but Runway takes only JPEG, PNG"),
        ("data:image/svg+xml;utf8,<svg/>", "it is image/svg+xml, but Runway takes only"),
        ("data:image/svg+xml,%3Csvg/%3E", "it is image/svg+xml, but Runway takes only"),
        (f"data:image/png;base64,{as_base64(b'<svg/>')}", "it is image/svg+xml, but"),
        (f"data:image/jpeg;base64,{as_base64(animation('GIF'))}", "it is image/gif, but"),
        (f"data:image/webp;base64,{as_base64(picture('TIFF'))}", "it is image/tiff, but"),
        (f"data:image/png;base64,{as_base64(FILM)}", "it is video/mp4, but the field takes an"),
        ("data:text/plain;base64,AAAA", "data:image/<type>;base64,<data>"),
        ("data:image/png;base64,", "data:image/<type>;base64,<data>"),
        ("data:image/png;base64", "data:image/<type>;base64,<data>"),
        ("data:image/png,meow", "data:image/<type>;base64,<data>"),
        ("data:image/png;base64,m§§w", "is not valid base64"),
        ("data:image/png;base64,mééw", "is not valid base64"),
    ],
)
def test_what_runway_does_not_take_is_refused_with_the_reason(uri, problem):
    """The content decides, and then the label."""
    with pytest.raises(ValidationError) as caught:
        ImageToVideoRequest(prompt_image=uri)
    assert problem in str(caught.value)


def test_a_film_is_read_in_the_same_way():
    """A picture in place of a film is named."""
    data = as_base64(FILM)
    for written in (f"data:video/quicktime;base64,{data}", data):
        request = VideoToVideoRequest(video_uri=written, prompt_text="rain")
        assert request.video_uri == f"data:video/mp4;base64,{data}"
    with pytest.raises(ValidationError, match="it is image/png, but the field takes a video"):
        VideoToVideoRequest(
            video_uri=f"data:video/mp4;base64,{as_base64(picture())}", prompt_text="rain"
        )


def test_content_that_nobody_knows_keeps_its_label():
    """The service may take more than this package knows."""
    assert checked_data_uri("data:image/jpg;base64,QUJD", "image") == "data:image/jpeg;base64,QUJD"


@pytest.mark.parametrize(
    "text",
    ["cat.png", "a" * 100, "pictures/" * 20, "/9j/4AAQ", f"{as_base64(FILM)[:90]}.mp4", "A" * 65],
)
def test_a_path_is_never_taken_for_a_picture(text):
    """Only base64 of a picture or a film is one."""
    assert data_uri_of_base64(text, "image") is None
    if "." not in text:
        assert ImageToVideoRequest(prompt_image=text).stored_sources() == {"promptImage": text}


def test_a_picture_that_breaks_off_in_its_base64_is_a_path_that_is_too_long():
    """It cannot be read as a picture, and no part of it is repeated."""
    text = f"{as_base64(picture())}§{'A' * 5000}"
    with pytest.raises(ValidationError, match="a path may have at most 4096 characters") as caught:
        ImageToVideoRequest(prompt_image=text)
    assert "iVBOR" not in str(caught.value)


@given(content=st.binary(max_size=60), label=st.sampled_from(["image/png", "image/jpg", ""]))
def test_no_content_of_a_data_uri_changes_on_its_way(content, label):
    """The content is sent, or nothing."""
    try:
        sent = checked_data_uri(f"data:{label};base64,{as_base64(content)}", "image")
    except ValueError:
        return
    assert base64.b64decode(sent.partition(",")[2]) == content
