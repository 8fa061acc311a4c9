# SPDX-License-Identifier: Apache-2.0
"""Double of CometAPI for the random walk: it records each purchase that it accepts.

``python -m tests.chaos.random_walk.service JOURNAL CLIP SEED TIMEOUT [FAULT ...]`` serves on a free
port of this machine, prints the port, and ends when its input ends. It shares no code with the
sandbox or the package. The N-th submission meets the fault that the seed names for N, so the
sequence of faults repeats, although the key that meets one depends on the machine. A submission
counts as accepted once its line is in the journal, before the reply is sent. That line holds the
key, which the request carries in its prompt.
"""

import asyncio
import hashlib
import json
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import UUID

from .journal import Journal

FAULTS = {
    "slow-reply": 6,
    "reset-before": 4,
    "busy": 4,
    "rate-limit": 4,
    "no-reply": 4,
    "unanswered": 2,
    "late": 4,
    "html": 2,
    "gateway": 2,
    "proxy-page": 2,
}
"""Percent of the submissions that meet each fault; the others meet none.

``reset-before``, ``busy`` and ``rate-limit`` accept nothing. ``no-reply`` accepts and closes the
connection, ``unanswered`` accepts and replies after the client gave up, ``late`` accepts after the
client gave up. ``html``, ``gateway`` and ``proxy-page`` accept, and then something on the way
replies with a page: 200, 502 or 504, or a status that looks like a refusal.
"""

PROXY_STATUSES = (301, 403, 407, 409, 418, 423, 451)
POLL_FAULTS = {"busy": 2, "reset": 2, "slow": 3}
ASSET_FAULTS = {"cut": 3, "reset": 2, "busy": 2}
FAILING = 2
"""Percent of the accepted submissions that fail upstream."""

Reply = tuple[int, str, bytes]


@dataclass
class Job:
    """One accepted purchase."""

    task_id: str
    known_at: float
    done_at: float
    fails: bool
    link_seconds: float


class Reset(Exception):
    """Exception that ends the connection without a reply."""


def video_of(video: bytes, task_id: str) -> bytes:
    """Return the clip of one purchase: the same pictures, with a box that names the purchase."""
    name = task_id.encode()
    return video + (8 + len(name)).to_bytes(4) + b"free" + name


def pick(weights: dict[str, int], rng: random.Random, otherwise: str = "") -> str:
    """Choose a name by its percentage."""
    point = rng.random() * 100
    for name, percent in weights.items():
        point -= percent
        if point < 0:
            return name
    return otherwise


