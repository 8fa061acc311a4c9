# SPDX-License-Identifier: Apache-2.0
"""Implementation of the four steps of a generation: submit, poll, fetch, persist.

Each step first reads the ledger. A step that is repeated (by a retry, another process or a resumed
run) therefore finds the work that is done and does only the rest.
"""

import asyncio
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...blocks.credentials import CometAPICredentials
from ...runway.api.polling import PollPolicy, wait_until_finished
from ...runway.api.reply_parser import MAX_OUTPUTS
from ...runway.errors import (
    CometAPIError,
    GenerationCancelled,
    GenerationFailed,
    InvalidOutput,
    OutputExpired,
    StorageError,
    SubmissionUncertain,
)
from ...runway.ledger.budget import estimate, seconds_of
from ...runway.ledger.entry import Entry, Intent
from ...runway.ledger.figures import Tally
from ...runway.media.download import download
from ...runway.media.inspector import draw_poster, inspect_video
from ...runway.models.generation import (
    FetchedVideo,
    Finished,
    Generation,
    Status,
    StoredVideo,
    Submission,
)
from ...runway.models.keys import check_task_id, file_stem
from ...runway.models.requests import GenerationRequest, as_request
from ...runway.redact import origin_of
from ...runway.settings import CometAPISettings
from ...runway.storage.base import Storage
from ...runway.storage.fetched import discard, find_fetched, publish_checked, remember, sha256_of
from ...runway.storage.staging import staged_path
from ..runtime import log
from ..runtime.block_storage import canonical_location, resolve_storage
from ..runtime.ledger_access import (
    exclusive_lease,
    intent_for,
    open_ledger,
    record,
    restoring,
    this_run,
    write_in_background,
)
from ..runtime.ledger_check import check_ledger, leave_mark
from ..runtime.run_context import (
    client_for,
    clients_for_assets,
    current_settings,
    shared_budget,
    shared_tally,
)
from ..runtime.staging_sweep import sweep_staged_files
from ..runtime.sync import lasting_run_id
from ..runtime.task_state import memory
from ..ui import artifacts, events, formatting
from .adoption import ATTACHED_GRACE, adopt_id, key_for
from .durations import duration_stats_of

if TYPE_CHECKING:
    from ...runway.ledger.purchase import Check
    from ...runway.ledger.store import Ledger


@cache
def _examiner(_process: int) -> ThreadPoolExecutor:
    """Return the thread that runs the video decoder.

    There is one decoder, so a thread of its own keeps other threads from waiting for it. The cache
    is by process id, because a forked child does not inherit the thread.
    """
    return ThreadPoolExecutor(1, thread_name_prefix="cometapi-video")


@contextmanager
def failures_of(key: str, task_id: str | None = None) -> Iterator[None]:
    """Add the idempotency key and task id to errors, and turn ``OSError`` into ``StorageError``."""
    try:
        yield
    except CometAPIError as error:
        error.with_context(idempotency_key=key, task_id=task_id)
        raise
    except OSError as error:
        what = f"this machine did not keep a file: {error.strerror or type(error).__name__}"
        raise StorageError(what).with_context(idempotency_key=key, task_id=task_id) from error


async def submit(
    request: GenerationRequest | dict[str, Any],
    credentials: CometAPICredentials | None,
    idempotency_key: str | None,
    *,
    storage: str | None = None,
    task_id: str | None = None,
    variation: int = 1,
) -> Submission:
    """Buy a generation with one POST, or return the existing one of an idempotency key or task id.

    A ``task_id`` is adopted, and then nothing is bought.
    """
    # Unlike the parameters of a flow, those of a task are not validated by Prefect.
    request = as_request(request)
    task_id = None if task_id is None else check_task_id(task_id)
    settings = current_settings()
    key = await key_for(request, credentials, idempotency_key, task_id=task_id, variation=variation)
    with failures_of(key):
        credentials = credentials or CometAPICredentials.from_settings(settings)
        intent = intent_for(key, credentials, storage, request)
        ledger = await open_ledger()
        if task_id is None:
            await check_ledger(ledger, storage or settings.storage)
        try:
            if task_id is not None:
                entry, new = await adopt_id(ledger, intent, credentials, task_id), False
            else:
                entry, new = await _bought(request, credentials, ledger, intent, settings)
        except SubmissionUncertain as error:
            await events.announce_uncertain(key, error)
            raise
    submission = entry.submission()
    await _tell_submitted(submission, intent, new=new)
    return submission


async def _bought(
    request: GenerationRequest,
    credentials: CometAPICredentials,
    ledger: "Ledger",
    intent: Intent,
    settings: CometAPISettings,
) -> tuple[Entry, bool]:
    """Return the entry of a generation, and whether this call bought it."""
    from ...runway.ledger.purchase import buy_once

    posted: list[str] = []
    async with client_for(credentials) as client:

        async def post(check_lease: "Check") -> str:
            with _tallied(request, settings):
                posted.append(await client.create(request, before_sending=check_lease))
            return posted[0]

        entry = await buy_once(
            ledger,
            intent,
            post,
            run=this_run(),
            resubmit_as=lasting_run_id() if settings.on_uncertain == "resubmit" else None,
            budget=shared_budget(),
            warn=log.logger().warning,
        )
    return entry, bool(posted)


