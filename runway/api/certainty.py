# SPDX-License-Identifier: Apache-2.0
"""Proof that a paid call was not accepted.

A create call costs money, so its key may be freed only by a reply that proves the refusal. The
proof needs two things: the JSON in which CometAPI itself writes errors, and a status under which
it refuses before it submits. A proxy, a firewall, a cache or a content network on the way may
answer with any page or any other JSON after the service took the call.

``RULES`` is the whole list. The page docs/never-twice.md shows it as a table, one row a rule.

CometAPI writes errors in two shapes (its docs, "Error codes and retry strategy", and replies seen
live): the general one, ``{"error": {"message": …, "type": "comet_api_error", "code": …}}``, and
the flat one of its task routes, ``{"code": "slug", "message": …, "data": null}``. Codes beyond the
documented ones are those of the gateway family that it belongs to. That gateway passes on the
answer of the provider behind it under ``fail_to_fetch_task``, and has codes of its own for a
submission whose answer it lost.
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
"""Under which CometAPI refuses before it submits. 408, 409, 423, 424 and 425 are not among them:
they are also answers to a request whose first copy was accepted."""

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
"""Codes that CometAPI gives under 500 before it submits: a missing field, an unreadable balance."""


class Shape(Enum):
    """A JSON shape in which CometAPI answers with an error."""

    GENERAL = auto()
    FLAT = auto()
    RUNWAYS = auto()


@dataclass(frozen=True)
class OwnError:
    """An error in a shape of CometAPI's: its code and its words, both in lower case."""

    shape: Shape
    code: str
    message: str


@dataclass(frozen=True)
class Rule:
    """One kind of reply that proves a refusal.

    Attributes:
        name: The kind in a few words, as the table in the docs has it.
        statuses: HTTP statuses under which it is a proof.
        proves: Whether an error of CometAPI's is of this kind.
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
    """Return the error in a reply's JSON, or None where it is not in a shape of CometAPI's."""
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
    """Read Runway's refusal of a body: a sentence, and a list of what is wrong in which field."""
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
        http_status: Status of the reply.
        body: The JSON in it, or None.

    Returns:
        The rule, or None where the call may have been accepted.
    """
    error = own_error(body)
    if error is None or error.code in AFTER_SENDING_CODES or read_task_id(body) is not None:
        return None
    return next(
        (rule for rule in RULES if http_status in rule.statuses and rule.proves(error)), None
    )
