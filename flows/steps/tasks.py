# SPDX-License-Identifier: Apache-2.0
"""The four steps of a generation as Prefect tasks: submit, poll, fetch, persist.

Each is there twice over one core: the plain name for sync code, the name with an ``a`` for async
code; both are the same task to Prefect. What was done already is told by the ledger, not by
Prefect's results. What ``fetch`` left on this machine is found by its own record beside the files:
a result that Prefect keeps would still name them when they are gone.
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
    """What the run of a submission is called, also where a dict is given for the request."""
    with suppress(ValidationError):
        request = as_request(task_run.parameters["request"])
        return f"submit {request.route} {request.model}"
    return "submit"


def step_options(name: str, *, retries: int, retry: Any) -> dict[str, Any]:
    """What all steps have in common, as arguments of Prefect's ``task``.

    Prefect keeps no result of a step, whatever the user's flow or settings say: a retried run would
    get the kept one and never read the ledger, in which the user may have allowed a submission.
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
"""Errors after which one of the steps is tried again."""

SUBMIT = step_options("submit-generation", retries=5, retry=retry_on(*_SUBMIT_AGAIN, share=0.2))
POLL = step_options("poll-generation", retries=1000, retry=retry_on(*_POLL_AGAIN, share=1))
FETCH = step_options("fetch-generation", retries=5, retry=retry_on(*_FETCH_AGAIN, share=0.2))
PERSIST = step_options("persist-generation", retries=3, retry=retry_on(*_PERSIST_AGAIN, share=0.2))


@task(**SUBMIT, task_run_name=_submission_name)
async def asubmit_generation(
    request: GenerationRequest | dict[str, Any],
    credentials: CometAPICredentials | None = None,
    key: str | None = None,
    *,
    storage: str | None = None,
    task_id: str | None = None,
    take: int = 1,
) -> Submission:
    """Buy a generation with one POST, or attach to what its key stands for already.

    Retried only after an answer that makes certain that nothing was bought.

    Args:
        request: What to make; a dict is read as the request that it describes.
        credentials: Whose key to use; from the settings by default.
        key: Idempotency key; of the outermost run and the request by default. Where no run lasts
            over a retry (a call outside of your flows and tasks, a bare thread) it is required.
        storage: Where the videos are wanted, should another run have to finish it.
        task_id: Id of a generation that was bought elsewhere; then nothing is bought.
        take: Which of several videos of the same request in one run this is.

    Raises:
        NotSubmitted: It was refused, or it could not be recorded; nothing was bought.
        SubmissionUncertain: It was perhaps bought, now or in an earlier attempt.
        ServiceUnavailable: Nothing was bought, and the retries are used up.
    """
    return await bodies.submit(
        request, credentials, key, storage=storage, task_id=task_id, take=take
    )


@task(**POLL, task_run_name="poll {submission.short_id}")
async def apoll_generation(
    submission: Submission, credentials: CometAPICredentials | None = None, *, again: bool = False
) -> Finished:
    """Wait until a generation succeeded.

    A poll that the service does not answer is retried by Prefect, and the wait goes on where it
    was; so one task run is the whole wait, with its deadline.

    Args:
        submission: Which generation.
        credentials: Whose key to ask with; from the settings by default.
        again: Whether to ask also for one that the ledger records as failed or cancelled.

    Raises:
        GenerationError: It failed, was cancelled, is unknown, or did not finish in time.
    """
    return await bodies.poll(submission, credentials, again=again)


@task(**FETCH, task_run_name="fetch {submission.short_id}")
async def afetch_output(
    submission: Submission,
    finished: Finished,
    credentials: CometAPICredentials | None = None,
    storage: str | None = None,
) -> list[FetchedVideo]:
    """Download each output of a generation to this machine and check that it is a whole video.

    Args:
        submission: Which generation.
        finished: Its end, as polled.
        credentials: Whose key to ask with for a fresh address; from the settings by default.
        storage: Where the videos will be kept, so that they are staged near it.

    Raises:
        DownloadInterrupted: The download broke off, and going on did not help.
        OutputExpired: No valid address can be had any more.
        InvalidOutput: What came is no whole video.
        StorageError: This machine has no room for it.
    """
    return await bodies.fetch(submission, finished, credentials, storage)


@task(**PERSIST, task_run_name="persist {submission.short_id}")
async def apersist_output(
    submission: Submission,
    finished: Finished,
    videos: Sequence[FetchedVideo],
    storage: str | None = None,
) -> list[StoredVideo]:
    """Make fetched videos appear in the storage, each with a poster and a JSON of its origin.

    Raises:
        StorageError: The storage did not take them.
        StagedFileMissing: They must be fetched again.
    """
    return await bodies.persist(submission, finished, videos, storage)


@task(**SUBMIT, task_run_name=_submission_name)
def submit_generation(
    request: GenerationRequest | dict[str, Any],
    credentials: CometAPICredentials | None = None,
    key: str | None = None,
    *,
    storage: str | None = None,
    task_id: str | None = None,
    take: int = 1,
) -> Submission:
    """``asubmit_generation`` for sync code."""
    return run_sync(
        bodies.submit(request, credentials, key, storage=storage, task_id=task_id, take=take)
    )


@task(**POLL, task_run_name="poll {submission.short_id}")
def poll_generation(
    submission: Submission, credentials: CometAPICredentials | None = None, *, again: bool = False
) -> Finished:
    """``apoll_generation`` for sync code."""
    return run_sync(bodies.poll(submission, credentials, again=again))


@task(**FETCH, task_run_name="fetch {submission.short_id}")
def fetch_output(
    submission: Submission,
    finished: Finished,
    credentials: CometAPICredentials | None = None,
    storage: str | None = None,
) -> list[FetchedVideo]:
    """``afetch_output`` for sync code."""
    return run_sync(bodies.fetch(submission, finished, credentials, storage))


@task(**PERSIST, task_run_name="persist {submission.short_id}")
def persist_output(
    submission: Submission,
    finished: Finished,
    videos: Sequence[FetchedVideo],
    storage: str | None = None,
) -> list[StoredVideo]:
    """``apersist_output`` for sync code."""
    return run_sync(bodies.persist(submission, finished, videos, storage))
