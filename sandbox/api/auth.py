# SPDX-License-Identifier: Apache-2.0
"""Authorization of requests: the API key, the version header, and the errors they cause."""

from typing import Annotated, Any

from fastapi import Depends, FastAPI, Header, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.exceptions import HTTPException
from starlette.responses import Response

from ..faults.responses import as_response
from ..messages.errors import (
    ApiFailure,
    invalid_request,
    model_not_found,
    no_such_route,
    unauthorized,
)

WRONG_KEY = "wrong-key"
"""The only API key that is rejected."""

_bearer = HTTPBearer(
    auto_error=False, scheme_name="bearerAuth", description=f"Any API key except `{WRONG_KEY}`."
)


def require_key(
    credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
) -> None:
    """Accept any API key except `WRONG_KEY`.

    Raises:
        ApiFailure: The API key is missing or is `WRONG_KEY`.
    """
    if credentials is None or credentials.credentials.strip() in {"", WRONG_KEY}:
        raise unauthorized()


RunwayVersion = Annotated[
    str,
    Header(alias="X-Runway-Version", pattern=r"^\d{4}-\d{2}-\d{2}$", examples=["2024-11-06"]),
]


def refuse_as_cometapi(app: FastAPI) -> None:
    """Return errors in CometAPI's envelopes instead of FastAPI's."""

    @app.exception_handler(ApiFailure)
    async def _refused(_: Request, refused: ApiFailure) -> Response:
        return as_response(refused)

    @app.exception_handler(RequestValidationError)
    async def _invalid(_: Request, error: RequestValidationError) -> Response:
        return as_response(refusal_of(list(error.errors())))

    @app.exception_handler(HTTPException)
    async def _not_served(request: Request, error: HTTPException) -> Response:
        if error.status_code == 400:  # the body is not text that can be parsed as JSON
            return as_response(invalid_request(str(error.detail)))
        body = no_such_route(request.method, request.url.path)
        return JSONResponse(body, error.status_code, headers=error.headers)


def refusal_of(problems: list[dict[str, Any]]) -> ApiFailure:
    """Return the error with which CometAPI answers a request with these problems.

    The gateway looks for a channel that serves the model before it validates anything else, so a
    problem with the model is reported first.

    Args:
        problems: Validation errors from pydantic.
    """
    for problem in problems:
        given = problem["input"]
        if problem["type"].startswith("union_tag") and problem["loc"] == ("body",):
            given = given.get("model") if isinstance(given, dict) else None
        elif problem["loc"] != ("body", "model"):
            continue
        if isinstance(given, str):
            return model_not_found(given)
    message = "; ".join(map(_in_words, problems))
    missing = any(_is_missing_field(problem) for problem in problems)
    return invalid_request(message, status=500 if missing else 400)


def _is_missing_field(problem: dict[str, Any]) -> bool:
    if problem["type"] == "union_tag_not_found" and isinstance(problem["input"], dict):
        return "model" not in problem["input"]
    return problem["type"] == "missing" and problem["loc"][0] == "body" and len(problem["loc"]) > 1


def _in_words(problem: dict[str, Any]) -> str:
    if problem["type"].startswith("union_tag") and problem["loc"] == ("body",):
        return f"model: {problem['msg']}"
    path = ".".join(str(part) for part in problem["loc"] if part != "body") or "body"
    return f"{path}: {problem['msg']}"
