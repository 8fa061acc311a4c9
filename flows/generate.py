# SPDX-License-Identifier: Apache-2.0
"""Flows that make one video or picture from a request, or finish one that was bought elsewhere.

Each route has a flow of its name, such as ``image_to_video``, and an async twin. They submit a
request and store its output. Prefect needs about 20 ms to declare a flow, so the flows of a route
are declared when they are first used. ``finish_generation`` starts from an existing task id and
buys nothing.
"""

from collections.abc import Mapping
from contextlib import nullcontext
from datetime import UTC, datetime
from threading import Lock
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, cast

from ..runway.errors import GenerationNotFound, LedgerUnavailable
from ..runway.models.generation import GenerationResult, Status, Submission
from ..runway.models.keys import check_task_id, key_of_id
from ..runway.models.requests import (
    ROUTES,
    CharacterPerformanceRequest,
    GenerationRequest,
    ImageToVideoRequest,
    TextToImageRequest,
    VideoToVideoRequest,
)
from .parameters import (
    REQUEST,
    AdoptedTaskId,
    Credentials,
    IdempotencyKey,
    Location,
    TaskId,
    Variation,
    Wait,
)
from .runtime import log
from .runtime.caller_arguments import GivenCredentials, GivenStorage
from .runtime.flow_decorator import recorded_flow, sync_flow
from .runtime.identity import check_starts
from .runtime.lease import own_lease
from .runtime.ledger_writes import write_best_effort
from .runtime.multi_worker_check import check_sharing
from .runtime.run_context import RunContext, new_context
from .runtime.suspension import suspend_until_finished
from .steps.adoption import adopt_id, check_id, key_for
from .steps.delivery import check_storage, deliver
from .steps.submit import asubmit_generation

if TYPE_CHECKING:
    from ..runway.ledger.store import Ledger


R = TypeVar("R", bound=GenerationRequest)


def declare_flow(kind: type[R]):  # noqa: ANN201 -- inferred, with the parameters of the flow
    """Return the async flow of the route that a class of requests belongs to."""

    async def generate(
        request: R | Mapping[str, Any],
        credentials: Credentials = None,
        storage: Location = None,
        idempotency_key: IdempotencyKey = None,
        *,
        wait: Wait = True,
        task_id: AdoptedTaskId = None,
        variation: Variation = 1,
    ) -> GenerationResult:
        return await _generate(
            cast("R", request),  # Prefect has validated it
            credentials,
            storage,
            idempotency_key,
            wait=wait,
            task_id=task_id,
            variation=variation,
        )

    generate.__name__ = generate.__qualname__ = f"a{kind.route}"
    generate.__doc__ = f"""{kind.summary}: submit, poll, fetch, persist.

    Raises:
        CometAPIError: One of its subclasses; the message states what is known about the charge.
    """
    generate.__annotations__["request"] = Annotated[kind, REQUEST]
    return recorded_flow(kind.route.replace("_", "-"))(generate)


if TYPE_CHECKING:  # `__getattr__` declares them
    aimage_to_video = declare_flow(ImageToVideoRequest)
    image_to_video = sync_flow(aimage_to_video)
    avideo_to_video = declare_flow(VideoToVideoRequest)
    video_to_video = sync_flow(avideo_to_video)
    acharacter_performance = declare_flow(CharacterPerformanceRequest)
    character_performance = sync_flow(acharacter_performance)
    atext_to_image = declare_flow(TextToImageRequest)
    text_to_image = sync_flow(atext_to_image)


def __getattr__(name: str) -> Any:
    route = name if name in ROUTES else name.removeprefix("a")
    if route not in ROUTES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with _declaring:
        if name not in globals():
            flow = declare_flow(ROUTES[route])
            globals().update({f"a{route}": flow, route: sync_flow(flow)})
    return globals()[name]


_declaring = Lock()
"""Lock under which flows are declared, so that threads get the same flow."""


@recorded_flow("finish-generation")
async def afinish_generation(
    task_id: TaskId,
    credentials: Credentials = None,
    storage: Location = None,
    idempotency_key: IdempotencyKey = None,
) -> GenerationResult:
    """Finish a generation that is already bought: poll, fetch, persist. Buys nothing.

    Raises:
        GenerationError: The generation failed, was cancelled, is unknown to the service, or did
            not finish in time.
        DeliveryError: The generation finished, but its output could not be stored.
    """
    context = new_context(credentials, storage)
    await check_storage(context)
    await check_sharing(context)
    submission = await _adopt(context, check_task_id(task_id), idempotency_key)
    with context.active():
        try:
            return await deliver(submission, credentials, storage, repeat=True)
        except GenerationNotFound:
            await write_best_effort(
                context, lambda ledger: _forget(ledger, submission.idempotency_key)
            )
            raise


finish_generation = sync_flow(afinish_generation)


async def _forget(ledger: "Ledger", key: str) -> None:
    """Delete the entry of a task id that the service does not know.

    This applies only to an id that was recorded without a check with the service.
    """
    entry = await ledger.get(key)
    if entry and not entry.task_id_checked:
        await ledger.forget(entry)


async def _adopt(context: RunContext, task_id: str, idempotency_key: str | None) -> Submission:
    """Return the submission of a task id, and record the id in the ledger if it is new.

    The idempotency key is the one in the ledger, if the id is recorded there. If the ledger is
    unavailable, the id is only checked with the service.
    """
    from ..runway.api.adoption import require_known

    intent = await context.intent(idempotency_key or key_of_id(task_id))
    try:
        ledger = await context.ledger()
        known = None if idempotency_key else await ledger.find_by_task_id(task_id, context.base_url)
        return (known or await adopt_id(context, intent, task_id)).submission()
    except LedgerUnavailable as error:  # This path buys nothing, so it can do without the ledger.
        require_known(task_id, await check_id(context, task_id))
        log.logger().warning("%s; the delivery continues without it", error.message)
        return Submission(
            idempotency_key=intent.idempotency_key, task_id=task_id, submitted_at=datetime.now(UTC)
        )


async def _generate(
    request: GenerationRequest,
    credentials: GivenCredentials,
    storage: GivenStorage,
    idempotency_key: str | None,
    *,
    wait: bool | Literal["suspend"],
    task_id: str | None,
    variation: int,
) -> GenerationResult:
    context = new_context(credentials, storage)
    check_starts(context.settings.max_run_attempts)
    await check_storage(context)
    await context.ledger()  # Nothing is bought without it.
    await check_sharing(context)
    key = await key_for(context, request, idempotency_key, task_id=task_id, variation=variation)
    with context.active():
        async with own_lease(context, key) if wait is True else nullcontext():
            submission = await asubmit_generation(
                request, credentials, key, storage=storage, task_id=task_id
            )
            if wait == "suspend":
                await suspend_until_finished(context, submission)
            if wait:
                return await deliver(submission, credentials, storage)
        return await _so_far(context, submission)


async def _so_far(context: RunContext, submission: Submission) -> GenerationResult:
    """Return the current result of a generation that the flow does not wait for.

    Raises:
        GenerationError: The ledger records that the generation failed or was cancelled.
    """
    entry = await write_best_effort(context, lambda ledger: ledger.get(submission.idempotency_key))
    if entry and (failure := entry.failure()):
        raise failure
    log.logger().info("This run does not wait: the flow collect finishes the generation")
    if entry:
        return entry.result(context.location)
    return GenerationResult(
        idempotency_key=submission.idempotency_key,
        task_id=submission.task_id,
        status=Status.PENDING,
        videos=(),
        polls=0,
        waited=0.0,
        submitted_at=submission.submitted_at,
    )
