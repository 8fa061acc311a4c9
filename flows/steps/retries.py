# SPDX-License-Identifier: Apache-2.0
"""When Prefect tries a step again, and how long it waits before.

Retries are Prefect's own, so each shows in the UI as one. Two things Prefect does not know by
itself: which errors are worth another attempt (of a paid step, only those that are certain to
have bought nothing), and that the service may name the time to wait in Retry-After. Prefect asks
``retry_condition_fn`` first and then takes the delay out of the task's list of delays, both inside
the task run's context; so the condition leaves the delay in the run's memory, and the list gives
it back.
"""

from collections.abc import Callable
from typing import Any, SupportsIndex

from prefect.client.schemas.objects import State, TaskRun

from ...runway.api.polling import spread
from ...runway.errors import (
    CometAPIError,
    ServiceUnavailable,
    StagedFileMissing,
    SubmissionUncertain,
)
from ..runtime.run_context import settings_now
from ..runtime.task_state import Memory, memory, memory_of

LONGEST_DELAY = 6
"""In poll intervals, so 30 s at the documented five."""

FAILURES_IN_A_ROW = 5
"""After these an attempt is the last one. A generation that is bought is waited for longer, as its
deadline says, while the service is away; but not while something else answers in its place."""


class RetryDelays(list[float]):
    """Delays before the next attempts in seconds; the one that memory holds comes first."""

    def __getitem__(self, index: SupportsIndex | slice) -> Any:
        """The delay before the next attempt."""
        return memory().delay or super().__getitem__(index)


def delay_before_retry(failures: int, retry_after: float | None, unit: float, cap: float) -> float:
    """Seconds before the next attempt: what the service asks for, else doubling; pure.

    Args:
        failures: Attempts that failed in a row, at least one.
        retry_after: What the service asked for, if it did.
        unit: The first delay.
        cap: The longest delay; a longer one that the service asks for is kept all the same.
    """
    return max(retry_after or 0.0, min(cap, unit * 2.0 ** min(failures - 1, 30)))


def retry_on(
    *errors: type[CometAPIError], share: float
) -> Callable[[Any, TaskRun, State[Any]], bool]:
    """A retry condition: these errors, with delays that begin at a share of the poll interval."""

    # The annotation is text, since a function that was made here is pickled with what it names.
    def worth_another_attempt(_task: Any, task_run: TaskRun, state: "State[Any]") -> bool:
        error, remembered, settings = state.data, memory_of(task_run), settings_now()
        if not isinstance(error, errors) or _is_hopeless(error, remembered):
            return False
        interval = settings.poll_interval
        remembered.failures += 1
        remembered.delay = round(
            spread(
                delay_before_retry(
                    remembered.failures,
                    error.retry_after,
                    unit=interval * share,
                    cap=interval * LONGEST_DELAY,
                )
            ),
            3,
        )
        return True

    return worth_another_attempt


def _is_hopeless(error: CometAPIError, remembered: Memory) -> bool:
    """Whether another attempt would end as this one, or is not this step's to make."""
    if isinstance(error, SubmissionUncertain):  # the ledger knows whether this run may send again
        return not error.may_resubmit
    if isinstance(error, StagedFileMissing):
        return True
    waits = isinstance(error, ServiceUnavailable) and error.task_id is not None
    return not waits and remembered.failures >= FAILURES_IN_A_ROW
