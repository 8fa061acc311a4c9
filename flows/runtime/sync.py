# SPDX-License-Identifier: Apache-2.0
"""Execution of async code for sync callers, and sync twins of async functions."""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextlib import suppress
from contextvars import copy_context
from functools import wraps
from typing import Any, Generic, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

WAIT_SECONDS = 0.2
"""Longest time until a waiting thread notices that its run must end."""


def run_sync(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine and return its result.

    This also works while an event loop is running in the current thread, as in a notebook. The
    coroutine runs in a thread of its own, and this one only waits: Prefect ends a run by an
    exception in its thread, which a callback of an event loop could swallow. The exception cancels
    the coroutine, and is raised here when the coroutine has ended.
    """
    execution = _Execution(coroutine)
    # A daemon, since a second exception may end the wait for the coroutine.
    thread = threading.Thread(target=copy_context().run, args=(execution.run,), daemon=True)
    try:
        thread.start()
        execution.wait()
    except BaseException:
        execution.cancel()
        raise
    return execution.outcome.result()


class _Execution(Generic[T]):
    """Execution of a coroutine in another thread.

    The waiting thread may be interrupted between any two instructions. So it shares only plain
    attributes and one bare lock with the other thread: a thread that is interrupted within
    ``concurrent.futures.wait`` or a ``Condition`` can leave a lock behind that nobody releases.
    """

    def __init__(self, coroutine: Coroutine[Any, Any, T]) -> None:
        self.outcome: Future[T] = Future()
        self._coroutine = coroutine
        self._task: asyncio.Task[T] | None = None
        self._is_cancelled = False
        self._has_ended = False
        self._running = threading.Lock()
        self._running.acquire()

    def run(self) -> None:
        """Run the coroutine in the event loop of the current thread."""
        try:
            self.outcome.set_result(asyncio.run(self._run()))
        except BaseException as error:  # noqa: BLE001 -- the waiting thread raises it
            self.outcome.set_exception(error)
        finally:
            self._has_ended = True
            self._running.release()

    async def _run(self) -> T:
        self._task = asyncio.current_task()
        if self._is_cancelled:
            self._coroutine.close()
            raise asyncio.CancelledError
        return await self._coroutine

    def wait(self) -> None:
        """Wait until the coroutine has ended."""
        # An exception that another thread injects is raised only between two waits.
        while not self._has_ended:
            self._running.acquire(timeout=WAIT_SECONDS)

    def cancel(self) -> None:
        """Cancel the coroutine and wait until it has ended, or never let it begin."""
        self._is_cancelled = True
        if task := self._task:
            with suppress(RuntimeError):  # The loop is closed: the coroutine has ended.
                task.get_loop().call_soon_threadsafe(task.cancel)
            self.wait()


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
