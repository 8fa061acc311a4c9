# SPDX-License-Identifier: Apache-2.0
"""Measure the request rate of a service over kept-alive connections.

``python benchmarks/load.py [--sandbox] [CONNECTIONS]`` measures the service of the
benchmarks, or the sandbox, which does too much per request for a benchmark. The client is a plain
socket: a full client such as httpx takes ten times the service's own time for each request.
"""

import argparse
import asyncio
import json
import re
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import urlopen

from service import lean_process, sandbox_process

CONNECTIONS = 100
SECONDS = 2.0
KEY = "benchmark"
BODY = {
    "promptImage": "https://example.com/benchmark.jpg",
    "promptText": "slow zoom",
    "model": "gen3a_turbo",
}
_SMALL = 4096
_KEPT = 2000
_LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")


@dataclass(frozen=True)
class Rate:
    """Rate of the requests that were answered.

    Attributes:
        requests: Number of requests.
        received: Bytes of the response bodies.
        seconds: Duration of the measurement.
        cpu: Processor seconds of the service, if it reports them.
    """

    requests: int
    received: int
    seconds: float
    cpu: float | None = None

    @property
    def per_second(self) -> float:
        """Requests per second."""
        return self.requests / self.seconds


class _Asking(asyncio.Protocol):
    """Connection that sends its next request as soon as the last one is answered."""

    def __init__(self, load: "_Load") -> None:
        self._load = load
        self._buffer = self._body = b""
        self._missing = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._ask()

    def _ask(self) -> None:
        request = self._load.next()
        if request is None:
            self._transport.close()
        else:
            self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        if self._missing:
            self._missing -= len(data)
            if len(self._body) < _SMALL:
                self._body += data
            if not self._missing:
                self._answered()
            return
        self._buffer += data
        head, ended, body = self._buffer.partition(b"\r\n\r\n")
        if not ended:
            return
        length = _LENGTH.search(head)
        assert length, head
        self._load.take(head, int(length[1]))
        self._missing = int(length[1]) - len(body)
        self._body, self._buffer = body, b""
        if not self._missing:
            self._answered()

    def _answered(self) -> None:
        self._load.keep(self._body)
        self._ask()

    def connection_lost(self, exc: Exception | None) -> None:
        self._load.ended(exc)


class _Load:
    def __init__(self, make: Callable[[int], bytes | None], connections: int) -> None:
        self._make = make
        self._asked = 0
        self._open = connections
        self.answered = self.received = 0
        self.bodies: list[bytes] = []
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def next(self) -> bytes | None:
        self._asked += 1
        return self._make(self._asked - 1)

    def take(self, head: bytes, length: int) -> None:
        if not head.startswith((b"HTTP/1.1 200", b"HTTP/1.1 206")):
            raise RuntimeError(head.decode())
        self.answered += 1
        self.received += length

    def keep(self, body: bytes) -> None:
        if len(body) < _SMALL and len(self.bodies) < _KEPT:
            self.bodies.append(body)

    def ended(self, error: Exception | None) -> None:
        self._open -= 1
        if error and not self.done.done():
            self.done.set_exception(error)
        elif not self._open and not self.done.done():
            self.done.set_result(None)


def _request(url: str, method: str, path: str, body: Any = None) -> bytes:
    payload = b"" if body is None else json.dumps(body).encode()
    head = (
        f"{method} {path} HTTP/1.1\r\nHost: {urlsplit(url).netloc}\r\n"
        f"Authorization: Bearer {KEY}\r\nX-Runway-Version: 2024-11-06\r\n"
        f"Accept: application/json\r\nAccept-Encoding: gzip, deflate\r\n"
        f"User-Agent: benchmark\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(payload)}\r\n\r\n"
    )
    return head.encode() + payload


async def ask(
    url: str, connections: int, requests: list[bytes], seconds: float
) -> tuple[Rate, list[bytes]]:
    """Send requests in turn for some seconds; return the rate and some of the response bodies."""
    address = urlsplit(url)
    host, port = address.hostname or "", address.port or 80
    before = await asyncio.to_thread(_cpu, url)
    end = time.perf_counter() + seconds

    def make(number: int) -> bytes | None:
        return requests[number % len(requests)] if time.perf_counter() < end else None

    load, loop = _Load(make, connections), asyncio.get_running_loop()
    started = time.perf_counter()
    for _ in range(connections):
        await loop.create_connection(lambda: _Asking(load), host, port)
    await load.done
    seconds, after = time.perf_counter() - started, await asyncio.to_thread(_cpu, url)
    cpu = None if before is None or after is None else after - before
    return Rate(load.answered, load.received, seconds, cpu), load.bodies


def _cpu(url: str) -> float | None:
    """Return the processor seconds of the service so far, if it reports them."""
    with suppress(HTTPError), urlopen(f"{url}/_stats") as reply:
        return json.load(reply)["cpu"]
    return None


async def measure(url: str, connections: int, seconds: float = SECONDS) -> dict[str, Rate]:
    """Measure the rate of each kind of request: create, poll, download."""
    create = _request(url, "POST", "/runwayml/v1/image_to_video", BODY)
    created, bodies = await ask(url, connections, [create], seconds)
    paths = [f"/runwayml/v1/tasks/{json.loads(body)['id']}" for body in bodies]
    polls = [_request(url, "GET", path) for path in paths]
    polled, _ = await ask(url, connections, polls, seconds)
    assets: list[bytes] = []
    while not assets:
        assets = await _assets(url, polls)
    downloaded, _ = await ask(url, connections, assets, seconds)
    return {"create": created, "poll": polled, "download": downloaded}


async def _assets(url: str, polls: list[bytes]) -> list[bytes]:
    """Return requests for the outputs of the finished jobs."""
    _, bodies = await ask(url, 1, polls, 0.5)
    outputs = [json.loads(body).get("output") for body in bodies]
    addresses = [urlsplit(output[0]) for output in outputs if output]
    return [_request(url, "GET", f"{address.path}?{address.query}") for address in addresses]


def shown(rates: dict[str, Rate]) -> str:
    """Return the rates, one per line."""
    return "\n".join(f"{name:10}{_shown(rate)}" for name, rate in rates.items())


def _shown(rate: Rate) -> str:
    text = f"{rate.per_second:8,.0f} per second {rate.received / rate.seconds / 1e6:8,.1f} MB/s"
    if rate.cpu is None:
        return text
    return f"{text} {1000 * rate.cpu / rate.requests:8.2f} ms of its CPU each"


def main() -> None:
    """Measure and print the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("connections", type=int, nargs="?", default=CONNECTIONS)
    parser.add_argument("--sandbox", action="store_true")
    options = parser.parse_args()
    service: AbstractContextManager[str] = sandbox_process() if options.sandbox else lean_process()
    with service as url:
        rates = asyncio.run(measure(url, options.connections))
    print(f"over {options.connections} connections")
    print(shown(rates))


if __name__ == "__main__":
    main()
