# SPDX-License-Identifier: Apache-2.0
"""Mapping of replies and transport errors to failures, and to whether a call may be repeated.

A request for a generation's state is free, so an unknown outcome only means "later". A create call
costs money and CometAPI has no idempotency keys, so the question is never "did it fail?" but "is it
certain that it was not accepted?". Two cases are certain: the connection was never established, or
the reply proves the refusal (`certainty.py`). Everything else may hide an accepted generation: a
timeout while waiting, a reset, a proxy's page under any status, a redirect, a success without an
id, a refusal that also names a generation. Its outcome is unknown, and the call is never sent
again.

The table of statuses is CometAPI's ("Error codes and retry strategy"), corrected where its gateway
is known to answer differently: a missing field as 500 ``invalid_request``, a model without a
channel as 503 ``model_not_found``, an empty balance as 403 ``quota_not_enough``.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import Enum, auto
from typing import Any

import httpx

from ..redact import scrub
from .certainty import own_error, proof_of_refusal
from .reply_parser import error_of, says_not_visible

MAX_RETRY_AFTER = 600.0
"""Maximum Retry-After in seconds. A longer one is capped, since a mistake in it must not stop a
pipeline."""


class FailureKind(Enum):
    """Kind of failure that a call can end with."""

    BUSY = auto()
    UNREACHABLE = auto()
    INVALID = auto()
    UNAUTHENTICATED = auto()
    NO_BALANCE = auto()
    MISADDRESSED = auto()
    NOT_FOUND = auto()
    UNKNOWN_OUTCOME = auto()


@dataclass(frozen=True)
class ApiFailure:
    """Failure of a call.

    Attributes:
        meaning: Kind of failure.
        message: Description, safe to show.
        code: Error code from the service, or an empty text.
        http_status: HTTP status of the reply, or None if there was no reply.
        retry_after: Seconds to wait before another attempt, if the reply names them.
        is_own: True if the error comes from CometAPI itself, in one of its error shapes.
        is_foreign: True if something else seems to answer: another server, or a proxy on the way.
    """

    meaning: FailureKind
    message: str
    code: str = ""
    http_status: int | None = None
    retry_after: float | None = None
    is_own: bool = False
    is_foreign: bool = False


@dataclass(frozen=True)
class Reply:
    """Parts of an HTTP reply that decisions need.

    Attributes:
        http_status: HTTP status.
        headers: Headers, with their names in lower case.
        body: Parsed JSON, or None.
        is_json: True if the body is a JSON object.
        excerpt: Short description by which a person recognises the reply.
        is_page: True for a web page, by its content type and its first characters.
    """

    http_status: int
    headers: Mapping[str, str]
    body: Any = None
    is_json: bool = False
    excerpt: str = ""
    is_page: bool = False


_NEVER_SENT = (
    httpx.ConnectError,
    httpx.ConnectTimeout,
    httpx.PoolTimeout,
    httpx.ProxyError,
    httpx.UnsupportedProtocol,
)

_BALANCE_CODES = {"quota_not_enough", "insufficient_quota", "insufficient_user_quota"}
_INVALID_CODES = {
    "invalid_request",
    "model_not_found",
    "reference_images_empty",
    "callback_url_empty",
    "convert_request_failed",
    "invalid_api_platform",
    "model_price_error",
    "api_not_implemented",
}
_KEY_CODES = {"permission_denied", "invalid_api_key"}
_BEFORE_SUBMISSION_CODES = {"get_user_quota_failed", "pre_consume_quota_failed"}
_NO_CHANNEL = "no available channel"

_BY_STATUS = {
    401: FailureKind.UNAUTHENTICATED,
    402: FailureKind.NO_BALANCE,
    403: FailureKind.UNAUTHENTICATED,
    408: FailureKind.UNKNOWN_OUTCOME,
    424: FailureKind.UNKNOWN_OUTCOME,
    425: FailureKind.BUSY,
    429: FailureKind.BUSY,
    501: FailureKind.INVALID,
    503: FailureKind.BUSY,
}


def refusal_of_exception(error: Exception) -> ApiFailure:
    """Return the failure that a transport error results in; pure."""
    meaning = (
        FailureKind.UNREACHABLE if isinstance(error, _NEVER_SENT) else FailureKind.UNKNOWN_OUTCOME
    )
    return ApiFailure(meaning, f"{type(error).__name__}: {scrub(str(error)) or 'no detail'}")


def refusal_of_reply(reply: Reply, now: datetime | None = None) -> ApiFailure | None:
    """Return the failure in a reply, or None if it is a JSON success; pure.

    Args:
        reply: Reply to read.
        now: Time against which a Retry-After date counts; the current time by default.
    """
    status = reply.http_status
    code, message = error_of(reply.body) or ("", "")
    if 200 <= status < 300 and reply.is_json and not (code or message):
        if says_not_visible(reply.body):
            sentence = "the service does not know the generation"
            return ApiFailure(FailureKind.NOT_FOUND, sentence, is_own=True)
        return None
    meaning = _meaning(reply, code.lower(), message.lower())
    is_own = own_error(reply.body) is not None
    return ApiFailure(
        meaning=meaning,
        message=scrub(message) or reply.excerpt or "no detail",
        code=code,
        http_status=status,
        retry_after=read_retry_after(reply.headers.get("retry-after"), now or datetime.now(UTC)),
        is_own=is_own,
        is_foreign=not is_own and (meaning is FailureKind.MISADDRESSED or 400 <= status < 500),
    )


def refusal_of_purchase(reply: Reply, now: datetime | None = None) -> ApiFailure | None:
    """Return the failure in a reply to a create call, or None if it is a JSON success; pure.

    A refusal without a proof has an unknown outcome, whatever its status and its message.

    Args:
        reply: Reply to read.
        now: Time against which a Retry-After date counts; the current time by default.
    """
    refusal = refusal_of_reply(reply, now)
    if refusal is None or proof_of_refusal(reply.http_status, reply.body):
        return refusal
    return replace(refusal, meaning=FailureKind.UNKNOWN_OUTCOME)


def _meaning(reply: Reply, code: str, message: str) -> FailureKind:
    status = reply.http_status
    if says_not_visible(reply.body):
        return FailureKind.NOT_FOUND
    if code in _BALANCE_CODES:
        return FailureKind.NO_BALANCE
    if code in _INVALID_CODES or _NO_CHANNEL in message:
        return FailureKind.INVALID
    if code in _KEY_CODES:
        return FailureKind.UNAUTHENTICATED
    if code in _BEFORE_SUBMISSION_CODES:
        return FailureKind.BUSY
    if status == 404 and reply.is_json and "invalid url" not in message:
        return FailureKind.NOT_FOUND
    if 300 <= status < 400 or status in {404, 405} or (200 <= status < 400 and reply.is_page):
        return FailureKind.MISADDRESSED
    if status in _BY_STATUS:
        return _BY_STATUS[status]
    return FailureKind.INVALID if 400 <= status <= 451 else FailureKind.UNKNOWN_OUTCOME


def read_retry_after(value: str | None, now: datetime) -> float | None:
    """Return the seconds of a Retry-After header, a number or a date, within bounds; pure."""
    if not value:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            date = parsedate_to_datetime(value)
            seconds = ((date if date.tzinfo else date.replace(tzinfo=UTC)) - now).total_seconds()
        except (ValueError, TypeError, OverflowError):
            return None
    return min(MAX_RETRY_AFTER, max(0.0, seconds)) if math.isfinite(seconds) else None
