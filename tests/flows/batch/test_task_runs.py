# SPDX-License-Identifier: Apache-2.0
"""Number of task runs of a batch, and the retries of items that share one."""

import asyncio
from typing import Any

import pytest

from prefect_cometapi.flows.batch.concurrency import all_together
from prefect_cometapi.flows.batch.task_runs import TaskRuns, task_runs_of, with_retries
from prefect_cometapi.flows.runtime.task_state import current_state
from prefect_cometapi.flows.steps.retries import FAILURES_IN_A_ROW
from prefect_cometapi.runway.errors import (
    CometAPIError,
    InvalidRequest,
    ServiceUnavailable,
    SubmissionUncertain,
)
from prefect_cometapi.runway.settings import CometAPISettings


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    """Make the delays between attempts short."""
    monkeypatch.setenv("COMETAPI_POLL_INTERVAL", "0.01")


@pytest.mark.parametrize(
    ("items", "most", "together", "wanted"),
    [
        (300, 300, 50, TaskRuns.PER_STEP),
        (301, 300, 1, TaskRuns.PER_ITEM),
        (301, 300, 50, TaskRuns.PER_GROUP),
        (1, 0, 2, TaskRuns.PER_GROUP),
    ],
)
def test_only_a_large_batch_has_fewer_task_runs(items, most, together, wanted):
    """Up to the limit, each step is a task run; above it, the settings say how many share one."""
    settings = CometAPISettings(max_items_with_step_tasks=most, items_per_task_run=together)
    assert task_runs_of(items, settings) is wanted


async def count_attempts(*errors: CometAPIError) -> tuple[int, CometAPIError | None]:
    """Return the number of attempts of an item that fails with these errors, and the last one."""
    left, made = list(errors), 0

    async def make() -> Any:
        nonlocal made
        made += 1
        if left:
            raise left.pop(0)

    try:
        await with_retries(make)
    except CometAPIError as error:
        return made, error
    return made, None


async def test_a_failure_that_bought_nothing_is_repeated():
    """An item that shares its task run is tried again after an outage, but not for ever."""
    assert await count_attempts(ServiceUnavailable("busy")) == (2, None)
    busy = [ServiceUnavailable("busy") for _ in range(20)]
    made, error = await count_attempts(*busy)
    assert made == FAILURES_IN_A_ROW + 1
    assert isinstance(error, ServiceUnavailable)


@pytest.mark.parametrize("error", [InvalidRequest("no"), SubmissionUncertain("no answer")])
async def test_a_refusal_and_an_uncertain_submission_are_not_repeated(error):
    """An item is not sent again where that cannot help, or where it may be bought already."""
    assert await count_attempts(error) == (1, error)


async def test_items_of_one_task_run_have_states_of_their_own():
    """The failures of one item do not use up the attempts of another one."""
    states = []

    async def make() -> Any:
        states.append(current_state())

    await asyncio.gather(with_retries(make), with_retries(make))
    assert states[0] is not states[1]
    assert all(current_state() is not state for state in states)


async def test_the_first_failure_cancels_the_others_and_is_raised_as_it_is():
    """A task that fails early ends the block with its own error, and no task is left running."""
    begun, ended = asyncio.Event(), asyncio.Event()

    async def wait() -> None:
        try:
            begun.set()
            await asyncio.Event().wait()
        finally:
            ended.set()

    async def fail() -> None:
        raise ZeroDivisionError

    async def both() -> None:
        async with all_together() as start:
            start(wait())
            failed = start(fail())
            await begun.wait()
            await asyncio.wait([failed])

    with pytest.raises(ZeroDivisionError):
        await both()
    assert ended.is_set()
