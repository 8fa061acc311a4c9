# SPDX-License-Identifier: Apache-2.0
"""Schemas of the replies about a job, for the OpenAPI document.

They describe exactly what `replies.py` writes. A reply with an extra field or an undocumented word
therefore does not pass as a documented one. They are typed dictionaries and not models with
defaults, because an absent field is not the same as a null.
"""

from datetime import datetime
from typing import Annotated, Any, Literal, NotRequired

from pydantic import ConfigDict, Field, with_config
from typing_extensions import TypedDict  # pydantic requires this one below Python 3.12

from .model_table import ROUTES

Action = Annotated[str, Field(json_schema_extra={"enum": [route.upper() for route in ROUTES]})]

_exactly = with_config(ConfigDict(extra="forbid"))

Moment = Annotated[int, Field(ge=0, description="Unix seconds; 0 before the event.")]
Number = Annotated[
    Literal["0", "1", "2", "3"],
    Field(description="Waiting, running, failed or cancelled, succeeded."),
]


@_exactly
class OutputObject(TypedDict):
    """Output in one of the older shapes."""

    url: str


@_exactly
class RunwayTask(TypedDict):
    """Runway's own task object."""

    id: str
    status: Literal["PENDING", "RUNNING", "SUCCEEDED", "FAILED", "CANCELLED"]
    createdAt: datetime
    progress: NotRequired[Annotated[float, Field(ge=0, le=1)] | None]
    output: NotRequired[list[str] | list[OutputObject] | str]
    failure: NotRequired[str]
    failureCode: NotRequired[str]


class _GatewayTask(TypedDict):
    task_id: str
    action: Action
    status: Literal["QUEUED", "IN_PROGRESS", "SUCCESS", "FAILURE"]
    fail_reason: Annotated[
        str, Field(description="The reason; an old gateway puts the output's URL here on success.")
    ]
    submit_time: Moment
    start_time: Moment
    finish_time: Moment
    progress: Annotated[str, Field(pattern=r"^(100|[1-9]?[0-9])%$")]


@_exactly
class WrappedTask(_GatewayTask):
    """The gateway's task object, with Runway's or another gateway's object inside."""

    data: "RunwayTask | WrappedTask | None"


@_exactly
class Envelope(TypedDict):
    """The gateway's envelope."""

    code: Literal["success"]
    message: str
    data: WrappedTask


@_exactly
class FlatTask(_GatewayTask):
    """The gateway's task object as the compatibility routes return it, without an envelope."""

    result_url: Annotated[str, Field(description="Empty until the job succeeds.")]
    metadata: dict[str, Any]


@_exactly
class NumberedTask(TypedDict):
    """The task object of the oldest feed."""

    task_id: str
    state: Number
    status: Number
    prompt: str
    video_url: Annotated[str, Field(description="Empty until the job succeeds.")]
    progress: None
    msg: str
    create_time: Moment
    update_time: Moment


@_exactly
class NumberedEnvelope(TypedDict):
    """The envelope of the oldest feed."""

    code: Literal[200]
    msg: str
    data: NumberedTask


FeedReply = Envelope | NumberedEnvelope | FlatTask
TaskReply = RunwayTask | FeedReply
