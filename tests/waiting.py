# SPDX-License-Identifier: Apache-2.0
"""Waits with a timeout: for a condition, and for the end of a process with all its children."""

import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

import psutil

T = TypeVar("T")

GRACE = 30.0
"""Seconds that a process has to end by itself after SIGTERM."""


def until(look: Callable[[], T | None], what: str = "it", seconds: float = 30.0) -> T:
    """Wait until `look` returns a true value, and return that value.

    Args:
        look: Function that is called repeatedly.
        what: The awaited condition, for the error message.
        seconds: Timeout in seconds.
    """
    end = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < end, f"{what}: not within {seconds:g} s"
        time.sleep(0.05)
    return found


def stop(process: subprocess.Popen[Any], grace: float = GRACE) -> None:
    """End a process: SIGTERM first, then SIGKILL for it and its children if it is still running.

    A Prefect worker finishes its runs after SIGTERM for as long as new ones arrive.
    """
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(grace)
    kill(process)


def kill(process: subprocess.Popen[Any]) -> None:
    """Kill a process and all its children, like a power failure."""
    if process.poll() is not None:
        return  # another process may have its id by now
    children: list[psutil.Process] = []
    with suppress(psutil.NoSuchProcess):
        parent = psutil.Process(process.pid)
        parent.suspend()  # a suspended parent starts no more children
        children = parent.children(recursive=True)
    for child in children:
        with suppress(psutil.NoSuchProcess):
            child.kill()
    process.kill()
    process.wait(GRACE)
    until(lambda: all(map(_is_gone, children)), "the end of its children", GRACE)


def _is_gone(process: psutil.Process) -> bool:
    """Return whether a process has ended; the init process of a container may never reap it."""
    with suppress(psutil.NoSuchProcess):
        return process.status() == psutil.STATUS_ZOMBIE
    return True
