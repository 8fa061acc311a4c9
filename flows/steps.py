# SPDX-License-Identifier: Apache-2.0
"""What the four steps of a generation do: submit, poll, fetch, persist.

Each asks the ledger first, so a step that is repeated (a retry, another process, a run that was
resumed) finds what was done and does only the rest.
"""

import asyncio
import hashlib
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
from uuid import uuid4

from ..blocks.credentials import CometAPICredentials
from ..runway.budget import estimate, seconds_of
from ..runway.download import download
from ..runway.entries import Entry, Intent
from ..runway.errors import (
    CometAPIError,
    GenerationCancelled,
    GenerationFailed,
    InvalidOutput,
    OutputExpired,
    StagedFileMissing,
    StorageError,
    SubmissionUncertain,
)
from ..runway.figures import Tally
from ..runway.generation import (
    FetchedVideo,
    Finished,
    Generation,
    Status,
    StoredVideo,
    Submission,
)
from ..runway.media import draw_poster, inspect_video
from ..runway.names import check_task_id, file_stem
from ..runway.polling import Patience, wait_until_finished
from ..runway.redact import origin_of
from ..runway.replies import MOST_OUTPUTS
from ..runway.requests import GenerationRequest, as_request
from ..runway.settings import CometAPISettings
from ..runway.storage import Storage
from . import display
from .adoption import ATTACHED_GRACE, adopt_id, key_for
from .attempts import memory
from .habits import habit_of
from .ledger import intent_for, open_ledger, record, record_soon, this_run, working_alone
from .sharing import client_for, clients_for_assets, settings_now, shared_budget, shared_tally
from .storage import full_name, resolve_storage

if TYPE_CHECKING:
    from ..runway.buying import Check
    from ..runway.ledger import Ledger


@cache
def _examiner(_process: int) -> ThreadPoolExecutor:
    """The thread that asks the one decoder, so that no other waits; a forked child has none."""
    return ThreadPoolExecutor(1, thread_name_prefix="cometapi-video")


@contextmanager
def failures_of(key: str, task_id: str | None = None) -> Iterator[None]:
    """Errors of a step tell which generation they are about; a bare one of the disk gets a type."""
    try:
        yield
    except CometAPIError as error:
        error.about(key=key, task_id=task_id)
        raise
    except OSError as error:
        what = f"this machine did not keep a file: {error.strerror or type(error).__name__}"
        raise StorageError(what).about(key=key, task_id=task_id) from error


async def submit(
    request: GenerationRequest | dict[str, Any],
    credentials: CometAPICredentials | None,
    key: str | None,
    *,
    storage: str | None = None,
    task_id: str | None = None,
    take: int = 1,
) -> Submission:
    """Buy a generation with one POST, or attach to what its key or id stands for already."""
    request = as_request(request)  # a task's parameters are not validated, as a flow's are
    task_id = None if task_id is None else check_task_id(task_id)
    settings = settings_now()
    key = await key_for(request, credentials, key, task_id=task_id, take=take)
    with failures_of(key):
        credentials = credentials or CometAPICredentials.from_settings(settings)
        intent = intent_for(key, credentials, storage, request)
        ledger = await open_ledger()
        try:
            if task_id is not None:
                entry, new = await adopt_id(ledger, intent, credentials, task_id), False
            else:
                entry, new = await _bought(request, credentials, ledger, intent, settings)
        except SubmissionUncertain as error:
            if budget := shared_budget():
                budget.doubt(key)
            await display.announce_uncertain(key, error)
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
    """The entry of a generation, and whether it was bought just now."""
    from ..runway.buying import buy_once

    posted: list[str] = []
    async with client_for(credentials) as client:

        async def post(still_ours: "Check") -> str:
            with _tallied(request, settings):
                posted.append(await client.create(request, before_sending=still_ours))
            return posted[0]

        entry = await buy_once(
            ledger,
            intent,
            post,
            run=this_run(),
            resubmit=settings.on_uncertain == "resubmit" and _may_pay(intent.key, request),
            warn=display.logger().warning,
        )
    return entry, bool(posted)


@contextmanager
def _tallied(request: GenerationRequest, settings: CometAPISettings) -> Iterator[None]:
    """Count a submission for its run, unless it is certain that nothing was bought."""
    tally = shared_tally() or Tally()
    cost = seconds_of(request), estimate(request, settings.prices)
    tally.add(*cost)
    try:
        yield
    except CometAPIError as error:
        if not isinstance(error, SubmissionUncertain):
            tally.take_back(*cost)
        raise


def _may_pay(key: str, request: GenerationRequest) -> bool:
    """Whether the limit of what the run may spend allows another charge, if there has to be one."""
    budget = shared_budget()
    if budget is None or budget.reserve(key, request):
        return True
    display.logger().warning("%s is not submitted again: that would pass the limit", key)
    return False


async def _tell_submitted(submission: Submission, intent: Intent, *, new: bool) -> None:
    if not new:
        display.tell("Generation %s: attached, key %s", submission.task_id, submission.key)
        return
    display.tell("Generation %s: submitted, key %s", submission.task_id, submission.key)
    if not display.is_quiet.get():
        await display.announce("submitted", submission, route=intent.route, model=intent.model)


