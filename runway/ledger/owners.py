# SPDX-License-Identifier: Apache-2.0
"""Who works on a generation, and whether that process is certainly gone.

A holder names its process: host, boot and process namespace, number, and start time. Within one
boot and namespace it can be looked up whether the process is still there, so after a crash nobody
waits for a lease to lapse, and a clock that is set takes nothing from the living. Anywhere else
(another machine, another container, a system without /proc) only the lease tells.
"""

import asyncio
import hashlib
import os
import socket
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Self

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


def holder_name(run: str) -> str:
    """How a run in this process is written in the ledger."""
    return f"{this_process()}|{run}"


def process_of(holder: str) -> str:
    """The process part of a holder."""
    return holder.partition("|")[0]


def shown_holder(holder: str) -> str:
    """A holder for people: its host and process, and its run."""
    process, _, run = holder.partition("|")
    host, _, rest = process.partition(":")
    return f"{run.partition('#')[0]} on {host}, process {rest.partition(':')[0]}"


@dataclass(frozen=True, eq=False)
class Worker:
    """Worker that runs a block of this process: an event loop, or a thread where there is none.

    A loop that was dropped with the block inside never leaves the block, so it is asked.
    """

    loop: asyncio.AbstractEventLoop | None
    thread: threading.Thread

    @classmethod
    def here(cls) -> Self:
        """Return the worker of the caller."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            loop = None
        return cls(loop, threading.current_thread())

    @property
    def is_running(self) -> bool:
        """Return True while the block can go on; a loop that is busy runs, too."""
        return self.loop.is_running() if self.loop else self.thread.is_alive()

    @property
    def is_stopped(self) -> bool:
        """Return True where its loop stands still, and somebody may run it again."""
        return bool(self.loop and not self.loop.is_running() and not self.loop.is_closed())


_at_work: defaultdict[tuple[str, str], list[Worker]] = defaultdict(list)
"""Keys and holders of this process, and where each block runs: one for all ledgers, since one
database may be opened under two names, and its holders are alive all the same."""

_counting = threading.Lock()


def _forget_all() -> None:
    """Forget what the parent worked on, in a child that was forked."""
    global _counting  # noqa: PLW0603 -- another thread of the parent may have had it
    _counting = threading.Lock()
    _at_work.clear()


with suppress(AttributeError):  # Windows does not fork
    os.register_at_fork(after_in_child=_forget_all)


@contextmanager
def at_work(key: str, holder: str) -> Iterator[Worker]:
    """Count a holder of this process as working on a key while the block runs."""
    worker = Worker.here()
    with _counting:
        _at_work[key, holder].append(worker)
    try:
        yield worker
    finally:
        with _counting:
            workers = [other for other in _at_work.pop((key, holder), []) if other is not worker]
            if workers:
                _at_work[key, holder] = workers


def workers_of(key: str, holder: str) -> list[Worker]:
    """Return where a holder of this process works on a key, or may go on to."""
    with _counting:
        there = _at_work.get((key, holder), ())
        return [worker for worker in there if worker.is_running or worker.is_stopped]


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
