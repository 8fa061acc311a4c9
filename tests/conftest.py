# SPDX-License-Identifier: Apache-2.0
"""What all tests share: settings of their own, a sandbox, and one real Prefect server."""

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
"""The API key of all tests; it must be found nowhere afterwards."""

settings.register_profile("ci", max_examples=300, deadline=None)
settings.register_profile("default", max_examples=100, deadline=None)
settings.load_profile("ci" if os.environ.get("CI") else "default")

LONG = ("browser", "kills", "packaging", "slow", "storm")
"""Marks of files that take long; they begin first, so that nobody waits for them at the end."""


def pytest_configure(config: pytest.Config) -> None:
    """Limit every test."""
    config.pluginmanager.register(limits)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first, otherwise as they were found."""
    long = {item.path for item in items if any(map(item.get_closest_marker, LONG))}
    items.sort(key=lambda item: item.path not in long)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say in one line for each reason how many tests were skipped."""
    skipped = Counter(
        report.longrepr[2].removeprefix("Skipped: ")
        for report in terminalreporter.stats.get("skipped", [])
    )
    for reason, count in sorted(skipped.items()):
        terminalreporter.write_line(f"SKIPPED [{count}] {reason}")


@pytest.fixture(autouse=True)
def own_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No test sees the settings or the files of the machine that it runs on."""
    for name in [name for name in os.environ if name.startswith("COMETAPI_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("COMETAPI_LEDGER_URL", f"sqlite:///{tmp_path}/ledger.db")
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def running_sandbox() -> Iterator[Sandbox]:
    """One sandbox for all tests that need no other configuration."""
    with Sandbox() as sandbox:
        yield sandbox


@pytest.fixture
def sandbox(
    running_sandbox: Sandbox, own_settings: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Sandbox:
    """A fresh sandbox that the settings point to, with short poll intervals."""
    running_sandbox.clear()
    point_to(running_sandbox, monkeypatch, tmp_path)
    return running_sandbox


def point_to(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Let the settings lead to a sandbox, and the videos into a folder."""
    monkeypatch.setenv("COMETAPI_BASE_URL", sandbox.url)
    monkeypatch.setenv("COMETAPI_KEY", KEY)
    monkeypatch.setenv("COMETAPI_POLL_INTERVAL", "0.05")
    monkeypatch.setenv("COMETAPI_DEADLINE", "30")
    monkeypatch.setenv("COMETAPI_STORAGE", str(folder / "videos"))


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real Prefect server with its own database and results; gives the address of its API."""
    from prefect.settings import (
        PREFECT_LOCAL_STORAGE_PATH,
        get_current_settings,
        temporary_settings,
    )
    from prefect.testing.utilities import prefect_test_harness

    results = tmp_path_factory.mktemp("results")
    with (
        prefect_test_harness(server_startup_timeout=120),
        temporary_settings({PREFECT_LOCAL_STORAGE_PATH: results}),
    ):
        yield str(get_current_settings().api.url)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A real PostgreSQL, which is gone afterwards."""
    found = binaries()
    server = Postgres(found or leave_out("PostgreSQL", "postgresql"))
    yield server
    server.remove()


@pytest.fixture(scope="session")
def redis_server() -> str:
    """The program that keeps what several API servers share."""
    return path_of("redis-server")


@pytest.fixture(scope="session")
def chromium() -> str:
    """A real browser."""
    return path_of("chromium")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], SmallDisk]]:
    """Mounts a real file system of so many kilobytes."""
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
    """The wheel."""
    return build_wheel(tmp_path_factory.mktemp("sources"))


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scripts of an environment that has the wheel."""
    return install(wheel, tmp_path_factory.mktemp("venv"))
