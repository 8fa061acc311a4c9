# SPDX-License-Identifier: Apache-2.0
"""One async core for sync callers, and the identity of the run that they are in."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar
from uuid import uuid4

from prefect.context import TaskRunContext
from prefect.runtime import flow_run

from ..runway.errors import RunGivenUp
from ..runway.names import check_key, default_key
from ..runway.requests import GenerationRequest

T = TypeVar("T")


def run_sync(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end, also where an event loop is running already (a notebook)."""
    if not loop_is_running():
        return asyncio.run(coroutine)
    from anyio.from_thread import start_blocking_portal

    async def core() -> T:
        return await coroutine

    # The portal's thread ends, and the coroutine is cancelled, when this one is interrupted.
    with start_blocking_portal() as portal:
        return portal.call(core)


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


def resolve_key(key: str | None, request: GenerationRequest, take: int = 1) -> str:
    """The user's own key, or the one of this request in the run that asks for it."""
    if key is not None:
        if take != 1:
            raise ValueError("give a key of your own or a take, not both")
        return check_key(key)
    return default_key(lasting_run_id(), request, take)


def lasting_run_id() -> object:
    """The id of the run that asks, the same however often it is retried.

    That is the outermost flow run: its id stays, while a subflow and a task get new ids. Outside of
    any flow it is the task run, and outside of that nothing lasts.
    """
    if flow_run.root_flow_run_id:
        return flow_run.root_flow_run_id
    context = TaskRunContext.get()
    return context.task_run.id if context else uuid4()
