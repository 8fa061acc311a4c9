# SPDX-License-Identifier: Apache-2.0
"""The newest versions of all dependencies, as `pip install prefect-cometapi` gets them.

``python -m tests.newest [WHEEL]`` builds the wheel, unless it gets one, and for each Python version
of the classifiers that this machine has, installs it without the lock into an environment of its
own. There it runs the demo of the README and a small core of the tests.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

from packaging.requirements import Requirement

from .installation import ROOT, build_wheel

HOME = ROOT / "build" / "newest"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
VERSIONS = [
    version
    for classifier in PROJECT["classifiers"]
    for version in re.findall(r"^Programming Language :: Python :: (3\.\d+)$", classifier)
]
"""Python versions that the package claims to support."""

TOOLS = ("hypothesis", "pillow", "psutil", "pytest", "pytest-asyncio")
"""Packages of the extra `test` that the core needs."""

CORE = (
    "tests/test_front_door.py",
    "tests/runway/api/test_client.py",
    "tests/runway/api/test_reply_parser.py",
    "tests/runway/ledger/test_store.py",
    "tests/runway/ledger/test_purchase.py",
    "tests/runway/media/test_inspector.py",
    "tests/runway/models",
    "tests/blocks/test_credentials.py",
    "tests/flows/test_flows.py::test_the_tasks_compose_in_a_sync_flow",
    "tests/flows/test_flows.py::test_it_works_in_an_async_flow",
)
"""Tests that use each dependency at least once."""

AT_ONCE = 3
"""Environments that are tested at the same time. Each waits for downloads, servers and polls."""

HIDDEN = ("PYTHON", "PREFECT_", "COMETAPI_", "VIRTUAL_ENV", "PIP_CONSTRAINT")
"""Prefixes of variables that a new user does not have."""


def interpreters(version: str) -> Iterator[Path]:
    """Yield the places where an interpreter of a version may be: this one, PATH, pyenv."""
    if version == f"{sys.version_info.major}.{sys.version_info.minor}":
        yield Path(sys.executable)
    if found := shutil.which(f"python{version}"):
        yield Path(found)
    root = Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser()
    yield from sorted(root.glob(f"versions/{version}.*/bin/python{version}"))


def find_interpreter(version: str) -> Path | None:
    """Return an interpreter of a version that starts, or None.

    A command of pyenv exists also where its version is not selected, and then fails.
    """
    check = f"import sqlite3, ssl, sys; sys.exit(not sys.version.startswith('{version}.'))"
    for place in interpreters(version):
        done = subprocess.run([place, "-c", check], capture_output=True, check=False)
        if done.returncode == 0:
            return place
    return None


def tools() -> list[str]:
    """Return the requirements of the core, with the bounds of the extra `test`."""
    return [
        wanted
        for wanted in PROJECT["optional-dependencies"]["test"]
        if Requirement(wanted).name in TOOLS
    ]


def run(folder: Path, *words: str | Path, cwd: Path = ROOT) -> str:
    """Run a command as a new user and return its output; exit with the output if it fails."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(HIDDEN)
    } | {"PREFECT_HOME": str(folder / "home"), "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
    done = subprocess.run(
        words,
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{' '.join(map(str, words))}\n{done.stdout}\nexit status {done.returncode}")
    return done.stdout


def pins(lines: str) -> dict[str, str]:
    """Return the versions in a lock file or in the output of `pip freeze`, by name."""
    found = re.findall(r"^([A-Za-z0-9._-]+)(?:\[[^\]]*\])?==([^\s;]+)", lines, re.MULTILINE)
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in found}


def changes(frozen: str) -> str:
    """Return the installed versions that differ from the lock, in one line."""
    locked = pins((ROOT / "constraints-test.txt").read_text(encoding="utf-8"))
    newer = [
        f"{name} {locked.get(name, '(not locked)')} -> {version}"
        for name, version in sorted(pins(frozen).items())
        if locked.get(name) != version
    ]
    return ", ".join(newer) or "nothing"


def check(version: str, python: Path, wheel: Path) -> str:
    """Install the wheel for an interpreter, run demo and core, and return one paragraph."""
    folder = HOME / version
    shutil.rmtree(folder, ignore_errors=True)
    run(folder, python, "-m", "venv", "--without-pip", folder)
    scripts = folder / "bin"
    pip = (sys.executable, "-m", "pip", "--python", scripts / "python")
    took = [("installation", time.monotonic())]
    run(folder, *pip, "install", "--quiet", "--no-compile", wheel, *tools())
    run(folder, *pip, "check")
    took.append(("demo", time.monotonic()))
    run(folder, scripts / "prefect-cometapi", "demo", cwd=folder)
    videos = len(list(folder.glob("videos/*.mp4")))
    if videos != 2:
        sys.exit(f"the demo on Python {version} left {videos} videos in {folder}/videos, not 2")
    took.append(("tests", time.monotonic()))
    options = ("-q", "-p", "no:cacheprovider", "-m", "not heavy")
    summary = run(folder, scripts / "pytest", *options, *CORE).strip().splitlines()[-1]
    took.append(("end", time.monotonic()))
    times = ", ".join(
        f"{name} {later - begun:.0f} s" for (name, begun), (_, later) in pairwise(took)
    )
    frozen = run(folder, *pip, "freeze")
    return f"Python {version}: {summary}\n  {times}\n  not as locked: {changes(frozen)}"


def main(wheel: Path | None = None) -> None:
    """Check each interpreter of the machine and print the result.

    Args:
        wheel: Built wheel to check; if None, one is built from the sources.
    """
    found = {version: find_interpreter(version) for version in VERSIONS}
    for version in [version for version, python in found.items() if python is None]:
        print(f"Python {version}: not checked, since this machine does not have it")
    pythons = [(version, python) for version, python in found.items() if python is not None]
    if not pythons:
        sys.exit(f"none of {', '.join(VERSIONS)} is installed")
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(AT_ONCE) as pool:
        built = wheel or build_wheel(Path(scratch))
        for paragraph in pool.map(lambda each: check(each[0], each[1], built), pythons):
            print(paragraph, flush=True)


if __name__ == "__main__":
    main(*(Path(word).resolve() for word in sys.argv[1:]))
