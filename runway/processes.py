# SPDX-License-Identifier: Apache-2.0
"""Unique names of processes, and checks if a process of this machine is alive or dead.

A process id alone is not unique: the kernel reuses it, and each container has its own numbers. The
name of a process therefore includes its host, its boot and process namespace, and its start time.
"""

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
    """Unique identity of a process.

    Attributes:
        host: Name of the machine.
        space: Hash of the boot and the process namespace; empty on a system without /proc.
        pid: Process id.
        started: Start time in clock ticks since boot; empty on a system without /proc.
    """

    host: str
    space: str
    pid: int
    started: str

    def __str__(self) -> str:
        return f"{self.host}:{self.pid}:{self.space}:{self.started}"


def this_process() -> Process:
    """Return the calling process; a forked child is another process."""
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
    """Return a hash of this boot and process namespace, or an empty string without /proc."""
    try:
        boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
        namespace = str((_PROC / "self/ns/pid").readlink())
    except OSError:
        return ""
    return hashlib.sha256(f"{boot}{namespace}".encode()).hexdigest()[:12]


def _state_and_start(pid: int) -> tuple[str, str] | None:
    """Return the state letter of a process and its start in ticks, or None if /proc has neither."""
    try:
        text = (_PROC / str(pid) / "stat").read_text()
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()  # the name may contain ")" too
    return (fields[0], fields[19]) if len(fields) > 19 else None


def process_of(owner: str) -> str:
    """Return the process part of an owner's name."""
    return owner.partition("|")[0]


def is_dead(owner: str) -> bool:
    """Return True if the owner's process ran on this machine and has ended."""
    return _is_there(owner) is False


def is_alive(owner: str) -> bool:
    """Return True if the owner's process runs on this machine."""
    return _is_there(owner) is True


def _is_there(owner: str) -> bool | None:
    """Return whether the owner's process runs on this machine, or None if that is unknown.

    With ``hidepid``, /proc does not show the processes of other users. So a process that /proc does
    not show counts as dead only if the kernel does not know its number either.
    """
    parts = process_of(owner).split(":")
    me = this_process()
    if len(parts) != 4 or not me.space or parts[2] != me.space or not parts[1].isdecimal():
        return None
    found = _state_and_start(int(parts[1]))
    if found is None:
        return None if _number_is_taken(int(parts[1])) else False
    return found[0] not in _DEAD and found[1] == parts[3]


def _number_is_taken(pid: int) -> bool:
    """Return True if any process has this number; the kernel reveals that to every user."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return True
