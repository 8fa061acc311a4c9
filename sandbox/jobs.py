# SPDX-License-Identifier: Apache-2.0
"""Accepted jobs of a sandbox, for which the real service would charge, and their progress."""

import time
import uuid
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from threading import Lock
from typing import Any

from .clips.cache import CLIPS
from .clips.content_credentials import with_manifest
from .clips.render import Recipe
from .clips.sources import InvalidSourceError
from .config import SandboxConfig
from .faults.plan import Fault
from .messages.errors import REQUEST_ID
from .messages.model_table import PICTURES
from .messages.replies import ReplyShape, Snapshot, Stage

MAX_RENDERERS = 2
"""Number of clips rendered at the same time. Each uses two threads of its own."""

WARM_UP = 0.1
"""Share of a job's time during which it is PENDING."""


@dataclass(frozen=True)
class AcceptedJob:
    """Job that the real service would have charged for.

    Attributes:
        task_id: Id that the sandbox gave the job.
        route: Route of the request, such as ``image_to_video``.
        body: Body of the request as received.
        accepted_at: Time of acceptance, in seconds of `time.monotonic`.
        request_id: ``X-Cometapi-Request-Id`` of the request.
    """

    task_id: str
    route: str
    body: dict[str, Any]
    accepted_at: float
    request_id: str = ""


@dataclass
class Job:
    """Accepted job and its progress."""

    accepted: AcceptedJob
    shape: ReplyShape
    since: float
    clip: Future[bytes]
    fault: Fault | None = None
    polls: int = 0
    finished: float = 0
    final_replies: int = 0
    last_reply: Snapshot | None = field(default=None, repr=False)


def stage_and_progress(elapsed: float, least: float, *, ready: bool) -> tuple[Stage, float]:
    """Return the stage and the progress of a job that does not fail.

    Args:
        elapsed: Seconds since the job was accepted.
        least: Minimum seconds that the job takes.
        ready: True once its clip is rendered.

    Returns:
        PENDING, RUNNING or SUCCEEDED, and a progress that never decreases.
    """
    if ready and elapsed >= least:
        return Stage.SUCCEEDED, 1.0
    progress = min(0.99, elapsed / max(least, 1.0))
    return (Stage.PENDING, 0.0) if progress < WARM_UP else (Stage.RUNNING, progress)


