# SPDX-License-Identifier: Apache-2.0
"""CometAPI's errors, in the envelopes that its docs show or that were observed.

Two of them look wrong but are correct. The live service answered a request without a required field
with status 500 and the code ``invalid_request``. A model without a channel gets a 503 that no retry
fixes.
"""

import secrets
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel, ConfigDict

REQUEST_ID: ContextVar[str] = ContextVar("request_id", default="")
"""Request id of the request that is being answered; empty outside of one."""


class _Exactly(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ErrorDetail(_Exactly):
    """Details of an error."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorEnvelope(_Exactly):
    """CometAPI's general error."""

    error: ErrorDetail


class FlatError(_Exactly):
    """The task routes' error."""

    code: str
    message: str
    data: None


@dataclass
class ApiFailure(Exception):
    """Answer other than success, which can be raised.

    Attributes:
        status: HTTP status.
        body: Body as JSON.
        headers: Additional headers.
    """

    status: int
    body: dict[str, Any]
    headers: dict[str, str] = field(default_factory=dict)


def refusal(status: int, code: str, message: str, **headers: str) -> ApiFailure:
    """Return an error in CometAPI's general envelope, with an id to quote to support.

    The message may quote half of a surrogate pair, which JSON can carry but UTF-8 cannot. Such
    characters are replaced.
    """
    sendable = message.encode(errors="replace").decode()
    detail = {
        "message": f"{sendable} (request id: {REQUEST_ID.get() or new_request_id()})",
        "type": "comet_api_error",
        "param": "",
        "code": code,
    }
    return ApiFailure(status, {"error": detail}, headers)


def unauthorized() -> ApiFailure:
    """Return the error for a missing or wrong API key."""
    return refusal(401, "", "Invalid token", **{"WWW-Authenticate": "Bearer"})


def access_denied() -> ApiFailure:
    """Return the error of the account's lists for a missing or wrong access token."""
    return ApiFailure(401, {"success": False, "message": "Unauthorized, invalid access token"})


def invalid_request(message: str, status: int = 400) -> ApiFailure:
    """Return the error for a request that the docs do not allow."""
    return refusal(status, "invalid_request", message)


def model_not_found(model: str) -> ApiFailure:
    """Return the error for a model that no channel serves."""
    return refusal(503, "model_not_found", f"No available channel for model {model} (distributor)")


def quota_not_enough() -> ApiFailure:
    """Return the error for an account without balance."""
    return refusal(403, "quota_not_enough", "user quota is not enough")


def task_not_exist() -> ApiFailure:
    """Return the error for a task that is not visible yet, not with this API key, or not at all."""
    slug = "task_not_exist"
    return ApiFailure(400, {"code": slug, "message": slug, "data": None})


def no_such_route(method: str, path: str) -> dict[str, Any]:
    """Return the body for a path or a method that is not served."""
    detail = {
        "message": f"Invalid URL ({method} {path})",
        "type": "invalid_request_error",
        "param": "",
        "code": "",
    }
    return {"error": detail}


def new_request_id() -> str:
    """Return a request id as the gateway makes it."""
    return f"{datetime.now(UTC):%Y%m%d%H%M%S%f}{secrets.token_hex(4)}"
