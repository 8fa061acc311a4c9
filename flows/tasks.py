# SPDX-License-Identifier: Apache-2.0
"""The four steps of a generation as Prefect tasks: submit, poll, fetch, persist.

Each is there twice over one core: the plain name for sync code, the name with an ``a`` for async
code; both are the same task to Prefect. A step that is done is not done again when its flow run is
retried: its result is kept as JSON under the generation's key, which depends neither on the code
of the task nor on the id of the task run, since both change between attempts.
"""

import asyncio
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

from prefect import task
from prefect.context import TaskRunContext

from ..blocks.credentials import CometAPICredentials
from ..runway.download import download
from ..runway.errors import (
    CometAPIError,
    DownloadInterrupted,
    InvalidOutput,
    OutputExpired,
    ServiceUnavailable,
    StagedFileMissing,
    StorageError,
    SubmissionUncertain,
    UnexpectedResponse,
)
from ..runway.generation import FetchedVideo, Finished, Generation, StoredVideo, Submission
from ..runway.media import draw_poster, inspect_video
from ..runway.names import file_stem, step_key
from ..runway.polling import Patience, wait_until_finished
from ..runway.redact import host_of
from ..runway.requests import GenerationRequest
from ..runway.settings import CometAPISettings
from ..runway.storage import Storage
from . import display
from .attempts import RetryDelays, memory, retry_on
from .claims import alone_with, claim, keep, let_go
from .running import resolve_key, run_sync
from .storage import full_name, resolve_storage

ATTACHED_GRACE = 4
"""Poll intervals during which the id of an attached generation may be unknown."""


def _kept(step: str) -> Callable[[TaskRunContext, dict[str, Any]], str]:
    """Where the result of a step is kept, for Prefect's ``cache_key_fn``."""

    def cache_key(_context: TaskRunContext, parameters: dict[str, Any]) -> str:
        submission = parameters.get("submission")
        if isinstance(submission, Submission):
            storage = parameters.get("storage") or CometAPISettings().storage
            place = full_name(storage) if step == "persist" else ""
            return step_key(step, f"{submission.key}\n{submission.task_id}\n{place}")
        return step_key(step, resolve_key(parameters.get("key"), parameters["request"]))

    return cache_key


def _step(name: str, *, retries: int, retry: Any) -> dict[str, Any]:
    """What all steps have in common, as arguments of Prefect's ``task``."""
    return {
        "name": f"{name}-generation",
        "cache_key_fn": _kept(name),
        "persist_result": True,
        "result_serializer": "json",
        "retries": retries,
        "retry_delay_seconds": lambda _retries: RetryDelays([5.0]),
        "retry_condition_fn": retry,
    }


@contextmanager
def _failures_of(key: str, task_id: str | None = None) -> Iterator[None]:
    """Errors of a step tell which generation they are about; a bare one of the disk gets a type."""
    try:
        yield
    except CometAPIError as error:
        error.about(key=key, task_id=task_id)
        raise
    except OSError as error:
        what = f"this machine did not keep a file: {error.strerror or type(error).__name__}"
        raise StorageError(what).about(key=key, task_id=task_id) from error


SUBMIT = _step("submit", retries=5, retry=retry_on(ServiceUnavailable, share=0.2))
POLL = _step("poll", retries=1000, retry=retry_on(ServiceUnavailable, UnexpectedResponse, share=1))
FETCH = _step(
    "fetch",
    retries=5,
    retry=retry_on(
        ServiceUnavailable,
        DownloadInterrupted,
        InvalidOutput,
        OutputExpired,
        StorageError,
        share=0.2,
    ),
)
PERSIST = _step("persist", retries=3, retry=retry_on(StorageError, share=0.2))


