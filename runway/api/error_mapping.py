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

Only an error in CometAPI's own JSON says anything about the API key, the balance, the request or
the generation. A firewall, a captive portal or another web server answers with the same statuses.
Its reply says only that CometAPI was not reached.
"""

import math
import re
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import Enum, auto
from typing import Any, NamedTuple

import httpx

from ..redact import scrub
from .certainty import own_error, proof_of_refusal
from .reply_parser import error_of, says_not_found

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
        kind: Kind of failure.
        message: Description, safe to show.
        code: Error code from the service, or an empty text.
        http_status: HTTP status of the reply, or None if there was no reply.
        retry_after: Seconds to wait before another attempt, if the reply names them.
        is_own: True if the error comes from CometAPI itself, in one of its error shapes.
        is_foreign: True if something else seems to answer: another server, or a proxy on the way.
        request_id: CometAPI's id of the call, or None.
    """

    kind: FailureKind
    message: str
    code: str = ""
    http_status: int | None = None
    retry_after: float | None = None
    is_own: bool = False
    is_foreign: bool = False
    request_id: str | None = None


@dataclass(frozen=True)
class Reply:
    """Parts of an HTTP reply that decisions need.

    Attributes:
        http_status: HTTP status.
        headers: Headers by their names in lower case.
        body: Parsed JSON, or None.
        is_json: True if the body is a JSON object.
        excerpt: Short description by which a person recognises a reply that may be a failure.
        is_page: True for a web page, by its content type and its first characters.
    """

    http_status: int
    headers: Mapping[str, str]
    body: Any = None
    is_json: bool = False
    excerpt: str = ""
    is_page: bool = False

    @property
    def request_id(self) -> str | None:
        """CometAPI's id of the call, or None."""
        return read_request_id(self.headers)


_NEVER_SENT = (
    httpx.ConnectError,
    httpx.ConnectTimeout,
    httpx.PoolTimeout,
    httpx.ProxyError,
    httpx.UnsupportedProtocol,
)


class _Error(NamedTuple):
    """Error reply, with its code and its message in lower case."""

    reply: Reply
    code: str
    message: str
    is_own: bool

    @property
    def status(self) -> int:
        """HTTP status of the reply."""
        return self.reply.http_status


_NO_BALANCE_CODES = {"quota_not_enough", "insufficient_quota", "insufficient_user_quota"}
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
_API_KEY_CODES = {"permission_denied", "invalid_api_key"}
_BEFORE_SUBMISSION_CODES = {"get_user_quota_failed", "pre_consume_quota_failed"}
_NO_CHANNEL = "no available channel"
_NO_ROUTE = "invalid url"

_KIND_BY_CONTENT: tuple[tuple[FailureKind, Callable[[_Error], bool]], ...] = (
    (FailureKind.NOT_FOUND, lambda error: says_not_found(error.reply.body)),
    (FailureKind.NO_BALANCE, lambda error: error.code in _NO_BALANCE_CODES),
    (FailureKind.INVALID, lambda error: error.code in _INVALID_CODES),
    (FailureKind.INVALID, lambda error: _NO_CHANNEL in error.message),
    (FailureKind.UNAUTHENTICATED, lambda error: error.code in _API_KEY_CODES),
    (FailureKind.BUSY, lambda error: error.code in _BEFORE_SUBMISSION_CODES),
    # An own 404 is about the generation, unless it says that the route does not exist.
    (
        FailureKind.NOT_FOUND,
        lambda error: error.status == 404 and error.is_own and _NO_ROUTE not in error.message,
    ),
    # A success with a web page comes from a web site. One with anything else may be a receipt.
    (FailureKind.MISADDRESSED, lambda error: 200 <= error.status < 300 and error.reply.is_page),
)
"""Kinds of failure that the content of a reply decides, whatever its status; the first row wins."""

_KIND_BY_STATUS: tuple[tuple[Container[int], FailureKind], ...] = (
    (range(300, 400), FailureKind.MISADDRESSED),  # the API redirects nothing
    ({404, 405}, FailureKind.MISADDRESSED),
    ({401, 403}, FailureKind.UNAUTHENTICATED),
    ({402}, FailureKind.NO_BALANCE),
    ({408, 424}, FailureKind.UNKNOWN_OUTCOME),
    ({425, 429, 503}, FailureKind.BUSY),
    (range(400, 452), FailureKind.INVALID),
    ({501}, FailureKind.INVALID),
)
"""Kinds of failure by status; the first row wins, and any other status has an unknown outcome."""

_ONLY_OWN = {FailureKind.INVALID, FailureKind.UNAUTHENTICATED, FailureKind.NO_BALANCE}
"""Kinds of failure that only CometAPI can state. In the words of anything else they mean that
CometAPI was not reached."""


def failure_of_exception(error: Exception) -> ApiFailure:
    """Return the failure that a transport error results in; pure."""
    was_sent = not isinstance(error, _NEVER_SENT)
    kind = FailureKind.UNKNOWN_OUTCOME if was_sent else FailureKind.UNREACHABLE
    return ApiFailure(kind, f"{type(error).__name__}: {scrub(str(error)) or 'no detail'}")


def failure_of_reply(reply: Reply) -> ApiFailure | None:
    """Return the failure in a reply, or None if it is a JSON success."""
    status = reply.http_status
    code, message = error_of(reply.body) or ("", "")
    if 200 <= status < 300 and reply.is_json and not (code or message):
        if says_not_found(reply.body):
            sentence = "CometAPI does not know the generation"
            return ApiFailure(
                FailureKind.NOT_FOUND, sentence, is_own=True, request_id=reply.request_id
            )
        return None
    is_own = own_error(reply.body) is not None
    kind = _kind_of(_Error(reply, code.lower(), message.lower(), is_own))
    if kind in _ONLY_OWN and not is_own:
        kind = FailureKind.MISADDRESSED
    return ApiFailure(
        request_id=reply.request_id,
        kind=kind,
        message=scrub(message) or reply.excerpt or "no detail",
        code=code,
        http_status=status,
        retry_after=read_retry_after(reply.headers.get("retry-after"), datetime.now(UTC)),
        is_own=is_own,
        is_foreign=not is_own and (kind is FailureKind.MISADDRESSED or 400 <= status < 500),
    )


def failure_of_create_reply(reply: Reply) -> ApiFailure | None:
    """Return the failure in a reply to a create call, or None if it is a JSON success.

    A refusal without a proof has an unknown outcome, whatever its status and its message.
    """
    failure = failure_of_reply(reply)
    if failure is None or proof_of_refusal(reply.http_status, reply.body):
        return failure
    return replace(failure, kind=FailureKind.UNKNOWN_OUTCOME)


def _kind_of(error: _Error) -> FailureKind:
    for kind, applies in _KIND_BY_CONTENT:
        if applies(error):
            return kind
    for statuses, kind in _KIND_BY_STATUS:
        if error.status in statuses:
            return kind
    return FailureKind.UNKNOWN_OUTCOME


def read_request_id(headers: Mapping[str, str]) -> str | None:
    """Return the id of a call, or None if its header is missing or is not an id; pure."""
    value = headers.get("x-cometapi-request-id", "").strip()
    return value if re.fullmatch(r"[0-9A-Za-z._-]{1,100}", value) else None


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
