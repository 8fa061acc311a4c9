# SPDX-License-Identifier: Apache-2.0
"""Batches of the command line that are killed while they buy."""

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path

from prefect_cometapi.sandbox import Sandbox

from .processes import COMMAND, inherited_environment, python_path

COMMAND_TIMEOUT = 1800.0
"""Seconds after which a command counts as hung."""

MANIFEST = "manifest.jsonl"


class BatchCommands:
    """Folder and environment in which the command of the package runs."""

    def __init__(
        self,
        folder: Path,
        environment: dict[str, str],
        program: Sequence[str] = (str(COMMAND),),
    ) -> None:
        self.folder = folder
        self._program = program
        self._environment = inherited_environment("COMETAPI_") | environment
        self._environment["PYTHONPATH"] = python_path()

    async def start(self, *words: str) -> asyncio.subprocess.Process:
        """Start a command."""
        return await asyncio.create_subprocess_exec(
            *(*self._program, *words),
            cwd=self.folder,
            env=self._environment,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )

    async def run(self, *words: str) -> tuple[int | None, str, str]:
        """Run a command to its end; return its status and output."""
        process = await self.start(*words)
        async with asyncio.timeout(COMMAND_TIMEOUT):
            output, errors = await process.communicate()
        return process.returncode, output.decode(), errors.decode(errors="replace")

    async def run_batch(self, output: str) -> tuple[int | None, str, str]:
        """Run the batch of the manifest to its end; return its status and output."""
        return await self.run("batch", MANIFEST, "--output", output)

    async def kill_batch(self, sandbox: Sandbox, accepted: int, delay: float) -> int:
        """Start the batch, and send SIGKILL some seconds after N jobs were accepted.

        Returns:
            Number of jobs that the service had accepted at the kill.
        """
        process = await self.start("batch", MANIFEST, "--json")
        async with asyncio.timeout(COMMAND_TIMEOUT):
            # The sandbox has no event for an accepted job.
            while len(sandbox.accepted) < accepted and process.returncode is None:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        await asyncio.sleep(delay)
        if process.returncode is None:
            process.kill()
        await process.communicate()
        return len(sandbox.accepted)


def write_manifest(folder: Path, address: str, rows: int) -> dict[str, str]:
    """Write a manifest of pictures at an address; return the row id of each picture."""
    requests = [{"id": f"row-{n:04}", "promptImage": f"{address}/{n}.jpg"} for n in range(rows)]
    text = "".join(f"{json.dumps(row)}\n" for row in requests)
    (folder / MANIFEST).write_text(text, encoding="utf-8")
    return {row["promptImage"]: row["id"] for row in requests}
