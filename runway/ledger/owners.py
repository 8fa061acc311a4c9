# SPDX-License-Identifier: Apache-2.0
"""Owners of leases: their names, and the workers of this process that run their blocks.

The name of an owner contains its process: host, boot and process namespace, process id, and start
time. Within the same boot and namespace, the operating system says if that process is still alive.
So after a crash nobody waits for a lease to expire, and a changed clock does not take a lease from
a live process. In all other cases (another machine, another container, a system without /proc) only
the lease counts.
"""

import asyncio
import os
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Self

from ..processes import process_of, this_process


def owner_name(run: str) -> str:
    """Return the name of a run in this process as an owner in the ledger."""
    return f"{this_process()}|{run}"


def is_of_this_process(owner: str) -> bool:
    """Return True if an owner is a run in this process."""
    return process_of(owner) == str(this_process())


def describe_owner(owner: str) -> str:
    """Return an owner in readable form: its run, host and process id."""
    process, _, run = owner.partition("|")
    host, _, rest = process.partition(":")
    return f"{run.partition('#')[0]} on {host}, process {rest.partition(':')[0]}"


@dataclass(frozen=True, eq=False)
class Worker:
    """Worker that runs a block of this process: an event loop, or a thread if there is no loop.

    An event loop that was dropped inside a block never leaves the block. So the state of the loop
    is checked, not only the end of the block.
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
        """True while the block can continue; a busy event loop counts as running."""
        return self.loop.is_running() if self.loop else self.thread.is_alive()

    @property
    def is_stopped(self) -> bool:
        """True if the event loop is stopped, but not closed, so that it may run again."""
        return bool(self.loop and not self.loop.is_running() and not self.loop.is_closed())


_workers: defaultdict[tuple[str, str], list[Worker]] = defaultdict(list)
"""Workers of this process by key and owner. All ledgers share them, since one database may be
opened under two names, and its owners are alive in both."""

_counting = threading.Lock()


def _forget_workers() -> None:
    """Forget the work of the parent process, in a forked child."""
    global _counting  # noqa: PLW0603 -- another thread of the parent may have had it
    _counting = threading.Lock()
    _workers.clear()


with suppress(AttributeError):  # Windows does not fork
    os.register_at_fork(after_in_child=_forget_workers)


@contextmanager
def register_owner(key: str, owner: str) -> Iterator[Worker]:
    """Register an owner of this process as working on a key while the block runs."""
    worker = Worker.here()
    with _counting:
        _workers[key, owner].append(worker)
    try:
        yield worker
    finally:
        with _counting:
            workers = [other for other in _workers.pop((key, owner), []) if other is not worker]
            if workers:
                _workers[key, owner] = workers


def workers_of(key: str, owner: str) -> list[Worker]:
    """Return the workers that run an owner's blocks for a key, or may continue them."""
    with _counting:
        there = _workers.get((key, owner), ())
        return [worker for worker in there if worker.is_running or worker.is_stopped]
