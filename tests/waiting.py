# SPDX-License-Identifier: Apache-2.0
"""Waits with a limit: for a condition, and for the end of a process with all its children."""

import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

import psutil

T = TypeVar("T")

GRACE = 30.0
"""Seconds that a process may take to end by itself after SIGTERM."""


def until(look: Callable[[], T | None], what: str = "it", seconds: float = 30.0) -> T:
    """Return what `look` finds, once that is true.

    Args:
        look: Called again and again.
        what: What is awaited, for the message.
        seconds: The limit.
    """
    end = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < end, f"{what}: not within {seconds:g} s"
        time.sleep(0.05)
    return found


def stop(process: subprocess.Popen[Any], grace: float = GRACE) -> None:
    """End a process: SIGTERM first, and SIGKILL for it and its children if that is not enough.

    A worker of Prefect finishes its runs after SIGTERM, for as long as new ones come.
    """
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(grace)
    kill(process)


def kill(process: subprocess.Popen[Any]) -> None:
    """End a process and all that it started, as if the power went."""
    if process.poll() is not None:
        return  # its number may be that of another process by now
    children: list[psutil.Process] = []
    with suppress(psutil.NoSuchProcess):
        parent = psutil.Process(process.pid)
        parent.suspend()  # it starts no more of them meanwhile
        children = parent.children(recursive=True)
    for child in children:
        with suppress(psutil.NoSuchProcess):
            child.kill()
    process.kill()
    process.wait(GRACE)
    until(lambda: all(map(_is_gone, children)), "the end of its children", GRACE)


def _is_gone(process: psutil.Process) -> bool:
    """Whether a process has ended; the init of a container may never reap it."""
    with suppress(psutil.NoSuchProcess):
        return process.status() == psutil.STATUS_ZOMBIE
    return True
