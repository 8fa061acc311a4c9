# SPDX-License-Identifier: Apache-2.0
"""The book of accepted jobs: what would have been paid for, and how far each is."""

import time
import uuid
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from threading import Lock
from typing import Any

from .clips.cache import CLIPS
from .clips.render import Recipe
from .clips.sources import InvalidSourceError
from .config import SandboxConfig
from .faults.plan import Fault
from .messages.replies import ReplyShape, Snapshot, Stage

RENDERERS = 2
"""Clips drawn at the same time. Each uses two threads of its own."""

WARM_UP = 0.1
"""The share of a job's time in which it is PENDING."""


@dataclass(frozen=True)
class AcceptedJob:
    """A job that the real service would have charged for.

    Attributes:
        task_id: The id it was given.
        route: ``image_to_video`` or ``video_to_video``.
        body: The request's body as it came.
        accepted_at: Seconds on the clock of `time.monotonic`.
    """

    task_id: str
    route: str
    body: dict[str, Any]
    accepted_at: float


@dataclass
class Job:
    """An accepted job on its way."""

    accepted: AcceptedJob
    shape: ReplyShape
    since: float
    clip: Future[bytes]
    fate: Fault | None = None
    polls: int = 0
    finished: float = 0
    times_told: int = 0
    told: Snapshot | None = field(default=None, repr=False)


def stage_and_progress(elapsed: float, least: float, *, ready: bool) -> tuple[Stage, float]:
    """How far a job is that fails at nothing.

    Args:
        elapsed: Seconds since it was accepted.
        least: Seconds it takes at least.
        ready: Whether its clip has been drawn.

    Returns:
        PENDING, RUNNING or SUCCEEDED, and a progress that never goes back.
    """
    if ready and elapsed >= least:
        return Stage.SUCCEEDED, 1.0
    progress = min(0.99, elapsed / max(least, 1.0))
    return (Stage.PENDING, 0.0) if progress < WARM_UP else (Stage.RUNNING, progress)


class JobBook:
    """All jobs of one sandbox. Safe to read from any thread.

    Args:
        config: How long jobs take and in which shapes they are described.
    """

    def __init__(self, config: SandboxConfig) -> None:
        self._config = config
        self._jobs: dict[str, Job] = {}
        self._lock = Lock()
        self._renderers = ThreadPoolExecutor(RENDERERS, thread_name_prefix="sandbox-render")

    @property
    def accepted(self) -> list[AcceptedJob]:
        """Every job that would have been paid for, in order."""
        with self._lock:
            return [job.accepted for job in self._jobs.values()]

    def accept(
        self, recipe: Recipe, body: dict[str, Any], fate: Fault | None = None
    ) -> AcceptedJob:
        """Take a job on and begin to draw it.

        Args:
            recipe: What to draw.
            body: The request as it came, for the record.
            fate: A fault by which the job fails or is cancelled.
        """
        accepted = AcceptedJob(str(uuid.uuid4()), recipe.route, body, time.monotonic())
        doomed = fate is not None
        clip = _nothing() if doomed else self._renderers.submit(CLIPS.clip, recipe)
        with self._lock:
            shape = self._config.shapes[len(self._jobs) % len(self._config.shapes)]
            self._jobs[accepted.task_id] = Job(accepted, shape, time.time(), clip, fate)
        return accepted

    def poll(self, task_id: str) -> Job | None:
        """The job, unless there is none or it is too new to be seen."""
        with self._lock:
            job = self._jobs.get(task_id)
            if job is None:
                return None
            job.polls += 1
            return job if job.polls > self._config.not_visible_polls else None

    def tell(self, job: Job, urls: Callable[[], tuple[str, ...]]) -> Snapshot:
        """What there is to say about `job` now; remembers that it has been said.

        Args:
            job: A job of this book.
            urls: Makes fresh URLs of its outputs.
        """
        snapshot = self._look(job)
        if snapshot.stage is Stage.SUCCEEDED:
            snapshot = replace(snapshot, urls=urls())
        with self._lock:
            snapshot = replace(snapshot, times_told=job.times_told, before=job.told)
            job.times_told += snapshot.stage.over
            job.told = replace(snapshot, before=None)
        return snapshot

    def finished_clip(self, task_id: str) -> bytes | None:
        """The MP4 of a job that has succeeded."""
        with self._lock:
            job = self._jobs.get(task_id)
        if job is None or self._look(job).stage is not Stage.SUCCEEDED:
            return None
        return job.clip.result()

    def stages(self) -> dict[str, int]:
        """How many jobs stand where."""
        with self._lock:
            jobs = list(self._jobs.values())
        return dict(Counter(self._look(job).stage.value for job in jobs))

    def settle(self, timeout: float | None = None) -> None:
        """Wait until every clip has been drawn or has turned out to be impossible to draw.

        Raises:
            TimeoutError: That took longer than `timeout` seconds.
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
        """Draw nothing more."""
        self._renderers.shutdown(wait=False, cancel_futures=True)

    def _look(self, job: Job) -> Snapshot:
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
    """How a job ends whose time has come: stage, reason in words, Runway's code."""
    if job.fate is not None and job.fate.kind == "cancelled":
        return Stage.CANCELLED, "The task was cancelled.", ""
    if job.fate is not None:
        code = job.fate.value or "INTERNAL.BAD_OUTPUT.CODE01"
        return Stage.FAILED, _reason(code), code
    problem = job.clip.exception()
    if problem is None:
        return Stage.SUCCEEDED, "", ""
    if isinstance(problem, InvalidSourceError):
        return Stage.FAILED, f"The asset is invalid. {problem}", "ASSET.INVALID"
    return Stage.FAILED, "An unexpected error occurred.", "INTERNAL"


def _reason(code: str) -> str:
    if code.startswith("SAFETY") or ".SAFETY." in code:
        return "The generation was stopped by content moderation."
    if code.startswith("ASSET"):
        return "The asset is invalid."
    return "The generation did not meet our quality standards. Please try again."


def _nothing() -> Future[bytes]:
    done: Future[bytes] = Future()
    done.set_result(b"")
    return done
