# SPDX-License-Identifier: Apache-2.0
"""The shapes in which CometAPI is documented, or has been seen, to describe a job.

CometAPI's pages disagree with each other: one generation shows Runway's own object, another wraps
it in the gateway's envelope, and the compatibility routes have two shapes more. Each function here
says one of them; a sandbox can use any, so that a client proves that it reads them all.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Literal

ReplyShape = Literal[
    "bare",
    "wrapped",
    "wrapped_inner_null",
    "wrapped_lagging",
    "flat",
    "legacy",
    "integer_code",
    "output_string",
    "output_objects",
    "late_output",
    "nested",
]

Json = dict[str, Any]


class Stage(StrEnum):
    """Where a job stands, in Runway's own words."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    UNKNOWN = "REMIXING"

    @property
    def over(self) -> bool:
        """Whether nothing will change any more."""
        return self in {Stage.SUCCEEDED, Stage.FAILED, Stage.CANCELLED}


@dataclass(frozen=True)
class Snapshot:
    """What there is to say about a job at one moment.

    Attributes:
        task_id: The job's id.
        action: The gateway's label, such as ``IMAGE_TO_VIDEO``.
        prompt: The words of the request.
        stage: Where the job stands.
        progress: From 0 to 1.
        accepted: Unix seconds.
        started: Unix seconds; 0 before.
        finished: Unix seconds; 0 before.
        urls: The outputs, once it has succeeded.
        failure: The reason in words, once it has failed.
        failure_code: The reason as Runway's code.
        times_told: How often it has been told before that the job is over.
        before: What was told last, for a gateway that lags behind.
    """

    task_id: str
    action: str
    prompt: str
    stage: Stage
    progress: float
    accepted: float
    started: float = 0
    finished: float = 0
    urls: tuple[str, ...] = ()
    failure: str = ""
    failure_code: str = ""
    times_told: int = 0
    before: "Snapshot | None" = None

    @property
    def url(self) -> str:
        """The first output, or nothing."""
        return self.urls[0] if self.urls else ""

    @property
    def percent(self) -> str:
        """Progress as the gateway writes it."""
        return f"{round(100 * self.progress)}%"


GATEWAY_WORDS = {
    Stage.PENDING: "QUEUED",
    Stage.RUNNING: "IN_PROGRESS",
    Stage.SUCCEEDED: "SUCCESS",
    Stage.FAILED: "FAILURE",
    Stage.CANCELLED: "FAILURE",
}

NUMBERS = {
    Stage.PENDING: "0",
    Stage.RUNNING: "1",
    Stage.FAILED: "2",
    Stage.CANCELLED: "2",
    Stage.SUCCEEDED: "3",
}


def task_reply(shape: ReplyShape, job: Snapshot) -> Json:
    """What GET /runwayml/v1/tasks/{id} says about `job`."""
    return _SHAPES[shape](job)


def feed_reply(shape: ReplyShape, job: Snapshot) -> Json:
    """What POST /runway/feed says; it has no shape without an envelope but the flat one."""
    return _SHAPES[shape if shape in _ENVELOPES else "flat"](job)


def bare(job: Snapshot) -> Json:
    """Runway's own object."""
    reply: Json = {"id": job.task_id, "status": job.stage.value, "createdAt": _iso(job.accepted)}
    if job.stage is Stage.RUNNING:
        reply["progress"] = round(job.progress, 3)
    if job.urls:
        reply["output"] = list(job.urls)
    if job.stage is Stage.FAILED:
        reply |= {"failure": job.failure, "failureCode": job.failure_code}
    return reply


def wrapped(job: Snapshot) -> Json:
    """Runway's object inside the gateway's envelope."""
    return _envelope(job, bare(job))


def wrapped_inner_null(job: Snapshot) -> Json:
    """The envelope, with nothing in it until the job is over."""
    return _envelope(job, bare(job) if job.stage.over else None)


def wrapped_lagging(job: Snapshot) -> Json:
    """The envelope still says what was true one poll ago."""
    earlier = job.before or replace(
        job, stage=Stage.PENDING, progress=0, started=0, finished=0, failure=""
    )
    return _envelope(earlier, bare(job))


def nested(job: Snapshot) -> Json:
    """A gateway behind a gateway: an envelope inside the envelope."""
    return _envelope(job, wrapped(job)["data"])


def legacy(job: Snapshot) -> Json:
    """An old gateway: on success the URL stands where otherwise the reason for a failure does."""
    reply = _envelope(job, bare(replace(job, urls=())))
    if job.stage is Stage.SUCCEEDED:
        reply["data"]["fail_reason"] = job.url
    return reply


def flat(job: Snapshot) -> Json:
    """The compatibility routes' feed."""
    return _gateway_task(job) | {"result_url": job.url, "metadata": {}}


def integer_code(job: Snapshot) -> Json:
    """The oldest feed: an integer for a code, and numbers in strings for states."""
    number = NUMBERS.get(job.stage, "9")
    return {
        "code": 200,
        "msg": "success",
        "data": {
            "task_id": job.task_id,
            "state": number,
            "status": number,
            "prompt": job.prompt,
            "video_url": job.url,
            "progress": None,
            "msg": job.failure,
            "create_time": int(job.accepted),
            "update_time": int(job.finished or job.started or job.accepted),
        },
    }


def output_string(job: Snapshot) -> Json:
    """Runway's object with one string for an output, and a null for progress."""
    return bare(job) | {"progress": None} | ({"output": job.url} if job.urls else {})


def output_objects(job: Snapshot) -> Json:
    """Runway's object with objects for outputs."""
    return bare(job) | ({"output": [{"url": url} for url in job.urls]} if job.urls else {})


def late_output(job: Snapshot) -> Json:
    """Runway's object that says SUCCEEDED one poll before it has an output."""
    return bare(job if job.times_told else replace(job, urls=()))


def _envelope(job: Snapshot, inner: Json | None) -> Json:
    return {"code": "success", "message": "", "data": _gateway_task(job) | {"data": inner}}


def _gateway_task(job: Snapshot) -> Json:
    return {
        "task_id": job.task_id,
        "action": job.action,
        "status": GATEWAY_WORDS.get(job.stage, job.stage.value),
        "fail_reason": job.failure,
        "submit_time": int(job.accepted),
        "start_time": int(job.started),
        "finish_time": int(job.finished),
        "progress": job.percent,
    }


def _iso(moment: float) -> str:
    stamp = datetime.fromtimestamp(moment, UTC).isoformat(timespec="milliseconds")
    return stamp.replace("+00:00", "Z")


_SHAPES: dict[ReplyShape, Callable[[Snapshot], Json]] = {
    "bare": bare,
    "wrapped": wrapped,
    "wrapped_inner_null": wrapped_inner_null,
    "wrapped_lagging": wrapped_lagging,
    "flat": flat,
    "legacy": legacy,
    "integer_code": integer_code,
    "output_string": output_string,
    "output_objects": output_objects,
    "late_output": late_output,
    "nested": nested,
}

_ENVELOPES: set[ReplyShape] = {
    "wrapped",
    "wrapped_inner_null",
    "wrapped_lagging",
    "flat",
    "legacy",
    "integer_code",
    "nested",
}
