# SPDX-License-Identifier: Apache-2.0
"""Background thread with its own event loop, for work that must outlive the caller's loop.

Each sync task has an event loop that lives for one step only. A lease must also be renewed while
the caller's loop is busy.
"""

import asyncio
import os
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")

_lock = threading.Lock()
_loops: dict[int, asyncio.AbstractEventLoop] = {}
"""Event loop of each process; a forked child finds that of its parent, and starts its own."""


def background_loop() -> asyncio.AbstractEventLoop:
    """Return the event loop of the background thread, which starts on first use."""
    with _lock:
        loop = _loops.get(os.getpid())  # a forked child has no threads
        if loop is None:
            loop = _loops[os.getpid()] = asyncio.new_event_loop()
            threading.Thread(target=loop.run_forever, name="cometapi-ledger", daemon=True).start()
    return loop


def in_background(work: Coroutine[Any, Any, T]) -> Future[T]:
    """Start a coroutine in the background thread."""
    return asyncio.run_coroutine_threadsafe(work, background_loop())


async def run_in_background(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in the background thread and await its result.

    The coroutine continues when the caller is cancelled, so that a change is made completely or not
    at all. Its error is then ignored.
    """
    running = asyncio.wrap_future(in_background(work))
    running.add_done_callback(lambda done: done.cancelled() or done.exception())
    return await asyncio.shield(running)
