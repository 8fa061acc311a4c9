# SPDX-License-Identifier: Apache-2.0
"""What a reply or a broken connection means, and whether the call may be made again.

Asking for a generation's state is free, so there an unknown outcome only means "later". A create
call costs money and CometAPI knows no idempotency key, so the question is never "did it fail?" but
"is it certain that it was not accepted?". Certain are a connection that never came about and a
refusal that is proved (`certainty.py`). Everything else (a timeout while waiting, a reset, a
proxy's page under whatever status, a redirect, a success without an id, a reply that names a
generation beside its refusal) may hide an accepted job: its outcome is unknown, and it is never
sent again.

The table of statuses is CometAPI's ("Error codes and retry strategy"), corrected where its
gateway is known to answer otherwise: a missing field as 500 ``invalid_request``, a model without a
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
"""Seconds. A longer Retry-After is cut, since a mistaken one must not stop a pipeline."""


class Meaning(Enum):
    """What a refusal comes to."""

    BUSY = auto()
    UNREACHABLE = auto()
    INVALID = auto()
    UNAUTHENTICATED = auto()
    NO_BALANCE = auto()
    MISADDRESSED = auto()
    NOT_VISIBLE = auto()
    UNKNOWN_OUTCOME = auto()


@dataclass(frozen=True)
class Refusal:
    """Why a call did not bring what it was made for.

    Attributes:
        meaning: What it results in.
        message: The words for it, safe to show.
        code: The service's own word for it, or an empty text.
        http_status: Status of the reply, where there was one.
        retry_after: Seconds to wait before another attempt, where the reply named them.
        is_own: Whether CometAPI itself said so, in a shape in which it writes errors.
        is_foreign: Whether something else seems to answer: another server, or a proxy on the way.
    """

    meaning: Meaning
    message: str
    code: str = ""
    http_status: int | None = None
    retry_after: float | None = None
    is_own: bool = False
    is_foreign: bool = False


@dataclass(frozen=True)
class Reply:
    """A reply as far as decisions need it.

    Attributes:
        http_status: Its status.
        headers: Their names in lower case.
        body: The JSON in it, or None.
        is_json: Whether it is a JSON object.
        excerpt: What a person needs to recognise it.
        is_page: Whether it is a web page, by its label and by how it begins.
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
    401: Meaning.UNAUTHENTICATED,
    402: Meaning.NO_BALANCE,
    403: Meaning.UNAUTHENTICATED,
    408: Meaning.UNKNOWN_OUTCOME,
    424: Meaning.UNKNOWN_OUTCOME,
    425: Meaning.BUSY,
    429: Meaning.BUSY,
    501: Meaning.INVALID,
    503: Meaning.BUSY,
}


def refusal_of_exception(error: Exception) -> Refusal:
    """What a transport failure means; pure."""
    meaning = Meaning.UNREACHABLE if isinstance(error, _NEVER_SENT) else Meaning.UNKNOWN_OUTCOME
    return Refusal(meaning, f"{type(error).__name__}: {scrub(str(error)) or 'no detail'}")


def refusal_of_reply(reply: Reply, now: datetime | None = None) -> Refusal | None:
    """What a reply refuses, or None where it is a JSON success; pure.

    Args:
        reply: The reply.
        now: The time against which a Retry-After date counts; the present one by default.
    """
    status = reply.http_status
    code, message = error_of(reply.body) or ("", "")
    if 200 <= status < 300 and reply.is_json and not (code or message):
        if says_not_visible(reply.body):
            sentence = "the service does not know the generation"
            return Refusal(Meaning.NOT_VISIBLE, sentence, is_own=True)
        return None
    meaning = _meaning(reply, code.lower(), message.lower())
    is_own = own_error(reply.body) is not None
    return Refusal(
        meaning=meaning,
        message=scrub(message) or reply.excerpt or "no detail",
        code=code,
        http_status=status,
        retry_after=read_retry_after(reply.headers.get("retry-after"), now or datetime.now(UTC)),
        is_own=is_own,
        is_foreign=not is_own and (meaning is Meaning.MISADDRESSED or 400 <= status < 500),
    )


def refusal_of_purchase(reply: Reply, now: datetime | None = None) -> Refusal | None:
    """Return what a reply to a create call refuses, or None where it is a JSON success; pure.

    A refusal that is not proved has an unknown outcome, whatever its status and its words.

    Args:
        reply: The reply.
        now: The time against which a Retry-After date counts; the present one by default.
    """
    refusal = refusal_of_reply(reply, now)
    if refusal is None or proof_of_refusal(reply.http_status, reply.body):
        return refusal
    return replace(refusal, meaning=Meaning.UNKNOWN_OUTCOME)


def _meaning(reply: Reply, code: str, message: str) -> Meaning:
    status = reply.http_status
    if says_not_visible(reply.body):
        return Meaning.NOT_VISIBLE
    if code in _BALANCE_CODES:
        return Meaning.NO_BALANCE
    if code in _INVALID_CODES or _NO_CHANNEL in message:
        return Meaning.INVALID
    if code in _KEY_CODES:
        return Meaning.UNAUTHENTICATED
    if code in _BEFORE_SUBMISSION_CODES:
        return Meaning.BUSY
    if status == 404 and reply.is_json and "invalid url" not in message:
        return Meaning.NOT_VISIBLE
    if 300 <= status < 400 or status in {404, 405} or (200 <= status < 400 and reply.is_page):
        return Meaning.MISADDRESSED
    if status in _BY_STATUS:
        return _BY_STATUS[status]
    return Meaning.INVALID if 400 <= status <= 451 else Meaning.UNKNOWN_OUTCOME


def read_retry_after(value: str | None, now: datetime) -> float | None:
    """Seconds that a Retry-After header asks for, as a number or a date, within bounds; pure."""
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
