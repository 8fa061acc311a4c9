# SPDX-License-Identifier: Apache-2.0
"""Fixtures that all tests share: isolated settings, a sandbox and one real Prefect server."""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import settings

from prefect_cometapi.sandbox import Sandbox

from . import limits
from .disks import SmallDisk
from .installation import build_wheel, install
from .machine import leave_out, path_of
from .postgres import Postgres, binaries

os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] = "false"

KEY = "sk-canary0f7b1d3c5e9a"
"""The API key of all tests; no output may contain it."""

settings.register_profile("quick", max_examples=30, deadline=None)
settings.register_profile("thorough", max_examples=300, deadline=None)
settings.load_profile("quick")  # pytest --hypothesis-profile=thorough replaces it

LONG = ("heavy", "slow")
"""Markers of slow files; these run first, so that nobody waits for them at the end."""


def pytest_configure(config: pytest.Config) -> None:
    """Register the time limits of the tests."""
    config.pluginmanager.register(limits)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Return the number of processes of `pytest -n auto`.

    One more than the machine has cores, since tests also wait for servers and processes. At most
    four, since each starts a Prefect server and takes up to a gigabyte of memory.
    """
    return min(4, (os.cpu_count() or 1) + 1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run slow files first, and those that start Prefect servers of their own last among them.

    Prefect's worker for events stays with the first server that a process has used, and waits for
    it for ever once that server is gone.
    """
    long = {item.path for item in items if any(map(item.get_closest_marker, LONG))}
    items.sort(key=lambda item: (item.path not in long, "chaos" in item.path.parts))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print one line per skip reason, with the number of tests."""
    skipped = Counter(
        report.longrepr[2].removeprefix("Skipped: ")
        for report in terminalreporter.stats.get("skipped", [])
    )
    for reason, count in sorted(skipped.items()):
        terminalreporter.write_line(f"SKIPPED [{count}] {reason}")


@pytest.fixture(autouse=True)
def own_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Hide the settings and files of the machine from every test."""
    for name in [name for name in os.environ if name.startswith("COMETAPI_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("COMETAPI_LEDGER_URL", f"sqlite:///{tmp_path}/ledger.db")
    monkeypatch.chdir(tmp_path)
    before = set(os.environ)
    yield
    for name in {name for name in set(os.environ) - before if name.startswith("PREFECT_")}:
        del os.environ[name]  # a command that runs in this process makes Prefect quiet


@pytest.fixture
def plain_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Remove proxies and certificates from the environment, and the cached certificates."""
    from prefect_cometapi.runway import http_clients

    for name in (*http_clients.CERTIFICATE_VARIABLES, "ALL_PROXY", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    http_clients.tls_context.cache_clear()
    yield
    http_clients.tls_context.cache_clear()


@pytest.fixture(scope="session")
def running_sandbox() -> Iterator[Sandbox]:
    """Start one sandbox for all tests that need no special configuration."""
    with Sandbox() as sandbox:
        yield sandbox


@pytest.fixture
def sandbox(
    running_sandbox: Sandbox, own_settings: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Sandbox:
    """Return a reset sandbox; the settings point to it and poll at short intervals."""
    running_sandbox.clear()
    point_to(running_sandbox, monkeypatch, tmp_path)
    return running_sandbox


def point_to(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Point the settings to a sandbox, and the storage to a folder."""
    monkeypatch.setenv("COMETAPI_BASE_URL", sandbox.url)
    monkeypatch.setenv("COMETAPI_KEY", KEY)
    monkeypatch.setenv("COMETAPI_POLL_INTERVAL", "0.05")
    monkeypatch.setenv("COMETAPI_GENERATION_TIMEOUT", "30")
    monkeypatch.setenv("COMETAPI_STORAGE", str(folder / "videos"))


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Start a Prefect server with its own database and results, and yield its API address.

    Runs of this process send no heartbeats: a synchronous flow ends only after the thread that
    sends them, which wakes once a second. Tests of heartbeats have servers of their own.
    """
    from prefect.settings import (
        PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
        PREFECT_LOCAL_STORAGE_PATH,
        get_current_settings,
        temporary_settings,
    )
    from prefect.testing.utilities import prefect_test_harness

    results = tmp_path_factory.mktemp("results")
    with (
        prefect_test_harness(server_startup_timeout=120),
        temporary_settings(
            {PREFECT_LOCAL_STORAGE_PATH: results, PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}
        ),
    ):
        yield str(get_current_settings().api.url)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """Start a PostgreSQL server and remove it afterwards."""
    found = binaries()
    server = Postgres(found or leave_out("PostgreSQL", "postgresql"))
    yield server
    server.remove()


@pytest.fixture(scope="session")
def redis_server() -> str:
    """Return the path of the Redis server, which several API servers share."""
    return path_of("redis-server")


@pytest.fixture(scope="session")
def chromium() -> str:
    """Start a real browser."""
    return path_of("chromium")


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """Start an S3 server process and yield its address."""
    from .s3 import s3_server

    with s3_server() as url:
        yield url


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], SmallDisk]]:
    """Return a function that mounts a real file system with a size in kilobytes."""
    folder = tmp_path / "small"
    folder.mkdir()
    with ExitStack() as stack:

        def mount(kilobytes: int) -> SmallDisk:
            try:
                disk = SmallDisk(folder, kilobytes)
            except OSError as error:
                pytest.skip(str(error))
            stack.callback(disk.remove)
            return disk

        yield mount


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel."""
    return build_wheel(tmp_path_factory.mktemp("sources"))


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel and return the folder of scripts of its environment."""
    return install(wheel, tmp_path_factory.mktemp("venv"))
