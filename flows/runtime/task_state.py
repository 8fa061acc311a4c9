# SPDX-License-Identifier: Apache-2.0
"""State that a task run, or an item within one, keeps between its attempts."""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from uuid import UUID

from prefect.client.schemas.objects import TaskRun
from prefect.context import TaskRunContext

from ...runway.api.polling import PollState


@dataclass
class TaskState:
    """State of one task run.

    Attributes:
        wait: Progress of the wait for a generation.
        failures: Failed attempts in a row.
        delay: Seconds before the next attempt, or None for the default.
        artifact_id: Artifact that the task run updates.
        dead_urls: URLs of outputs that are no longer valid, with the status that said so.
        unusable_outputs: Positions of the outputs whose URL gave something other than a video.
    """

    wait: PollState = field(default_factory=PollState)
    failures: int = 0
    delay: float | None = None
    artifact_id: UUID | None = None
    dead_urls: dict[str, int] = field(default_factory=dict, repr=False)
    unusable_outputs: set[int] = field(default_factory=set)


_states: dict[int, TaskState] = {}
"""States by the id of the task run. Of the process, as a task run has no place for other data."""


_of_item: ContextVar[TaskState | None] = ContextVar("state_of_item", default=None)
"""State of the item that shares its task run with others."""


@contextmanager
def own_state() -> Iterator[TaskState]:
    """Give the item that is made within the block a state of its own."""
    token = _of_item.set(TaskState())
    try:
        yield current_state()
    finally:
        _of_item.reset(token)


def current_state() -> TaskState:
    """Return the state of the current item or task run, or a new state outside of both."""
    if state := _of_item.get():
        return state
    context = TaskRunContext.get()
    return state_of(context.task_run) if context else TaskState()


def state_of(task_run: TaskRun) -> TaskState:
    """Return the state of a task run."""
    if id(task_run) not in _states:
        _states[id(task_run)] = TaskState()
        weakref.finalize(task_run, _states.pop, id(task_run), None)
    return _states[id(task_run)]
