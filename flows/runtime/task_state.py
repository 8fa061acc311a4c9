# SPDX-License-Identifier: Apache-2.0
"""State that a task run keeps between its attempts."""

import weakref
from dataclasses import dataclass, field
from uuid import UUID

from prefect.client.schemas.objects import TaskRun
from prefect.context import TaskRunContext

from ...runway.api.polling import PollState


@dataclass
class TaskState:
    """State of one task run."""

    wait: PollState = field(default_factory=PollState)
    failures: int = 0
    delay: float | None = None
    artifact_id: UUID | None = None


_states: dict[int, TaskState] = {}
"""States by the id of the task run. Of the process, as a task run has no place for other data."""


def current_state() -> TaskState:
    """Return the state of the current task run, or a new state outside of a task run."""
    context = TaskRunContext.get()
    return state_of(context.task_run) if context else TaskState()


def state_of(task_run: TaskRun) -> TaskState:
    """Return the state of a task run."""
    if id(task_run) not in _states:
        _states[id(task_run)] = TaskState()
        weakref.finalize(task_run, _states.pop, id(task_run), None)
    return _states[id(task_run)]
