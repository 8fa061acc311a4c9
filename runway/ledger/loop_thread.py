# SPDX-License-Identifier: Apache-2.0
"""One thread with an event loop of its own, for work that must outlive the caller's loop.

Sync tasks each have a loop that lives for one step, and a lease has to be renewed also while the
caller's loop is busy.
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


def _background() -> asyncio.AbstractEventLoop:
    with _lock:
        loop = _loops.get(os.getpid())  # a forked child has no threads
        if loop is None:
            loop = _loops[os.getpid()] = asyncio.new_event_loop()
            threading.Thread(target=loop.run_forever, name="cometapi-ledger", daemon=True).start()
    return loop


def in_background(work: Coroutine[Any, Any, T]) -> Future[T]:
    """Start work in the thread."""
    return asyncio.run_coroutine_threadsafe(work, _background())


async def elsewhere(work: Coroutine[Any, Any, T]) -> T:
    """Await work in the thread.

    It goes on when the caller is cancelled: a change is made whole or not at all. Nobody is told
    of its error then.
    """
    working = asyncio.wrap_future(in_background(work))
    working.add_done_callback(lambda done: done.cancelled() or done.exception())
    return await asyncio.shield(working)
