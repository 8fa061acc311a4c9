# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the sandbox's tests: a sandbox, a client, pictures and clips."""

import base64
import io
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from fractions import Fraction
from typing import Any

import av
import httpx
import pytest
from av.filter import Graph
from av.video.codeccontext import VideoCodecContext

from prefect_cometapi.sandbox import Sandbox

HEADERS = {"Authorization": "Bearer any-key", "X-Runway-Version": "2024-11-06"}


class Conversation:
    """A sandbox and a client that talks to it over real sockets."""

    def __init__(self, sandbox: Sandbox, client: httpx.Client) -> None:
        self.sandbox = sandbox
        self.client = client

    def create(self, **changes: Any) -> httpx.Response:
        """POST an image-to-video request with an unreachable source."""
        body = {"promptImage": "http://127.0.0.1:9/cat.jpg", "model": "gen3a_turbo"} | changes
        return self.client.post("/runwayml/v1/image_to_video", json=body)

    def restyle(self, **changes: Any) -> httpx.Response:
        """POST a video-to-video request with an unreachable source."""
        body = {
            "videoUri": "http://127.0.0.1:9/cat.mp4",
            "model": "gen4_aleph",
            "promptText": "rain",
        } | changes
        return self.client.post("/runwayml/v1/video_to_video", json=body)

    def task(self, task_id: str) -> httpx.Response:
        """GET a task."""
        return self.client.get(f"/runwayml/v1/tasks/{task_id}")

    def feed(self, task_id: str) -> httpx.Response:
        """POST for the feed of a task."""
        return self.client.post("/runway/feed", json={"task_id": task_id})

    def account(self, path: str, **query: Any) -> httpx.Response:
        """GET a list of the account."""
        token = {"Authorization": "Bearer sandbox-access-token"}
        return self.client.get(path, params=query, headers=token)

    def finished(self, **changes: Any) -> str:
        """Create a job, wait until it is drawn, and return its id."""
        return self.drawn(self.create(**changes))

    def drawn(self, created: httpx.Response) -> str:
        """Wait for a job and return its id."""
        self.sandbox.settle(20)
        return created.json()["id"]

    def output(self, task_id: str) -> str:
        """Return a fresh URL of a finished job's clip."""
        return self.task(task_id).json()["output"][0]


@pytest.fixture
def talk() -> Iterator[Callable[..., Conversation]]:
    """Yield a function that starts a sandbox and returns it with a client."""
    with ExitStack() as stack:

        def start(**options: Any) -> Conversation:
            sandbox = stack.enter_context(Sandbox(**options))
            client = httpx.Client(base_url=sandbox.url, headers=HEADERS, timeout=10)
            return Conversation(sandbox, stack.enter_context(client))

        yield start


@pytest.fixture(scope="session")
def photo() -> bytes:
    """Return a JPEG of 640x400 with detail everywhere."""
    return _jpeg(saturation=1)


@pytest.fixture(scope="session")
def grey_photo() -> bytes:
    """Return a black and white JPEG of 640x400."""
    return _jpeg(saturation=0)


def _jpeg(saturation: int) -> bytes:
    graph = Graph()
    drawing = graph.add("mandelbrot", "size=640x400:rate=1")
    colours, sink = graph.add("hue", f"s={saturation}"), graph.add("buffersink")
    drawing.link_to(colours)
    colours.link_to(sink)
    graph.configure()
    picture = graph.vpull().reformat(format="yuvj420p")
    codec = av.CodecContext.create("mjpeg", "w")
    assert isinstance(codec, VideoCodecContext)
    codec.width, codec.height, codec.pix_fmt = picture.width, picture.height, "yuvj420p"
    codec.time_base, picture.pts = Fraction(1, 24), 0
    return b"".join(bytes(packet) for packet in [*codec.encode(picture), *codec.encode(None)])


@pytest.fixture(scope="session")
def photo_uri(photo: bytes) -> str:
    """Return the JPEG as a data URI."""
    return "data:image/jpeg;base64," + base64.b64encode(photo).decode()


class Clip:
    """Facts that a decoder reports about an MP4."""

    def __init__(self, content: bytes) -> None:
        with av.open(io.BytesIO(content), "r") as container:
            stream = container.streams.video[0]
            self.codec = stream.codec_context.name
            self.pixel_format = stream.codec_context.pix_fmt
            self.size = (stream.width, stream.height)
            assert stream.duration is not None
            assert stream.time_base is not None
            self.seconds = float(stream.duration * stream.time_base)
            self.thumbnails = [
                bytes(frame.reformat(32, 16, "rgb24").planes[0])
                for frame in container.decode(stream)
            ]

    def difference(self, other: "Clip", frame: int = 0) -> float:
        """Return the difference of two frames, from 0 to 255 per colour."""
        one, two = self.thumbnails[frame], other.thumbnails[frame]
        return sum(abs(a - b) for a, b in zip(one, two, strict=True)) / len(one)


@pytest.fixture
def clip() -> type[Clip]:
    """Decode an MP4."""
    return Clip
