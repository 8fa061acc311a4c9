# SPDX-License-Identifier: Apache-2.0
"""Prefect tasks for the four steps of a generation: submit, poll, fetch, persist.

Each task exists twice around the same code: the plain name for sync code and the name with the
prefix ``a`` for async code. Both have the same task name in Prefect.

The ledger, not Prefect's results, records which steps are done. Files that ``fetch`` left on this
machine are found by a record beside them, because a persisted Prefect result would still name the
files after they are gone.
"""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.runtime import task_run
from pydantic import ValidationError

from ...blocks.credentials import CometAPICredentials
from ...runway.errors import (
    DownloadInterrupted,
    InvalidOutput,
    LedgerUnavailable,
    OutputExpired,
    ServiceUnavailable,
    StorageError,
    SubmissionUncertain,
    UnexpectedResponse,
)
from ...runway.models.generation import FetchedVideo, Finished, StoredVideo, Submission
from ...runway.models.requests import GenerationRequest, as_request
from ..runtime.sync import run_sync
from . import bodies
from .retries import RetryDelays, retry_on


def _submission_name() -> str:
    """Return the name of a submission's task run; the request may be a dict."""
    with suppress(ValidationError):
        request = as_request(task_run.parameters["request"])
        return f"submit {request.route} {request.model}"
    return "submit"


def step_options(name: str, *, retries: int, retry: Any) -> dict[str, Any]:
    """Return the arguments of Prefect's ``task`` that all steps share.

    Prefect persists no result of a step, whatever the user's flow or settings say. Otherwise a
    retried run would reuse the persisted result and never read the ledger, in which the user may
    have allowed another submission.
    """
    return {
        "name": name,
        "persist_result": False,
        "cache_policy": NO_CACHE,
        "retries": retries,
        "retry_delay_seconds": lambda _retries: RetryDelays([5.0]),
        "retry_condition_fn": retry,
    }


_SUBMIT_AGAIN = (ServiceUnavailable, LedgerUnavailable, SubmissionUncertain)
_POLL_AGAIN = (ServiceUnavailable, UnexpectedResponse)
_FETCH_AGAIN = (
    ServiceUnavailable,
    DownloadInterrupted,
    InvalidOutput,
    OutputExpired,
    StorageError,
)
_PERSIST_AGAIN = (StorageError,)
WORTH_RETRYING = (*_SUBMIT_AGAIN, *_POLL_AGAIN, *_FETCH_AGAIN, *_PERSIST_AGAIN)
"""Errors after which at least one of the steps is retried."""

SUBMIT = step_options("submit-generation", retries=5, retry=retry_on(*_SUBMIT_AGAIN, share=0.2))
POLL = step_options("poll-generation", retries=1000, retry=retry_on(*_POLL_AGAIN, share=1))
FETCH = step_options("fetch-generation", retries=5, retry=retry_on(*_FETCH_AGAIN, share=0.2))
PERSIST = step_options("persist-generation", retries=3, retry=retry_on(*_PERSIST_AGAIN, share=0.2))


@task(**SUBMIT, task_run_name=_submission_name)
async def asubmit_generation(
    request: GenerationRequest | dict[str, Any],
    credentials: CometAPICredentials | None = None,
    idempotency_key: str | None = None,
    *,
    storage: str | None = None,
    task_id: str | None = None,
    variation: int = 1,
) -> Submission:
    """Buy a generation with one POST, or return the one that its idempotency key already has.

    The task is retried only if it is certain that nothing was bought, or if the user allows an
    uncertain request to be sent again.

    Args:
        request: Request to submit; a dict is validated as a request.
        credentials: Credentials with the API key; from the settings by default.
        idempotency_key: Makes two calls the same purchase. The default is derived from the
            outermost run and the request. It is required where no run keeps its id across
            retries: outside your flows and tasks, and in a thread without Prefect's context.
        storage: Location for the videos, in case another run has to finish the generation.
        task_id: Id of a generation that was bought elsewhere; then nothing is bought.
        variation: Number of this video among several for the same request in one run.

    Raises:
        NotSubmitted: The request was refused or could not be recorded; nothing was bought.
        SubmissionUncertain: The generation was possibly charged, now or in an earlier attempt.
        ServiceUnavailable: Nothing was bought, and no retries are left.
    """
    return await bodies.submit(
        request, credentials, idempotency_key, storage=storage, task_id=task_id, variation=variation
    )


