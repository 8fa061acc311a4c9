# SPDX-License-Identifier: Apache-2.0
"""Options, error context and file names that the steps share.

The ledger, not Prefect's results, records which steps are done. Each step first reads the ledger. A
step that is repeated by a retry, another process or a resumed run therefore does only the rest.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from prefect.cache_policies import NO_CACHE

from ...runway.errors import CometAPIError, StorageError
from ...runway.models.generation import Submission
from ...runway.models.keys import file_stem
from ...runway.models.model_limits import Makes
from ...runway.models.requests import ROUTES
from .retries import DelayOfTaskRun, retry_on

FIRST_DELAY = 0.2
"""Delay before the first retry of most steps, as a share of the poll interval."""


def step_options(
    name: str,
    run_name: str | Callable[[], str],
    *errors: type[CometAPIError],
    retries: int,
    share: float = FIRST_DELAY,
) -> dict[str, Any]:
    """Return the arguments of Prefect's ``task`` that all steps share.

    Prefect persists no result of a step, whatever the user's flow or settings say. Otherwise a
    retried run would reuse the persisted result and never read the ledger, in which the user may
    have allowed another submission.

    Args:
        name: Name of the task.
        run_name: Name of its task runs.
        errors: Error types that justify a retry.
        retries: Maximum number of retries.
        share: Delay before the first retry, as a share of the poll interval.
    """
    return {
        "name": name,
        "task_run_name": run_name,
        "persist_result": False,
        "cache_policy": NO_CACHE,
        "retries": retries,
        "retry_delay_seconds": lambda _retries: DelayOfTaskRun([5.0]),
        "retry_condition_fn": retry_on(*errors, share=share),
    }


@contextmanager
def failures_of(
    key: str, task_id: str | None = None, request_id: str | None = None
) -> Iterator[None]:
    """Add the ids of the generation to errors, and turn ``OSError`` into ``StorageError``."""
    try:
        yield
    except CometAPIError as error:
        error.with_context(idempotency_key=key, task_id=task_id, request_id=request_id)
        raise
    except OSError as error:
        what = f"this machine could not keep a file: {error.strerror or type(error).__name__}"
        raise StorageError(what).with_context(idempotency_key=key, task_id=task_id) from error


def stem_of(submission: Submission, position: int) -> str:
    """Return the name of an output's files, without a suffix."""
    return file_stem(
        submission.idempotency_key, submission.task_id, submission.submitted_at, position
    )


def makes_of(submission: Submission) -> Makes | None:
    """Return the kind of file that a generation makes, or None if its route is not known."""
    request = ROUTES.get(submission.route or "")
    return request.makes() if request else None
