# SPDX-License-Identifier: Apache-2.0
"""Flows that make one video from a request, or finish one that was bought elsewhere.

``image_to_video`` and ``video_to_video`` submit a request and store the video.
``finish_generation`` starts from an existing task id and buys nothing.
"""

from contextlib import nullcontext
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator, Field

from ..blocks.credentials import CometAPICredentials
from ..runway.errors import GenerationNotFound, LedgerUnavailable
from ..runway.models.generation import GenerationResult, Status, Submission
from ..runway.models.keys import MAX_KEY_LENGTH, check_key, check_task_id, key_of_id
from ..runway.models.requests import GenerationRequest, ImageToVideoRequest, VideoToVideoRequest
from .runtime import log
from .runtime.block_storage import canonical_location
from .runtime.flow_decorator import recorded_flow
from .runtime.ledger_access import intent_for, open_ledger, record, this_run
from .runtime.multi_worker_check import warn_where_apart
from .runtime.run_context import Shared, current_settings, sharing
from .runtime.suspension import leave_until_ended
from .runtime.sync import check_starts, run_sync
from .steps.adoption import adopt_id, check_id, key_for
from .steps.delivery import check_storage, deliver
from .steps.tasks import asubmit_generation

if TYPE_CHECKING:
    from ..runway.ledger.store import Ledger

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
_CheckedId = Annotated[str, Field(min_length=1), AfterValidator(check_task_id)]
TaskId = Annotated[_CheckedId, Field(description="Id that CometAPI gave the generation.")]
Attached = Annotated[
    _CheckedId | None,
    Field(
        description="Id of a generation that was bought elsewhere (a console, a lost run): it is "
        "finished, and nothing is bought."
    ),
]
PollState = Annotated[
    bool | Literal["suspend"],
    Field(
        description="Whether to wait for the video. If not, the run ends once it is submitted, "
        "and the flow collect finishes it. With suspend it leaves its process meanwhile, and "
        "collect resumes it."
    ),
]
Variation = Annotated[
    int,
    Field(
        ge=1,
        description="Which of several videos of the same request in the same run this is: 2 buys "
        "a second one.",
    ),
]
_CheckedKey = Annotated[str, Field(max_length=MAX_KEY_LENGTH), AfterValidator(check_key)]
Key = Annotated[
    _CheckedKey | None,
    Field(
        description="Idempotency key. Where none is given, this run pays for this request once, "
        "however often it is retried; a key of your own holds across runs."
    ),
]


@recorded_flow("image-to-video")
async def aimage_to_video(
    request: ImageRequest,
    credentials: Credentials = None,
    storage: Place = None,
    idempotency_key: Key = None,
    *,
    wait: PollState = True,
    task_id: Attached = None,
    variation: Variation = 1,
) -> GenerationResult:
    """Make a video from an image: submit, poll, fetch, persist.

    Raises:
        CometAPIError: One of its subclasses; the message states what is known about the charge.
    """
    return await _generate(
        request,
        credentials,
        storage,
        idempotency_key,
        wait=wait,
        task_id=task_id,
        variation=variation,
    )


@recorded_flow("video-to-video")
async def avideo_to_video(
    request: VideoRequest,
    credentials: Credentials = None,
    storage: Place = None,
    idempotency_key: Key = None,
    *,
    wait: PollState = True,
    task_id: Attached = None,
    variation: Variation = 1,
) -> GenerationResult:
    """Restyle a video: submit, poll, fetch, persist.

    Raises:
        CometAPIError: One of its subclasses; the message states what is known about the charge.
    """
    return await _generate(
        request,
        credentials,
        storage,
        idempotency_key,
        wait=wait,
        task_id=task_id,
        variation=variation,
    )


@recorded_flow("finish-generation")
async def afinish_generation(
    task_id: TaskId,
    credentials: Credentials = None,
    storage: Place = None,
    idempotency_key: Key = None,
) -> GenerationResult:
    """Finish a generation that is already bought: poll, fetch, persist. Buys nothing.

    Raises:
        GenerationError: The generation failed, was cancelled, is unknown to the service, or did
            not finish in time.
        DeliveryError: The generation finished, but its output could not be stored.
    """
    await check_storage(storage)
    credentials = credentials or CometAPICredentials.from_settings()
    submission = await _attached(check_task_id(task_id), credentials, storage, idempotency_key)
    try:
        return await deliver(submission, credentials, storage, again=True)
    except GenerationNotFound:
        await record(lambda ledger: _forget(ledger, submission.idempotency_key))
        raise


async def _forget(ledger: "Ledger", key: str) -> None:
    """Delete the entry of a task id that the service does not know.

    This applies only to an id that was recorded without a check with the service.
    """
    entry = await ledger.get(key)
    if entry and not entry.task_id_checked:
        await ledger.forget(entry)