class Service:
    """Double of CometAPI.

    Args:
        journal: File for the accepted purchases.
        clip: MP4 that every purchase results in.
        seed: Seed of the faults.
        timeout: Read timeout of the clients, in seconds.
        faults: Kinds of faults that a submission may meet.
    """

    def __init__(
        self, journal: Journal, clip: bytes, seed: int, timeout: float, faults: set[str]
    ) -> None:
        self._journal = journal
        self._seed = seed
        self._timeout = timeout
        self._faults = {name: percent for name, percent in FAULTS.items() if name in faults}
        self._jobs: dict[str, Job] = {}
        self._numbers: Counter[str] = Counter()
        self._counts: Counter[str] = Counter()
        self._faultless = False
        self._pending = 0
        self._clip = clip

    async def answer(self, method: str, target: str, body: bytes) -> Reply:
        """Return the reply to a request.

        Raises:
            Reset: The connection ends without one.
        """
        address = urlsplit(target)
        routes: dict[str, Callable[[], Awaitable[Reply]]] = {
            "/-/state": self._state,
            "/-/end-faults": self._end_faults,
            "/runway/feed": lambda: self._poll(json.loads(body)["task_id"]),
        }
        if route := routes.get(address.path):
            return await route()
        if method == "POST" and address.path.startswith("/runwayml/v1/"):
            self._pending += 1
            try:
                return await self._create(json.loads(body))
            finally:
                self._pending -= 1
        kind, _, name = address.path.rpartition("/")
        if kind == "/runwayml/v1/tasks":
            return await self._poll(name)
        return await self._asset(name.removesuffix(".mp4"), parse_qs(address.query))

    async def _state(self) -> Reply:
        return _json(200, {"pending": self._pending, "faults": dict(self._counts)})

    async def _end_faults(self) -> Reply:
        self._faultless = True
        return await self._state()

    def _rng(self, purpose: str) -> random.Random:
        self._numbers[purpose] += 1
        return random.Random(f"{self._seed} {purpose} {self._numbers[purpose]}")

    async def _create(self, request: dict[str, Any]) -> Reply:
        rng = self._rng("create")
        fault = "" if self._faultless else pick(self._faults, rng)
        self._counts[fault or "none"] += 1
        if fault == "reset-before":
            raise Reset
        if fault == "busy":
            return _error(503, "service_busy", "the service is busy, try again later")
        if fault == "rate-limit":
            return _error(429, "rate_limit", "too many requests")
        if fault == "late":
            await asyncio.sleep(self._timeout * (1.2 + 2 * rng.random()))
        task_id = self._accept(request, rng)
        return await self._reply(fault, task_id, rng)

    async def _reply(self, fault: str, task_id: str, rng: random.Random) -> Reply:
        if fault == "no-reply":
            raise Reset
        if fault == "slow-reply":
            await asyncio.sleep(0.5 * self._timeout * rng.random())
        if fault == "unanswered":
            await asyncio.sleep(1.5 * self._timeout)
        pages = {"html": (200,), "gateway": (502, 504), "proxy-page": PROXY_STATUSES}
        if statuses := pages.get(fault):
            return rng.choice(statuses), "text/html", b"<html><body>Please wait.</body></html>"
        return _json(200, {"id": task_id})

    def _accept(self, request: dict[str, Any], rng: random.Random) -> str:
        now = time.monotonic()
        task_id = str(UUID(int=rng.getrandbits(128), version=4))
        fails = not self._faultless and rng.random() * 100 < FAILING
        hidden = 0.4 * rng.random() if rng.random() < 0.1 else 0.0
        done = 0.1 + 0.8 * rng.random()
        self._jobs[task_id] = Job(task_id, now + hidden, now + done, fails, 0.2 + rng.random())
        self._journal.write(
            "accepted",
            task_id=task_id,
            key=request["promptText"],
            end="failed" if fails else "stored",
            sha256=hashlib.sha256(video_of(self._clip, task_id)).hexdigest(),
        )
        return task_id

    async def _poll(self, task_id: str) -> Reply:
        rng = self._rng("poll")
        fault = "" if self._faultless else pick(POLL_FAULTS, rng)
        if fault == "reset":
            raise Reset
        if fault == "busy":
            return _error(503, "service_busy", "the service is busy, try again later")
        if fault == "slow":
            await asyncio.sleep(0.6 * self._timeout * rng.random())
        now = time.monotonic()
        job = self._jobs.get(task_id)
        if job is None or now < job.known_at:
            return _error(404, "task_not_exist", "task_not_exist")
        if now < job.done_at:
            return _json(200, {"id": task_id, "status": "RUNNING", "progress": 0.5})
        if job.fails:
            return _json(200, {"id": task_id, "status": "FAILED", "failure": "it did not work"})
        until = now + job.link_seconds
        link = f"http://127.0.0.1:{self.port}/assets/{task_id}.mp4?until={until}"
        return _json(200, {"id": task_id, "status": "SUCCEEDED", "output": [link]})

    async def _asset(self, task_id: str, query: dict[str, list[str]]) -> Reply:
        rng = self._rng("asset")
        fault = "" if self._faultless else pick(ASSET_FAULTS, rng)
        if task_id not in self._jobs:
            return _error(404, "not_found", "there is no such file")
        if time.monotonic() > float(query["until"][0]):
            return 403, "application/xml", b"<Error><Code>AccessDenied</Code></Error>"
        if fault == "reset":
            raise Reset
        if fault == "busy":
            return 503, "text/plain", b"busy"
        content = video_of(self._clip, task_id)
        if fault == "cut":
            return -len(content), "video/mp4", content[: rng.randrange(len(content))]
        return 200, "video/mp4", content

    async def serve(self, on_port: Callable[[int], None]) -> None:
        """Serve until the input ends."""
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0, backlog=500)
        self.port: int = server.sockets[0].getsockname()[1]
        on_port(self.port)
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        loop.add_reader(0, lambda: os.read(0, 1) or ended.set())
        await ended.wait()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError, Reset):
            while await self._exchange(reader, writer):
                pass
        writer.transport.abort()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; return whether the connection stays open."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *headers = head.split("\r\n")
        method, target, _ = first.split(" ")
        sizes = [line.partition(":")[2] for line in headers if line.lower().startswith("content-l")]
        body = await reader.readexactly(int(sizes[0])) if sizes else b""
        status, content_type, content = await self.answer(method, target, body)
        length = -status if status < 0 else len(content)  # A reply that is cut off promises more.
        writer.write(
            f"HTTP/1.1 {max(200, status)} OK\r\nContent-Type: {content_type}\r\n"
            f"Content-Length: {length}\r\n\r\n".encode()
            + content
        )
        await writer.drain()
        return length == len(content)


def _json(status: int, value: dict[str, Any]) -> Reply:
    return status, "application/json", json.dumps(value).encode()


def _error(status: int, code: str, message: str) -> Reply:
    return _json(status, {"error": {"code": code, "message": message}})


if __name__ == "__main__":
    journal_path, clip_path, given_seed, given_timeout, *given_faults = sys.argv[1:]
    double = Service(
        Journal(Path(journal_path)),
        Path(clip_path).read_bytes(),
        int(given_seed),
        float(given_timeout),
        set(given_faults),
    )
    asyncio.run(double.serve(lambda port: print(port, flush=True)))
