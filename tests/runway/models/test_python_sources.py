# SPDX-License-Identifier: Apache-2.0
"""Python code passes a picture or a film as it has it, and each wrong one is told the way out."""

import base64
import io
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from pydantic import ValidationError

from prefect_cometapi.runway import (
    FetchedVideo,
    GenerationResult,
    ImageToVideoRequest,
    StoredVideo,
    VideoToVideoRequest,
)
from prefect_cometapi.runway.models.generation import Status
from prefect_cometapi.runway.models.python_sources import recordable

from ...pictures import picture

PNG = picture()
FACTS: dict[str, Any] = {
    "sha256": "a" * 64,
    "size": 9,
    "width": 64,
    "height": 48,
    "duration": 1.0,
    "frames": 24,
    "codec": "h264",
}
FILM = StoredVideo(**FACTS, uri="/videos/a.mp4", sidecar="/videos/a.json", poster="/videos/a.jpg")
PICTURE = StoredVideo.model_validate(
    {
        **FACTS,
        "media_type": "image/png",
        "uri": "s3://bucket/a.png",
        "sidecar": "s3://bucket/a.json",
    }
)


def result(*videos: StoredVideo) -> GenerationResult:
    return GenerationResult(
        idempotency_key="sku",
        task_id="task-1",
        status=Status.SUCCEEDED,
        videos=videos,
        polls=1,
        waited=1.0,
        submitted_at=datetime.now(UTC),
    )


def image(source: Any) -> str:
    return str(ImageToVideoRequest(prompt_image=source).prompt_image)


def film(source: Any) -> str:
    return VideoToVideoRequest(video_uri=source, prompt_text="rain").video_uri


def data(content: bytes, media_type: str = "image/png") -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


@pytest.mark.parametrize(
    ("path", "written"),
    [
        (Path("cat.png"), "cat.png"),
        (Path("/data/cat.png"), "/data/cat.png"),
        (Path("~/cat.png"), "~/cat.png"),
        (Path("assets/in/cat.png"), "./assets/in/cat.png"),
        (Path("noon:30.png"), "./noon:30.png"),
    ],
)
def test_a_path_is_read_as_a_file_and_never_as_a_block(path, written):
    """A path object is a file of this machine, also where its text would be something else."""
    assert image(path) == written
    assert ImageToVideoRequest(prompt_image=path).stored_sources() == {"promptImage": written}


@pytest.mark.parametrize(
    "given",
    [
        PNG,
        bytearray(PNG),
        memoryview(PNG),
        (PNG, "image/png"),
        ("cat.jpg", PNG, "image/jpg"),
        io.BytesIO(PNG),
    ],
)
def test_bytes_are_sent_with_the_type_of_their_content(given):
    """A type beside the bytes is not needed, and a wrong one does no harm."""
    assert image(given) == data(PNG)


def test_an_open_file_may_be_validated_twice(tmp_path):
    """Its position stays, so that a flow that validates its request again reads the same."""
    (tmp_path / "cat").write_bytes(PNG)
    with (tmp_path / "cat").open("rb") as file:
        assert image(file) == image(file) == data(PNG)


class Pipe(io.RawIOBase):
    """Stream that can be read once."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        part, self.content = self.content[: len(buffer)], self.content[len(buffer) :]
        buffer[: len(part)] = part
        return len(part)


def test_a_stream_that_cannot_go_back_is_read_once():
    """The answer of a server is such a stream."""
    assert image(io.BufferedReader(Pipe(PNG))) == data(PNG)


@pytest.mark.parametrize(
    ("mode", "own", "sent"),
    [
        ("RGB", None, "PNG"),
        ("RGBA", None, "PNG"),
        ("CMYK", None, "PNG"),
        ("P", "GIF", "PNG"),
        ("RGB", "JPEG", "JPEG"),
        ("RGBA", "JPEG", "PNG"),
        ("RGB", "WEBP", "WEBP"),
    ],
)
def test_a_picture_of_pillow_is_sent_in_a_format_that_runway_takes(mode, own, sent):
    """A picture keeps its own format if Runway takes that."""
    given = Image.new(mode, (64, 48))
    given.format = own
    media_type, _, content = image(given).partition(";base64,")
    assert media_type == f"data:image/{sent.lower()}"
    with Image.open(io.BytesIO(base64.b64decode(content))) as read:
        assert (read.format, read.size) == (sent, (64, 48))


def test_a_picture_that_pillow_cannot_write_is_refused(monkeypatch):
    """The error names the format."""
    given = Image.new("RGB", (8, 8))
    monkeypatch.setattr(given, "save", lambda *_, **__: exec("raise OSError"))
    with pytest.raises(ValidationError, match="the picture cannot be written as PNG: OSError"):
        image(given)


def test_a_stored_file_is_the_source_of_the_next_request():
    """A result stands for its first output of the kind that the field takes."""
    fetched = FetchedVideo(**FACTS, path="/staging/a.mp4")
    assert film(FILM) == film(result(PICTURE, FILM)) == "/videos/a.mp4"
    assert film(fetched) == "/staging/a.mp4"
    assert image(PICTURE) == image(result(FILM, PICTURE)) == "s3://bucket/a.png"
    as_json = result(FILM).model_dump(mode="json")
    assert film(as_json) == film(as_json["videos"][0]) == "/videos/a.mp4"


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        (7, "must be a URL, a data URI, a path, an address of an object store"),
        ([7], "valid dictionary"),
        ({"url": "cat.png"}, "a stored result, and not dict"),
        ({"videos": 7}, "a stored result, and not dict"),
        ((PNG, PNG), "a stored result, and not tuple"),
        (b"", "is empty"),
        (b"text", "its content is not a JPEG, PNG or WebP"),
        (b"\0\0\0\x18ftypheic", "it is image/heic, but Runway takes only"),
        (bytes(5_000_001), "5,000,001; pass an https:// URL, or an address of an object store"),
        (io.BytesIO(bytes(6_000_000)), "at most 5,000,000 bytes of image"),
        (io.BytesIO(), "call seek(0), or pass its path"),
        (io.StringIO("cat"), "must be opened with 'rb'"),
        (FILM, "it is video/mp4, but the field takes an image; its poster is a picture"),
        (result(FILM), "generation task-1 has no picture (it has video/mp4)"),
        (result(), "has no picture (it has nothing yet), but the field takes an image"),
    ],
)
def test_what_cannot_be_a_source_is_told_the_way_out(given, problem):
    """The message says what is wrong, and what may be passed in its place."""
    with pytest.raises(ValidationError) as caught:
        image(given)
    assert problem in str(caught.value)


def test_a_closed_file_is_refused(tmp_path):
    """Nothing of it can be read."""
    closed = io.BytesIO(PNG)
    closed.close()
    with pytest.raises(ValidationError, match="the open file cannot be read: ValueError"):
        image(closed)


def test_bytes_are_recorded_by_their_size_only():
    """The record of a run names them; texts and results stay as they are."""
    given = {
        "promptImage": PNG,
        "references": [{"uri": io.BytesIO(PNG)}, (PNG, "image/png"), Image.new("RGB", (8, 8))],
        "text": "rain",
        "bare": base64.b64encode(PNG).decode(),
        "result": FILM,
    }
    size = f"<{len(PNG):,} bytes>"
    assert recordable(given) == {
        "promptImage": size,
        "references": [{"uri": "<BytesIO>"}, [size, "image/png"], "<Image>"],
        "text": "rain",
        "bare": f"<{len(given['bare']):,} characters of base64>",
        "result": FILM,
    }
