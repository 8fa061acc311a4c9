# SPDX-License-Identifier: Apache-2.0
"""Fetch step: downloads each output to this machine and checks that it is complete.

Files of an earlier attempt on this machine are found by a record beside them and not downloaded
again.
"""

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import cache
from pathlib import Path

from prefect import task

from ...blocks.credentials import CometAPICredentials
from ...runway.api.reply_parser import MAX_OUTPUTS
from ...runway.errors import (
    DownloadInterrupted,
    InvalidOutput,
    OutputExpired,
    ServiceUnavailable,
    StorageError,
)
from ...runway.media.download import download
from ...runway.media.inspector import PICTURES, draw_poster, inspect_output
from ...runway.models.generation import CompletedGeneration, FetchedVideo, Submission
from ...runway.models.model_limits import Makes
from ...runway.models.requests import ROUTES
from ...runway.redact import origin_of
from ...runway.storage.fetched import find_fetched, remember, sha256_of
from ...runway.storage.staging import staged_path
from ..runtime import log
from ..runtime.lease import exclusive_lease
from ..runtime.run_context import RunContext, run_context
from ..runtime.staging_sweep import sweep_staged_files
from ..runtime.sync import sync_twin
from ..ui import artifacts, formatting
from .common import failures_of, stem_of, step_options

RETRIED_ERRORS = (
    ServiceUnavailable,
    DownloadInterrupted,
    InvalidOutput,
    OutputExpired,
    StorageError,
)

FETCH = step_options(
    "fetch-generation",
    "fetch {submission.short_id}",
    *RETRIED_ERRORS,
    retries=5,
)


@task(**FETCH)
async def afetch_output(
    submission: Submission,
    finished: CompletedGeneration,
    credentials: CometAPICredentials | None = None,
    storage: str | None = None,
) -> list[FetchedVideo]:
    """Download each output of a generation to this machine and check that the video is complete.

    Args:
        submission: Generation to fetch.
        finished: Result of the poll step.
        credentials: Credentials with the API key, to request a new URL of an output; from the
            settings by default.
        storage: Location for the videos, so that they are staged near it.

    Raises:
        DownloadInterrupted: The download was interrupted and could not be continued.
        OutputExpired: The service no longer provides a valid URL.
        InvalidOutput: The downloaded file is not a complete video.
        StorageError: The file could not be saved on this machine.
    """
    context = run_context(credentials, storage)
    videos: list[FetchedVideo] = []
    with failures_of(submission.idempotency_key, submission.task_id, submission.request_id):
        if len(finished.generation.outputs) > MAX_OUTPUTS:
            raise InvalidOutput(f"the reply lists more than {MAX_OUTPUTS} outputs")
        async with exclusive_lease(context, submission):
            target = await context.storage()
            staging = await asyncio.to_thread(target.staging)
            await sweep_staged_files(context, target)
            for position in range(len(finished.generation.outputs)):
                stem = stem_of(submission, position)
                video = await asyncio.to_thread(find_fetched, target, stem)
                if video is None:
                    path = staged_path(staging, stem, ".mp4")
                    video = await _fetch(context, submission, finished, position, path)
                elif video.poster is None:
                    path = Path(video.path)
                    video = await _examine(path, video.sha256, _makes(submission))
                await asyncio.to_thread(remember, video, stem)
                videos.append(video)
    return videos


fetch_output = task(**FETCH)(sync_twin(afetch_output.fn))


async def _fetch(
    context: RunContext,
    submission: Submission,
    finished: CompletedGeneration,
    position: int,
    path: Path,
) -> FetchedVideo:
    async def request_url() -> str:
        async with context.open_client() as client:
            generation = await client.get(submission.task_id)
        if position >= len(generation.outputs):
            raise OutputExpired("CometAPI no longer returns a URL of the output")
        return generation.outputs[position].reveal() or ""

    url = finished.generation.outputs[position].reveal() or await request_url()
    try:
        trusted = context.settings.allowed_asset_hosts | {origin_of(context.base_url)}
        async with context.open_assets() as clients:
            sha256 = await download(clients, url, path, renew=request_url, trusted=trusted)
        video = await _examine(path, sha256, _makes(submission))
    except BaseException:
        await asyncio.to_thread(path.unlink, missing_ok=True)
        raise
    log.log_progress("Fetched %s of %s", formatting.shown_size(video.size), submission.task_id)
    return video


def _makes(submission: Submission) -> Makes | None:
    """Return the kind of file that a generation makes, or None if its route is not known."""
    request = ROUTES.get(submission.route or "")
    return request.makes() if request else None


async def _examine(path: Path, sha256: str, makes: Makes | None) -> FetchedVideo:
    loop = asyncio.get_running_loop()
    video = await loop.run_in_executor(_examiner(os.getpid()), _examined, path, sha256, makes)
    await artifacts.show_poster(video)
    return video


def _examined(path: Path, sha256: str, makes: Makes | None) -> FetchedVideo:
    """Inspect a downloaded file, draw its poster, and return both as a fetched video.

    A picture gets its own suffix, which is known only now.

    Raises:
        InvalidOutput: The file is not a complete video or picture.
    """
    info = inspect_output(path, makes)
    poster = path.with_suffix(".jpg")
    draw_poster(path, poster)
    suffix, media_type = PICTURES.get(info.codec, (path.suffix, "video/mp4"))
    path = path.rename(path.with_suffix(suffix))
    return FetchedVideo(
        path=str(path),
        poster=str(poster),
        poster_sha256=sha256_of(poster),
        sha256=sha256,
        size=path.stat().st_size,
        media_type=media_type,
        **asdict(info),
    )


@cache
def _examiner(_process: int) -> ThreadPoolExecutor:
    """Return the thread that runs the video decoder.

    There is one decoder, so a thread of its own keeps other threads from waiting for it. The cache
    is by process id, because a forked child does not inherit the thread.
    """
    return ThreadPoolExecutor(1, thread_name_prefix="cometapi-video")
