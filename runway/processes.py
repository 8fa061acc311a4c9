# SPDX-License-Identifier: Apache-2.0
"""Processes of this machine, told apart from all others, and whether one has certainly ended."""

import hashlib
import os
import socket
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_PROC = Path("/proc")
_DEAD = {"Z", "X"}


@dataclass(frozen=True)
class Process:
    """A process, told apart from all others."""

    host: str
    space: str
    pid: int
    started: str

    def __str__(self) -> str:
        return f"{self.host}:{self.pid}:{self.space}:{self.started}"


def this_process() -> Process:
    """The process that asks; a forked child is another one."""
    return _process(os.getpid())


@cache
def _process(pid: int) -> Process:
    state = _state_and_start(pid)
    return Process(
        host=socket.gethostname().replace(":", "-").replace("|", "-")[:100],
        space=_space(),
        pid=pid,
        started=state[1] if state else "",
    )


def _space() -> str:
    """One boot of one machine and one process namespace in it, or nothing where it has none."""
    try:
        boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
        namespace = str((_PROC / "self/ns/pid").readlink())
    except OSError:
        return ""
    return hashlib.sha256(f"{boot}{namespace}".encode()).hexdigest()[:12]


def _state_and_start(pid: int) -> tuple[str, str] | None:
    """One letter for the state of a process, and its start in ticks; None if there is none."""
    try:
        text = (_PROC / str(pid) / "stat").read_text()
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()  # the name before it may contain anything
    return (fields[0], fields[19]) if len(fields) > 19 else None


def process_of(holder: str) -> str:
    """The process part of a holder."""
    return holder.partition("|")[0]


def is_certainly_gone(holder: str) -> bool:
    """Whether the holder's process ran on this machine and has ended."""
    return _is_there(holder) is False


def is_certainly_there(holder: str) -> bool:
    """Whether the holder's process runs on this machine."""
    return _is_there(holder) is True


def _is_there(holder: str) -> bool | None:
    """Whether the holder's process runs on this machine, or None where that cannot be told.

    One that /proc does not show may be another user's (``hidepid``), so the kernel is asked, too.
    """
    parts = process_of(holder).split(":")
    me = this_process()
    if len(parts) != 4 or not me.space or parts[2] != me.space or not parts[1].isdecimal():
        return None
    found = _state_and_start(int(parts[1]))
    if found is None:
        return None if _number_is_taken(int(parts[1])) else False
    return found[0] not in _DEAD and found[1] == parts[3]


def _number_is_taken(pid: int) -> bool:
    """Whether any process has the number, as the kernel tells everybody."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return True
