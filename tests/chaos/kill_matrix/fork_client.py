# SPDX-License-Identifier: Apache-2.0
"""Client of the fork server."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from ..harness.processes import QUIET, ROOT, inherited_environment, python_path, wait_for_end

PROCESS_TIMEOUT = 240.0
"""Seconds after which a process counts as hung; none needs a tenth of it."""


@dataclass(frozen=True)
class ProcessResult:
    """Exit status, result and log of a process that has ended.

    Attributes:
        status: Negative for the signal that killed it.
        outcome: Result of its flow, or ``error`` and ``text``; None if there is none.
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
        return f"{self.error}: {self.text}" if self.error else "success"


class ForkClient:
    """Fork server, as its client uses it."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._numbers = count(1)
        self._waiting: dict[int, asyncio.Future[int]] = {0: asyncio.Future()}
        self._reader = asyncio.create_task(self._read())

    async def run(self, spec: dict[str, Any]) -> ProcessResult:
        """Run a process for a specification, and wait for its end."""
        job = next(self._numbers)
        folder = Path(spec["folder"])
        files = {"outcome": folder / f"outcome-{job}.json", "log": folder / f"log-{job}"}
        end = self._waiting[job] = asyncio.get_running_loop().create_future()
        self._send(spec | {"job": job} | {name: str(path) for name, path in files.items()})
        try:
            status = await asyncio.wait_for(asyncio.shield(end), PROCESS_TIMEOUT)
        except TimeoutError:
            self._send({"job": job, "do": "kill"})
            await end
            return ProcessResult(
                -1, {"error": "Hung", "text": f"after {PROCESS_TIMEOUT:g} s"}, files["log"]
            )
        file = files["outcome"]
        outcome = json.loads(file.read_text()) if file.exists() and status == 0 else None
        return ProcessResult(status, outcome, files["log"])

    async def ready(self) -> None:
        """Wait until the fork server has imported everything."""
        await asyncio.wait_for(self._waiting[0], PROCESS_TIMEOUT)

    def _send(self, line: dict[str, Any]) -> None:
        assert self._process.stdin
        self._process.stdin.write(json.dumps(line).encode() + b"\n")

    async def _read(self) -> None:
        assert self._process.stdout
        async for line in self._process.stdout:
            report = json.loads(line)
            self._waiting.pop(report["job"]).set_result(report["status"])
        for end in self._waiting.values():
            end.set_exception(RuntimeError("the fork server is gone"))


@asynccontextmanager
async def start_fork_server(environment: dict[str, str]) -> AsyncIterator[ForkClient]:
    """Start a fork server whose processes have this environment; yield its client."""
    own = inherited_environment("COMETAPI_") | QUIET | {"PYTHONPATH": python_path()}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.chaos.kill_matrix.fork_server"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env=own | environment,
        cwd=ROOT,
    )
    try:
        client = ForkClient(process)
        await client.ready()
        yield client
    finally:
        if process.stdin:
            # The fork server kills its forks and ends once its input is closed.
            process.stdin.close()
        await wait_for_end(process)
