# SPDX-License-Identifier: Apache-2.0
"""Fetch step: downloads each output to this machine and checks that it is complete.

Files of an earlier attempt on this machine are found by a record beside them and not downloaded
again.
"""

import asyncio
import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from pathlib import Path

from prefect import task

from ...runway.api.polling import as_outage
from ...runway.api.reply_parser import MAX_OUTPUTS
from ...runway.errors import (
    CometAPIError,
    DownloadInterrupted,
    InvalidOutput,
    OutputExpired,
    ServiceUnavailable,
    StorageError,
)
from ...runway.media.download import download
from ...runway.media.inspector import SUFFIXES, examine_output, start_decoder
from ...runway.models.generation import CompletedGeneration, FetchedVideo, Submission
from ...runway.models.media_types import HEAD_BYTES, media_type_of
from ...runway.models.model_limits import Makes
from ...runway.redact import origin_of
from ...runway.storage.base import Storage
from ...runway.storage.fetched import find_fetched, remember, stamp
from ...runway.storage.staging import rename_staged, staged_path
from ..runtime import log
from ..runtime.caller_arguments import GivenCredentials, GivenStorage
from ..runtime.lease import exclusive_lease
from ..runtime.run_context import RunContext, run_context
from ..runtime.staging_sweep import sweep_staged_files
from ..runtime.sync import sync_twin
from ..runtime.task_state import current_state
from ..ui import formatting
from .common import failures_of, makes_of, stem_of, step_options

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
    credentials: GivenCredentials = None,
    storage: GivenStorage = None,
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
    context = run_context(credentials, storage, lack=StorageError)
    videos: list[FetchedVideo] = []
    with failures_of(submission.idempotency_key, submission.task_id, submission.request_id):
        count, makes = len(finished.generation.outputs), makes_of(submission)
        if count > MAX_OUTPUTS:
            raise InvalidOutput(f"the reply lists more than {MAX_OUTPUTS} outputs")
        async with exclusive_lease(context, submission):
            target = await context.storage()
            stems = [stem_of(submission, position) for position in range(count)]
            staging, found = await asyncio.to_thread(_look_for, target, stems)
            await sweep_staged_files(context, target, staging)
            for position, (stem, earlier) in enumerate(zip(stems, found, strict=True)):
                if earlier is None:
                    video = await _fetch(context, submission, finished, position, staging)
                elif earlier.poster is None:
                    path, kind = Path(earlier.path), _expected(submission, finished)
                    video = await _examine(path, earlier.sha256, kind, stem)
                else:
                    video = earlier
                videos.append(video)
        if makes and not any(video.is_picture is (makes == "picture") for video in videos):
            raise InvalidOutput(f"none of the {count} outputs is a {makes}")
    return videos


fetch_output = task(**FETCH)(sync_twin(afetch_output.fn))


def _look_for(target: Storage, stems: Sequence[str]) -> tuple[Path, list[FetchedVideo | None]]:
    """Return the staging folder, and for each stem the files of an earlier fetch."""
    return target.staging(), [find_fetched(target, stem) for stem in stems]


async def _fetch(
    context: RunContext,
    submission: Submission,
    finished: CompletedGeneration,
    position: int,
    staging: Path,
) -> FetchedVideo:
    async def request_url() -> str:
        async with context.open_client() as client:
            try:
                generation = await client.get(submission.task_id)
            except CometAPIError as error:
                outage = as_outage(error, "CometAPI is asked again for a URL of its output")
                raise outage.with_context(**submission.ids) from None
        if position >= len(generation.outputs):
            raise OutputExpired("CometAPI no longer returns a URL of the output")
        return generation.outputs[position].reveal() or ""

    stem = stem_of(submission, position)
    path = staged_path(staging, stem, ".mp4")
    _examiner(os.getpid())  # so that the decoder starts during the first download
    state = current_state()
    known = finished.generation.outputs[position].reveal()
    # A page in place of the video may mean that the URL has expired.
    url = known if known and position not in state.unusable_outputs else await request_url()
    try:
        trusted = context.settings.allowed_asset_hosts | {origin_of(context.base_url)}
        async with context.open_assets() as clients:
            sha256 = await download(
                clients, url, path, renew=request_url, trusted=trusted, dead=state.dead_urls
            )
        video = await _examine(path, sha256, _expected(submission, finished), stem)
    except BaseException as error:
        if isinstance(error, InvalidOutput):
            state.unusable_outputs.add(position)
        with suppress(OSError):  # the first error is the one to report
            await asyncio.to_thread(path.unlink, missing_ok=True)
        raise
    log.log_progress("Fetched %s of %s", formatting.shown_size(video.size), submission.task_id)
    return video


def _expected(submission: Submission, finished: CompletedGeneration) -> Makes | None:
    """Return the kind of each output; None if it may be the cover picture of another one."""
    return makes_of(submission) if len(finished.generation.outputs) == 1 else None


async def _examine(path: Path, sha256: str, makes: Makes | None, stem: str) -> FetchedVideo:
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(_examiner(os.getpid()), _examined, path, sha256, makes, stem)


def _examined(path: Path, sha256: str, makes: Makes | None, stem: str) -> FetchedVideo:
    """Inspect a downloaded file, draw its poster, and return both as a recorded fetched video.

    The suffix and the media type follow from the content, which is known only now.

    Raises:
        InvalidOutput: The file is not a complete video or picture.
    """
    stamped = stamp(path)
    info, picture = examine_output(path, makes)
    poster = path.with_suffix(".jpg")
    poster.write_bytes(picture)
    with path.open("rb") as file:
        found = media_type_of(file.read(HEAD_BYTES))
    media_type = found if found in SUFFIXES else "video/mp4"
    path = rename_staged(path, path.with_suffix(SUFFIXES[media_type]))
    video = FetchedVideo(
        path=str(path),
        poster=str(poster),
        poster_sha256=hashlib.sha256(picture).hexdigest(),
        sha256=sha256,
        stamp=stamped,
        size=path.stat().st_size,
        media_type=media_type,
        **vars(info),
    )
    remember(video, stem)
    return video


@cache
def _examiner(_process: int) -> ThreadPoolExecutor:
    """Return the thread that runs the video decoder, and start both.

    There is one decoder, so a thread of its own keeps other threads from waiting for it. The cache
    is by process id, because a forked child does not inherit the thread.
    """
    examiner = ThreadPoolExecutor(1, thread_name_prefix="cometapi-video")
    examiner.submit(start_decoder)
    return examiner
