# SPDX-License-Identifier: Apache-2.0
"""A new user's first day: the commands of docs/production.md, until a schedule has made a video."""

import os
import re
import shlex
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, temporary_settings

from .cluster import free_port, scheduled, start, wait_for
from .waiting import stop, until

_DOCS = Path(__file__).parents[1] / "docs"


def _commands(page: str, title: str) -> list[str]:
    """Return the commands below a title of a page."""
    text = (_DOCS / page).read_text(encoding="utf-8").partition(f"## {title}\n")[2]
    return re.findall(r"```sh\n(.*?)```", text, re.DOTALL)[0].splitlines()


COMMANDS = _commands("production.md", "Four commands")
TO_CONTAINERS = _commands("containers.md", "Two commands")
PATIENCE = 180
"""Seconds that a command, and then the first video, may take."""

EVERY = timedelta(seconds=10)


@contextmanager
def own_server(folder: Path) -> Iterator[str]:
    """Start a Prefect server with its scheduler, as a user does, and yield its API address."""
    port = free_port()
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    with ExitStack() as stack:
        environment = kept | {"PREFECT_HOME": str(folder / "server")}
        words = ("server", "start", "--port", str(port))
        start(stack, folder / "server.log", environment, *words)
        wait_for(f"http://127.0.0.1:{port}/api/health")
        yield f"http://127.0.0.1:{port}/api"


@dataclass(frozen=True)
class User:
    """New user, with an environment in which the package is installed.

    Attributes:
        scripts: Folder of scripts of that environment.
        api: Address of the Prefect server.
        folder: Working folder.
    """

    scripts: Path
    api: str
    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        """Return the environment variables of the user's shell."""
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("PYTHON", "PREFECT_"))
        }
        return kept | {
            "PATH": f"{self.scripts}{os.pathsep}{kept['PATH']}",
            "PREFECT_API_URL": self.api,
            "PREFECT_HOME": str(self.folder / "home"),
        }

    def words(self, command: str) -> list[str]:
        """Return the words of a command."""
        first, *rest = shlex.split(command)
        # The script of Prefect may be missing there, so Prefect runs as a module.
        prefect = [str(self.scripts / "python"), "-m", "prefect"]
        return [*(prefect if first == "prefect" else [str(self.scripts / first)]), *rest]

    def run(self, commands: list[str]) -> dict[str, float]:
        """Run commands to their end, and return the duration of each in seconds."""
        took: dict[str, float] = {}
        for command in commands:
            begun = time.monotonic()
            done = subprocess.run(
                self.words(command),
                env=self.environment,
                cwd=self.folder,
                capture_output=True,
                text=True,
                timeout=PATIENCE,
                check=False,
            )
            assert done.returncode == 0, done.stdout + done.stderr
            took[command] = time.monotonic() - begun
        return took


def first_day(scripts: Path, api: str, folder: Path) -> dict[str, float]:
    """Run each command after the installation and return its duration in seconds.

    The last duration ends when a video exists.

    Args:
        scripts: Folder of scripts of the environment with the installed package.
        api: Address of the Prefect server.
        folder: Working folder.
    """
    user = User(scripts, api, folder)
    took = user.run(COMMANDS[1:-1])
    begun = time.monotonic()
    with ExitStack() as stack:
        log = stack.enter_context((folder / "worker.log").open("wb"))
        stack.enter_context(temporary_settings({PREFECT_API_URL: api}))
        client = stack.enter_context(get_client(sync_client=True))
        worker = subprocess.Popen(
            user.words(COMMANDS[-1]), env=user.environment, cwd=folder, stdout=log, stderr=log
        )
        stack.callback(stop, worker)
        # The schedule is removed first, as a user does in the UI. A stopping worker waits for its
        # runs, so a schedule that adds runs would keep it alive for ever.
        daily = client.read_deployment_by_name("image-to-video/daily")
        stack.enter_context(scheduled(client, daily.id, EVERY))

        def video() -> bool:
            assert worker.poll() is None, "the worker has ended"
            return any((folder / "videos").glob("*.mp4"))

        try:
            until(video, "the first video", PATIENCE)
        except AssertionError as error:
            error.add_note((folder / "worker.log").read_text(encoding="utf-8"))
            raise
        took[COMMANDS[-1]] = time.monotonic() - begun
    return took
