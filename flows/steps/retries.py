# SPDX-License-Identifier: Apache-2.0
"""Retry conditions and delays for the steps.

Prefect makes the retries, so each one is visible in its UI. Prefect lacks two pieces of
information. First, which errors justify another attempt: for a paid step, only those after which it
is certain that nothing was bought. Second, that the service may request a delay with Retry-After.

Prefect first calls ``retry_condition_fn`` and then reads the delay from the task's list of delays,
both in the context of the task run. Therefore the condition writes the delay to the ``TaskState``
of the task run, and the list reads it from there.
"""

from collections.abc import Callable
from typing import Any, SupportsIndex

from prefect.client.schemas.objects import State, TaskRun

from ...runway.api.polling import jittered
from ...runway.errors import (
    CometAPIError,
    ServiceUnavailable,
    StagedFileMissing,
    SubmissionUncertain,
)
from ..runtime.log import show_waiting
from ..runtime.run_context import current_settings
from ..runtime.task_state import TaskState, current_state, state_of

LONGEST_DELAY = 6
"""Longest delay in poll intervals: 30 s at the documented interval of 5 s."""

FAILURES_IN_A_ROW = 5
"""Failed attempts in a row after which the next attempt is the last one.

A bought generation is an exception: while the service is unavailable, or something else replies in
its place, retries continue until the deadline of the generation.
"""


class DelayOfTaskRun(list[float]):
    """List of one delay, in place of which each task run reads its own.

    Prefect reads the delay before a retry from a list that all runs of a task share, and accepts
    nothing but a list there. The retry condition, which Prefect calls just before, has chosen the
    delay of the current task run.
    """

    def __getitem__(self, index: SupportsIndex | slice) -> Any:
        """Return the delay of the current task run, or the one in the list if none was chosen."""
        return current_state().delay or super().__getitem__(index)


def delay_before_retry(failures: int, retry_after: float | None, unit: float, cap: float) -> float:
    """Return the seconds before the next attempt, with exponential backoff.

    The delay is never shorter than ``retry_after``. The function is pure.

    Args:
        failures: Failed attempts in a row, at least one.
        retry_after: Delay that the service requested, if any.
        unit: First delay.
        cap: Longest delay of the backoff. A longer ``retry_after`` is still respected.
    """
    return max(retry_after or 0.0, min(cap, unit * 2.0 ** min(failures - 1, 30)))


def plan_retry(
    error: object, errors: tuple[type[CometAPIError], ...], state: TaskState, share: float
) -> bool:
    """Return True if a failed attempt is repeated, and write its delay to the state.

    Args:
        error: Error of the attempt.
        errors: Error types that justify another attempt.
        state: State of the task run or of the item.
        share: First delay as a share of the poll interval.
    """
    if not isinstance(error, errors) or _is_permanent(error, state):
        return False
    interval = current_settings().poll_interval
    state.failures += 1
    delay = delay_before_retry(
        state.failures,
        error.retry_after,
        unit=interval * share,
        cap=interval * LONGEST_DELAY,
    )
    state.delay = round(jittered(delay), 3)
    show_waiting(f"attempt {state.failures + 1} in {state.delay:.0f} s: {error.summary()}")
    return True


def retry_on(
    *errors: type[CometAPIError], share: float
) -> Callable[[Any, TaskRun, State[Any]], bool]:
    """Return a retry condition for some errors.

    Args:
        errors: Error types that justify another attempt.
        share: First delay as a share of the poll interval.
    """

    # The annotation is a string because a nested function is pickled together with the objects
    # that it refers to.
    def is_worth_retrying(_task: Any, task_run: TaskRun, state: "State[Any]") -> bool:
        return plan_retry(state.data, errors, state_of(task_run), share)

    return is_worth_retrying


def _is_permanent(error: CometAPIError, task_state: TaskState) -> bool:
    """Return True if another attempt of this step cannot help or is not allowed."""
    # The ledger decides whether this run may send an uncertain request again.
    if isinstance(error, SubmissionUncertain):
        looks = error.may_reconcile and task_state.failures < FAILURES_IN_A_ROW
        return not (error.may_resubmit or looks)
    if isinstance(error, StagedFileMissing):
        return True
    waits = isinstance(error, ServiceUnavailable) and error.task_id is not None
    return not waits and task_state.failures >= FAILURES_IN_A_ROW
