# SPDX-License-Identifier: Apache-2.0
"""What the OpenAPI says about the routes beyond what their types say."""

from typing import Annotated, Any

from fastapi import Body, FastAPI
from pydantic import BaseModel, ConfigDict, Field

from .bodies import ImageToVideoBody, VideoToVideoBody
from .refusals import ErrorEnvelope, FlatError

ABOUT: dict[str, Any] = {
    "title": "CometAPI Runway sandbox",
    "version": "1",
    "summary": "A stand-in for CometAPI's Runway routes that renders real clips.",
    "description": (
        "Answers on this machine as CometAPI's Runway documentation says CometAPI does. It needs "
        "no key (any but `wrong-key` is accepted) and no network, and nothing here costs money."
    ),
}

_UNAUTHORIZED = {401: {"model": ErrorEnvelope, "description": "No key, or the key `wrong-key`."}}

CREATE: dict[str, Any] = {
    "tags": ["Runway"],
    "response_description": "The job was accepted.",
    "responses": _UNAUTHORIZED
    | {
        400: {"model": ErrorEnvelope, "description": "A value that the docs do not allow."},
        500: {
            "model": ErrorEnvelope,
            "description": "A required field is missing. No retry helps, despite the status.",
        },
        503: {
            "model": ErrorEnvelope,
            "description": "No channel serves this model. No retry helps, despite the status.",
        },
    },
}

POLL: dict[str, Any] = {
    "tags": ["Runway"],
    "response_description": "How far the job is, in one of the documented shapes.",
    "responses": _UNAUTHORIZED
    | {
        400: {
            "model": FlatError | ErrorEnvelope,
            "description": "There is no such task, or it is too new to be seen.",
        },
    },
}

FEED: dict[str, Any] = POLL | {
    "responses": POLL["responses"]
    | {500: {"model": ErrorEnvelope, "description": "The field `task_id` is missing."}}
}

_MP4 = {"video/mp4": {"schema": {"type": "string", "format": "binary"}}}
_XML = {"application/xml": {"schema": {"type": "string"}}}

ASSET: dict[str, Any] = {
    "tags": ["Outputs"],
    "responses": {
        200: {"description": "The clip.", "content": _MP4},
        206: {"description": "The part of it that Range asked for.", "content": _MP4},
        403: {"description": "The URL has expired or was not signed here.", "content": _XML},
        404: {"description": "There is no such output.", "content": _XML},
        416: {"description": "Range begins behind the end."},
    },
}

ImageToVideoExample = Annotated[
    ImageToVideoBody,
    Body(
        openapi_examples={
            "cat": {
                "summary": "Five seconds of a cat",
                "value": {
                    "promptImage": "https://example.com/cat.jpg",
                    "model": "gen3a_turbo",
                    "promptText": "slow zoom",
                    "duration": 5,
                    "ratio": "1280:720",
                },
            }
        }
    ),
]

VideoToVideoExample = Annotated[
    VideoToVideoBody,
    Body(
        openapi_examples={
            "sintel": {
                "summary": "A trailer, restyled",
                "value": {
                    "videoUri": "https://media.w3.org/2010/05/sintel/trailer.mp4",
                    "promptText": "Make the motion feel cinematic.",
                    "model": "gen4_aleph",
                    "ratio": "1280:720",
                },
            }
        }
    ),
]


class BareTask(BaseModel):
    """Runway's own task object."""

    model_config = ConfigDict(extra="allow")

    id: str
    status: str
    createdAt: str | None = None  # noqa: N815 - the wire's name
    progress: float | None = None
    output: list[str | dict[str, str]] | str | None = None
    failure: str | None = None
    failureCode: str | None = None  # noqa: N815 - the wire's name


class GatewayTask(BaseModel):
    """The gateway's task object: on its own it is the flat feed."""

    model_config = ConfigDict(extra="allow")

    task_id: str
    status: str
    action: str | None = None
    fail_reason: str | None = None
    progress: str | None = None
    submit_time: int | None = None
    start_time: int | None = None
    finish_time: int | None = None
    result_url: str | None = None
    video_url: str | None = None
    data: dict[str, Any] | None = None


class Envelope(BaseModel):
    """The gateway's envelope."""

    model_config = ConfigDict(extra="allow")

    code: str | int
    message: str | None = None
    msg: str | None = None
    data: GatewayTask


TaskReply = BareTask | Envelope | GatewayTask


class FeedBody(BaseModel):
    """POST /runway/feed."""

    model_config = ConfigDict(extra="forbid", strict=True)

    task_id: str = Field(examples=["3d957031-9a2a-45e2-9dc7-bc8513059c50"])


class Created(BaseModel):
    """A job was accepted."""

    id: str = Field(examples=["3d957031-9a2a-45e2-9dc7-bc8513059c50"])


class Census(BaseModel):
    """What a sandbox has seen so far."""

    accepted: int
    requests: dict[str, int]
    jobs: dict[str, int]


def keep_honest(app: FastAPI) -> None:
    """Take out of the OpenAPI the 422s that FastAPI announces and that are never sent here."""
    describe = app.openapi

    def honest() -> dict[str, Any]:
        schema = describe()
        for operations in schema["paths"].values():
            for operation in operations.values():
                operation["responses"].pop("422", None)
        for name in ("HTTPValidationError", "ValidationError"):
            schema.get("components", {}).get("schemas", {}).pop(name, None)
        return schema

    app.openapi = honest
