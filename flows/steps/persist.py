# SPDX-License-Identifier: Apache-2.0
"""Persist step: publishes fetched videos to the storage, and records this in the ledger."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect import task
from pydantic_core import to_json

from ...runway.errors import StorageError
from ...runway.ledger.entry import Entry
from ...runway.models.disclosure import disclosure, provenance_facts
from ...runway.models.generation import (
    CompletedGeneration,
    FetchedVideo,
    StoredVideo,
    Submission,
    VideoFacts,
)
from ...runway.storage.base import Storage
from ...runway.storage.fetched import discard, publish_checked
from ...runway.storage.staging import staged_path
from ..runtime import assets, log
from ..runtime.caller_arguments import GivenStorage
from ..runtime.lease import exclusive_lease
from ..runtime.ledger_check import leave_mark
from ..runtime.ledger_writes import restoring, write_best_effort
from ..runtime.run_context import run_context
from ..runtime.sync import sync_twin
from ..ui import artifacts, events, metrics
from .common import failures_of, makes_of, stem_of, step_options
from .provenance import require_provenance

if TYPE_CHECKING:
    from ...runway.ledger.store import Ledger

RETRIED_ERRORS = (StorageError,)

PERSIST = step_options(
    "persist-generation",
    "persist {submission.short_id}",
    *RETRIED_ERRORS,
    retries=3,
)


@task(**PERSIST)
async def apersist_output(
    submission: Submission,
    finished: CompletedGeneration,
    videos: Sequence[FetchedVideo],
    storage: GivenStorage = None,
) -> list[StoredVideo]:
    """Publish fetched videos to the storage, each with a poster and a JSON file of its origin.

    Raises:
        ProvenanceMissing: A file has no C2PA manifest, and the settings require one.
        StorageError: The storage did not accept a file.
        StagedFileMissing: A staged file is gone, and the output must be fetched again.
    """
    context = run_context(storage=storage, lack=StorageError)
    with failures_of(submission.idempotency_key, submission.task_id, submission.request_id):
        async with exclusive_lease(context, submission, context.location) as entry:
            recorded = entry
            kept = entry.videos.get(context.location) if entry else None
            if kept and not await asyncio.to_thread(_any_staged, videos):
                await assets.follow_from_step(kept)
                return list(kept)
            await require_provenance(context, entry, videos)
            target = await context.storage()
            ledger_id = None
            if entry:
                ledger_id = await write_best_effort(context, lambda to: to.history.identity())
            origin = _origin(submission, finished, entry, ledger_id)
            stored = [
                await asyncio.to_thread(_persist, submission, origin, video, position, target)
                for position, video in enumerate(videos)
            ]
            # A cover picture may be listed before its film; users take the first file.
            stored.sort(
                key=lambda video: video.is_picture is not (makes_of(submission) == "picture")
            )
            if entry:
                price, currency = (await context.prices()).get(entry.model or ""), context.currency

                async def now_stored(to: "Ledger", it: Submission) -> Entry | None:
                    nonlocal recorded
                    named = entry.model_copy(update={"idempotency_key": it.idempotency_key})
                    changed = await to.mark_stored(
                        named,
                        it.task_id,
                        context.location,
                        stored,
                        price=price,
                        currency=currency,
                    )
                    recorded = changed or recorded
                    return changed

                await write_best_effort(context, restoring(submission, entry, now_stored))
                await leave_mark(context, now=context.tally is None)
            for position, video in enumerate(videos):
                await asyncio.to_thread(discard, video, stem_of(submission, position))
    await metrics.count_stored(submission, recorded)
    facts = {**events.billing_of(recorded), "location": context.location}
    for video in stored:
        log.log_progress("Stored %s", video.uri)
        known = {"uri": video.uri, "sha256": video.sha256, **provenance_facts(video), **facts}
        await events.announce("stored", submission, **known)
    await artifacts.show_posters(stored, context)
    await assets.materialize(submission, stored, facts)
    await assets.follow_from_step(stored)
    return stored


persist_output = task(**PERSIST)(sync_twin(apersist_output.fn))


def _any_staged(videos: Sequence[FetchedVideo]) -> bool:
    return any(Path(video.path).exists() for video in videos)


def _persist(
    submission: Submission,
    origin: dict[str, Any],
    video: FetchedVideo,
    position: int,
    target: Storage,
) -> StoredVideo:
    """Publish poster, video and sidecar, in this order.

    The order gives two guarantees: a video in the storage has its poster there, and a sidecar in
    the storage means that the other files are there.
    """
    stem = stem_of(submission, position)

    def publish(path: str, sha256: str | None, stamp: str | None = None) -> str:
        staged = Path(path)
        return publish_checked(target, staged, f"{stem}{staged.suffix}", sha256, stamp)

    poster = video.poster and publish(video.poster, video.poster_sha256)
    stored = StoredVideo(
        uri=publish(video.path, video.sha256, video.stamp),
        poster=poster,
        sidecar=target.uri(f"{stem}.json"),
        **video.model_dump(include=set(VideoFacts.model_fields)),
    )
    sidecar = staged_path(target.staging(), stem, ".json")
    try:
        about = disclosure(submission, stored, assets.source_keys(submission.request or {}))
        sidecar.write_bytes(to_json({**origin, "video": stored, "disclosure": about}, indent=2))
        target.publish(sidecar, f"{stem}.json")
    finally:
        with suppress(OSError):  # the first error is the one to report
            sidecar.unlink(missing_ok=True)
    return stored


def _origin(
    submission: Submission, finished: CompletedGeneration, entry: Entry | None, ledger: str | None
) -> dict[str, Any]:
    """Return the content of a sidecar: submission, number of polls and time waited.

    It also contains the id of the ledger and data of the entry, so that the entry can be restored.
    """
    known = {
        "billed_seconds",
        "cost",
        "currency",
        "cost_source",
        "charges",
        "credentials",
        "flow_run_id",
        "deployment_id",
        "deployment",
        "tags",
        "list_cost",
        "list_currency",
        "serial",
    }
    return {
        **submission.model_dump(),
        "polls": finished.polls,
        "waited": round(finished.waited, 3),
        "stored_at": datetime.now(UTC).isoformat(),
        **(entry.model_dump(include=known) if entry else {}),
        "ledger": ledger,
    }