@task(**SUBMIT, task_run_name="submit {request.route} {request.model}")
async def asubmit_generation(
    request: GenerationRequest,
    credentials: CometAPICredentials | None = None,
    key: str | None = None,
) -> Submission:
    """Buy a generation with one POST.

    Retried only after an answer that makes certain that nothing was bought.

    Args:
        request: What to make.
        credentials: Whose key to use; from the settings by default.
        key: Idempotency key; of the flow run and the request by default.

    Raises:
        NotSubmitted: The service refuses it; nothing was bought.
        SubmissionUncertain: It was perhaps bought, now or in an earlier attempt.
        ServiceUnavailable: Nothing was bought, and the retries are used up.
    """
    key = resolve_key(key, request)
    credentials = credentials or CometAPICredentials.from_settings()
    with _failures_of(key):
        async with alone_with(key):
            return await claim(key) or await _submit(request, credentials, key)


async def _submit(
    request: GenerationRequest, credentials: CometAPICredentials, key: str
) -> Submission:
    try:
        async with credentials.get_client() as client:
            task_id = await client.create(request)
    except CometAPIError as error:
        if not isinstance(error, SubmissionUncertain):
            await let_go(key)
        raise
    submission = Submission(
        key=key,
        task_id=task_id,
        submitted_at=datetime.now(UTC),
        route=request.route,
        model=request.model,
        fingerprint=request.fingerprint(),
        request=request.shown(),
    )
    await keep(submission)
    display.logger().info("Generation %s: submitted, key %s", task_id, key)
    await display.announce("submitted", submission, route=request.route, model=request.model)
    return submission


@task(**POLL, task_run_name="poll {submission.short_id}")
async def apoll_generation(
    submission: Submission, credentials: CometAPICredentials | None = None
) -> Finished:
    """Wait until a generation succeeded.

    A poll that the service does not answer is retried by Prefect, and the wait goes on where it
    was; so one task run is the whole wait, with its deadline.

    Raises:
        GenerationError: It failed, was cancelled, is unknown, or did not finish in time.
    """
    settings = CometAPISettings()
    patience = _patience(submission, settings)
    credentials = credentials or CometAPICredentials.from_settings(settings)
    remembered = memory()

    async def on_reply(reply: Generation, before: Generation | None) -> None:
        remembered.failures = 0
        await display.show_reply(submission, reply, before)

    async with credentials.get_client() as client:
        return await wait_until_finished(
            client, submission, patience, wait=remembered.wait, on_reply=on_reply
        )


def _patience(submission: Submission, settings: CometAPISettings) -> Patience:
    """How to wait. An id that was not bought just now has no reason to be unknown for long."""
    attached = submission.fingerprint is None
    shorter = min(settings.visibility_grace, ATTACHED_GRACE * settings.poll_interval)
    return Patience(
        interval=settings.poll_interval,
        deadline=settings.deadline,
        visibility_grace=shorter if attached else settings.visibility_grace,
    )


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
    settings = CometAPISettings()
    credentials = credentials or CometAPICredentials.from_settings(settings)
    videos: list[FetchedVideo] = []
    with _failures_of(submission.key, submission.task_id):
        staging = (await resolve_storage(storage or settings.storage)).staging()
        for position in range(len(finished.generation.outputs)):
            stem = file_stem(submission.key, submission.submitted_at, position)
            path = staging / f"{stem}.{uuid4().hex[:8]}.mp4"  # two runs may fetch at once
            videos.append(await _fetch(submission, finished, credentials, position, path))
    return videos


async def _fetch(
    submission: Submission,
    finished: Finished,
    credentials: CometAPICredentials,
    position: int,
    path: Path,
) -> FetchedVideo:
    async def fresh_address() -> str:
        async with credentials.get_client() as client:
            generation = await client.get(submission.task_id)
        if position >= len(generation.outputs):
            raise OutputExpired("CometAPI names no address for the output any more")
        return generation.outputs[position].reveal() or ""

    address = finished.generation.outputs[position].reveal() or await fresh_address()
    try:
        sha256 = await download(
            address, path, renew=fresh_address, trusted_host=host_of(credentials.base_url)
        )
        video = await asyncio.to_thread(_examined, path, sha256)
    except BaseException:
        await asyncio.to_thread(path.unlink, missing_ok=True)
        raise
    display.logger().info("Fetched %s of %s", display.shown_size(video.size), submission.task_id)
    await display.show_poster(path.with_suffix(".jpg"))
    return video