class JobStore:
    """All jobs of one sandbox. Any thread may read them.

    Args:
        config: Configuration with the duration of jobs and the shapes of their replies.
    """

    def __init__(self, config: SandboxConfig) -> None:
        self._config = config
        self._jobs: dict[str, Job] = {}
        self._lock = Lock()
        self._renderers = ThreadPoolExecutor(MAX_RENDERERS, thread_name_prefix="sandbox-render")

    @property
    def accepted(self) -> list[AcceptedJob]:
        """Jobs that the real service would have charged for, in order of acceptance."""
        with self._lock:
            return [job.accepted for job in self._jobs.values()]

    def accept(
        self, recipe: Recipe, body: dict[str, Any], fault: Fault | None = None
    ) -> AcceptedJob:
        """Accept a job and start to render its clip.

        Args:
            recipe: Recipe of the clip.
            body: Body of the request as received, for the record.
            fault: Fault that makes the job fail or be cancelled. Nothing is rendered then.
        """
        accepted = AcceptedJob(
            str(uuid.uuid4()), recipe.route, body, time.monotonic(), REQUEST_ID.get()
        )
        clip = _nothing() if fault else self._renderers.submit(self._clip, recipe)
        with self._lock:
            shape = self._config.shapes[len(self._jobs) % len(self._config.shapes)]
            self._jobs[accepted.task_id] = Job(accepted, shape, time.time(), clip, fault)
        return accepted

    def poll(self, task_id: str) -> Job | None:
        """Count a poll and return the job, or None if it is unknown or not visible yet."""
        with self._lock:
            job = self._jobs.get(task_id)
            if job is None:
                return None
            job.polls += 1
            return job if job.polls > self._config.not_visible_polls else None

    def report(self, job: Job, urls: Callable[[], tuple[str, ...]]) -> Snapshot:
        """Return the current snapshot of `job`, and remember that it was reported.

        Args:
            job: Job of this store.
            urls: Function that makes fresh URLs of the outputs.
        """
        snapshot = self._snapshot(job)
        if snapshot.stage is Stage.SUCCEEDED:
            snapshot = replace(snapshot, urls=urls())
        with self._lock:
            snapshot = replace(snapshot, final_replies=job.final_replies, before=job.last_reply)
            job.final_replies += snapshot.stage.over
            job.last_reply = replace(snapshot, before=None)
        return snapshot

    def _clip(self, recipe: Recipe) -> bytes:
        clip = CLIPS.clip(recipe)
        return with_manifest(clip) if self._config.c2pa else clip

    def finished_clip(self, task_id: str) -> bytes | None:
        """Return the output of a job that has succeeded, an MP4 or a PNG, else None."""
        with self._lock:
            job = self._jobs.get(task_id)
        if job is None or self._snapshot(job).stage is not Stage.SUCCEEDED:
            return None
        return job.clip.result()

    def suffix(self, job: Job) -> str:
        """Return the suffix of the output of `job`."""
        return ".png" if job.accepted.route in PICTURES else ".mp4"

    def stages(self) -> dict[str, int]:
        """Return the number of jobs in each stage."""
        with self._lock:
            jobs = list(self._jobs.values())
        return dict(Counter(self._snapshot(job).stage.value for job in jobs))

    def snapshots(self) -> list[tuple[AcceptedJob, Snapshot]]:
        """Return each job with its current snapshot, in order of acceptance; no poll is counted."""
        with self._lock:
            jobs = list(self._jobs.values())
        return [(job.accepted, self._snapshot(job)) for job in jobs]

    def settle(self, timeout: float | None = None) -> None:
        """Wait until every clip is rendered or has failed to render.

        Raises:
            TimeoutError: A clip took longer than `timeout` seconds.
        """
        with self._lock:
            clips = [job.clip for job in self._jobs.values()]
        for clip in clips:
            clip.exception(timeout)

    def clear(self) -> None:
        """Forget every job."""
        with self._lock:
            self._jobs.clear()

    def close(self) -> None:
        """Cancel the clips that are not being rendered yet."""
        self._renderers.shutdown(wait=False, cancel_futures=True)

    def _snapshot(self, job: Job) -> Snapshot:
        elapsed = time.monotonic() - job.accepted.accepted_at
        stage, progress = stage_and_progress(
            elapsed, self._config.render_seconds, ready=job.clip.done()
        )
        failure, code = "", ""
        if stage is Stage.SUCCEEDED:
            stage, failure, code = _ending(job)
            job.finished = job.finished or time.time()
        return Snapshot(
            task_id=job.accepted.task_id,
            action=job.accepted.route.upper(),
            prompt=job.accepted.body.get("promptText", ""),
            stage=stage,
            progress=progress,
            accepted=job.since,
            started=0 if stage is Stage.PENDING else job.since,
            finished=job.finished,
            failure=failure,
            failure_code=code,
        )


def _ending(job: Job) -> tuple[Stage, str, str]:
    """Return the final stage of a job, the failure in words, and Runway's failure code."""
    if job.fault is not None and job.fault.kind == "cancelled":
        return Stage.CANCELLED, "The task was cancelled.", ""
    if job.fault is not None:
        code = job.fault.value or "INTERNAL.BAD_OUTPUT.CODE01"
        return Stage.FAILED, _failure_of(code), code
    problem = job.clip.exception()
    if problem is None:
        return Stage.SUCCEEDED, "", ""
    if isinstance(problem, InvalidSourceError):
        return Stage.FAILED, f"The asset is invalid. {problem}", "ASSET.INVALID"
    return Stage.FAILED, "An unexpected error occurred.", "INTERNAL"


def _failure_of(code: str) -> str:
    if code.startswith("SAFETY") or ".SAFETY." in code:
        return "The generation was stopped by content moderation."
    if code.startswith("ASSET"):
        return "The asset is invalid."
    return "The generation did not meet our quality standards. Please try again."


def _nothing() -> Future[bytes]:
    done: Future[bytes] = Future()
    done.set_result(b"")
    return done
