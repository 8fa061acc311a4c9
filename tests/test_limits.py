# SPDX-License-Identifier: Apache-2.0
"""The tests end, however they were started and whatever hangs."""

import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import psutil
import pytest
from prefect.client.orchestration import get_client

from .cluster import scheduled
from .machine import IN_CI, path_of
from .waiting import stop, until

ROOT = Path(__file__).parents[1]

CONFTEST = """
from tests import limits

limits.LIMIT, limits.REMINDER = 2.0, 1.0

def pytest_configure(config):
    config.pluginmanager.register(limits)
"""

HANGING = """
import asyncio, subprocess, sys, threading
import pytest

SILENT = [sys.executable, "-c", "import signal; signal.pause()"]

@pytest.fixture
def child():
    process = subprocess.Popen(SILENT, stdout=subprocess.PIPE)
    print("started", process.pid, flush=True)
    yield process
    process.kill()
    process.wait()

def test_event(): threading.Event().wait()
def test_readline(child): child.stdout.readline()
def test_run(): subprocess.run(SILENT)
def test_loop():
    while True: pass
def test_thread():
    threading.Thread(target=threading.Event().wait, daemon=True).start()
    [each for each in threading.enumerate() if each.daemon][-1].join()
def test_asyncio(): asyncio.run(asyncio.Event().wait())
def test_cleanup():
    with subprocess.Popen(SILENT): pass

@pytest.fixture
def unready(): threading.Event().wait()
def test_setup(unready): pass

@pytest.fixture
def unending():
    yield
    threading.Event().wait()
def test_teardown(unending): pass

def test_that_follows(): pass
"""

WAITING = """
import subprocess, sys, time
import pytest

@pytest.fixture
def child(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
    yield process
    process.kill()
    process.wait()

def test_a(child):
    open(__file__ + ".started", "w").close()
    time.sleep(600)
"""


def in_the_background(folder: Path, *words: str, **env: str) -> subprocess.Popen[str]:
    """Start pytest as `nohup pytest &` in a script does: without SIGINT, SIGHUP and a terminal."""

    def ignore() -> None:
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)

    return subprocess.Popen(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTEST_ADDOPTS": "", **env},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=ignore,  # noqa: PLW1509 -- nothing else keeps a signal ignored
    )


@pytest.mark.slow
@pytest.mark.heavy
def test_a_wait_without_end_fails_its_test_alone(tmp_path):
    """A test that waits without end fails at its limit, is cleaned up, and the next one runs."""
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_hanging.py").write_text(HANGING)
    run = in_the_background(tmp_path, "-q", "--rootdir", str(tmp_path))
    shown, _ = run.communicate(timeout=120)
    assert "7 failed, 2 passed, 2 errors" in shown, shown
    assert shown.count(" - Failed: still running after 2 s\n") == 9


@pytest.mark.heavy
def test_a_test_of_ctrl_c_passes_in_the_background(tmp_path):
    """Signals that tests send work even if the shell has set them to be ignored."""
    test = "tests/deployments/test_cli.py::test_the_sandbox_ends_quietly_with_ctrl_c"
    run = in_the_background(ROOT, "-q", test)
    shown, _ = run.communicate(timeout=120)
    assert run.returncode == 0, shown


@pytest.mark.heavy
def test_what_a_machine_lacks_is_skipped_and_named_once(tmp_path):
    """If programs are missing, each is reported in one line that says how to get it."""
    tests = [
        "tests/deployments/test_several_machines.py",
        "tests/flows/batch/test_gallery_browser.py",
    ]
    (tmp_path / "bin").mkdir()
    bare = {"PATH": str(tmp_path / "bin"), "CI": ""}
    run = in_the_background(ROOT, "-q", *tests, **bare)
    shown, _ = run.communicate(timeout=120)
    assert run.returncode == 0, shown
    assert shown.count("redis-server is not installed (apt-get install redis-server)") == 1
    assert shown.count("chromium is not installed (apt-get install chromium)") == 1


@pytest.mark.parametrize(("package", "end"), [("chromium", "failed"), ("git", "skipped")])
def test_what_ci_installs_is_never_skipped_there(package, end, monkeypatch):
    """A missing program that `.ci/run` installs fails the test."""
    monkeypatch.setenv("CI", "1")
    monkeypatch.setenv("PATH", "")
    ending = pytest.fail.Exception if end == "failed" else pytest.skip.Exception
    with pytest.raises(ending, match=rf"apt-get install {package}"):
        path_of(package)


def test_ci_installs_what_its_tests_may_not_skip():
    """The packages that may not be missing in CI are all installed by its script."""
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert set(re.findall(r"missing\+=\((.*?)\)", script)) == IN_CI


@pytest.mark.heavy
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_tests_that_are_stopped_leave_no_process(tmp_path, number):
    """Ctrl-C and `kill` end the processes of a test, also in the background."""
    (tmp_path / "conftest.py").write_text(CONFTEST.replace("2.0", "600.0"))
    (tmp_path / "test_waiting.py").write_text(WAITING)
    run = in_the_background(tmp_path, "-q", "--rootdir", str(tmp_path))
    until((tmp_path / "test_waiting.py.started").exists, "the test has started")
    (child,) = psutil.Process(run.pid).children()
    run.send_signal(number)
    shown, _ = run.communicate(timeout=60)
    assert run.returncode == pytest.ExitCode.INTERRUPTED, shown
    assert not child.is_running()


def test_a_process_that_does_not_end_by_itself_is_killed_with_its_children(tmp_path):
    """A process that survives SIGTERM, such as a busy worker, is killed with its children."""
    child = "import signal; signal.pause()"
    stubborn = (
        "import signal, subprocess, sys; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        f"subprocess.Popen([sys.executable, '-c', {child!r}])\n"
        f"open('started', 'w').close(); signal.pause()"
    )
    process = subprocess.Popen([sys.executable, "-c", stubborn], cwd=tmp_path)
    until((tmp_path / "started").exists, "it has started")
    (left,) = psutil.Process(process.pid).children()
    stop(process, grace=0.5)
    assert process.returncode == -signal.SIGKILL
    assert not left.is_running() or left.status() == psutil.STATUS_ZOMBIE


@pytest.mark.heavy
@pytest.mark.server
def test_a_schedule_of_a_test_ends_with_it(prefect_server):
    """A schedule is removed at the end of its test, even a failed one, and starts no later run."""
    with get_client(sync_client=True) as client:
        made = client.create_flow_from_name(f"scheduled-{uuid4()}")
        deployment = client.create_deployment(made, "often")
        with suppress(ZeroDivisionError), scheduled(client, deployment, timedelta(seconds=10)):
            assert len(client.read_deployment_schedules(deployment)) == 1
            raise ZeroDivisionError
        assert client.read_deployment_schedules(deployment) == []


def test_a_wait_that_is_too_long_says_for_what():
    """A wait that exceeds its limit names the condition that was not met."""
    with pytest.raises(AssertionError, match=r"the first video: not within 0 s"):
        until(lambda: None, "the first video", seconds=0)
