# SPDX-License-Identifier: Apache-2.0
"""A new user's first day: the commands of docs/production.md, until a schedule has made a video."""

import os
import re
import shlex
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path

from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, temporary_settings

from .cluster import free_port, scheduled, start, wait_for
from .waiting import stop, until

_PAGE = (Path(__file__).parents[1] / "docs" / "production.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"```sh\n(.*?)```", _PAGE, re.DOTALL)[0].splitlines()
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


def first_day(scripts: Path, api: str, folder: Path) -> dict[str, float]:
    """Run each command after the installation and return its duration in seconds.

    The last duration ends when a video exists.

    Args:
        scripts: Folder of scripts of the environment with the installed package.
        api: Address of the Prefect server.
        folder: Working folder.
    """
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PYTHON", "PREFECT_"))
    }
    environment |= {
        "PATH": f"{scripts}{os.pathsep}{environment['PATH']}",
        "PREFECT_API_URL": api,
        "PREFECT_HOME": str(folder / "home"),
    }

    def words(command: str) -> list[str]:
        first, *rest = shlex.split(command)
        # The script of Prefect may be missing there, so Prefect runs as a module.
        prefect = [str(scripts / "python"), "-m", "prefect"]
        return [*(prefect if first == "prefect" else [str(scripts / first)]), *rest]

    took: dict[str, float] = {}
    for command in COMMANDS[1:-1]:
        begun = time.monotonic()
        done = subprocess.run(
            words(command),
            env=environment,
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        took[command] = time.monotonic() - begun
    begun = time.monotonic()
    with ExitStack() as stack:
        log = stack.enter_context((folder / "worker.log").open("wb"))
        stack.enter_context(temporary_settings({PREFECT_API_URL: api}))
        client = stack.enter_context(get_client(sync_client=True))
        worker = subprocess.Popen(
            words(COMMANDS[-1]), env=environment, cwd=folder, stdout=log, stderr=log
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
