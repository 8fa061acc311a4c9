# SPDX-License-Identifier: Apache-2.0
"""Proof that a create call was not accepted.

A create call costs money. Its idempotency key becomes free again only if a reply proves the
refusal. The proof needs two things: an error in CometAPI's own JSON format, and a status under
which CometAPI refuses before it submits. A proxy, a firewall, a cache or a CDN on the way may
answer with any page or any other JSON after the service accepted the call.

``RULES`` is the complete list. The page docs/never-twice.md shows it as a table with one row per
rule.

CometAPI writes errors in two shapes (its docs, "Error codes and retry strategy", and replies
observed live). The general one is
``{"error": {"message": …, "type": "comet_api_error", "code": …}}``. The flat one, of its task
routes, is ``{"code": "slug", "message": …, "data": null}``. Codes beyond the documented ones are
those of the gateway family that CometAPI belongs to. That gateway relays the answer of the provider
behind it under ``fail_to_fetch_task``, and has its own codes for a submission whose answer it lost.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, cast

from .reply_parser import error_of, read_task_id

OWN_TYPE = "comet_api_error"
_SLUG = re.compile(r"[a-z][a-z0-9]*(?:_[a-z0-9]+)*")
_NO_ROUTE = "invalid url ("
_NO_CHANNEL = "no available channel"

REFUSING_STATUSES = frozenset({400, 401, 402, 403, 404, 405, 413, 415, 422, 429})
"""Statuses under which CometAPI refuses before it submits. 408, 409, 423, 424 and 425 are excluded:
they may also answer a request whose first copy was accepted."""

RELAYED_CODES = frozenset({"fail_to_fetch_task", "bad_response_status_code"})
RELAYED_STATUSES = frozenset({400, 413, 422, 429})

AFTER_SENDING_CODES = frozenset(
    {
        "bad_response",
        "bad_response_body",
        "do_request_failed",
        "empty_response",
        "insert_task_failed",
        "invalid_response",
        "read_response_body_failed",
        "task_insert_failed",
        "unmarshal_response_body_failed",
        "unmarshal_response_failed",
    }
)
"""Codes of a submission that was sent to the provider and whose answer was lost."""

FAILED_BEFORE_SENDING_CODES = frozenset(
    {
        "convert_request_failed",
        "get_user_quota_failed",
        "invalid_request",
        "pre_consume_quota_failed",
    }
)
"""Codes that CometAPI returns with status 500 before it submits: a missing field, an unreadable
balance."""


class Shape(Enum):
    """JSON shape of an error in a reply of CometAPI."""

    GENERAL = auto()
    FLAT = auto()
    RUNWAYS = auto()


@dataclass(frozen=True)
class OwnError:
    """Error in one of CometAPI's shapes: its code and its message, both in lower case."""

    shape: Shape
    code: str
    message: str


@dataclass(frozen=True)
class Rule:
    """Kind of reply that proves a refusal.

    Attributes:
        name: Short description, as in the table of the docs.
        statuses: HTTP statuses under which the reply is a proof.
        proves: Returns True for an error of CometAPI that is of this kind.
    """

    name: str
    statuses: frozenset[int]
    proves: Callable[[OwnError], bool]


RULES = (
    Rule(
        "refused by CometAPI",
        REFUSING_STATUSES,
        lambda error: error.shape is not Shape.RUNWAYS and error.code not in RELAYED_CODES,
    ),
    Rule(
        "refused by Runway, passed on by CometAPI",
        RELAYED_STATUSES,
        lambda error: error.code in RELAYED_CODES,
    ),
    Rule(
        "refused by Runway in its own words",
        frozenset({400}),
        lambda error: error.shape is Shape.RUNWAYS,
    ),
    Rule(
        "failed in CometAPI before the submission",
        frozenset({500}),
        lambda error: error.code in FAILED_BEFORE_SENDING_CODES,
    ),
    Rule(
        "route not implemented",
        frozenset({501}),
        lambda error: error.code == "api_not_implemented",
    ),
    Rule(
        "no channel for the model",
        frozenset({503}),
        lambda error: error.code == "model_not_found" or _NO_CHANNEL in error.message,
    ),
    Rule(
        "CometAPI is overloaded",
        frozenset({503}),
        lambda error: error.shape is Shape.GENERAL and not error.code,
    ),
)


def own_error(body: Any) -> OwnError | None:
    """Return the error in a reply's JSON, or None if it has none of CometAPI's error shapes."""
    if not isinstance(body, dict) or error_of(body) is None:
        return None
    fields = cast("dict[str, Any]", body)
    error = fields.get("error")
    if isinstance(error, dict):
        return _general(cast("dict[str, Any]", error))
    return _runways(fields) if "issues" in fields else _flat(fields)


def _general(error: Mapping[str, Any]) -> OwnError | None:
    code, message, kind = error.get("code"), error.get("message"), error.get("type")
    if not isinstance(message, str) or not message.strip():
        return None
    if code is not None and not isinstance(code, str):
        return None
    message = message.strip().lower()
    is_unknown_route = kind == "invalid_request_error" and message.startswith(_NO_ROUTE)
    if kind != OWN_TYPE and not is_unknown_route:
        return None
    return OwnError(Shape.GENERAL, (code or "").strip().lower(), message)


def _flat(fields: Mapping[str, Any]) -> OwnError | None:
    code, message = fields.get("code"), fields.get("message")
    is_complete = "data" in fields and fields["data"] is None and "error" not in fields
    if not is_complete or not isinstance(code, str) or not isinstance(message, str):
        return None
    return OwnError(Shape.FLAT, code, message.lower()) if _SLUG.fullmatch(code) else None


def _runways(fields: Mapping[str, Any]) -> OwnError | None:
    """Parse Runway's refusal of a body: a sentence, and a list of problems with their fields."""
    error, issues = fields.get("error"), fields["issues"]
    if not isinstance(error, str) or not isinstance(issues, list) or not issues:
        return None
    is_list = all(
        isinstance(issue, dict) and {"path", "message"} <= issue.keys() for issue in issues
    )
    return OwnError(Shape.RUNWAYS, "", error.lower()) if is_list else None


def proof_of_refusal(http_status: int, body: Any) -> Rule | None:
    """Return the rule by which a reply to a create call proves that nothing was bought; pure.

    Args:
        http_status: HTTP status of the reply.
        body: JSON of the reply, or None.

    Returns:
        The rule, or None if the call may have been accepted.
    """
    error = own_error(body)
    if error is None or error.code in AFTER_SENDING_CODES or read_task_id(body) is not None:
        return None
    return next(
        (rule for rule in RULES if http_status in rule.statuses and rule.proves(error)), None
    )
