# SPDX-License-Identifier: Apache-2.0
"""From a generation that is bought to its video in the storage: poll, fetch, persist."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

from ..blocks.credentials import CometAPICredentials
from ..runway.errors import StagedFileMissing, StorageError, StorageUnavailable
from ..runway.generation import GenerationResult, StoredVideo, Submission
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


def _is_gone(videos: Sequence[StoredVideo]) -> bool:
    """Whether a video in a folder of this machine is not there any more."""
    paths = [Path(video.uri) for video in videos]
    return any(path.is_absolute() and not path.exists() for path in paths)


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
        again: Whether to deliver also what was delivered there before. A file that is gone is
            delivered again in any case.
    """
    place = full_name(storage or CometAPISettings().storage)
    async with working_alone(submission, place) as entry:
        if entry and place in entry.videos and not again:
            again = await asyncio.to_thread(_is_gone, entry.videos[place])
            if not again:
                display.logger().info("Generation %s: stored already", submission.task_id)
                return entry.result(place)
            display.logger().warning("Generation %s: its file is gone", submission.task_id)
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
