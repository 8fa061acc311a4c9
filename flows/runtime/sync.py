# SPDX-License-Identifier: Apache-2.0
"""Execution of async code for sync callers, and sync twins of async functions."""

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import wait
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from anyio.from_thread import start_blocking_portal

P = ParamSpec("P")
T = TypeVar("T")

SECONDS_OF_A_WAIT = 0.2
"""Longest time until a waiting thread notices that its run must end."""


def run_sync(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine and return its result.

    This also works while an event loop is running in the current thread, as in a notebook. The
    coroutine runs in a thread of its own, and this one only waits: Prefect ends a run by an
    exception in its thread, which a callback of an event loop could swallow.
    """

    async def core() -> T:
        return await coroutine

    # If this thread is interrupted, the portal cancels the coroutine and ends its own thread.
    with start_blocking_portal() as portal:
        future = portal.start_task_soon(core)
        # An exception that another thread injects is raised only between two waits.
        while not wait([future], SECONDS_OF_A_WAIT).done:
            pass
        return future.result()


def sync_twin(function: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, T]:
    """Return a sync function with the parameters, hints and docstring of an async one.

    Its name is that of the async function without the prefix ``a``.
    """

    @wraps(function)
    def twin(*args: P.args, **kwargs: P.kwargs) -> T:
        return run_sync(function(*args, **kwargs))

    twin.__name__ = twin.__qualname__ = function.__name__.removeprefix("a")
    return twin


def loop_is_running() -> bool:
    """Return whether an event loop is running in the current thread."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
