# SPDX-License-Identifier: Apache-2.0
"""Task runs of a batch: four for each item, one for each item, or one for several items.

Prefect's server spends more on a task run than this package on a video. So a large batch has fewer
of them. Whatever their number, an item is retried by the same rules, and it has its own line in the
results and its own events.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from enum import Enum, auto

from prefect import task

from ...runway.batch.models import BatchItem
from ...runway.errors import CometAPIError
from ...runway.models.generation import GenerationResult
from ...runway.settings import CometAPISettings
from ..runtime import log
from ..runtime.task_state import own_state
from ..steps import fetch, persist, poll, submit
from ..steps.common import FIRST_DELAY, step_options
from ..steps.retries import plan_retry

RETRIED_ERRORS = (
    *submit.RETRIED_ERRORS,
    *poll.RETRIED_ERRORS,
    *fetch.RETRIED_ERRORS,
    *persist.RETRIED_ERRORS,
)


class TaskRuns(Enum):
    """Number of task runs of a batch, by what one of them covers."""

    PER_STEP = auto()
    PER_ITEM = auto()
    PER_GROUP = auto()


def task_runs_of(items: int, settings: CometAPISettings) -> TaskRuns:
    """Return the kind of task runs for a batch with a number of items; pure."""
    if items <= settings.max_items_with_step_tasks:
        return TaskRuns.PER_STEP
    return TaskRuns.PER_GROUP if settings.items_per_task_run > 1 else TaskRuns.PER_ITEM


@task(
    **step_options("generate", "{item}", *RETRIED_ERRORS, retries=poll.MANY),
)
async def agenerate_item(item: str, make: Callable[[], Awaitable[None]]) -> None:
    """Make one item of a large batch, with all four steps in one task run.

    The task takes only the id of the item, for the name of its task run, and returns nothing.
    Prefect copies the parameters and keeps the result until the end of the flow, for each of
    thousands of items.
    """
    _ = item
    await make()


@task(**step_options("generate-group", "{items}", retries=0))
async def agenerate_group(items: str, make: Callable[[], Awaitable[None]]) -> None:
    """Make several items of a large batch at the same time, in one task run.

    Each item handles its own failures. So the task run does not fail, and is not retried.
    """
    _ = items
    await make()


def name_of(group: Sequence[BatchItem]) -> str:
    """Return the name of the task run of a group: the ids of its first and last items; pure."""
    return group[0].id if len(group) == 1 else f"{group[0].id} … {group[-1].id}"


async def with_retries(make: Callable[[], Awaitable[GenerationResult]]) -> GenerationResult:
    """Make an item that shares its task run, with the retries that a task run of its own has.

    Raises:
        CometAPIError: The error of the last attempt.
    """
    with own_state() as state:
        while True:
            try:
                return await make()
            except CometAPIError as error:
                if not plan_retry(error, RETRIED_ERRORS, state, FIRST_DELAY):
                    raise
                log.logger().warning(
                    "%s: %s; the next attempt is in %g s",
                    error.idempotency_key,
                    error.message,
                    state.delay or 0.0,
                )
            await asyncio.sleep(state.delay or 0.0)