def _examined(path: Path, sha256: str) -> FetchedVideo:
    """A downloaded file as a whole video with its poster, or the error that it is none."""
    info = inspect_video(path)
    poster = path.with_suffix(".jpg")
    draw_poster(path, poster)
    return FetchedVideo(
        path=str(path),
        poster=str(poster),
        sha256=sha256,
        size=path.stat().st_size,
        **asdict(info),
    )


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
    with _failures_of(submission.key, submission.task_id):
        place = await resolve_storage(storage or CometAPISettings().storage)
        return [
            await _persist(submission, finished, video, position, place)
            for position, video in enumerate(videos)
        ]


async def _persist(
    submission: Submission, finished: Finished, video: FetchedVideo, position: int, place: Storage
) -> StoredVideo:
    async def publish(staged: Path) -> str:
        return await asyncio.to_thread(place.publish, staged, f"{stem}{staged.suffix}")

    await asyncio.to_thread(_check_unchanged, video)
    stem = file_stem(submission.key, submission.submitted_at, position)
    stored = StoredVideo(
        uri=await publish(Path(video.path)),
        poster=await publish(Path(video.poster)) if video.poster else None,
        sidecar=place.uri(f"{stem}.json"),
        **video.model_dump(exclude={"path", "poster"}),
    )
    sidecar = Path(video.path).with_suffix(".json")
    sidecar.write_text(_origin(submission, finished, stored), encoding="utf-8")
    await publish(sidecar)
    display.logger().info("Stored %s", stored.uri)
    await display.announce("stored", submission, uri=stored.uri, sha256=stored.sha256)
    return stored


def _check_unchanged(video: FetchedVideo) -> None:
    """What is published is what was checked; one that is published already is gone from here."""
    path = Path(video.path)
    if path.exists():
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != video.sha256:
                raise StagedFileMissing(f"{path} is not what was fetched any more")


def _origin(submission: Submission, finished: Finished, video: StoredVideo) -> str:
    """The JSON that lies beside a video: what was asked, what came, and how long it took."""
    return json.dumps(
        {
            **submission.model_dump(mode="json"),
            "polls": finished.polls,
            "waited": round(finished.waited, 3),
            "stored_at": datetime.now(UTC).isoformat(),
            "video": video.model_dump(mode="json"),
        },
        indent=2,
        ensure_ascii=False,
    )


@task(**SUBMIT, task_run_name="submit {request.route} {request.model}")
def submit_generation(
    request: GenerationRequest,
    credentials: CometAPICredentials | None = None,
    key: str | None = None,
) -> Submission:
    """``asubmit_generation`` for sync code."""
    return run_sync(asubmit_generation.fn(request, credentials, key))


@task(**POLL, task_run_name="poll {submission.short_id}")
def poll_generation(
    submission: Submission, credentials: CometAPICredentials | None = None
) -> Finished:
    """``apoll_generation`` for sync code."""
    return run_sync(apoll_generation.fn(submission, credentials))


@task(**FETCH, task_run_name="fetch {submission.short_id}")
def fetch_output(
    submission: Submission,
    finished: Finished,
    credentials: CometAPICredentials | None = None,
    storage: str | None = None,
) -> list[FetchedVideo]:
    """``afetch_output`` for sync code."""
    return run_sync(afetch_output.fn(submission, finished, credentials, storage))


@task(**PERSIST, task_run_name="persist {submission.short_id}")
def persist_output(
    submission: Submission,
    finished: Finished,
    videos: Sequence[FetchedVideo],
    storage: str | None = None,
) -> list[StoredVideo]:
    """``apersist_output`` for sync code."""
    return run_sync(apersist_output.fn(submission, finished, videos, storage))
