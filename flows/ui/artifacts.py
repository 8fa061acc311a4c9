# SPDX-License-Identifier: Apache-2.0
"""Artifacts, events and log lines that show a generation in the Prefect UI.

Artifacts have titles and no keys: they are on the page of their run. Prefect keeps a tile for each
key on a page of its own, which would show the newest video of all runs.

All of this is for display only. A Prefect server that is briefly unreachable must not lose a video
that is paid for, so these functions do not raise.
"""

import asyncio
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar
from typing import Any

from ...runway.models.disclosure import DIGITAL_SOURCE_TYPE
from ...runway.models.generation import (
    Generation,
    GenerationResult,
    Status,
    StoredVideo,
    Submission,
)
from ...runway.models.prices import shown_cost
from ...runway.storage.base import Storage
from ..runtime.log import best_effort, in_batch, log_progress
from ..runtime.run_context import RunContext
from ..runtime.task_state import current_state
from .events import announce
from .formatting import (
    as_code,
    as_code_block,
    as_picture,
    escape_markdown,
    is_web_address,
    shown_size,
    titled,
)

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
            progress=_percent(reply),
            description=titled(f"Rendering of generation {submission.task_id}"),
        )
    else:
        await aupdate_progress_artifact(state.artifact_id, progress=_percent(reply))


def _percent(reply: Generation) -> float:
    share = _STAGE.get(reply.status, reply.progress or 0.0)
    return round(100 * share, 1)


@best_effort
async def show_posters(videos: Sequence[StoredVideo], context: RunContext) -> None:
    """Create an artifact with a frame of each stored video, or with a copy of a stored picture."""
    from prefect.artifacts import acreate_markdown_artifact

    if in_batch.get():
        return
    storage = await context.storage()
    for video in videos:
        what = "A scaled copy of it." if video.is_picture else "A frame from the middle of it."
        for poster in await read_posters(storage, filter(None, [video.poster])):
            await acreate_markdown_artifact(
                markdown=as_picture(poster),
                description=titled(f"Poster of {_name(video.uri)}", what),
            )


async def read_posters(storage: Storage, addresses: Iterable[str]) -> list[bytes]:
    """Read posters from a storage, without those that cannot be read."""
    read = (asyncio.to_thread(storage.read, _name(address)) for address in addresses)
    found = await asyncio.gather(*read, return_exceptions=True)
    return [poster for poster in found if isinstance(poster, bytes)]


def _name(address: str) -> str:
    """Return the name of a stored file."""
    return address.replace("\\", "/").rpartition("/")[2]


@best_effort
async def show_result(submission: Submission, result: GenerationResult) -> None:
    """Create the address and a table of facts of each stored video or picture."""
    from prefect.artifacts import acreate_table_artifact

    for video in result.videos:
        if in_batch.get():
            continue
        await _show_address(video)
        await acreate_table_artifact(
            table=[
                {"what": what, "value": escape_markdown(value)}
                for what, value in _facts(submission, result, video).items()
            ],
            description=titled(f"Facts about {_name(video.uri)}", _generation(submission)),
        )


async def _show_address(video: StoredVideo) -> None:
    from prefect.artifacts import acreate_link_artifact, acreate_markdown_artifact

    kind = "Picture" if video.is_picture else "Video"
    title = titled(f"{kind} {_name(video.uri)}")
    if is_web_address(video.uri):
        await acreate_link_artifact(link=video.uri, link_text=_name(video.uri), description=title)
    else:
        await acreate_markdown_artifact(markdown=as_code_block(video.uri), description=title)


def _generation(submission: Submission) -> str:
    return f"Generation {escape_markdown(submission.task_id)}"


@best_effort
async def show_collected(generations: Sequence[Mapping[str, Any]]) -> None:
    """Create a table of the generations that a collector processed, unless there are none."""
    from prefect.artifacts import acreate_table_artifact

    if not generations:
        return
    await acreate_table_artifact(
        table=[
            {
                "state": item["state"],
                "idempotency key": escape_markdown(item["idempotency_key"]),
                "video, or the command for details": escape_markdown(
                    ", ".join(map(_name, item["uris"]))
                    or f"prefect-cometapi ledger show {shlex.quote(item['idempotency_key'])}"
                ),
                "id": escape_markdown(item["task_id"] or ""),
                "stored at": ", ".join(map(as_code, item["uris"])),
                "note": escape_markdown(item["note"]),
            }
            for item in generations
        ],
        description=titled(f"Collected: {_counted(generations)}"),
    )


def _counted(generations: Sequence[Mapping[str, Any]]) -> str:
    """Return the number of generations in each state, as ``2 stored, 1 uncertain``."""
    states = Counter(str(item["state"]) for item in generations)
    return ", ".join(f"{count} {state}" for state, count in states.items())


def _facts(submission: Submission, result: GenerationResult, video: StoredVideo) -> dict[str, str]:
    duration = {} if video.is_picture else {"duration": f"{video.duration:.1f} s"}
    return {
        "file": _name(video.uri),
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
        "digital source type": DIGITAL_SOURCE_TYPE,
        "C2PA manifest": video.provenance.in_words() if video.provenance else "unknown",
    }
