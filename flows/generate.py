# SPDX-License-Identifier: Apache-2.0
"""The flows: from a request to a stored video, and from a task id that was bought elsewhere."""

import asyncio
from datetime import UTC, datetime
from typing import Annotated

from prefect.runtime import flow_run
from pydantic import AfterValidator, Field

from ..blocks.credentials import CometAPICredentials
from ..runway.errors import KeyConflict, StagedFileMissing, StorageError, StorageUnavailable
from ..runway.generation import GenerationResult, Submission
from ..runway.names import MAX_KEY_LENGTH, check_key
from ..runway.requests import GenerationRequest, ImageToVideoRequest, VideoToVideoRequest
from ..runway.settings import CometAPISettings
from . import display
from .recorded import recorded_flow
from .running import run_sync
from .storage import resolve_storage
from .tasks import afetch_output, apersist_output, apoll_generation, asubmit_generation

ImageRequest = Annotated[ImageToVideoRequest, Field(description="What to make.")]
VideoRequest = Annotated[VideoToVideoRequest, Field(description="What to make.")]
Credentials = Annotated[
    CometAPICredentials | None,
    Field(description="Block with the API key; COMETAPI_KEY where none is given."),
]
Place = Annotated[
    str | None,
    Field(
        description="Folder, fsspec URL or storage block (type-slug/name) that keeps the video; "
        "COMETAPI_STORAGE where none is given."
    ),
]
TaskId = Annotated[str, Field(description="Id that CometAPI gave the generation.", min_length=1)]
_CheckedKey = Annotated[str, Field(max_length=MAX_KEY_LENGTH), AfterValidator(check_key)]
Key = Annotated[
    _CheckedKey | None,
    Field(
        description="Idempotency key. Where none is given, this run pays for this request once, "
        "however often it is retried; a key of your own holds across runs."
    ),
]

_fetch_again = afetch_output.with_options(refresh_cache=True)
_persist_again = apersist_output.with_options(refresh_cache=True)


@recorded_flow("image-to-video")
async def aimage_to_video(
    request: ImageRequest,
    credentials: Credentials = None,
    storage: Place = None,
    key: Key = None,
) -> GenerationResult:
    """Make a video from an image: submit, poll, fetch, persist.

    Raises:
        CometAPIError: One of its kinds; each tells what is known about the money.
    """
    return await _generate(request, credentials, storage, key)


@recorded_flow("video-to-video")
async def avideo_to_video(
    request: VideoRequest,
    credentials: Credentials = None,
    storage: Place = None,
    key: Key = None,
) -> GenerationResult:
    """Restyle a video: submit, poll, fetch, persist.

    Raises:
        CometAPIError: One of its kinds; each tells what is known about the money.
    """
    return await _generate(request, credentials, storage, key)


@recorded_flow("finish-generation")
async def afinish_generation(
    task_id: TaskId,
    credentials: Credentials = None,
    storage: Place = None,
    key: Key = None,
) -> GenerationResult:
    """Finish a generation that was bought already: poll, fetch, persist. It buys nothing.

    Raises:
        GenerationError: It failed, was cancelled, is unknown, or did not finish in time.
        DeliveryError: It finished, but its output could not be stored.
    """
    task_id = task_id.strip()
    submission = Submission(
        key=key or f"task-{task_id}",
        task_id=task_id,
        submitted_at=flow_run.scheduled_start_time or datetime.now(UTC),  # the same when retried
    )
    await _check_storage(storage)
    return await _finish(submission, credentials, storage, deliver_again=True)


async def _generate(
    request: GenerationRequest,
    credentials: CometAPICredentials | None,
    storage: str | None,
    key: str | None,
) -> GenerationResult:
    await _check_storage(storage)
    submission = await asubmit_generation(request, credentials, key)
    if submission.fingerprint != request.fingerprint():
        raise KeyConflict(_difference(submission, request)).about(
            key=submission.key, task_id=submission.task_id
        )
    return await _finish(submission, credentials, storage)


async def _check_storage(place: str | None) -> None:
    try:
        storage = await resolve_storage(place or CometAPISettings().storage)
        await asyncio.to_thread(storage.check)
    except StorageError as error:
        raise StorageUnavailable(error.what) from error


async def _finish(
    submission: Submission,
    credentials: CometAPICredentials | None,
    storage: str | None,
    *,
    deliver_again: bool = False,
) -> GenerationResult:
    finished = await apoll_generation(submission, credentials)
    fetch = _fetch_again if deliver_again else afetch_output
    persist = _persist_again if deliver_again else apersist_output
    try:
        videos = await fetch(submission, finished, credentials, storage)
        stored = await persist(submission, finished, videos, storage)
    except StagedFileMissing:  # fetched by an earlier attempt, perhaps on another machine
        videos = await _fetch_again(submission, finished, credentials, storage)
        stored = await persist(submission, finished, videos, storage)
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


def _difference(submission: Submission, request: GenerationRequest) -> str:
    before, now = submission.request or {}, request.shown()
    fields = sorted(name for name in {*before, *now} if before.get(name) != now.get(name))
    told = ", ".join(f"{name} was {before.get(name)!r}, is {now.get(name)!r}" for name in fields)
    return f"the key belongs to another request: {told or 'another route'}"


@recorded_flow("image-to-video")
def image_to_video(
    request: ImageRequest,
    credentials: Credentials = None,
    storage: Place = None,
    key: Key = None,
) -> GenerationResult:
    """Make a video from an image: submit, poll, fetch, persist.

    Raises:
        CometAPIError: One of its kinds; each tells what is known about the money.
    """
    return run_sync(_generate(request, credentials, storage, key))


@recorded_flow("video-to-video")
def video_to_video(
    request: VideoRequest,
    credentials: Credentials = None,
    storage: Place = None,
    key: Key = None,
) -> GenerationResult:
    """Restyle a video: submit, poll, fetch, persist.

    Raises:
        CometAPIError: One of its kinds; each tells what is known about the money.
    """
    return run_sync(_generate(request, credentials, storage, key))


@recorded_flow("finish-generation")
def finish_generation(
    task_id: TaskId,
    credentials: Credentials = None,
    storage: Place = None,
    key: Key = None,
) -> GenerationResult:
    """Finish a generation that was bought already: poll, fetch, persist. It buys nothing.

    Raises:
        GenerationError: It failed, was cancelled, is unknown, or did not finish in time.
        DeliveryError: It finished, but its output could not be stored.
    """
    return run_sync(afinish_generation.fn(task_id, credentials, storage, key))
