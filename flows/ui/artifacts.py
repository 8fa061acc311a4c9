# SPDX-License-Identifier: Apache-2.0
"""What a user sees of a generation in the Prefect UI: artifacts, events, log lines.

All of it is for the eye. A server that cannot be reached for a moment must not cost a video that
is paid for, so nothing in here raises.
"""

import asyncio
import base64
import logging
import re
import shlex
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec
from urllib.parse import quote

from prefect.context import AssetContext, FlowRunContext, TaskRunContext
from prefect.events import emit_event
from prefect.exceptions import MissingContextError
from prefect.logging import get_run_logger

from ...runway.errors import SubmissionUncertain
from ...runway.models.generation import (
    Generation,
    GenerationResult,
    Status,
    StoredVideo,
    Submission,
)
from ..steps.retries import memory

P = ParamSpec("P")

progress_listener: ContextVar[Callable[[Submission, Generation], None] | None] = ContextVar(
    "progress_listener", default=None
)
"""Called with each reply while one waits; the command line draws its progress from it."""

in_batch: ContextVar[bool] = ContextVar("in_batch", default=False)
"""Whether the generation is one of many: a batch shows them as a whole."""

is_quiet: ContextVar[bool] = ContextVar("is_quiet", default=False)
"""Whether only what went wrong is logged, and only the end of a generation told by an event:
thousands of lines and events help nobody, and Prefect's server has to keep them all."""


class _Hush(logging.Filter):
    """Keeps the usual course of a large batch out of the log."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is for the log."""
        return record.levelno >= logging.WARNING or not is_quiet.get()


logging.getLogger("prefect.task_runs").addFilter(_Hush())

_STAGE = {Status.NOT_VISIBLE: 0.0, Status.PENDING: 0.0, Status.SUCCEEDED: 1.0}


def logger() -> "logging.Logger | logging.LoggerAdapter[Any]":
    """The run's logger, or a plain one outside of a run."""
    try:
        return get_run_logger()
    except MissingContextError:
        return logging.getLogger("prefect_cometapi")


@contextmanager
def as_batch(*, quiet: bool) -> Iterator[None]:
    """Show the generations within the block as parts of a batch; quiet says little of each."""
    shown = in_batch.set(True)
    hushed = is_quiet.set(quiet or is_quiet.get())
    try:
        yield
    finally:
        in_batch.reset(shown)
        is_quiet.reset(hushed)


def tell(message: str, *args: object) -> None:
    """Log the usual course of a generation."""
    if not is_quiet.get():  # its logger would let it fall, but making one takes a while
        logger().info(message, *args)


def harmless(show: Callable[P, Awaitable[None]]) -> Callable[P, Awaitable[None]]:
    """Have something shown within a run only, and its failure logged in place of raised."""

    @wraps(show)
    async def shown_or_logged(*args: P.args, **kwargs: P.kwargs) -> None:
        if not (FlowRunContext.get() or TaskRunContext.get()):
            return
        try:
            await show(*args, **kwargs)
        except Exception as error:  # noqa: BLE001 -- what is only shown must not cost a video
            logger().debug("Could not show it in the UI: %s", type(error).__name__)

    return shown_or_logged


@harmless
async def announce(what: str, submission: Submission, **payload: Any) -> None:
    """Emit ``cometapi.generation.<what>``, related to the run that it happened in."""
    emit_event(
        f"cometapi.generation.{what}",
        resource={
            "prefect.resource.id": f"cometapi.generation.{submission.task_id}",
            "prefect.resource.name": submission.key,
        },
        payload={"task_id": submission.task_id, "key": submission.key, **payload},
    )


@harmless
async def announce_uncertain(key: str, error: SubmissionUncertain) -> None:
    """Emit ``cometapi.generation.uncertain``; an automation may tell somebody."""
    emit_event(
        "cometapi.generation.uncertain",
        resource={"prefect.resource.id": f"cometapi.key.{key}", "prefect.resource.name": key},
        payload={"key": key, "what": error.what},
    )


async def show_reply(submission: Submission, reply: Generation, before: Generation | None) -> None:
    """Log and announce a change of state, and move the progress artifact."""
    listener = progress_listener.get()
    if listener:
        listener(submission, reply)
    if before is None or before.status is not reply.status:
        tell("Generation %s: %s", submission.task_id, reply.status)
        if not in_batch.get():
            await announce(reply.status.replace(" ", "_"), submission, word=reply.word)
    if before is None or _percent(before) != _percent(reply):
        await _move_progress(submission, reply)


