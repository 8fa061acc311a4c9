# SPDX-License-Identifier: Apache-2.0
"""OpenAPI metadata of the routes that their types do not express."""

from typing import Annotated, Any, Union

from fastapi import Body, FastAPI
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from ..messages.errors import ErrorEnvelope, FlatError
from ..messages.reply_schemas import FeedReply, TaskReply
from ..messages.requests import BODIES

ABOUT: dict[str, Any] = {
    "title": "CometAPI Runway sandbox",
    "version": "1",
    "summary": "Stand-in for CometAPI's Runway routes that renders real clips.",
    "description": (
        "Answers as CometAPI's Runway documentation describes. It needs no network, accepts any "
        "API key except `wrong-key`, and costs nothing."
    ),
    "generate_unique_id_function": lambda route: route.name,
}


def _header(description: str, **rules: Any) -> dict[str, Any]:
    """Describe a header that is always present."""
    return {"description": description, "required": True, "schema": {"type": "string", **rules}}


_UNAUTHORIZED = {
    401: {
        "model": ErrorEnvelope,
        "description": "No API key, or the API key `wrong-key`.",
        "headers": {"WWW-Authenticate": _header("Authentication scheme.", const="Bearer")},
    }
}

_LINKS = {
    "task": {
        "operationId": "task",
        "parameters": {"task_id": "$response.body#/id"},
        "description": "State of the job.",
    },
    "feed": {
        "operationId": "feed",
        "requestBody": {"task_id": "$response.body#/id"},
        "description": "State of the job, through the compatibility route.",
    },
}

CREATE: dict[str, Any] = {
    "tags": ["Runway"],
    "response_description": "The job was accepted.",
    "responses": _UNAUTHORIZED
    | {
        200: {"links": _LINKS},
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

_POLL: dict[str, Any] = {
    "tags": ["Runway"],
    "response_description": "State of the job, in one of the documented shapes.",
}
_UNSEEN = "The task does not exist, or is not visible yet"

TASK: dict[str, Any] = _POLL | {
    "response_model": TaskReply,
    "responses": _UNAUTHORIZED | {400: {"model": FlatError, "description": f"{_UNSEEN}."}},
}

FEED: dict[str, Any] = _POLL | {
    "response_model": FeedReply,
    "responses": _UNAUTHORIZED
    | {
        400: {
            "model": FlatError | ErrorEnvelope,
            "description": f"{_UNSEEN}, or the body is not valid.",
        },
        500: {"model": ErrorEnvelope, "description": "The field `task_id` is missing."},
    },
}

_MP4 = {"video/mp4": {"schema": {"type": "string", "format": "binary"}}}
_XML = {"application/xml": {"schema": {"type": "string"}}}
_FILE = {
    "ETag": _header("Identifies the content.", pattern='^"[0-9a-f]{32}"$'),
    "Accept-Ranges": _header("Unit of the supported ranges.", const="bytes"),
}
_PART = _FILE | {
    "Content-Range": _header("Position of the part.", pattern="^bytes [0-9]+-[0-9]+/[0-9]+$")
}
_NO_PART = _FILE | {"Content-Range": _header("Size of the clip.", pattern=r"^bytes \*/[0-9]+$")}


def _optional_header(name: str, description: str, example: str) -> dict[str, Any]:
    return {
        "name": name,
        "in": "header",
        "required": False,
        "description": description,
        "schema": {"type": "string", "examples": [example]},
    }


ASSET: dict[str, Any] = {
    "tags": ["Outputs"],
    "response_class": Response,
    "openapi_extra": {
        "parameters": [
            _optional_header(
                "Range", "One part of the clip; anything else is ignored.", "bytes=0-99"
            ),
            _optional_header(
                "If-Range", "ETag of the clip that Range refers to.", '"0123456789abcdef"'
            ),
        ]
    },
    "responses": {
        200: {"description": "The clip.", "content": _MP4, "headers": _FILE},
        206: {
            "description": "The part of the clip that Range requests.",
            "content": _MP4,
            "headers": _PART,
        },
        403: {"description": "The URL has expired or was not signed here.", "content": _XML},
        404: {"description": "The output does not exist.", "content": _XML},
        416: {"description": "Range begins after the end of the clip.", "headers": _NO_PART},
    },
}

_EXAMPLES: dict[str, tuple[str, dict[str, Any]]] = {
    "image_to_video": (
        "Five seconds of a cat",
        {
            "promptImage": "https://example.com/cat.jpg",
            "model": "gen3a_turbo",
            "promptText": "slow zoom",
            "duration": 5,
            "ratio": "1280:720",
        },
    ),
    "video_to_video": (
        "A trailer, restyled",
        {
            "videoUri": "https://media.w3.org/2010/05/sintel/trailer.mp4",
            "promptText": "Make the motion feel cinematic.",
            "model": "gen4_aleph",
            "ratio": "1280:720",
        },
    ),
    "character_performance": (
        "A cat that acts",
        {
            "character": {"type": "image", "uri": "https://example.com/cat.jpg"},
            "reference": {"type": "video", "uri": "https://example.com/actor.mp4"},
            "model": "act_two",
            "ratio": "1280:720",
        },
    ),
    "text_to_image": (
        "A painting of a cat",
        {
            "promptText": "@cat as an oil painting",
            "model": "gen4_image",
            "ratio": "1280:720",
            "referenceImages": [{"uri": "https://example.com/cat.jpg", "tag": "cat"}],
        },
    ),
}


def body_of(route: str) -> Any:
    """Return the type of the body of a route, for its parameter: the model decides which one."""
    title, example = _EXAMPLES.get(route, ("", None))
    shown: Any = {"example": {"summary": title, "value": example}} if example else None
    bodies = BODIES[route]
    if len(bodies) == 1:
        return Annotated[bodies[0], Body(openapi_examples=shown)]
    return Annotated[
        Union[tuple(bodies)],  # noqa: UP007 - made of values
        Body(discriminator="model", openapi_examples=shown),
    ]


class FeedBody(BaseModel):
    """Body of POST /runway/feed."""

    model_config = ConfigDict(extra="forbid", strict=True)

    task_id: str = Field(examples=["3d957031-9a2a-45e2-9dc7-bc8513059c50"])


class Created(BaseModel):
    """Reply to an accepted job."""

    id: str = Field(examples=["3d957031-9a2a-45e2-9dc7-bc8513059c50"])


class Census(BaseModel):
    """Jobs and requests that a sandbox has seen so far."""

    accepted: int
    requests: dict[str, int]
    jobs: dict[str, int]


def remove_unsent_responses(app: FastAPI) -> None:
    """Remove from the OpenAPI the 422s that FastAPI adds and the sandbox never sends."""
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