@task(**POLL, task_run_name="poll {submission.short_id}")
async def apoll_generation(
    submission: Submission, credentials: CometAPICredentials | None = None, *, again: bool = False
) -> Finished:
    """Wait until a generation has succeeded.

    Prefect retries a poll that the service does not answer, and the wait continues from there. So
    one task run covers the whole wait, with one deadline.

    Args:
        submission: Generation to wait for.
        credentials: Credentials with the API key; from the settings by default.
        again: Whether to ask the service even if the ledger records the generation as failed or
            cancelled.

    Raises:
        GenerationError: The generation failed, was cancelled, is unknown to the service, or did
            not finish in time.
    """
    return await bodies.poll(submission, credentials, again=again)


@task(**FETCH, task_run_name="fetch {submission.short_id}")
async def afetch_output(
    submission: Submission,
    finished: Finished,
    credentials: CometAPICredentials | None = None,
    storage: str | None = None,
) -> list[FetchedVideo]:
    """Download each output of a generation to this machine and check that the video is complete.

    Args:
        submission: Generation to fetch.
        finished: Result of the poll step.
        credentials: Credentials with the API key, to request a new URL of an output; from the
            settings by default.
        storage: Location for the videos, so that they are staged near it.

    Raises:
        DownloadInterrupted: The download was interrupted and could not be continued.
        OutputExpired: The service no longer provides a valid URL.
        InvalidOutput: The downloaded file is not a complete video.
        StorageError: The file could not be saved on this machine.
    """
    return await bodies.fetch(submission, finished, credentials, storage)


@task(**PERSIST, task_run_name="persist {submission.short_id}")
async def apersist_output(
    submission: Submission,
    finished: Finished,
    videos: Sequence[FetchedVideo],
    storage: str | None = None,
) -> list[StoredVideo]:
    """Publish fetched videos to the storage, each with a poster and a JSON file of its origin.

    Raises:
        StorageError: The storage did not accept a file.
        StagedFileMissing: A staged file is gone, and the output must be fetched again.
    """
    return await bodies.persist(submission, finished, videos, storage)


@task(**SUBMIT, task_run_name=_submission_name)
def submit_generation(
    request: GenerationRequest | dict[str, Any],
    credentials: CometAPICredentials | None = None,
    idempotency_key: str | None = None,
    *,
    storage: str | None = None,
    task_id: str | None = None,
    variation: int = 1,
) -> Submission:
    """Run ``asubmit_generation`` in sync code."""
    return run_sync(
        bodies.submit(
            request,
            credentials,
            idempotency_key,
            storage=storage,
            task_id=task_id,
            variation=variation,
        )
    )


@task(**POLL, task_run_name="poll {submission.short_id}")
def poll_generation(
    submission: Submission, credentials: CometAPICredentials | None = None, *, again: bool = False
) -> Finished:
    """Run ``apoll_generation`` in sync code."""
    return run_sync(bodies.poll(submission, credentials, again=again))


@task(**FETCH, task_run_name="fetch {submission.short_id}")
def fetch_output(
    submission: Submission,
    finished: Finished,
    credentials: CometAPICredentials | None = None,
    storage: str | None = None,
) -> list[FetchedVideo]:
    """Run ``afetch_output`` in sync code."""
    return run_sync(bodies.fetch(submission, finished, credentials, storage))


@task(**PERSIST, task_run_name="persist {submission.short_id}")
def persist_output(
    submission: Submission,
    finished: Finished,
    videos: Sequence[FetchedVideo],
    storage: str | None = None,
) -> list[StoredVideo]:
    """Run ``apersist_output`` in sync code."""
    return run_sync(bodies.persist(submission, finished, videos, storage))
