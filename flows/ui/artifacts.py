# SPDX-License-Identifier: Apache-2.0
"""Artifacts, events and log lines that show a generation in the Prefect UI.

All of this is for display only. A Prefect server that is briefly unreachable must not lose a video
that is paid for, so these functions do not raise.
"""

import asyncio
import base64
import shlex
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from ...runway.models.generation import (
    FetchedVideo,
    Generation,
    GenerationResult,
    Status,
    StoredVideo,
    Submission,
)
from ...runway.models.prices import shown_cost
from ..runtime.log import best_effort, in_batch, is_quiet, log_progress
from ..runtime.task_state import current_state
from .events import announce, announce_asset
from .formatting import as_link, escape_markdown, shown_size

progress_listener: ContextVar[Callable[[Submission, Generation], None] | None] = ContextVar(
    "progress_listener", default=None
)
"""Callback for each poll reply; the command line draws its progress bar from it."""

_STAGE = {Status.NOT_FOUND: 0.0, Status.PENDING: 0.0, Status.SUCCEEDED: 1.0}


async def show_reply(submission: Submission, reply: Generation, before: Generation | None) -> None:
    """Log a change of status, emit an event for it, and update the progress artifact."""
    listener = progress_listener.get()
    if listener:
        listener(submission, reply)
    if before is None or before.status is not reply.status:
        log_progress("Generation %s: %s", submission.task_id, reply.status)
        if not in_batch.get():
            await announce(reply.status.replace(" ", "_"), submission, word=reply.raw_status)
    if before is None or _percent(before) != _percent(reply):
        await _move_progress(submission, reply)


@best_effort
async def _move_progress(submission: Submission, reply: Generation) -> None:
    from prefect.artifacts import acreate_progress_artifact, aupdate_progress_artifact

    if in_batch.get():
        return
    state = current_state()
    if state.artifact_id is None:
        state.artifact_id = await acreate_progress_artifact(
            key="cometapi-progress",
            progress=_percent(reply),
            description=f"Rendering generation {submission.task_id}",
        )
    else:
        await aupdate_progress_artifact(state.artifact_id, progress=_percent(reply))


def _percent(reply: Generation) -> float:
    share = _STAGE.get(reply.status, reply.progress or 0.0)
    return round(100 * share, 1)


@best_effort
async def show_poster(video: FetchedVideo) -> None:
    """Create an artifact with a frame of the video, or with the picture.

    The image is embedded, because a browser may not be able to reach the storage.
    """
    from prefect.artifacts import acreate_image_artifact

    if in_batch.get() or not video.poster:
        return
    poster = Path(video.poster)
    name = f"{poster.name.partition('.')[0]}{Path(video.path).suffix}"
    what = "A scaled copy of" if video.is_picture else "A frame from the middle of"
    picture = base64.b64encode(await asyncio.to_thread(poster.read_bytes)).decode()
    await acreate_image_artifact(
        image_url=f"data:image/jpeg;base64,{picture}",
        key="cometapi-poster",
        description=f"{what} {name}",
    )


@best_effort
async def show_result(submission: Submission, result: GenerationResult) -> None:
    """Create a link and a table of facts for each stored video or picture."""
    from prefect.artifacts import acreate_link_artifact, acreate_table_artifact

    for video in result.videos:
        if not is_quiet.get():
            announce_asset(video, submission)
        if in_batch.get():
            continue
        await acreate_link_artifact(
            link=as_link(video.uri),
            link_text=video.uri.rpartition("/")[2],
            key="cometapi-video",
            description=f"Stored at {escape_markdown(video.uri)}",
        )
        await acreate_table_artifact(
            table=[
                {"what": what, "value": escape_markdown(value)}
                for what, value in _facts(submission, result, video).items()
            ],
            key="cometapi-generation",
            description=f"Result of generation {submission.task_id}",
        )


@best_effort
async def show_collected(generations: Sequence[Mapping[str, Any]]) -> None:
    """Create a table of the generations that a collector processed, with their outcomes."""
    from prefect.artifacts import acreate_table_artifact

    await acreate_table_artifact(
        table=[
            {
                "state": item["state"],
                "idempotency key": escape_markdown(item["idempotency_key"]),
                "video, or the command for details": escape_markdown(
                    ", ".join(uri.rpartition("/")[2] for uri in item["uris"])
                    or f"prefect-cometapi ledger show {shlex.quote(item['idempotency_key'])}"
                ),
                "id": escape_markdown(item["task_id"] or ""),
                "stored at": escape_markdown(", ".join(item["uris"])),
                "note": escape_markdown(item["note"]),
            }
            for item in generations
        ],
        key="cometapi-collected",
        description=f"{len(generations)} generations without an active owner",
    )


def _facts(submission: Submission, result: GenerationResult, video: StoredVideo) -> dict[str, str]:
    duration = {} if video.is_picture else {"duration": f"{video.duration:.1f} s"}
    return {
        "file": video.uri.rpartition("/")[2],
        **duration,
        "frame": f"{video.width} × {video.height} pixels",  # noqa: RUF001 -- the sign for it
        "size": shown_size(video.size),
        "submitted": f"{submission.submitted_at:%Y-%m-%d %H:%M:%S} UTC",
        "ready after": f"{result.waited:.1f} s",
        "polls": str(result.polls),
        "model": submission.model or "unknown",
        "cost": shown_cost(result.cost, result.currency, result.cost_source) or "unknown",
        "idempotency key": submission.idempotency_key,
        "sha256": video.sha256,
    }
