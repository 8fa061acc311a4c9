# SPDX-License-Identifier: Apache-2.0
"""Commands load only what their answer needs, and start a Prefect server only if they need one."""

import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import httpx
import psutil
import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from prefect_cometapi.deployments import connection, temporary_server
from prefect_cometapi.deployments.temporary_server import TemporaryServer

from ..waiting import until

LOADED = """
import json, sys
from prefect_cometapi.deployments.start import main
sys.argv = ["prefect-cometapi", *sys.argv[1:]]
try:
    main()
except SystemExit as end:
    status = end.code or 0
loaded = [name for name in ("prefect", "sqlalchemy", "fastapi", "av") if name in sys.modules]
print(json.dumps([status, loaded]))
"""


def loaded_by(*words: str, **variables: str) -> tuple[int, list[str]]:
    """Return the exit status of a command, and which large libraries it has loaded."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT")}
    done = subprocess.run(
        [sys.executable, "-c", LOADED, *words],
        env=own | variables,
        capture_output=True,
        text=True,
        check=True,
    )
    status, loaded = json.loads(done.stdout.splitlines()[-1])
    return status, loaded


@pytest.mark.parametrize(
    "words", [["--help"], ["-V"], ["image-to-video", "--help"], ["batch", "--help"]], ids=" ".join
)
def test_help_loads_no_large_library(words):
    """Help and version load neither Prefect nor a database, a server or a decoder."""
    assert loaded_by(*words) == (0, [])


def test_the_ledger_is_listed_without_prefect(tmp_path):
    """The default ledger is found and listed without an import of Prefect or another library."""
    home = {"PREFECT_HOME": str(tmp_path / "home"), "COMETAPI_LEDGER_URL": ""}
    assert loaded_by("ledger", "list", **home) == (0, [])
    assert (tmp_path / "home").is_dir()


@pytest.mark.parametrize(
    ("words", "variables"),
    [
        (["image-to-video", "https://example.com/a.jpg"], {"COMETAPI_KEY": ""}),
        (["batch", "no.jsonl"], {"COMETAPI_KEY": "k"}),
        (["collect"], {"COMETAPI_BASE_URL": "http://example.com"}),
    ],
)
def test_a_mistake_is_refused_without_prefect(words, variables):
    """A mistake that this machine sees by itself is refused without an import of Prefect."""
    status, loaded = loaded_by(*words, **variables)
    assert status == 1
    assert "prefect" not in loaded


def test_a_server_that_ends_at_once_is_reported(monkeypatch):
    """A temporary server that does not start is an error with its status."""
    monkeypatch.setattr(temporary_server, "_PROGRAM", "prefect_cometapi.no_such_module")
    with pytest.raises(RuntimeError, match="The temporary server has ended with status 1"):
        TemporaryServer.start()


def test_a_server_that_does_not_answer_is_reported():
    """The wait for a temporary server ends with its timeout."""

    class Silent:
        url = "http://127.0.0.1:9/api"

        def check(self) -> None:
            pass

    with (
        temporary_settings({PREFECT_API_URL: Silent.url}),
        pytest.raises(RuntimeError, match="The temporary server did not start within 0 s"),
    ):
        connection._wait(Silent(), 0)  # pyright: ignore[reportArgumentType]


SERVING = """
import sys
from prefect_cometapi.deployments.connection import connect
from prefect_cometapi.deployments.prefect_env import quieten_prefect
quieten_prefect()
def load():
    from prefect.settings import get_current_settings
    return get_current_settings().api.url
print(connect(load, lambda text: print(text, flush=True)), flush=True)
sys.stdin.read()
"""


@pytest.mark.slow
@pytest.mark.server
@pytest.mark.heavy
@pytest.mark.parametrize("is_killed", [False, True], ids=["ends", "is killed"])
def test_the_temporary_server_ends_with_its_command(tmp_path, is_killed):
    """A server that a command has started ends with it, even if the command is killed."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT")}
    with subprocess.Popen(
        [sys.executable, "-c", SERVING],
        env=own | {"PREFECT_HOME": str(tmp_path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == "starting a Prefect server\n"
        url = process.stdout.readline().strip()
        assert httpx.get(f"{url}/health").json() is True
        (server,) = psutil.Process(process.pid).children()
        if is_killed:
            process.kill()
    until(lambda: not is_running(server), "the end of the server", 60)


def is_running(process: psutil.Process) -> bool:
    """Return whether a process runs and is no zombie."""
    with suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def test_the_server_has_a_program_of_its_own():
    """The program of the temporary server exists under the name that is started."""
    path = Path(temporary_server.__file__).with_name("server_process.py")
    assert temporary_server._PROGRAM.rpartition(".")[2] == path.stem
    assert path.exists()
