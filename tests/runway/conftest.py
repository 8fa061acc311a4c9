# SPDX-License-Identifier: Apache-2.0
"""What the tests of the client share: clips, sandboxes, clients, and scripted replies."""

import asyncio
import io
import itertools
import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, ExitStack
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import httpx
import pytest
from av.filter import Graph
from pydantic import SecretStr

from prefect_cometapi.runway import (
    ImageToVideoRequest,
    Ledger,
    RunwayClient,
    State,
    Submission,
)
from prefect_cometapi.sandbox import Sandbox

from .made import put

KEY = "sk-test-0123456789abcdef"
PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhg"
    "GAWjR9awAAAABJRU5ErkJggg=="
)


class Answers(httpx.MockTransport):
    """A transport that gives scripted answers, the last one again and again.

    An answer is a dict (a 200 with that JSON), a tuple (status, content or JSON, headers), an
    exception to raise, or a function of the request that makes one of these.
    """

    def __init__(self, *answers: Any) -> None:
        super().__init__(self._answer)
        self.answers = list(answers)
        self.requests: list[httpx.Request] = []
        self.times: list[float] = []

    def _answer(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        self.times.append(time.monotonic())
        answer: Any = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if callable(answer):
            answer = answer(request)
        if isinstance(answer, Exception):
            raise answer
        return self._response(200, answer) if isinstance(answer, dict) else self._response(*answer)

    @staticmethod
    def _response(status: int, content: Any, headers: Any = None) -> httpx.Response:
        if isinstance(content, dict | list):
            headers = {"content-type": "application/json", **(headers or {})}
            content = json.dumps(content).encode()
        headers = {"content-length": str(len(content)), **(headers or {})}
        stream = httpx.ByteStream(content)
        return httpx.Response(status, stream=stream, headers=headers)


@pytest.fixture(scope="session")
def api_key() -> str:
    return KEY


@pytest.fixture(scope="session")
def request_() -> ImageToVideoRequest:
    """A small request that the sandbox draws quickly, and once for all tests."""
    return ImageToVideoRequest(prompt_image=PIXEL, prompt_text="slow zoom", duration=5)


@pytest.fixture
def answers() -> type[Answers]:
    return Answers


@pytest.fixture
def sandbox():
    """Starts sandboxes: ``sandbox("create:429", render_seconds=1)``."""
    with ExitStack() as stack:

        def start(*faults: str, **options: Any) -> Sandbox:
            return stack.enter_context(Sandbox(faults=faults, **options))

        yield start


@pytest.fixture
async def client_of():
    """Opens clients of a base URL or of a transport with scripted answers."""
    async with AsyncExitStack() as stack:

        async def open_client(target: str | httpx.AsyncBaseTransport) -> RunwayClient:
            if isinstance(target, str):
                client = RunwayClient(SecretStr(KEY), base_url=target)
            else:
                client = RunwayClient(SecretStr(KEY), transport=target)
            return await stack.enter_async_context(client)

        yield open_client


@pytest.fixture
def closed_port() -> str:
    """A URL of this machine at which nothing listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture
def submitted() -> Callable[..., Submission]:
    def make(task_id: str = "task-1") -> Submission:
        return Submission(key="sku-17", task_id=task_id, submitted_at=datetime.now(UTC))

    return make


@pytest.fixture
def file_url(tmp_path) -> str:
    """The URL of a ledger in a file that is not there yet."""
    return f"sqlite:///{tmp_path}/ledger.db"


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def ledger_url(request, file_url) -> Iterator[str]:
    """The URL of a fresh ledger, once in SQLite and once in PostgreSQL."""
    if request.param == "sqlite":
        yield file_url
        return
    server = request.getfixturevalue("postgres")
    url = server.create_database()
    yield url
    server.drop_database(url)


@pytest.fixture
async def ledger(ledger_url):
    """A fresh ledger, once in SQLite and once in PostgreSQL."""
    opened = Ledger(ledger_url)
    yield opened
    await opened.database.close()


@pytest.fixture
async def hasty(ledger_url):
    """A ledger with one generation that was bought, and leases of half a second."""
    opened = Ledger(ledger_url, lease=0.5)
    await put(opened, State.SUBMITTED, task_id="task-1")
    yield opened
    await opened.database.close()


@pytest.fixture
async def file_ledger(file_url):
    """A fresh ledger in a file."""
    opened = Ledger(file_url)
    yield opened
    await opened.database.close()


@pytest.fixture
def no_waiting(monkeypatch) -> list[float]:
    """Lets downloads pause for no time, and notes how long they would have."""
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        await asyncio.sleep(0)

    monkeypatch.setattr(
        "prefect_cometapi.runway.download.asyncio",
        SimpleNamespace(sleep=sleep, to_thread=asyncio.to_thread, timeout=asyncio.timeout),
    )
    return pauses


def _frames(count: int) -> list[Any]:
    graph = Graph()
    drawing = f"size=64x48:rate=24:duration={count / 24}"
    chain = [
        graph.add("testsrc2", drawing),
        graph.add("format", "yuv420p"),
        graph.add("buffersink"),
    ]
    chain[0].link_to(chain[1])
    chain[1].link_to(chain[2])
    graph.configure()
    return [graph.vpull() for _ in range(count)]


def _write_clip(target: Any, codec: str, container: str, **options: str) -> None:
    with av.open(target, "w", format=container, options=options) as output:
        stream: Any = output.add_stream(codec, rate=24)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number, frame in enumerate(_frames(48)):
            frame.pts, frame.time_base = number, Fraction(1, 24)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))


def _write_sound(target: str) -> None:
    graph = Graph()
    chain = [
        graph.add("sine", "duration=0.5:sample_rate=44100"),
        graph.add("aformat", "sample_fmts=fltp:channel_layouts=mono"),
        graph.add("abuffersink"),
    ]
    chain[0].link_to(chain[1])
    chain[1].link_to(chain[2])
    graph.configure()
    with av.open(target, "w", format="mp4") as output:
        stream: Any = output.add_stream("aac", rate=44100)
        for _ in range(10):
            output.mux(stream.encode(graph.pull()))
        output.mux(stream.encode(None))


def _write_clip_with_longer_sound(target: str) -> None:
    """A WebM tells only the length of the whole file, here that of its sound: three seconds."""
    graph = Graph()
    chain = [
        graph.add("sine", "duration=3:sample_rate=48000"),
        graph.add("aformat", "sample_fmts=s16:channel_layouts=mono"),
        graph.add("asetnsamples", "n=960"),
        graph.add("abuffersink"),
    ]
    for one, next_ in itertools.pairwise(chain):
        one.link_to(next_)
    graph.configure()
    with av.open(target, "w", format="webm") as output:
        video: Any = output.add_stream("libvpx", rate=24)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        sound: Any = output.add_stream("libopus", rate=48000)
        for number, frame in enumerate(_frames(48)):
            frame.pts, frame.time_base = number, Fraction(1, 24)
            output.mux(video.encode(frame))
        output.mux(video.encode(None))
        for _ in range(150):
            output.mux(sound.encode(graph.pull()))
        output.mux(sound.encode(None))


def _write_subtitled(target: str) -> None:
    """What PyAV does with subtitles it imports when it meets some."""
    with av.open(target, "w", format="mp4") as output:
        video: Any = output.add_stream("libx264", rate=24)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        words: Any = output.add_stream("mov_text")
        words.codec_context.subtitle_header = b"[V4+ Styles]\nStyle: Default,Arial,16\n"
        for number, frame in enumerate(_frames(48)):
            frame.pts, frame.time_base = number, Fraction(1, 24)
            output.mux(video.encode(frame))
        output.mux(video.encode(None))
        word = av.Packet(b"\0\5hello")
        word.stream, word.time_base = words, Fraction(1, 1000)
        word.pts = word.dts = 0
        word.duration = 1000
        output.mux(word)


class _Pipe(io.RawIOBase):
    """Cannot be rewound, so the length of what is written to it never reaches its header."""

    def __init__(self) -> None:
        self.content = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        self.content += bytes(data)
        return len(data)


def _without_size(clip: bytes) -> bytes:
    """The clip with its frames' size taken out of the header and of the codec's parameters."""
    broken = bytearray(clip)
    entry = clip.index(b"avc1", clip.index(b"stsd")) + 28
    broken[entry : entry + 4] = bytes(4)
    parameters = clip.index(b"avcC") + 4
    broken[parameters : parameters + 26] = bytes(26)
    return bytes(broken)


@pytest.fixture(scope="session")
def clips(tmp_path_factory) -> Path:
    """A folder of clips of two seconds, 64 by 48 pixels, 24 frames a second, and of bad ones."""
    folder = tmp_path_factory.mktemp("clips")
    _write_clip(str(folder / "clip.mp4"), "libx264", "mp4", movflags="+faststart")
    _write_clip(str(folder / "index-last.mp4"), "libx264", "mp4")
    _write_clip(str(folder / "clip.mov"), "libx264", "mov")
    _write_clip(str(folder / "clip.webm"), "libvpx", "webm")
    live = _Pipe()
    _write_clip(live, "libvpx", "webm")
    (folder / "live.webm").write_bytes(bytes(live.content))
    _write_subtitled(str(folder / "subtitled.mp4"))
    _write_sound(str(folder / "sound.mp4"))
    _write_clip_with_longer_sound(str(folder / "sound.webm"))
    clip = (folder / "clip.mp4").read_bytes()
    (folder / "unknown-codec.mp4").write_bytes(clip.replace(b"avc1", b"zzzz"))
    (folder / "no-size.mp4").write_bytes(_without_size(clip))
    return folder
