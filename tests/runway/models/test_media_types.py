# SPDX-License-Identifier: Apache-2.0
"""The type of a source is recognised by its content."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_cometapi.runway.models.media_types import media_type_of, problem_of_type, usual_type

from ...pictures import animation, picture

BOX = b"\0\0\0\x18"
CONVERT = "but Runway takes only JPEG, PNG and WebP, so convert it first"
CONTENT = {
    "image/jpeg": picture("JPEG"),
    "image/png": picture("PNG"),
    "image/webp": picture("WEBP"),
    "image/gif": animation("GIF"),
    "image/bmp": picture("BMP"),
    "image/tiff": picture("TIFF"),
    "image/avif": BOX + b"ftypavif",
    "image/heic": BOX + b"ftypheic",
    "image/svg+xml": b"\xef\xbb\xbf <?xml version='1.0'?>\n<svg/>",
    "image/jxl": b"\0\0\0\x0cJXL \r\n\x87\n",
    "image/jp2": b"\0\0\0\x0cjP  \r\n\x87\n",
    "image/vnd.adobe.photoshop": b"8BPS\0\x01",
    "video/mp4": BOX + b"ftypisom",
    "video/quicktime": BOX + b"ftypqt  ",
    "video/3gpp": BOX + b"ftyp3gp5",
    "video/webm": b"\x1aE\xdf\xa3\x01\x42\x82\x84webm",
    "video/x-matroska": b"\x1aE\xdf\xa3\x01\x42\x82\x88matroska",
    "video/ogg": b"OggS\0",
    "video/x-msvideo": b"RIFF\0\0\0\0AVI LIST",
    "video/x-flv": b"FLV\x01\x05",
    "video/mpeg": b"\0\0\x01\xba",
}


@pytest.mark.parametrize("media_type", CONTENT)
def test_a_type_is_recognised_by_the_first_bytes(media_type):
    """The suffix and the label of a file play no role."""
    assert media_type_of(CONTENT[media_type]) == media_type


@pytest.mark.parametrize("content", [b"", b"<html>", b"%PDF-1.7", b"RIFF\0\0\0\0WAVE", b"\0" * 99])
def test_other_content_is_no_known_type(content):
    """A text, a PDF or a sound is neither an image nor a video."""
    assert media_type_of(content) is None


@pytest.mark.parametrize(
    ("head", "media_type"),
    [
        (BOX + b"ftypmif1\0\0\0\0mif1avif", "image/avif"),
        (BOX + b"ftypmif1\0\0\0\0mif1heic", "image/heic"),
        (b"\0\0\0\x10ftypmif1\0\0\0\0\0\0\0\x08avif", "image/heic"),
        (b"<?xml version='1.0'?><html/>", None),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image/svg+xml"),
    ],
)
def test_a_container_of_several_types_is_read_further(head, media_type):
    """Phones write HEIC and AVIF under one general brand, and XML may hold anything."""
    assert media_type_of(head) == media_type


def test_a_usual_label_is_written_as_it_is_registered():
    """Windows and some servers call a JPEG image/jpg."""
    assert [usual_type(it) for it in ("image/jpg", "image/x-png", "video/mp4")] == [
        "image/jpeg",
        "image/png",
        "video/mp4",
    ]


def test_an_old_film_without_a_type_box_is_recognised():
    """QuickTime files of the last century begin with their content."""
    assert media_type_of(BOX + b"moov") == "video/quicktime"


@given(content=st.binary(max_size=40), kind=st.sampled_from(["image", "video"]))
def test_a_type_is_accepted_only_in_a_field_of_its_kind(content, kind):
    """Any bytes at all lead to a type of the field's kind, or to a reason."""
    media_type = media_type_of(content)
    accepted = problem_of_type(media_type, kind) is None
    assert not accepted or str(media_type).startswith(kind)


@pytest.mark.parametrize(
    ("media_type", "kind", "problem"),
    [
        (None, "image", "its content is not a JPEG, PNG or WebP"),
        (None, "video", "its content is not a video that this package knows"),
        ("image/gif", "image", f"it is image/gif, {CONVERT}"),
        ("video/mp4", "image", "it is video/mp4, but the field takes an image"),
        ("image/png", "video", "it is image/png, but the field takes a video"),
        ("image/webp", "image", None),
        ("video/x-matroska", "video", None),
    ],
)
def test_the_reason_says_what_it_is_and_what_is_taken(media_type, kind, problem):
    """A wrong file is named by what is in it."""
    assert problem_of_type(media_type, kind) == problem
