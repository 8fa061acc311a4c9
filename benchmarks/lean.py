# SPDX-License-Identifier: Apache-2.0
"""Serve a stand-in for CometAPI that is never the bottleneck and that measures its clients.

``python benchmarks/lean.py CLIP [OPTIONS]`` prints its address. It gives the same replies as
the sandbox on the routes that a batch uses: create, task, asset. It leaves out the expensive parts:
it draws nothing (every job has the same clip and takes as long as a seeded draw says), and no
framework stands between a socket and its response.

``GET /_stats`` returns statistics: the jobs, the polls of each, and the time from the end of a job
to the poll that showed it to the client. ``DELETE /_stats`` resets them and restarts the draws.
"""

import argparse
import asyncio
import hashlib
import math
import random
import statistics
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from plain_http import Request, Response, as_json, serve
from pydantic import BaseModel, ValidationError

from prefect_cometapi.sandbox.api.auth import refusal_of
from prefect_cometapi.sandbox.clips.serving import byte_range
from prefect_cometapi.sandbox.jobs import stage_and_progress
from prefect_cometapi.sandbox.messages.errors import (
    ApiFailure,
    invalid_request,
    no_such_route,
    task_not_exist,
    unauthorized,
)
from prefect_cometapi.sandbox.messages.replies import Snapshot, Stage, bare
from prefect_cometapi.sandbox.messages.requests import BODIES

TICK = 0.05
"""Seconds between two checks of the event loop's lag."""

_BODIES: dict[str, type[BaseModel]] = {
    route: BODIES[route][0] for route in ("image_to_video", "video_to_video")
}


def rendering_times(mean: float, variation: float, seed: int) -> Iterator[float]:
    """Return an endless series of rendering times in seconds, lognormal or all equal.

    Args:
        mean: Mean of all times, in seconds.
        variation: Standard deviation as a share of the mean; 0 makes all times equal.
        seed: Seed of the draws.
    """
    rng = random.Random(seed)
    sigma = math.sqrt(math.log(1 + variation**2))
    while True:
        yield rng.lognormvariate(math.log(mean) - sigma**2 / 2, sigma) if mean else 0.0


@dataclass
class Job:
    """Job that the service accepted."""

    action: str
    accepted: float
    since: float
    takes: float
    polls: int = 0
    learned: float | None = None
    """Time at which a client first learned that the job is finished."""

    downloads: int = 0


