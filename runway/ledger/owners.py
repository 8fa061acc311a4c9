# SPDX-License-Identifier: Apache-2.0
"""Who works on a generation, and whether that process is certainly gone.

A holder names its process: host, boot and process namespace, number, and start time. Within one
boot and namespace it can be looked up whether the process is still there, so after a crash nobody
waits for a lease to lapse, and a clock that is set takes nothing from the living. Anywhere else
(another machine, another container, a system without /proc) only the lease tells.
"""

import asyncio
import os
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Self

from ..processes import this_process


def holder_name(run: str) -> str:
    """How a run in this process is written in the ledger."""
    return f"{this_process()}|{run}"


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
