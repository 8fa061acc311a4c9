# SPDX-License-Identifier: Apache-2.0
"""Commands as a shell runs them, and as they run inside a test."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from prefect_cometapi.deployments import cli
from prefect_cometapi.sandbox import Sandbox

SCRIPTS = Path(sys.executable).parent


@dataclass
class Shell:
    """Runs installed scripts in the test's folder, with settings and a Prefect home of its own."""

    env: dict[str, str]
    sandbox: Sandbox

    def __call__(self, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
        """Run a command to its end; the first word is the script unless it is ours."""
        return run(*words, env={**os.environ, **self.env, **env})


def run(*words: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a script that is installed beside this interpreter."""
    return subprocess.run(
        [SCRIPTS / words[0], *words[1:]],
        env=env,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )


@pytest.fixture
def shell(prefect_server: str, sandbox: Sandbox, tmp_path: Path) -> Shell:
    """A shell whose commands use the tests' Prefect server and the sandbox."""
    env = {"PREFECT_API_URL": prefect_server, "PREFECT_HOME": str(tmp_path / "prefect")}
    return Shell(env, sandbox)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Run the console script's function in this process; gives its exit code."""
    # The commands set variables for good, since their process is their own.
    monkeypatch.setattr(os, "environ", os.environ.copy())

    def run_here(*words: str) -> int:
        monkeypatch.setattr(sys, "argv", ["prefect-cometapi", *words])
        try:
            cli.main()
        except SystemExit as end:
            return int(end.code or 0)
        return 0

    return run_here
