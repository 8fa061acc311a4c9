# SPDX-License-Identifier: Apache-2.0
"""Execution of async code for sync callers, and the identity of the current run."""

import asyncio
from collections.abc import Coroutine, Iterator
from concurrent.futures import wait
from contextvars import Token
from typing import Any, TypeVar

from anyio.from_thread import start_blocking_portal
from prefect.client.schemas.objects import TaskRun, TaskRunResult
from prefect.context import TaskRunContext
from prefect.runtime import flow_run

from ...runway.errors import InvalidRequest, TooManyRunAttempts
from ...runway.models.keys import check_key, default_key
from ...runway.models.requests import GenerationRequest

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


def loop_is_running() -> bool:
    """Return whether an event loop is running in the current thread."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def check_starts(most: int) -> None:
    """Check that this flow run was not started too often.

    A run that kills its worker would otherwise be started again and again.

    Args:
        most: Maximum number of starts.

    Raises:
        TooManyRunAttempts: The run was started more often than that.
    """
    starts = flow_run.run_count
    if starts > most:
        raise TooManyRunAttempts(
            f"this flow run was started {starts} times, and may be {most} times"
        )


def resolve_key(
    key: str | None, request: GenerationRequest, variation: int = 1, task_id: str | None = None
) -> str:
    """Return the user's own idempotency key, or the key of this request in the current run.

    Args:
        key: The user's own key.
        request: Request to submit.
        variation: Number of this video among several for the same request in one run.
        task_id: Id of a generation to adopt, so that nothing is bought.

    Raises:
        InvalidRequest: No key is given, and no run keeps its id across retries to derive one from.
        ValueError: The key is not valid, or a key and a ``variation`` are given together.
    """
    if key is not None:
        if variation != 1:
            raise ValueError("give a key of your own or a variation, not both")
        return check_key(key)
    if run := lasting_run_id():
        return default_key(run, request, variation)
    if task_id is not None:
        return f"task-{task_id}"
    raise InvalidRequest(
        "the parameter idempotency_key= is missing: this call is made in no flow run and in no "
        "task run of yours, so nothing tells a repeated call from a new one, and it would be paid "
        "for again; give it one of your own (idempotency_key='sku-17'), or make the call in a flow"
    )


def lasting_run_id() -> str | None:
    """Return the id of the outermost run, which stays the same across its retries.

    That is the outermost flow run, or a user's task run around it. Subflows and tasks within them
    get new ids at each retry. There is no such run, and the result is None, for a step of this
    package that is called alone, and in a thread without Prefect's context.
    """
    around = [context.task_run for context in _task_contexts() if not _is_step(context)]
    if around and around[-1].flow_run_id is None:
        return _outermost(around[-1])
    return flow_run.root_flow_run_id


def _task_contexts() -> Iterator[TaskRunContext]:
    """Yield the contexts of the task runs around this call, the innermost first.

    Prefect keeps only the innermost. Each context has the token that restores the outer one.
    """
    context = TaskRunContext.get()
    while context is not None:
        yield context
        token = context._token  # noqa: SLF001 -- Prefect offers no other way to it
        around = token.old_value if token else None
        context = None if around is Token.MISSING else around


def _is_step(context: TaskRunContext) -> bool:
    flows = __name__.partition(".runtime.")[0]
    return str(getattr(context.task.fn, "__module__", "")).startswith(f"{flows}.")


def _outermost(task_run: TaskRun) -> str:
    """Return the id of a task run, or of its parent if the parent is in another process."""
    parents = task_run.task_inputs.get("__parents__") or ()
    ids = (parent.id for parent in parents if isinstance(parent, TaskRunResult))
    return str(next(ids, task_run.id))