class LeanService:
    """Stand-in for CometAPI.

    Args:
        clip: The MP4 of every job.
        times: Yields the rendering time of each job, in seconds.
    """

    def __init__(self, clip: bytes, times: Callable[[], Iterator[float]]) -> None:
        self._clip = memoryview(clip)
        self._draw = times
        self._etag = f'"{hashlib.sha256(clip).hexdigest()[:32]}"'
        self._forget()

    def _forget(self) -> None:
        self._times = self._draw()
        self._jobs: dict[str, Job] = {}
        self._late = 0.0
        self._started = time.process_time()

    def answer(self, request: Request) -> Response:
        """Return the response to a request."""
        path, _, _ = request.path.partition("?")
        try:
            if path.startswith("/runwayml/v1/"):
                return as_json(self._runway(request, path.removeprefix("/runwayml/v1/")))
            if path.startswith("/assets/") and request.method in {"GET", "HEAD"}:
                return self._asset(request, path)
            if path == "/_stats":
                if request.method == "DELETE":
                    self._forget()
                return as_json(self.stats())
        except ApiFailure as failure:
            return as_json(failure.body, failure.status)
        return as_json(no_such_route(request.method, path), 404)

    def _runway(self, request: Request, route: str) -> dict[str, Any]:
        scheme, _, key = request.header("authorization").partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise unauthorized()
        if request.method == "GET" and route.startswith("tasks/"):
            return self._task(route.removeprefix("tasks/"), request.header("host"))
        if request.method == "POST" and route in _BODIES:
            return self._create(request, route)
        raise ApiFailure(404, no_such_route(request.method, request.path))

    def _create(self, request: Request, route: str) -> dict[str, Any]:
        if not request.header("x-runway-version"):
            raise invalid_request("X-Runway-Version: Field required")
        try:
            _BODIES[route].model_validate_json(request.body)
        except ValidationError as error:
            raise refusal_of(
                [{**problem, "loc": ("body", *problem["loc"])} for problem in error.errors()]
            ) from None
        task_id = str(uuid.uuid4())
        self._jobs[task_id] = Job(route.upper(), time.monotonic(), time.time(), next(self._times))
        return {"id": task_id}

    def _task(self, task_id: str, host: str) -> dict[str, Any]:
        job = self._jobs.get(task_id)
        if job is None:
            raise task_not_exist()
        job.polls += 1
        now = time.monotonic()
        elapsed = now - job.accepted
        stage, progress = stage_and_progress(elapsed, job.takes, ready=True)
        finished = stage is Stage.SUCCEEDED
        if finished and job.learned is None:
            job.learned = now
        return bare(
            Snapshot(
                task_id=task_id,
                action=job.action,
                prompt="",
                stage=stage,
                progress=progress,
                accepted=job.since,
                urls=(f"http://{host}/assets/{task_id}/0.mp4?_jwt=benchmark",) if finished else (),
            )
        )

    def _asset(self, request: Request, path: str) -> Response:
        job = self._jobs.get(path.split("/")[2])
        if job is None or job.learned is None:
            return as_json({"error": "NoSuchKey"}, 404)
        job.downloads += request.method == "GET"
        headers = {"Content-Type": "video/mp4", "ETag": self._etag, "Accept-Ranges": "bytes"}
        range_header = request.header("range")
        if range_header and (request.header("if-range") or self._etag) == self._etag:
            part = byte_range(range_header, len(self._clip))
            if isinstance(part, tuple):
                first, last = part
                headers["Content-Range"] = f"bytes {first}-{last}/{len(self._clip)}"
                return Response(206, self._clip[first : last + 1], headers)
        return Response(200, self._clip, headers)

    def stats(self) -> dict[str, Any]:
        """Return the statistics so far."""
        jobs = list(self._jobs.values())
        polls = [job.polls for job in jobs]
        lags = sorted(job.learned - job.accepted - job.takes for job in jobs if job.learned)
        started = min((job.accepted for job in jobs), default=0.0)
        stats = Stats(
            accepted=len(jobs),
            polls=sum(polls),
            most_polls=max(polls, default=0),
            learned=len(lags),
            lag_mean=statistics.fmean(lags) if lags else 0.0,
            lag_p95=lags[math.ceil(0.95 * len(lags)) - 1] if lags else 0.0,
            lag_max=max(lags, default=0.0),
            downloads=sum(job.downloads for job in jobs),
            submitting=max((job.accepted for job in jobs), default=0.0) - started,
            last_ready=max((job.accepted + job.takes for job in jobs), default=0.0) - started,
            cpu=time.process_time() - self._started,
            late=self._late,
        )
        return asdict(stats)

    async def watch(self) -> None:
        """Record the highest lag of the event loop, which bounds how long a request had to wait."""
        while True:
            due = time.monotonic() + TICK
            await asyncio.sleep(TICK)
            self._late = max(self._late, time.monotonic() - due)


@dataclass(frozen=True)
class Stats:
    """Statistics of the service. Times are in seconds.

    Attributes:
        accepted: Jobs that would have been paid for.
        polls: Polls of all jobs.
        most_polls: Highest number of polls of one job.
        learned: Jobs whose end a client has seen.
        lag_mean: Mean time between the end of a job and the poll that showed it.
        lag_p95: 95th percentile of that time.
        lag_max: Highest value of that time.
        downloads: Downloads of outputs.
        submitting: Time from the first accepted job to the last.
        last_ready: Time from the first accepted job to the end of the last.
        cpu: Processor time of the service.
        late: Highest lag of its event loop.
    """

    accepted: int
    polls: int
    most_polls: int
    learned: int
    lag_mean: float
    lag_p95: float
    lag_max: float
    downloads: int
    submitting: float
    last_ready: float
    cpu: float
    late: float


def main() -> None:
    """Serve until standard input ends."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("clip", type=Path, help="an MP4, the output of every job")
    parser.add_argument("--rendering", type=float, default=20.0, help="seconds, mean")
    parser.add_argument("--variation", type=float, default=0.0, help="deviation / mean")
    parser.add_argument("--seed", type=int, default=1, help="of the rendering times")
    options = parser.parse_args()
    times = partial(rendering_times, options.rendering, options.variation, options.seed)
    service = LeanService(options.clip.read_bytes(), times)
    serve(service.answer, service.watch)


if __name__ == "__main__":
    main()