async def _attached(
    task_id: str, credentials: CometAPICredentials, storage: str | None, idempotency_key: str | None
) -> Submission:
    """Return the submission of a task id, and record the id in the ledger if it is new.

    The idempotency key is the one in the ledger, if the id is recorded there. If the ledger is
    unavailable, the id is only checked with the service.
    """
    from ..runway.api.adoption import require_known

    intent = intent_for(idempotency_key or key_of_id(task_id), credentials, storage)
    try:
        ledger = await open_ledger()
        known = (
            None if idempotency_key else await ledger.find_by_task_id(task_id, credentials.base_url)
        )
        return (known or await adopt_id(ledger, intent, credentials, task_id)).submission()
    except LedgerUnavailable as error:  # This path buys nothing, so it can do without the ledger.
        require_known(task_id, await check_id(credentials, task_id))
        log.logger().warning("%s; the delivery goes on without it", error.message)
        return Submission(
            idempotency_key=intent.idempotency_key, task_id=task_id, submitted_at=datetime.now(UTC)
        )


async def _generate(
    request: GenerationRequest,
    credentials: CometAPICredentials | None,
    storage: str | None,
    idempotency_key: str | None,
    *,
    wait: bool | Literal["suspend"],
    task_id: str | None,
    variation: int,
) -> GenerationResult:
    settings = current_settings()
    check_starts(settings.max_run_attempts)
    await check_storage(storage)
    ledger = await open_ledger()
    await warn_where_apart(ledger, storage or settings.storage)
    key = await key_for(request, credentials, idempotency_key, task_id=task_id, variation=variation)
    with sharing(Shared(settings, ledger)):
        async with ledger.leases.hold(key, this_run()) if wait is True else nullcontext():
            submission = await asubmit_generation(
                request, credentials, key, storage=storage, task_id=task_id
            )
            if wait == "suspend":
                await leave_until_ended(ledger, submission)
            if wait:
                return await deliver(submission, credentials, storage)
        return await _so_far(submission, storage)


async def _so_far(submission: Submission, storage: str | None) -> GenerationResult:
    """Return the current result of a generation that the flow does not wait for.

    Raises:
        GenerationError: The ledger records that the generation failed or was cancelled.
    """
    entry = await record(lambda ledger: ledger.get(submission.idempotency_key))
    if entry and (failure := entry.failure()):
        raise failure
    log.logger().info("Not waited for; the flow collect finishes what is not stored")
    if entry:
        return entry.result(canonical_location(storage or current_settings().storage))
    return GenerationResult(
        idempotency_key=submission.idempotency_key,
        task_id=submission.task_id,
        status=Status.PENDING,
        videos=(),
        polls=0,
        waited=0.0,
        submitted_at=submission.submitted_at,
    )


@recorded_flow("image-to-video")
def image_to_video(
    request: ImageRequest,
    credentials: Credentials = None,
    storage: Place = None,
    idempotency_key: Key = None,
    *,
    wait: PollState = True,
    task_id: Attached = None,
    variation: Variation = 1,
) -> GenerationResult:
    """Make a video from an image: submit, poll, fetch, persist.

    Raises:
        CometAPIError: One of its subclasses; the message states what is known about the charge.
    """
    return run_sync(
        _generate(
            request,
            credentials,
            storage,
            idempotency_key,
            wait=wait,
            task_id=task_id,
            variation=variation,
        )
    )


@recorded_flow("video-to-video")
def video_to_video(
    request: VideoRequest,
    credentials: Credentials = None,
    storage: Place = None,
    idempotency_key: Key = None,
    *,
    wait: PollState = True,
    task_id: Attached = None,
    variation: Variation = 1,
) -> GenerationResult:
    """Restyle a video: submit, poll, fetch, persist.

    Raises:
        CometAPIError: One of its subclasses; the message states what is known about the charge.
    """
    return run_sync(
        _generate(
            request,
            credentials,
            storage,
            idempotency_key,
            wait=wait,
            task_id=task_id,
            variation=variation,
        )
    )


@recorded_flow("finish-generation")
def finish_generation(
    task_id: TaskId,
    credentials: Credentials = None,
    storage: Place = None,
    idempotency_key: Key = None,
) -> GenerationResult:
    """Finish a generation that is already bought: poll, fetch, persist. Buys nothing.

    Raises:
        GenerationError: The generation failed, was cancelled, is unknown to the service, or did
            not finish in time.
        DeliveryError: The generation finished, but its output could not be stored.
    """
    return run_sync(afinish_generation.fn(task_id, credentials, storage, idempotency_key))