async def poll(
    submission: Submission, credentials: CometAPICredentials | None, *, again: bool = False
) -> Finished:
    """Wait until a generation succeeded, and record its end.

    One that the ledger records as failed or cancelled is asked for only ``again``; if the service
    repeats its answer, the record stays.
    """
    settings = settings_now()
    remembered = memory()
    unconfirmed = False

    async def on_reply(reply: Generation, before: Generation | None) -> None:
        nonlocal unconfirmed
        remembered.failures = 0
        if unconfirmed and reply.status is not Status.NOT_VISIBLE:
            unconfirmed = False
            await record(lambda ledger: ledger.confirm(submission.key, submission.task_id))
        await display.show_reply(submission, reply, before)

    async with working_alone(submission) as entry:
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
                    habit=habit_of(submission, entry, credentials.base_url),
                )
        except (GenerationFailed, GenerationCancelled) as error:
            if given_up is None:
                key, task_id, failure = submission.key, submission.task_id, error
                await record(lambda ledger: ledger.failed(key, task_id, failure))
            raise
        record_soon(lambda ledger: ledger.finished(submission, finished))
        return finished


def _patience(submission: Submission, settings: CometAPISettings) -> Patience:
    """How to wait. An id that was not bought just now has no reason to be unknown for long."""
    older = submission.fingerprint is None or submission.age() > settings.visibility_grace
    shorter = min(settings.visibility_grace, ATTACHED_GRACE * settings.poll_interval)
    return Patience(
        interval=settings.poll_interval,
        deadline=settings.deadline,
        visibility_grace=shorter if older else settings.visibility_grace,
    )


async def fetch(
    submission: Submission,
    finished: Finished,
    credentials: CometAPICredentials | None,
    storage: str | None,
) -> list[FetchedVideo]:
    """Download each output of a generation to this machine and check that it is a whole video."""
    settings = settings_now()
    credentials = credentials or CometAPICredentials.from_settings(settings)
    videos: list[FetchedVideo] = []
    with failures_of(submission.key, submission.task_id):
        if len(finished.generation.outputs) > MOST_OUTPUTS:
            raise InvalidOutput(f"CometAPI names more than {MOST_OUTPUTS} outputs")
        async with working_alone(submission):
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
        async with client_for(credentials) as client:
            generation = await client.get(submission.task_id)
        if position >= len(generation.outputs):
            raise OutputExpired("CometAPI names no address for the output any more")
        return generation.outputs[position].reveal() or ""

    address = finished.generation.outputs[position].reveal() or await fresh_address()
    try:
        trusted = settings_now().asset_hosts | {origin_of(credentials.base_url)}
        async with clients_for_assets() as clients:
            sha256 = await download(clients, address, path, renew=fresh_address, trusted=trusted)
        loop = asyncio.get_running_loop()
        video = await loop.run_in_executor(_examiner(os.getpid()), _examined, path, sha256)
    except BaseException:
        await asyncio.to_thread(path.unlink, missing_ok=True)
        raise
    display.tell("Fetched %s of %s", display.shown_size(video.size), submission.task_id)
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


async def persist(
    submission: Submission,
    finished: Finished,
    videos: Sequence[FetchedVideo],
    storage: str | None,
) -> list[StoredVideo]:
    """Make fetched videos appear in the storage, and record that they are there."""
    settings = settings_now()
    place = storage or settings.storage
    with failures_of(submission.key, submission.task_id):
        async with working_alone(submission, full_name(place)) as entry:
            kept = entry.videos.get(full_name(place)) if entry else None
            if kept and not await asyncio.to_thread(_any_staged, videos):
                return list(kept)
            target = await resolve_storage(place)
            stored = [
                await asyncio.to_thread(_persist, submission, finished, video, position, target)
                for position, video in enumerate(videos)
            ]
            if entry:
                task_id, where = submission.task_id, full_name(place)
                await record(lambda ledger: ledger.stored(entry, task_id, where, stored))
    for video in stored:
        display.tell("Stored %s", video.uri)
        await display.announce("stored", submission, uri=video.uri, sha256=video.sha256)
    return stored


def _any_staged(videos: Sequence[FetchedVideo]) -> bool:
    return any(Path(video.path).exists() for video in videos)


def _persist(
    submission: Submission, finished: Finished, video: FetchedVideo, position: int, place: Storage
) -> StoredVideo:
    def publish(staged: Path) -> str:
        return place.publish(staged, f"{stem}{staged.suffix}")

    _check_unchanged(video)
    stem = file_stem(submission.key, submission.submitted_at, position)
    stored = StoredVideo(
        uri=publish(Path(video.path)),
        poster=publish(Path(video.poster)) if video.poster else None,
        sidecar=place.uri(f"{stem}.json"),
        **video.model_dump(exclude={"path", "poster"}),
    )
    sidecar = Path(video.path).with_suffix(".json")
    sidecar.write_text(_origin(submission, finished, stored), encoding="utf-8")
    publish(sidecar)
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
