# SPDX-License-Identifier: Apache-2.0
"""Client of the fork server, and the servers that all processes share."""

import asyncio
import json
import os
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from threading import Thread
from typing import Any

import httpx

from ...waiting import GRACE

ROOT = Path(__file__).parents[3]
PATIENCE = 240.0
"""Seconds after which a process counts as hung; none needs a tenth of it."""

QUIET = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    "PREFECT_SERVER_LOGGING_LEVEL": "CRITICAL",
    "PREFECT_CLI_COLORS": "false",
    "DO_NOT_TRACK": "1",
}


@dataclass(frozen=True)
class Ended:
    """Exit status, result and log of a process that has ended.

    Attributes:
        status: Negative for the signal that killed it.
        outcome: Result of its flow, or ``error`` and ``text``; None if it left nothing.
        log: Its output.
    """

    status: int
    outcome: dict[str, Any] | None
    log: Path

    @property
    def succeeded(self) -> bool:
        """True if the process ended by itself and without an error."""
        return self.outcome is not None and not self.error

    @property
    def error(self) -> str:
        """Type of the error that its flow ended with, or an empty text."""
        return (self.outcome or {}).get("error", "")

    @property
    def text(self) -> str:
        """Message of that error."""
        return (self.outcome or {}).get("text", "")

    def __str__(self) -> str:
        if self.outcome is None:
            tail = self.log.read_text()[-800:].strip() if self.log.exists() else ""
            return f"exit status {self.status}, no outcome; {tail}"
        return f"{self.error}: {self.text}" if self.error else "it succeeded"


class Nursery:
    """Fork server as the runner sees it."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._numbers = count(1)
        self._waiting: dict[int, asyncio.Future[int]] = {0: asyncio.Future()}
        self._reader = asyncio.create_task(self._read())

    async def run(self, spec: dict[str, Any]) -> Ended:
        """Run a process for a specification, and wait for its end."""
        job = next(self._numbers)
        folder = Path(spec["folder"])
        files = {"outcome": folder / f"outcome-{job}.json", "log": folder / f"log-{job}"}
        end = self._waiting[job] = asyncio.get_running_loop().create_future()
        self._tell(spec | {"job": job} | {name: str(path) for name, path in files.items()})
        try:
            status = await asyncio.wait_for(asyncio.shield(end), PATIENCE)
        except TimeoutError:
            self._tell({"job": job, "do": "kill"})
            await end
            return Ended(-1, {"error": "Hung", "text": f"after {PATIENCE:g} s"}, files["log"])
        found = files["outcome"]
        outcome = json.loads(found.read_text()) if found.exists() and status == 0 else None
        return Ended(status, outcome, files["log"])

    async def ready(self) -> None:
        """Wait until the fork server has imported everything."""
        await asyncio.wait_for(self._waiting[0], PATIENCE)

    def _tell(self, line: dict[str, Any]) -> None:
        assert self._process.stdin
        self._process.stdin.write(json.dumps(line).encode() + b"\n")

    async def _read(self) -> None:
        assert self._process.stdout
        async for line in self._process.stdout:
            told = json.loads(line)
            self._waiting.pop(told["job"]).set_result(told["status"])
        for end in self._waiting.values():
            end.set_exception(RuntimeError("the zygote is gone"))


@asynccontextmanager
async def nursery(environment: dict[str, str]) -> AsyncIterator[Nursery]:
    """Start a fork server whose processes have this environment."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("COMETAPI_")}
    path = os.pathsep.join(filter(None, [str(ROOT), own.get("PYTHONPATH")]))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.chaos.kill_matrix.fork_server"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env=own | QUIET | environment | {"PYTHONPATH": path},
        cwd=ROOT,
    )
    try:
        here = Nursery(process)
        await here.ready()
        yield here
    finally:
        if process.stdin:
            # The fork server kills its forks and ends once its input is closed.
            process.stdin.close()
        await ended(process)


@asynccontextmanager
async def prefect_server(home: Path, database: str | None = None) -> AsyncIterator[str]:
    """Start a Prefect server on a free port; yield the address of its API.

    If there is a PostgreSQL, the server gets a database there: with SQLite it answers 503 when two
    clients write at once, and a client then waits for seconds.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    own = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    if database:
        url = database.replace("postgresql:", "postgresql+asyncpg:")
        own["PREFECT_SERVER_DATABASE_CONNECTION_URL"] = url
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "prefect", "server", "start", "--port", str(port)),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
        env=own | QUIET | {"PREFECT_HOME": str(home)},
    )
    api = f"http://127.0.0.1:{port}/api"
    try:
        async with asyncio.timeout(PATIENCE), httpx.AsyncClient() as http:
            while not await _answers(http, f"{api}/health"):  # noqa: ASYNC110 -- another process
                await asyncio.sleep(0.2)
        yield api
    finally:
        process.terminate()
        await ended(process)


async def ended(process: asyncio.subprocess.Process, seconds: float = GRACE) -> None:
    """Wait for the end of a process, and kill it if it does not end by itself."""
    try:
        await asyncio.wait_for(process.wait(), seconds)
    except TimeoutError:
        process.kill()
        await process.wait()


async def _answers(http: httpx.AsyncClient, url: str) -> bool:
    with suppress(httpx.TransportError):
        return (await http.get(url)).is_success
    return False


@contextmanager
def pictures(picture: Path) -> Iterator[str]:
    """Serve one picture under every path; yield the address.

    Requests that differ only in the address are different requests, but they share one drawn clip.
    """
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Picture, picture.read_bytes()))
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


class _Picture(BaseHTTPRequestHandler):
    def __init__(self, picture: bytes, *args: Any) -> None:
        self._picture = picture
        super().__init__(*args)

    def do_GET(self) -> None:
        """Answer with the picture."""
        self.send_response(200)
        self.send_header("Content-Length", str(len(self._picture)))
        self.end_headers()
        self.wfile.write(self._picture)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 -- its name there
        """Log nothing."""
