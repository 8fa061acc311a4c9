# SPDX-License-Identifier: Apache-2.0
"""Delivery of a submitted generation: poll, fetch, persist.

The steps are Prefect tasks. In a large batch, where one task run covers a whole generation, they
are plain functions. The sequence is the same.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect import Task

from ...runway.errors import StagedFileMissing, StorageError, StorageUnavailable
from ...runway.models.generation import (
    CompletedGeneration,
    FetchedVideo,
    GenerationResult,
    StoredVideo,
    Submission,
)
from ..runtime import assets, log
from ..runtime.caller_arguments import GivenCredentials, GivenStorage
from ..runtime.lease import exclusive_lease
from ..runtime.ledger_writes import write_best_effort
from ..runtime.run_context import RunContext, run_context
from ..ui import artifacts
from .costs import update_billed
from .fetch import afetch_output
from .persist import apersist_output
from .poll import apoll_generation
from .submit import asubmit_generation


@dataclass(frozen=True)
class StepSet:
    """Callables for the four steps."""

    submit: Callable[..., Awaitable[Submission]]
    poll: Callable[..., Awaitable[CompletedGeneration]]
    fetch: Callable[..., Awaitable[list[FetchedVideo]]]
    persist: Callable[..., Awaitable[list[StoredVideo]]]


AS_TASKS = StepSet(asubmit_generation, apoll_generation, afetch_output, apersist_output)
"""Steps that each run as a Prefect task, with retries of their own."""


def named_after(id_: str) -> StepSet:
    """Return ``AS_TASKS`` with task runs that are named after an item of a batch."""

    def named(step: Task[Any, Any], what: str) -> Task[Any, Any]:
        return step.with_options(task_run_name=lambda: f"{what} {id_}")

    return StepSet(
        named(asubmit_generation, "submit"),
        named(apoll_generation, "poll"),
        named(afetch_output, "fetch"),
        named(apersist_output, "persist"),
    )


INLINE = StepSet(asubmit_generation.fn, apoll_generation.fn, afetch_output.fn, apersist_output.fn)
"""Steps that run as part of the task run that calls them."""


async def check_storage(context: RunContext) -> None:
    """Check that the storage of a run can keep videos, before one is bought.

    Raises:
        StorageUnavailable: The location cannot be used.
    """
    try:
        storage = await context.storage()
        await asyncio.to_thread(storage.check)
    except StorageError as error:
        raise StorageUnavailable(error.message) from error


def is_gone(videos: Sequence[StoredVideo]) -> bool:
    """Return whether a video that was stored in a local folder is missing.

    Videos in other kinds of storage are not checked.
    """
    paths = [Path(video.uri) for video in videos]
    return any(path.is_absolute() and not path.exists() for path in paths)


async def deliver(
    submission: Submission,
    credentials: GivenCredentials,
    storage: GivenStorage,
    *,
    repeat: bool = False,
    steps: StepSet = AS_TASKS,
) -> GenerationResult:
    """Wait for a generation, fetch its output and store it, under the lease of the generation.

    Args:
        submission: Generation to deliver.
        credentials: Credentials with the API key; from the settings by default.
        storage: Location for the videos; from the settings by default.
        repeat: Whether to repeat a delivery to the same location, and to ask the service again
            about a failed or cancelled generation. A missing file is always delivered again.
        steps: Callables for the steps.
    """
    context = run_context(credentials, storage, lack=StorageError)
    async with exclusive_lease(context, submission, context.location) as entry:
        if entry and context.location in entry.videos and not repeat:
            repeat = await asyncio.to_thread(is_gone, entry.videos[context.location])
            if not repeat:
                log.log_progress("Generation %s: already stored", submission.task_id)
                result = entry.result(context.location)
                await artifacts.show_posters(result.videos, context)
                await artifacts.show_result(submission, result)
                await assets.follow_from_submission(result.videos, submission)
                return result
            log.logger().warning(
                "Generation %s: a stored file is missing and is delivered again", submission.task_id
            )
        options = {"recheck": True} if repeat and entry and entry.failure() else {}
        finished = await steps.poll(submission, credentials, **options)
        try:
            videos = await steps.fetch(submission, finished, credentials, storage)
            stored = await steps.persist(submission, finished, videos, storage)
        # A staged file was lost after the fetch, or the steps run on different machines.
        except StagedFileMissing:
            videos = await steps.fetch(submission, finished, credentials, storage)
            stored = await steps.persist(submission, finished, videos, storage)
    result = await _with_cost(context, _result(submission, finished, stored))
    await artifacts.show_result(submission, result)
    return result


async def _with_cost(context: RunContext, result: GenerationResult) -> GenerationResult:
    """Return a result with its cost, after a look at its charge.

    A batch does both for all of its items together, at its end.
    """
    if context.tally is not None:
        return result
    key = result.idempotency_key
    entry = await write_best_effort(context, lambda ledger: ledger.get(key))
    if entry and entry.task_id == result.task_id:
        if await update_billed(context, [entry]):
            entry = await write_best_effort(context, lambda ledger: ledger.get(key)) or entry
        costs = {"cost": entry.cost, "currency": entry.currency, "cost_source": entry.cost_source}
        return result.model_copy(update=costs)
    return result


def _result(
    submission: Submission, finished: CompletedGeneration, stored: Sequence[StoredVideo]
) -> GenerationResult:
    return GenerationResult(
        idempotency_key=submission.idempotency_key,
        task_id=submission.task_id,
        status=finished.generation.status,
        videos=tuple(stored),
        polls=finished.polls,
        waited=round(finished.waited, 3),
        submitted_at=submission.submitted_at,
    )
