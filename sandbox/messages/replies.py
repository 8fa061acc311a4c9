# SPDX-License-Identifier: Apache-2.0
"""Shapes in which CometAPI describes a job, as documented or observed.

CometAPI's pages disagree with each other: some show Runway's own object, others wrap it in the
gateway's envelope, and the compatibility routes have two more shapes. Each function here builds one
of them. A sandbox can use any of them, so that a client can prove that it reads them all.
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
    """Stage of a job, in Runway's own words."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    UNKNOWN = "REMIXING"

    @property
    def over(self) -> bool:
        """``True`` once the job cannot change any more."""
        return self in {Stage.SUCCEEDED, Stage.FAILED, Stage.CANCELLED}


@dataclass(frozen=True)
class Snapshot:
    """State of a job at one point in time.

    Attributes:
        task_id: Id of the job.
        action: Label of the gateway, such as ``IMAGE_TO_VIDEO``.
        prompt: Prompt of the request.
        stage: Stage of the job.
        progress: Progress from 0 to 1.
        accepted: Time of acceptance in Unix seconds.
        started: Time of the start in Unix seconds; 0 before.
        finished: Time of the end in Unix seconds; 0 before.
        urls: URLs of the outputs, once the job has succeeded.
        failure: Reason in words, once the job has failed.
        failure_code: Reason as Runway's code.
        final_replies: Number of earlier replies that reported the end of the job.
        before: Snapshot of the previous reply, for a gateway that lags behind.
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
    final_replies: int = 0
    before: "Snapshot | None" = None

    @property
    def url(self) -> str:
        """URL of the first output, or an empty string."""
        return self.urls[0] if self.urls else ""

    @property
    def percent(self) -> str:
        """Progress in the gateway's notation."""
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
    """Return the reply of GET /runwayml/v1/tasks/{id} about `job`."""
    return _SHAPES[shape](job)


def feed_reply(shape: ReplyShape, job: Snapshot) -> Json:
    """Return the reply of POST /runway/feed; any other shape without an envelope becomes flat."""
    return _SHAPES[shape if shape in _ENVELOPES else "flat"](job)


def bare(job: Snapshot) -> Json:
    """Return Runway's own object."""
    reply: Json = {"id": job.task_id, "status": job.stage.value, "createdAt": _iso(job.accepted)}
    if job.stage is Stage.RUNNING:
        reply["progress"] = round(job.progress, 3)
    if job.urls:
        reply["output"] = list(job.urls)
    if job.stage is Stage.FAILED:
        reply |= {"failure": job.failure, "failureCode": job.failure_code}
    return reply


def wrapped(job: Snapshot) -> Json:
    """Return Runway's object inside the gateway's envelope."""
    return _envelope(job, bare(job))


def wrapped_inner_null(job: Snapshot) -> Json:
    """Return the gateway's envelope, which has a null inside until the job is over."""
    return _envelope(job, bare(job) if job.stage.over else None)


def wrapped_lagging(job: Snapshot) -> Json:
    """Return an envelope with the state of one poll ago around Runway's current object."""
    earlier = job.before or replace(
        job, stage=Stage.PENDING, progress=0, started=0, finished=0, failure=""
    )
    return _envelope(earlier, bare(job))


def nested(job: Snapshot) -> Json:
    """Return an envelope inside the envelope, as from a gateway behind a gateway."""
    return _envelope(job, wrapped(job)["data"])


def legacy(job: Snapshot) -> Json:
    """Return the reply of an old gateway, with the URL in `fail_reason` on success."""
    reply = _envelope(job, bare(replace(job, urls=())))
    if job.stage is Stage.SUCCEEDED:
        reply["data"]["fail_reason"] = job.url
    return reply


def flat(job: Snapshot) -> Json:
    """Return the feed of the compatibility routes, without an envelope."""
    return _gateway_task(job) | {"result_url": job.url, "metadata": {}}


def integer_code(job: Snapshot) -> Json:
    """Return the oldest feed, with an integer as code and numbers in strings as states."""
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
    """Return Runway's object with one string as output and a null as progress."""
    return bare(job) | {"progress": None} | ({"output": job.url} if job.urls else {})


def output_objects(job: Snapshot) -> Json:
    """Return Runway's object with objects as outputs."""
    return bare(job) | ({"output": [{"url": url} for url in job.urls]} if job.urls else {})


def late_output(job: Snapshot) -> Json:
    """Return Runway's object, which says SUCCEEDED one poll before it has an output."""
    return bare(job if job.final_replies else replace(job, urls=()))


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