@contextmanager
def _tallied(request: GenerationRequest, settings: CometAPISettings) -> Iterator[None]:
    """Add a submission to the tally of the run, unless it is certain that nothing was bought."""
    tally = shared_tally() or Tally()
    cost = seconds_of(request), estimate(request, settings.prices)
    tally.add(*cost)
    try:
        yield
    except CometAPIError as error:
        if not isinstance(error, SubmissionUncertain):
            tally.take_back(*cost)
        raise


async def _tell_submitted(submission: Submission, intent: Intent, *, new: bool) -> None:
    if not new:
        log.tell("Generation %s: attached, key %s", submission.task_id, submission.idempotency_key)
        return
    log.tell("Generation %s: submitted, key %s", submission.task_id, submission.idempotency_key)
    if not log.is_quiet.get():
        await events.announce("submitted", submission, route=intent.route, model=intent.model)


async def poll(
    submission: Submission, credentials: CometAPICredentials | None, *, again: bool = False
) -> Finished:
    """Wait until a generation has succeeded, and record its end.

    If the ledger records the generation as failed or cancelled, the service is asked only with
    ``again``. If the service gives the same answer, the ledger entry stays as it is.
    """
    settings = current_settings()
    remembered = memory()
    unconfirmed = False

    async def on_reply(reply: Generation, before: Generation | None) -> None:
        nonlocal unconfirmed
        remembered.failures = 0
        if unconfirmed and reply.status is not Status.NOT_FOUND:
            unconfirmed = False
            key = entry.idempotency_key if entry else submission.idempotency_key
            await record(lambda ledger: ledger.confirm_id(key, submission.task_id))
        await artifacts.show_reply(submission, reply, before)

    async with exclusive_lease(submission) as entry:
        given_up = entry.failure() if entry else None
        if given_up and not again:
            raise given_up
        unconfirmed = entry is not None and not entry.task_id_checked
        if entry and (finished := entry.finished()):
            return finished
        credentials = credentials or CometAPICredentials.from_settings(settings)
        try:
            async with client_for(credentials) as client:
                finished = await wait_until_finished(
                    client,
                    submission,
                    _patience(submission, settings),
                    wait=remembered.wait,
                    on_reply=on_reply,
                    stats=duration_stats_of(submission, entry, credentials.base_url),
                )
        except (GenerationFailed, GenerationCancelled) as error:
            failure = error
            if given_up is None:
                failed = restoring(submission, entry, lambda to, it: to.mark_failed(it, failure))
                await record(failed)
            raise
        write_in_background(
            restoring(submission, entry, lambda to, it: to.mark_succeeded(it, finished))
        )
        return finished


def _patience(submission: Submission, settings: CometAPISettings) -> PollPolicy:
    """Return the poll interval, the deadline and the grace time for a wait.

    The service may not know a new task id for a while. An older id, or one that was adopted, gets
    a shorter grace time.
    """
    older = submission.fingerprint is None or submission.age() > settings.not_found_grace
    shorter = min(settings.not_found_grace, ATTACHED_GRACE * settings.poll_interval)
    return PollPolicy(
        interval=settings.poll_interval,
        timeout=settings.generation_timeout,
        not_found_grace=shorter if older else settings.not_found_grace,
    )


async def fetch(
    submission: Submission,
    finished: Finished,
    credentials: CometAPICredentials | None,
    storage: str | None,
) -> list[FetchedVideo]:
    """Download each output of a generation to this machine and check that the video is complete."""
    settings = current_settings()
    credentials = credentials or CometAPICredentials.from_settings(settings)
    videos: list[FetchedVideo] = []
    with failures_of(submission.idempotency_key, submission.task_id):
        if len(finished.generation.outputs) > MAX_OUTPUTS:
            raise InvalidOutput(f"CometAPI names more than {MAX_OUTPUTS} outputs")
        async with exclusive_lease(submission):
            target = await resolve_storage(storage or settings.storage)
            staging = await asyncio.to_thread(target.staging)
            await sweep_staged_files(target)
            for position in range(len(finished.generation.outputs)):
                stem = _stem(submission, position)
                video = await asyncio.to_thread(find_fetched, target, stem)
                if video is None:
                    path = staged_path(staging, stem, ".mp4")
                    video = await _fetch(submission, finished, credentials, position, path)
                elif video.poster is None:
                    video = await _examine(Path(video.path), video.sha256)
                await asyncio.to_thread(remember, video, stem)
                videos.append(video)
    return videos


def _stem(submission: Submission, position: int) -> str:
    return file_stem(
        submission.idempotency_key, submission.task_id, submission.submitted_at, position
    )


