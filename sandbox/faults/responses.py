# SPDX-License-Identifier: Apache-2.0
"""Answers that faults send in place of the correct one."""

import time
from collections.abc import Callable
from email.utils import formatdate
from typing import Any

from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response

from ..messages.errors import (
    ApiFailure,
    access_denied,
    invalid_request,
    model_not_found,
    quota_not_enough,
    refusal,
    task_not_exist,
    unauthorized,
)
from .plan import Fault

_WEB_PAGE = """<!doctype html>
<html><head><title>CometAPI</title></head>
<body><h1>All AI models in one API</h1></body></html>
"""
_CLOUDFLARE_PAGE = """<!doctype html>
<html><head><title>api.cometapi.com | 502: Bad gateway</title></head>
<body><h1>Bad gateway <span>Error code 502</span></h1><p>Cloudflare</p></body></html>
"""
_FIREWALL_PAGE = """<!doctype html>
<html><head><title>Just a moment...</title></head>
<body><h1>Access denied</h1></body></html>
"""
_DENIED = """<?xml version="1.0" encoding="UTF-8"?>
<Error><Code>{code}</Code><Message>{message}</Message></Error>
"""


def instead(fault: Fault) -> Response | None:
    """Return the answer that replaces the correct one, or ``None`` for other kinds of faults."""
    make = _ANSWERS.get(fault.kind)
    return make(fault) if make else None


def as_response(answer: ApiFailure) -> Response:
    """Convert a refusal to an HTTP response."""
    return JSONResponse(answer.body, answer.status, headers=answer.headers)


def error_page(status: int) -> Response:
    """Return the error of a proxy in front of the gateway: a line of text."""
    return PlainTextResponse(f"error code: {status}", status)


def expired(status: int = 403) -> Response:
    """Return the error of a CDN for a URL that has expired or was never signed."""
    code = "ExpiredToken" if status == 400 else "AccessDenied"
    page = _DENIED.format(code=code, message="Access denied")
    return Response(page, status, media_type="application/xml")


def gone() -> Response:
    """Return the error of a CDN for a file that it does not have."""
    page = _DENIED.format(code="NoSuchKey", message="The specified key does not exist.")
    return Response(page, 404, media_type="application/xml")


def _too_many(fault: Fault) -> Response:
    answer = refusal(429, "rate_limit_exceeded", "Too many requests, please try again later")
    seconds = fault.seconds_of_retry_after()
    if seconds is not None:
        as_date = (fault.value or "").startswith("date:")
        answer.headers["Retry-After"] = (
            formatdate(time.time() + seconds, usegmt=True) if as_date else f"{seconds:g}"
        )
    return as_response(answer)


_LISTS = {"tasks", "log"}


def _error_in_200(route: str) -> dict[str, Any]:
    if route in {"models", *_LISTS}:
        return {"success": False, "message": "system error"}
    return {"code": 500, "msg": "system error", "data": None}


_ANSWERS: dict[str, Callable[[Fault], Response]] = {
    "429": _too_many,
    "500": lambda _: as_response(refusal(500, "", "Internal server error")),
    "502": lambda _: error_page(502),
    "503": lambda _: as_response(refusal(503, "", "Service temporarily overloaded")),
    "504": lambda _: error_page(504),
    "524": lambda _: error_page(524),
    "invalid-request": lambda _: as_response(invalid_request("field promptImage is required", 500)),
    "model-not-found": lambda _: as_response(model_not_found("gen3a_turbo")),
    "quota": lambda _: as_response(quota_not_enough()),
    "unauthorized": lambda fault: as_response(
        access_denied() if fault.route in _LISTS else unauthorized()
    ),
    "html": lambda _: HTMLResponse(_WEB_PAGE),
    "cloudflare": lambda _: HTMLResponse(_CLOUDFLARE_PAGE, 502),
    "firewall": lambda fault: HTMLResponse(_FIREWALL_PAGE, int(fault.number(403))),
    "redirect": lambda _: HTMLResponse("", 301, headers={"Location": "https://www.cometapi.com/"}),
    "not-visible": lambda _: as_response(task_not_exist()),
    "not-visible-200": lambda _: JSONResponse({"status": "task_not_exist"}),
    "error-in-200": lambda fault: JSONResponse(_error_in_200(fault.route)),
    "expired": lambda fault: expired(int(fault.value or 403)),
    "gone": lambda _: gone(),
    "html-asset": lambda _: HTMLResponse(_WEB_PAGE),
    "empty": lambda _: Response(b"", media_type="video/mp4"),
}
