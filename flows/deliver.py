# SPDX-License-Identifier: Apache-2.0
"""From a generation that is bought to its video in the storage: poll, fetch, persist."""

import asyncio

from ..blocks.credentials import CometAPICredentials
from ..runway.errors import StagedFileMissing, StorageError, StorageUnavailable
from ..runway.generation import GenerationResult, Submission
from ..runway.settings import CometAPISettings
from . import display
from .ledger import working_alone
from .storage import full_name, resolve_storage
from .tasks import afetch_output, apersist_output, apoll_generation

_fetch_again = afetch_output.with_options(refresh_cache=True)


async def check_storage(place: str | None) -> None:
    """See that videos can be kept there, before one is bought.

    Raises:
        StorageUnavailable: They cannot.
    """
    try:
        storage = await resolve_storage(place or CometAPISettings().storage)
        await asyncio.to_thread(storage.check)
    except StorageError as error:
        raise StorageUnavailable(error.what) from error


async def deliver(
    submission: Submission,
    credentials: CometAPICredentials | None,
    storage: str | None,
    *,
    again: bool = False,
) -> GenerationResult:
    """Wait for a generation, fetch its output and store it, while no other run does.

    Args:
        submission: Which generation.
        credentials: Whose key to ask with; from the settings by default.
        storage: Where the videos are wanted; from the settings by default.
        again: Whether to deliver also what was delivered there before.
    """
    place = full_name(storage or CometAPISettings().storage)
    async with working_alone(submission) as entry:
        if entry and place in entry.videos and not again:
            display.logger().info("Generation %s: stored already", submission.task_id)
            return entry.result(place)
        finished = await apoll_generation(submission, credentials)
        fetch = _fetch_again if again else afetch_output
        try:
            videos = await fetch(submission, finished, credentials, storage)
            stored = await apersist_output(submission, finished, videos, storage)
        except StagedFileMissing:  # fetched by an earlier attempt, perhaps on another machine
            videos = await _fetch_again(submission, finished, credentials, storage)
            stored = await apersist_output(submission, finished, videos, storage)
    result = GenerationResult(
        key=submission.key,
        task_id=submission.task_id,
        status=finished.generation.status,
        videos=tuple(stored),
        polls=finished.polls,
        waited=round(finished.waited, 3),
        submitted_at=submission.submitted_at,
    )
    await display.show_result(submission, result)
    return result
