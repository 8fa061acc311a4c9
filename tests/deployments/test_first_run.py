# SPDX-License-Identifier: Apache-2.0
"""From the wheel to a run on a worker, in the commands of the page, word for word."""

import os
import re
import shlex
import subprocess
import time
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client

pytestmark = [pytest.mark.server, pytest.mark.slow]

PAGE = (Path(__file__).parents[2] / "docs" / "production.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)[0].splitlines()


def test_it_takes_five_commands_at_most():
    """The first installs, and the last is the worker."""
    assert len(COMMANDS) <= 5
    assert COMMANDS[0] == "pip install prefect-cometapi"
    assert COMMANDS[-1] == "prefect worker start --pool videos"


def test_a_deployment_runs_on_a_worker_after_the_commands_of_the_page(
    clean_server, sandbox, installed, tmp_path
):
    """With the package alone: no repository, no code, no file."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    env |= {
        "PATH": f"{installed}{os.pathsep}{env['PATH']}",
        "PREFECT_API_URL": clean_server,
        "PREFECT_HOME": str(tmp_path / "prefect"),
        "PREFECT_WORKER_QUERY_SECONDS": "1",
    }

    def words(command: str) -> list[str]:
        first, *rest = shlex.split(command)
        # Only our own script is in that environment; Prefect's is run as the module that it is.
        prefect = [str(installed / "python"), "-m", "prefect"]
        return [*(prefect if first == "prefect" else [str(installed / first)]), *rest]

    for command in COMMANDS[1:-1]:  # the wheel is installed already
        done = subprocess.run(words(command), env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    worker = subprocess.Popen(words(COMMANDS[-1]), env=env, stdout=subprocess.DEVNULL)
    try:
        with get_client(sync_client=True) as client:
            daily = client.read_deployment_by_name("image-to-video/daily")
            client.create_flow_run_from_deployment(daily.id)
            end = time.monotonic() + 180
            while not list((tmp_path / "videos").glob("*.mp4")):
                assert time.monotonic() < end, "no video came"
                time.sleep(0.2)
            client.delete_deployment(daily.id)
    finally:
        worker.terminate()
        worker.wait()
