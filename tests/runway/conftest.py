# SPDX-License-Identifier: Apache-2.0
"""Shared fixtures of the client tests: clips, sandboxes, clients and scripted replies."""

import asyncio
import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, ExitStack
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from prefect_cometapi.runway import (
    ImageToVideoRequest,
    Ledger,
    RunwayClient,
    State,
    Submission,
)
from prefect_cometapi.sandbox import Sandbox

from .factories import put
from .media.films import write_clips

KEY = "sk-test-0123456789abcdef"
PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhg"
    "GAWjR9awAAAABJRU5ErkJggg=="
)


class Answers(httpx.MockTransport):
    """A transport with scripted answers, which repeats the last one.

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
    """Return a small request, whose video the sandbox renders quickly and once for all tests."""
    return ImageToVideoRequest(prompt_image=PIXEL, prompt_text="slow zoom", duration=5)


@pytest.fixture
def answers() -> type[Answers]:
    return Answers


@pytest.fixture
def sandbox():
    """Return a function that starts sandboxes: ``sandbox("create:429", render_seconds=1)``."""
    with ExitStack() as stack:

        def start(*faults: str, **options: Any) -> Sandbox:
            return stack.enter_context(Sandbox(faults=faults, **options))

        yield start


@pytest.fixture
async def client_of():
    """Return a function that opens clients of a base URL or of a scripted transport."""
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
    """Return a URL of this machine on which nothing is listening."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture
def submitted() -> Callable[..., Submission]:
    def make(task_id: str = "task-1") -> Submission:
        return Submission(idempotency_key="sku-17", task_id=task_id, submitted_at=datetime.now(UTC))

    return make


@pytest.fixture
def file_url(tmp_path) -> str:
    """Return the URL of a ledger in a file that does not exist yet."""
    return f"sqlite:///{tmp_path}/ledger.db"


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.heavy)])
def ledger_url(request, file_url) -> Iterator[str]:
    """Return the URL of a new ledger, once in SQLite and once in PostgreSQL."""
    if request.param == "sqlite":
        yield file_url
        return
    server = request.getfixturevalue("postgres")
    url = server.create_database()
    yield url
    server.drop_database(url)


@pytest.fixture
async def ledger(ledger_url):
    """Return a new ledger, once in SQLite and once in PostgreSQL."""
    opened = Ledger(ledger_url)
    yield opened
    await opened.database.close()


@pytest.fixture
async def hasty(ledger_url):
    """Return a ledger with one purchased generation, and leases of half a second."""
    opened = Ledger(ledger_url, lease=0.5)
    await put(opened, State.SUBMITTED, task_id="task-1")
    yield opened
    await opened.database.close()


@pytest.fixture
async def file_ledger(file_url):
    """Return a new ledger in a file."""
    opened = Ledger(file_url)
    yield opened
    await opened.database.close()


@pytest.fixture
def no_waiting(monkeypatch) -> list[float]:
    """Make the pauses of downloads take no time, and record their lengths."""
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        await asyncio.sleep(0)

    monkeypatch.setattr(
        "prefect_cometapi.runway.media.download.asyncio",
        SimpleNamespace(sleep=sleep, to_thread=asyncio.to_thread, timeout=asyncio.timeout),
    )
    return pauses


@pytest.fixture(scope="session")
def clips(tmp_path_factory) -> Path:
    """Return a folder of good and bad clips of two seconds, 64 by 48 pixels, 24 frames a second."""
    folder = tmp_path_factory.mktemp("clips")
    write_clips(folder)
    return folder
