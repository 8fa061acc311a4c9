# SPDX-License-Identifier: Apache-2.0
"""One async core for sync callers, and the identity of the run that they are in."""

import asyncio
from collections.abc import Coroutine, Iterator
from concurrent.futures import wait
from contextvars import Token
from typing import Any, TypeVar

from anyio.from_thread import start_blocking_portal
from prefect.client.schemas.objects import TaskRun, TaskRunResult
from prefect.context import TaskRunContext
from prefect.runtime import flow_run

from ..runway.errors import InvalidRequest, RunGivenUp
from ..runway.names import check_key, default_key
from ..runway.requests import GenerationRequest

T = TypeVar("T")

SECONDS_OF_A_WAIT = 0.2
"""Longest time until a waiting thread sees that its run is to end."""


def run_sync(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end, also where an event loop is running already (a notebook).

    It runs in a thread of its own, and this one only waits. Prefect ends a run by an exception
    in its thread, which would be lost in a callback of an event loop; here it cancels the
    coroutine.
    """

    async def core() -> T:
        return await coroutine

    with start_blocking_portal() as portal:
        future = portal.start_task_soon(core)
        # An exception of another thread is raised between two waits, not in one.
        while not wait([future], SECONDS_OF_A_WAIT).done:
            pass
        return future.result()


def loop_is_running() -> bool:
    """Whether this is async code."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def check_starts(most: int) -> None:
    """See that this flow run was not started too often, as a run is that kills its worker.

    Raises:
        RunGivenUp: It was.
    """
    starts = flow_run.run_count
    if starts > most:
        raise RunGivenUp(f"this flow run was started {starts} times, and may be {most} times")


def resolve_key(
    key: str | None, request: GenerationRequest, take: int = 1, task_id: str | None = None
) -> str:
    """Return the user's own key, or the one of this request in the run that asks for it.

    Args:
        key: The user's own key.
        request: What to make.
        take: Which of several videos of the same request in one run.
        task_id: Id of a generation that is attached, so that nothing is bought.

    Raises:
        InvalidRequest: There is no key, and no run that lasts over a retry to make one of.
        ValueError: The key is not valid.
    """
    if key is not None:
        if take != 1:
            raise ValueError("give a key of your own or a take, not both")
        return check_key(key)
    if run := lasting_run_id():
        return default_key(run, request, take)
    if task_id is not None:
        return f"task-{task_id}"
    raise InvalidRequest(
        "the parameter key= is missing: this call is made in no flow run and in no task run of "
        "yours, so nothing tells a repeated call from a new one, and it would be paid for again; "
        "give it a key of your own (key='sku-17'), or make the call in a flow"
    )


def lasting_run_id() -> str | None:
    """Return the id of the outermost run that asks, which stays however often that is retried.

    That is the outermost flow run, or the user's task run around it: within them a subflow and a
    task get new ids at each retry. A step of this package that is called by itself, and a thread
    that did not get Prefect's context, have no such run.
    """
    around = [context.task_run for context in _task_contexts() if not _is_step(context)]
    if around and around[-1].flow_run_id is None:
        return _outermost(around[-1])
    return flow_run.root_flow_run_id


def _task_contexts() -> Iterator[TaskRunContext]:
    """Yield the contexts of the task runs around this call, the innermost first.

    Prefect keeps only the innermost. Each one holds the token that restores the one around it.
    """
    context = TaskRunContext.get()
    while context is not None:
        yield context
        token = context._token  # noqa: SLF001 -- Prefect offers no other way to it
        around = token.old_value if token else None
        context = None if around is Token.MISSING else around


def _is_step(context: TaskRunContext) -> bool:
    return str(getattr(context.task.fn, "__module__", "")).startswith(f"{__package__}.")


def _outermost(task_run: TaskRun) -> str:
    """Return the id of a task run, or of its parent where that is in another process."""
    parents = task_run.task_inputs.get("__parents__") or ()
    ids = (parent.id for parent in parents if isinstance(parent, TaskRunResult))
    return str(next(ids, task_run.id))
