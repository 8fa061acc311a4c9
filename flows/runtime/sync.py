# SPDX-License-Identifier: Apache-2.0
"""Execution of async code for sync callers, and sync twins of async functions."""

import asyncio
import inspect
import sys
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextlib import suppress
from contextvars import copy_context
from functools import wraps
from types import FrameType
from typing import Any, Generic, ParamSpec, TypeVar

from prefect.context import TaskRunContext, get_run_context
from prefect.exceptions import MissingContextError

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


def in_async_code() -> bool:
    """Return whether the caller is async code, so that it needs a coroutine instead of a result.

    The rule is that of Prefect's own blocks: within a run, its function decides. So a sync flow is
    sync code even if an event loop runs around it, as in a notebook or in an async function that
    calls the flow. There are two differences, both where Prefect's rule gives a value that the
    caller cannot use. In a thread without a running loop nobody can await, even if the thread
    belongs to an async flow; and an async function that a sync flow runs in a loop of its own does
    await.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    try:
        context = get_run_context()
    except MissingContextError:
        return True
    running = context.task if isinstance(context, TaskRunContext) else context.flow
    return getattr(running, "isasync", True) or _is_within_coroutine(sys._getframe(1))  # noqa: SLF001


def _is_within_coroutine(frame: FrameType | None) -> bool:
    """Return whether a coroutine is between a frame and the engine of the run around it."""
    while frame and frame.f_globals.get("__name__") not in _ENGINES:
        if frame.f_code.co_flags & (inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR):
            return True
        frame = frame.f_back
    return False


_ENGINES = {"prefect.flow_engine", "prefect.task_engine"}
"""Modules of Prefect that call the function of a flow or a task."""
