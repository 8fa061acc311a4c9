# SPDX-License-Identifier: Apache-2.0
"""Processes of the chaos tests: their environment, their forks and their end."""

import asyncio
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from ...waiting import GRACE

ROOT = Path(__file__).parents[3]
COMMAND = Path(sys.executable).parent / "prefect-cometapi"
"""Command of the installed package."""

SETTINGS_PREFIXES = ("COMETAPI_", "PREFECT_")
"""Prefixes of the variables by which the machine's own settings would reach a test."""

QUIET = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    "PREFECT_SERVER_LOGGING_LEVEL": "CRITICAL",
    "PREFECT_CLI_COLORS": "false",
    "DO_NOT_TRACK": "1",
}

INTERNAL_ERROR = 70
"""Exit status of a fork whose work raised, as in sysexits.h."""


def inherited_environment(*prefixes: str) -> dict[str, str]:
    """Return the environment of this process without the variables with these prefixes."""
    return {name: value for name, value in os.environ.items() if not name.startswith(prefixes)}


def clear_environment(*prefixes: str) -> None:
    """Delete the variables with these prefixes from the environment of this process."""
    for name in [name for name in os.environ if name.startswith(prefixes)]:
        del os.environ[name]


def python_path() -> str:
    """Return a PYTHONPATH with which a child process can import these tests."""
    return os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))


def run_fork(act: Callable[[], None], log: Path) -> NoReturn:
    """Run the work of a forked child with its output in a file, and exit.

    Nothing may return or raise into the code of the parent, whose loop the child would continue.
    """
    status = INTERNAL_ERROR
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((nothing, 0), (output, 1), (output, 2)):
            os.dup2(source, target)
        act()
        status = 0
    except BaseException:  # noqa: BLE001 -- see above
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


async def wait_for_end(process: asyncio.subprocess.Process, seconds: float = GRACE) -> None:
    """Wait for the end of a process, and kill it if it does not end by itself."""
    try:
        await asyncio.wait_for(process.wait(), seconds)
    except TimeoutError:
        process.kill()
        await process.wait()
