# SPDX-License-Identifier: Apache-2.0
"""Fixtures that run commands in a shell or inside a test."""

import base64
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client

from prefect_cometapi.deployments import cli
from prefect_cometapi.sandbox import Sandbox

PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


@dataclass
class Shell:
    """Shell that runs the script in the test's folder, with a Prefect home of its own."""

    script: Path
    env: dict[str, str]
    sandbox: Sandbox

    def __call__(self, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        return subprocess.run(
            [self.script, *words],
            env={**os.environ, **self.env, **env},
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )


@pytest.fixture
def script() -> Path:
    """Return the console script that is installed beside this interpreter."""
    return Path(sys.executable).parent / "prefect-cometapi"


@pytest.fixture
def picture(tmp_path: Path) -> str:
    """Create an image file in the working directory and return its name."""
    (tmp_path / "cat.png").write_bytes(PIXEL)
    return "cat.png"


@pytest.fixture
def shell(script: Path, prefect_server: str, sandbox: Sandbox, tmp_path: Path) -> Shell:
    """Return a shell whose commands use the tests' Prefect server and the sandbox."""
    env = {"PREFECT_API_URL": prefect_server, "PREFECT_HOME": str(tmp_path / "prefect")}
    return Shell(script, env, sandbox)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Run the console script's function in this process; return its exit code."""
    # The commands set variables permanently, since each has a process of its own.
    monkeypatch.setattr(os, "environ", os.environ.copy())

    def run_here(*words: str) -> int:
        monkeypatch.setattr(sys, "argv", ["prefect-cometapi", *words])
        try:
            cli.main()
        except SystemExit as end:
            return int(end.code or 0)
        return 0

    return run_here


@pytest.fixture
async def clean_server(prefect_server: str, sandbox: Sandbox) -> AsyncIterator[str]:
    """Yield a Prefect server without objects of this package, and remove them afterwards."""
    await _forget()
    yield prefect_server
    await _forget()


async def _forget() -> None:
    async with get_client() as client:
        for automation in await client.read_automations():
            await client.delete_automation(automation.id)
        for limit in await client.read_global_concurrency_limits():
            await client.delete_global_concurrency_limit_by_name(limit.name)
        for deployment in await client.read_deployments():
            await client.delete_deployment(deployment.id)
        for pool in await client.read_work_pools():
            await client.delete_work_pool(pool.name)
        for kind in ("cometapi-credentials", "generation-ledger"):
            for document in await client.read_block_documents_by_type(kind):
                await client.delete_block_document(document.id)
