# SPDX-License-Identifier: Apache-2.0
"""State that a task run keeps between its attempts."""

import weakref
from dataclasses import dataclass, field
from uuid import UUID

from prefect.client.schemas.objects import TaskRun
from prefect.context import TaskRunContext

from ...runway.api.polling import PollState


@dataclass
class Memory:
    """State of one task run."""

    wait: PollState = field(default_factory=PollState)
    failures: int = 0
    delay: float | None = None
    artifact_id: UUID | None = None


_memories: dict[int, Memory] = {}


def memory() -> Memory:
    """Return the state of the current task run, or a new state outside of a task run."""
    context = TaskRunContext.get()
    return memory_of(context.task_run) if context else Memory()


def memory_of(task_run: TaskRun) -> Memory:
    """Return the state of a task run."""
    if id(task_run) not in _memories:
        _memories[id(task_run)] = Memory()
        weakref.finalize(task_run, _memories.pop, id(task_run), None)
    return _memories[id(task_run)]
