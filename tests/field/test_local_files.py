# SPDX-License-Identifier: Apache-2.0
"""People name the wrong file, or a picture under any name; the content decides."""

import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from prefect_cometapi.flows.runtime.block_sources import open_source
from prefect_cometapi.flows.runtime.sync import run_sync
from prefect_cometapi.runway import (
    ImageToVideoRequest,
    InvalidSource,
    SourceUnavailable,
    VideoToVideoRequest,
)
from prefect_cometapi.runway.sources.preparation import PreparedRequest, prepare

from ..pictures import animation, picture

FILM = b"\0\0\0\x18ftypisom\0\0\0\0"
HEIC = b"\0\0\0\x18ftypheic\0\0\0\0"


def prepared(source: Any, *, video: bool = False) -> PreparedRequest:
    """Return a request with its file, as it is read right before the submission."""
    request = (
        VideoToVideoRequest(video_uri=source, prompt_text="rain")
        if video
        else ImageToVideoRequest(prompt_image=source)
    )
    return run_sync(prepare(request, open_source, 60))


@pytest.mark.parametrize("video", [False, True])
def test_a_text_is_no_picture_and_no_video(video):
    """The password file was named by mistake; the error names it, and nothing of it is sent."""
    with pytest.raises(InvalidSource, match=r"/etc/passwd cannot be used: its content is not a"):
        prepared("/etc/passwd", video=video)


@pytest.mark.parametrize(
    ("name", "content", "video", "problem"),
    [
        ("cat.jpg", picture("JPEG"), True, "it is image/jpeg, but the field takes a video"),
        ("film.mp4", FILM, False, "it is video/mp4, but the field takes an image"),
        ("photo.jpg", HEIC, False, "it is image/heic, but Runway takes only JPEG, PNG and WebP"),
        ("photo.png", HEIC.replace(b"heic", b"avif"), False, "it is image/avif, but Runway"),
        ("logo.png", b"<svg xmlns='http://www.w3.org/2000/svg'/>", False, "it is image/svg+xml"),
        ("cat.webp", animation("GIF"), False, "it is image/gif, but Runway takes only"),
        ("scan.jpg", picture("TIFF"), False, "it is image/tiff, but Runway takes only"),
        ("photo", HEIC + bytes(6_000_000), False, "it is image/heic"),
        ("page.png", b"<!doctype html><title>404</title>", False, "its content is not a JPEG"),
        ("talk.mp4", b"ID3\x04\0\0", True, "its content is not a video that"),
        ("pointer.png", b"version https://git-lfs.github.com/spec/v1\n", False, "its content is"),
        ("nothing.png", b"", False, "nothing.png is empty"),
    ],
)
def test_a_file_under_a_wrong_name_is_told_by_its_path(tmp_path, name, content, video, problem):
    """The message has the path and what the file is, also where the file is too large."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidSource) as caught:
        prepared(tmp_path / name, video=video)
    assert f"{tmp_path / name} " in caught.value.message
    assert problem in caught.value.message
    assert "Money: nothing was charged." in str(caught.value)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("cat.webp", "WEBP"),
        ("cat.jfif", "JPEG"),
        ("cat", "PNG"),
        ("cat.JPG", "PNG"),
        ("é ü", "PNG"),
    ],
)
def test_a_picture_is_sent_under_its_own_type_whatever_its_name(tmp_path, name, kind):
    """Windows saves pictures as .jfif, and caches save them without a suffix."""
    (tmp_path / name).write_bytes(picture(kind))
    (sent,) = prepared(tmp_path / name).sent.values()
    assert sent.startswith(f"data:image/{kind.lower()};base64,")


def test_a_photo_as_cameras_write_it_is_sent(tmp_path):
    """A JPEG for print, turned by its camera, is a picture like any other."""
    content = io.BytesIO()
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("CMYK", (64, 48)).save(content, "JPEG", progressive=True, exif=turned)
    (tmp_path / "IMG_0001").write_bytes(content.getvalue())
    (sent,) = prepared(tmp_path / "IMG_0001").sent.values()
    assert sent.startswith("data:image/jpeg;base64,")


def test_what_is_no_file_is_not_read(tmp_path):
    """A folder, a pipe and a missing file are told by their paths."""
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", ".", "missing.png"):
        with pytest.raises(SourceUnavailable, match=str(tmp_path)):
            prepared(tmp_path / name)


@pytest.mark.server
def test_a_command_tells_the_wrong_file_and_sends_nothing(prefect_server, sandbox, tmp_path):
    """`video-to-video` with a picture ends with one sentence and exit code 1."""
    Path("cat.mp4").write_bytes(picture("JPEG"))
    done = subprocess.run(
        [Path(sys.executable).parent / "prefect-cometapi", "video-to-video", "cat.mp4", "rain"],
        env={**os.environ, "PREFECT_API_URL": prefect_server, "PREFECT_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "videoUri: cat.mp4 cannot be used: it is image/jpeg" in done.stderr
    assert "Money: nothing was charged." in done.stderr
    assert "Traceback" not in done.stderr
    assert sandbox.requests == []