async def _fetch(
    submission: Submission,
    finished: Finished,
    credentials: CometAPICredentials,
    position: int,
    path: Path,
) -> FetchedVideo:
    async def fresh_address() -> str:
        async with client_for(credentials) as client:
            generation = await client.get(submission.task_id)
        if position >= len(generation.outputs):
            raise OutputExpired("CometAPI names no address for the output any more")
        return generation.outputs[position].reveal() or ""

    address = finished.generation.outputs[position].reveal() or await fresh_address()
    try:
        trusted = current_settings().allowed_asset_hosts | {origin_of(credentials.base_url)}
        async with clients_for_assets() as clients:
            sha256 = await download(clients, address, path, renew=fresh_address, trusted=trusted)
        video = await _examine(path, sha256)
    except BaseException:
        await asyncio.to_thread(path.unlink, missing_ok=True)
        raise
    log.tell("Fetched %s of %s", formatting.shown_size(video.size), submission.task_id)
    return video


async def _examine(path: Path, sha256: str) -> FetchedVideo:
    loop = asyncio.get_running_loop()
    video = await loop.run_in_executor(_examiner(os.getpid()), _examined, path, sha256)
    await artifacts.show_poster(path.with_suffix(".jpg"))
    return video


def _examined(path: Path, sha256: str) -> FetchedVideo:
    """Inspect a downloaded file, draw its poster, and return both as a fetched video.

    Raises:
        InvalidOutput: The file is not a complete video.
    """
    info = inspect_video(path)
    poster = path.with_suffix(".jpg")
    draw_poster(path, poster)
    return FetchedVideo(
        path=str(path),
        poster=str(poster),
        poster_sha256=sha256_of(poster),
        sha256=sha256,
        size=path.stat().st_size,
        **asdict(info),
    )


async def persist(
    submission: Submission,
    finished: Finished,
    videos: Sequence[FetchedVideo],
    storage: str | None,
) -> list[StoredVideo]:
    """Publish fetched videos to the storage, and record this in the ledger."""
    settings = current_settings()
    place = storage or settings.storage
    with failures_of(submission.idempotency_key, submission.task_id):
        async with exclusive_lease(submission, canonical_location(place)) as entry:
            kept = entry.videos.get(canonical_location(place)) if entry else None
            if kept and not await asyncio.to_thread(_any_staged, videos):
                return list(kept)
            target = await resolve_storage(place)
            ledger_id = await record(lambda ledger: ledger.history.identity()) if entry else None
            origin = _origin(submission, finished, entry, ledger_id)
            stored = [
                await asyncio.to_thread(_persist, submission, origin, video, position, target)
                for position, video in enumerate(videos)
            ]
            if entry:
                price = settings.prices.get(entry.model or "")

                async def now_stored(to: "Ledger", it: Submission) -> Entry | None:
                    named = entry.model_copy(update={"idempotency_key": it.idempotency_key})
                    return await to.mark_stored(
                        named, it.task_id, canonical_location(place), stored, price=price
                    )

                await record(restoring(submission, entry, now_stored))
                in_batch = shared_tally() is not None
                await leave_mark(await open_ledger(), place, now=not in_batch)
            for position, video in enumerate(videos):
                await asyncio.to_thread(discard, video, _stem(submission, position))
    for video in stored:
        log.tell("Stored %s", video.uri)
        await events.announce("stored", submission, uri=video.uri, sha256=video.sha256)
    return stored


def _any_staged(videos: Sequence[FetchedVideo]) -> bool:
    return any(Path(video.path).exists() for video in videos)


def _persist(
    submission: Submission,
    origin: dict[str, Any],
    video: FetchedVideo,
    position: int,
    place: Storage,
) -> StoredVideo:
    """Publish poster, video and sidecar, in this order.

    The order gives two guarantees: a video in the storage has its poster there, and a sidecar in
    the storage means that the other files are there.
    """
    stem = _stem(submission, position)

    def publish(path: str, sha256: str | None) -> str:
        staged = Path(path)
        return publish_checked(place, staged, f"{stem}{staged.suffix}", sha256)

    poster = publish(video.poster, video.poster_sha256) if video.poster else None
    stored = StoredVideo(
        uri=publish(video.path, video.sha256),
        poster=poster,
        sidecar=place.uri(f"{stem}.json"),
        **video.model_dump(exclude={"path", "poster", "poster_sha256"}),
    )
    described = {**origin, "video": stored.model_dump(mode="json")}
    sidecar = staged_path(place.staging(), stem, ".json")
    try:
        sidecar.write_text(json.dumps(described, indent=2, ensure_ascii=False), encoding="utf-8")
        place.publish(sidecar, f"{stem}.json")
    finally:
        sidecar.unlink(missing_ok=True)
    return stored


def _origin(
    submission: Submission, finished: Finished, entry: Entry | None, ledger: str | None
) -> dict[str, Any]:
    """Return the content of a sidecar: submission, number of polls and time waited.

    It also contains the id of the ledger and data of the entry, so that the entry can be restored.
    """
    known = {"billed_seconds", "cost", "charges", "credentials", "flow_run_id", "serial"}
    return {
        **submission.model_dump(mode="json"),
        "polls": finished.polls,
        "waited": round(finished.waited, 3),
        "stored_at": datetime.now(UTC).isoformat(),
        **(entry.model_dump(mode="json", include=known) if entry else {}),
        "ledger": ledger,
    }