@harmless
async def _move_progress(submission: Submission, reply: Generation) -> None:
    from prefect.artifacts import acreate_progress_artifact, aupdate_progress_artifact

    if in_batch.get():
        return
    remembered = memory()
    if remembered.artifact_id is None:
        remembered.artifact_id = await acreate_progress_artifact(
            key="cometapi-progress",
            progress=_percent(reply),
            description=f"Rendering generation {submission.task_id}",
        )
    else:
        await aupdate_progress_artifact(remembered.artifact_id, progress=_percent(reply))


def _percent(reply: Generation) -> float:
    share = _STAGE.get(reply.status, reply.progress or 0.0)
    return round(100 * share, 1)


@harmless
async def show_poster(poster: Path) -> None:
    """Show a frame of the video. It is embedded, so that it shows wherever the storage is."""
    from prefect.artifacts import acreate_image_artifact

    if in_batch.get():
        return
    picture = base64.b64encode(await asyncio.to_thread(poster.read_bytes)).decode()
    await acreate_image_artifact(
        image_url=f"data:image/jpeg;base64,{picture}",
        key="cometapi-poster",
        description=f"A frame from the middle of {poster.name.partition('.')[0]}.mp4",
    )


@harmless
async def show_result(submission: Submission, result: GenerationResult) -> None:
    """Link each stored video and list what there is to know of it."""
    from prefect.artifacts import acreate_link_artifact, acreate_table_artifact

    for video in result.videos:
        if not is_quiet.get():
            announce_asset(video, submission)
        if in_batch.get():
            continue
        await acreate_link_artifact(
            link=_as_link(video.uri),
            link_text=video.uri.rpartition("/")[2],
            key="cometapi-video",
            description=f"Stored at {plain(video.uri)}",
        )
        await acreate_table_artifact(
            table=[
                {"what": what, "value": plain(value)}
                for what, value in _facts(submission, result, video).items()
            ],
            key="cometapi-generation",
            description=f"What generation {submission.task_id} came to",
        )


@harmless
async def show_collected(generations: Sequence[Mapping[str, Any]]) -> None:
    """List what a collector found, and what became of each."""
    from prefect.artifacts import acreate_table_artifact

    await acreate_table_artifact(
        table=[
            {
                "state": item["state"],
                "key": plain(item["key"]),
                "video, or the command that tells more": plain(
                    ", ".join(uri.rpartition("/")[2] for uri in item["uris"])
                    or f"prefect-cometapi ledger show {shlex.quote(item['key'])}"
                ),
                "id": plain(item["task_id"] or ""),
                "stored at": plain(", ".join(item["uris"])),
                "note": plain(item["note"]),
            }
            for item in generations
        ],
        key="cometapi-collected",
        description=f"{len(generations)} generations that nobody worked on",
    )


def _facts(submission: Submission, result: GenerationResult, video: StoredVideo) -> dict[str, str]:
    return {
        "file": video.uri.rpartition("/")[2],
        "duration": f"{video.duration:.1f} s",
        "frame": f"{video.width} × {video.height} pixels",  # noqa: RUF001 -- the sign for it
        "size": shown_size(video.size),
        "submitted": f"{submission.submitted_at:%Y-%m-%d %H:%M:%S} UTC",
        "ready after": f"{result.waited:.1f} s",
        "polls": str(result.polls),
        "model": submission.model or "unknown",
        "key": submission.key,
        "sha256": video.sha256,
    }


def announce_asset(video: StoredVideo, submission: Submission) -> None:
    """Emit Prefect's asset materialization for a stored video.

    Prefect's own decorator wants the asset's key before the task runs; a video gets its name later.
    """
    from prefect.assets import Asset, AssetProperties

    name = video.uri.rpartition("/")[2]
    asset = Asset(key=_as_link(video.uri).lower(), properties=AssetProperties(name=name))
    emit_event(
        "prefect.asset.materialization.succeeded",
        resource=AssetContext.asset_as_resource(asset),
        related=[AssetContext.related_materialized_by("prefect-cometapi")],
        payload={
            "task_id": submission.task_id,
            "key": submission.key,
            **video.model_dump(include={"sha256", "size", "width", "height", "duration"}),
        },
    )


def plain(text: str) -> str:
    """Somebody's words, as they are to be read, for descriptions and cells of tables.

    Prefect's UI takes both for Markdown: a message of the service's, or a row's id, would load a
    picture from elsewhere in the browser of whoever looks, or show a link that leads there.
    """
    return re.sub(r"([\\\[<])", r"\\\1", text)


def shown_size(size: int) -> str:
    """Bytes as people read them."""
    if size >= 1_000_000_000:
        return f"{size / 1_000_000_000:.1f} GB"
    return f"{size / 1_000_000:.1f} MB" if size >= 100_000 else f"{size / 1000:.1f} kB"


def _as_link(uri: str) -> str:
    return uri if "://" in uri else f"file://{quote(uri)}"
