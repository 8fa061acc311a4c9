# SPDX-License-Identifier: Apache-2.0
"""Background commands, which a shell starts with SIGINT ignored, end by SIGTERM."""

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress

import psutil
import pytest

from prefect_cometapi.sandbox import Sandbox

from ..waiting import kill, until

PATIENCE = 300
"""Seconds for a command to start its Prefect server, and for it to end."""


def in_session(leader: int) -> list[psutil.Process]:
    """Return the living processes of a session."""
    found = []
    for process in psutil.process_iter():
        with suppress(ProcessLookupError, psutil.NoSuchProcess):
            if os.getsid(process.pid) == leader and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


@pytest.fixture
def background(script, tmp_path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a command as `prefect-cometapi … &` in a script does, with no Prefect server."""
    started: list[subprocess.Popen[str]] = []
    own = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    own |= {"PREFECT_HOME": str(tmp_path / "prefect"), "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}

    def start(*words: str, **env: str) -> subprocess.Popen[str]:
        with (tmp_path / "shown").open("w") as shown, (tmp_path / "told").open("w") as told:
            process = subprocess.Popen(
                [script, *words],
                env=own | {"PYTHONUNBUFFERED": "1"} | env,
                stdin=subprocess.DEVNULL,
                stdout=shown,
                stderr=told,
                text=True,
                start_new_session=True,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),  # noqa: PLW1509
            )
        started.append(process)
        return process

    yield start
    for process in started:
        kill(process)
        for left in in_session(process.pid):
            left.kill()


def started_by(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """Return the processes that a command has started; its Prefect server has its own session."""
    return psutil.Process(process.pid).children(recursive=True)


def ended(process: subprocess.Popen[str], number: int = signal.SIGTERM) -> list[psutil.Process]:
    """Send a signal to a process and wait for its end; return the processes that it leaves."""
    started = started_by(process)
    process.send_signal(number)
    process.wait(PATIENCE)
    return [*in_session(process.pid), *(each for each in started if each.is_running())]


@pytest.mark.slow
@pytest.mark.server
@pytest.mark.heavy
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_a_command_that_is_terminated_ends_like_an_interrupted_one(background, tmp_path, number):
    """SIGTERM or SIGHUP makes a command print how to finish, and stops its Prefect server."""
    with Sandbox(render_seconds=600) as slow:
        words = ["image-to-video", "https://example.com/cat.jpg", "slow zoom"]
        settings = {"COMETAPI_BASE_URL": slow.url, "COMETAPI_KEY": "sandbox"}
        process = background(*words, **settings, COMETAPI_POLL_INTERVAL="0.2")

        def polled() -> bool:
            assert process.poll() is None, (tmp_path / "told").read_text()
            return [request.route for request in slow.requests].count("task") > 1

        until(polled, "the second poll", PATIENCE)
        assert started_by(process)
        left = ended(process, number)
        (job,) = slow.accepted
    assert process.returncode == 128 + number
    assert left == []
    told = (tmp_path / "told").read_text()
    assert told.endswith(
        "Interrupted. A submitted generation continues at CometAPI and is charged if it succeeds.\n"
        f"  Next: prefect-cometapi finish {job.task_id}\n"
    )


@pytest.mark.heavy
@pytest.mark.server
def test_flows_that_are_served_in_the_background_can_be_stopped(background, tmp_path):
    """SIGTERM ends `serve` and the Prefect server that it started, even during the start."""
    process = background("serve")
    until((tmp_path / "prefect" / "prefect.db").exists, "its Prefect server", PATIENCE)
    assert ended(process) == []


@pytest.mark.heavy
@pytest.mark.server
def test_serve_names_its_deployments_and_its_temporary_server(background, tmp_path):
    """The names are printed, and that there is no UI; the end leaves no trace of an error."""
    process = background("serve")
    until(lambda: "Press Ctrl-C" in (tmp_path / "shown").read_text(), "its start", PATIENCE)
    assert ended(process) == []
    shown, told = ((tmp_path / name).read_text() for name in ("shown", "told"))
    assert "  image-to-video/served\n" in shown
    assert "  collect/served  every five minutes\n" in shown
    assert "a temporary Prefect server is started. It has no UI, and ends with this" in told
    assert "Traceback" not in shown + told


@pytest.mark.heavy
def test_a_sandbox_in_the_background_can_be_stopped(background, tmp_path):
    """SIGTERM ends a sandbox without an error, and no process of it is left."""
    process = background("sandbox", "--port", "0")
    until(lambda: "Press Ctrl-C" in (tmp_path / "shown").read_text(), "the sandbox", PATIENCE)
    assert ended(process) == []
    assert process.returncode == 0
    assert (tmp_path / "told").read_text() == ""
