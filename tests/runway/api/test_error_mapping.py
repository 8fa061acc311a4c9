# SPDX-License-Identifier: Apache-2.0
"""Only a request that was certainly not accepted may be sent again."""

import json
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from prefect_cometapi.runway.api.error_mapping import (
    MAX_RETRY_AFTER,
    FailureKind,
    Reply,
    failure_of_create_reply,
    failure_of_exception,
    failure_of_reply,
    read_retry_after,
)

DOCUMENTED = json.loads((Path(__file__).parents[1] / "documented.json").read_text(encoding="utf-8"))
NOW = datetime(2026, 11, 21, 9, 30, tzinfo=UTC)

REFUSED_BEFORE_WORK = [
    "invalid_request",
    "model_not_found",
    "reference_images_empty",
    "callback_url_empty",
    "convert_request_failed",
    "invalid_api_platform",
    "model_price_error",
    "api_not_implemented",
    "permission_denied",
    "invalid_api_key",
    "quota_not_enough",
    "insufficient_quota",
    "insufficient_user_quota",
    "get_user_quota_failed",
    "pre_consume_quota_failed",
]
BEFORE_SUBMISSION = {"get_user_quota_failed", "pre_consume_quota_failed"}
UNDER_500 = BEFORE_SUBMISSION | {"invalid_request", "convert_request_failed"}
OTHER_CODES = ["", "fail_to_fetch_task", "do_request_failed", "rate_limit", "bad_response", "odd"]
MAY_BE_SENT_AGAIN = {FailureKind.BUSY, FailureKind.UNREACHABLE}

codes = st.sampled_from([*REFUSED_BEFORE_WORK, *OTHER_CODES])
messages = st.sampled_from(["", "upstream error", "no such task", "try later"]) | st.text(
    max_size=9
)
bodies = (
    st.none()
    | st.builds(lambda c, m: {"error": {"code": c, "message": m}}, codes, messages)
    | st.builds(
        lambda c, m: {"error": {"code": c, "message": f"{m}!", "type": "comet_api_error"}},
        codes,
        messages,
    )
    | st.builds(lambda c, m: {"code": c, "message": m, "data": None}, codes, messages)
    | st.builds(lambda c, m: {"code": c, "msg": m}, st.integers(0, 600), messages)
    | st.builds(lambda m: {"error": m}, messages)
    | st.sampled_from([{}, {"id": "a"}, {"status": "QUEUED"}, {"data": None}])
)
headers = st.fixed_dictionaries(
    {},
    optional={
        "retry-after": st.sampled_from(["3", "x", "-1", "1e9"]),
        "content-type": st.sampled_from(["text/html", "application/json", "text/plain"]),
    },
)


def replies(lowest: int, highest: int) -> st.SearchStrategy[Reply]:
    return st.builds(
        lambda status, headers, body: Reply(status, headers, body, isinstance(body, dict)),
        st.integers(lowest, highest),
        headers,
        bodies,
    )


def known_slug(reply: Reply) -> str:
    body = reply.body or {}
    error = body.get("error")
    code = error.get("code") if isinstance(error, dict) else body.get("code")
    return str(code) if str(code) in REFUSED_BEFORE_WORK else ""


def is_cometapis_own(reply: Reply) -> bool:
    """Return whether an error names CometAPI's type, or is flat and has a word as code."""
    body = reply.body or {}
    error = body.get("error")
    if isinstance(error, dict):
        return error.get("type") == "comet_api_error"
    return isinstance(body.get("code"), str) and body["code"] != "" and "data" in body


def exception_classes() -> set[type[Exception]]:
    """Return everything that httpx can raise, including subclasses."""
    found: set[Any] = set()
    waiting: list[Any] = [
        httpx.HTTPError,
        httpx.InvalidURL,
        httpx.StreamError,
        httpx.CookieConflict,
    ]
    while waiting:
        cls = waiting.pop()
        waiting += cls.__subclasses__()
        found.add(cls)
    return found


def instance_of(cls: type[Exception]) -> Exception:
    error = cls.__new__(cls)
    Exception.__init__(error, "it broke")
    return error


NEVER_SENT = {
    "ConnectError",
    "ConnectTimeout",
    "PoolTimeout",
    "ProxyError",
    "UnsupportedProtocol",
}


@pytest.mark.parametrize("cls", sorted(exception_classes(), key=str))
def test_a_broken_call_may_be_made_again_only_if_it_never_left(cls):
    """Of all exceptions of httpx, only those before the first byte prove that nothing arrived."""
    failure = failure_of_exception(instance_of(cls))
    never_sent = cls.__name__ in NEVER_SENT
    assert failure.kind is (FailureKind.UNREACHABLE if never_sent else FailureKind.UNKNOWN_OUTCOME)
    assert failure.message == f"{cls.__name__}: it broke"


def test_an_error_without_words_still_says_what_it_was():
    """An exception without text, as of many timeouts, is named by its type."""
    assert failure_of_exception(TimeoutError()).message == "TimeoutError: no detail"
    assert failure_of_exception(TimeoutError()).kind is FailureKind.UNKNOWN_OUTCOME


@pytest.mark.parametrize("name", DOCUMENTED["errors"])
def test_every_documented_error_has_its_meaning(name):
    """All error envelopes of the docs and of the gateway are recognised."""
    status, body, meaning = DOCUMENTED["errors"][name]
    reply = Reply(status, {}, body, isinstance(body, dict))
    failure = failure_of_reply(reply)
    assert failure is not None
    assert failure.kind is FailureKind[meaning]
    assert failure.http_status in {status, None}


@given(reply=replies(100, 599))
def test_only_a_certain_refusal_may_be_sent_again(reply):
    """A busy service is a 429, a 503 or an unreadable balance, in CometAPI's own words."""
    failure = failure_of_create_reply(reply)
    if failure is not None and failure.kind in MAY_BE_SENT_AGAIN:
        assert failure.kind is FailureKind.BUSY
        assert is_cometapis_own(reply)
        assert reply.http_status in {429, 503} or known_slug(reply) in BEFORE_SUBMISSION


@given(reply=replies(500, 599))
def test_a_server_error_leaves_the_outcome_open(reply):
    """Only CometAPI's own error with an early code, or its own 503, proves a failure."""
    failure = failure_of_create_reply(reply)
    assert failure is not None
    if failure.kind is not FailureKind.UNKNOWN_OUTCOME:
        assert is_cometapis_own(reply)
        code = known_slug(reply)
        first = {500: UNDER_500, 501: {"api_not_implemented"}, 503: {"model_not_found", ""}}
        assert code in first[reply.http_status]


@given(reply=replies(200, 299))
def test_a_success_is_json_without_an_error(reply):
    """A reply that is not an error envelope is parsed further."""
    if failure_of_reply(reply) is None:
        assert isinstance(reply.body, dict)
        told = reply.body.get("error")
        words = told.values() if isinstance(told, dict) else [told or ""]
        assert not "".join(words).strip()


@given(status=st.integers(200, 299), kind=st.sampled_from(["text/plain", "", "application/json"]))
def test_a_success_that_cannot_be_read_leaves_the_outcome_open(status, kind):
    """An empty, truncated or garbled success may be the receipt of a paid job."""
    failure = failure_of_reply(Reply(status, {"content-type": kind}, None, is_json=False))
    assert failure is not None
    assert failure.kind is FailureKind.UNKNOWN_OUTCOME


@pytest.mark.parametrize(
    ("status", "content_type"),
    [(200, "text/html; charset=utf-8"), (301, "text/html"), (302, ""), (308, ""), (404, "")],
)
def test_a_web_page_or_a_redirect_is_another_address(status, content_type):
    """Another server than CometAPI answered."""
    failure = failure_of_reply(Reply(status, {"content-type": content_type}, is_page=True))
    assert failure is not None
    assert failure.kind is FailureKind.MISADDRESSED


@pytest.mark.parametrize(
    ("status", "own", "foreign"),
    [
        (400, FailureKind.INVALID, FailureKind.MISADDRESSED),
        (401, FailureKind.UNAUTHENTICATED, FailureKind.MISADDRESSED),
        (402, FailureKind.NO_BALANCE, FailureKind.MISADDRESSED),
        (403, FailureKind.UNAUTHENTICATED, FailureKind.MISADDRESSED),
        (404, FailureKind.NOT_FOUND, FailureKind.MISADDRESSED),
        (405, FailureKind.MISADDRESSED, FailureKind.MISADDRESSED),
        (407, FailureKind.INVALID, FailureKind.MISADDRESSED),
        (408, FailureKind.UNKNOWN_OUTCOME, FailureKind.UNKNOWN_OUTCOME),
        (413, FailureKind.INVALID, FailureKind.MISADDRESSED),
        (425, FailureKind.BUSY, FailureKind.BUSY),
        (499, FailureKind.UNKNOWN_OUTCOME, FailureKind.UNKNOWN_OUTCOME),
        (501, FailureKind.INVALID, FailureKind.MISADDRESSED),
    ],
)
def test_a_bare_status_has_its_meaning_only_in_cometapis_words(status, own, foreign):
    """If the words have no meaning, the status decides, but only where CometAPI wrote them."""
    words = {"error": {"type": "comet_api_error", "message": "no such thing", "code": ""}}
    assert _kind(Reply(status, {}, words, is_json=True)) is own
    for body in ({}, None, {"error": "no such thing"}, {"detail": "no"}):
        assert _kind(Reply(status, {}, body, isinstance(body, dict))) is foreign


def _kind(reply: Reply) -> FailureKind:
    failure = failure_of_reply(reply)
    assert failure is not None
    return failure.kind


@given(reply=replies(100, 599))
def test_nothing_but_cometapis_own_json_speaks_about_key_balance_or_request(reply):
    """No other reply refuses an API key, empties a balance or rejects a request."""
    failure = failure_of_reply(reply)
    about = {FailureKind.INVALID, FailureKind.UNAUTHENTICATED, FailureKind.NO_BALANCE}
    assert failure is None or failure.is_own or failure.kind not in about


def test_a_refusal_is_told_in_the_services_words_without_secrets():
    """The message can be shown: secrets are hidden, and the details of the problem stay."""
    body = {"error": {"message": "bad https://h/x?sig=s3cr3t (request id: 7)", "code": "odd"}}
    failure = failure_of_reply(Reply(400, {}, body, is_json=True))
    assert failure is not None
    assert failure.code == "odd"
    assert "request id: 7" in failure.message
    assert "s3cr3t" not in failure.message


def test_a_reply_without_words_is_described():
    """The message describes the reply, so that a person recognises the sender."""
    assert _message(Reply(502, {}, excerpt="text/plain, 'oops'")) == "text/plain, 'oops'"
    assert _message(Reply(502, {})) == "no detail"


def _message(reply: Reply) -> str:
    failure = failure_of_reply(reply)
    assert failure is not None
    return failure.message


@given(value=st.none() | st.text(max_size=40) | st.from_regex(r"[0-9]{1,30}(\.[0-9]+)?"))
@example(value="nan")
@example(value="inf")
@example(value="Sat, 21 Nov 0000 09:30:07 GMT")
@example(value="Sat, 31 Dec 9999 23:59:59 -2359")
@example(value="1 Jan 2026 00:00:00 +99999999999999")
def test_retry_after_is_bounded_and_never_fails(value):
    """A Retry-After header delays a run by at most ten minutes and never breaks it."""
    seconds = read_retry_after(value, NOW)
    assert seconds is None or 0.0 <= seconds <= MAX_RETRY_AFTER


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "soon", "", None])
def test_a_retry_after_that_says_nothing_counts_as_none(value):
    """Without a usable Retry-After, the default delays apply."""
    assert read_retry_after(value, NOW) is None


@given(seconds=st.integers(-4000, 4000))
def test_retry_after_as_a_date_counts_from_now(seconds):
    """Both forms of Retry-After in HTTP have the same effect."""
    as_date = format_datetime(NOW + timedelta(seconds=seconds), usegmt=True)
    assert read_retry_after(as_date, NOW) == read_retry_after(str(seconds), NOW)


def test_retry_after_is_read_from_the_reply():
    """Seconds are used as given, and a date is compared with the clock of this machine."""
    failure = failure_of_reply(Reply(429, {"retry-after": "7"}, {}, is_json=True))
    assert failure is not None
    assert failure.retry_after == 7.0
    past = format_datetime(datetime.now(UTC) - timedelta(hours=1), usegmt=True)
    failure = failure_of_reply(Reply(429, {"retry-after": past}, {}, is_json=True))
    assert failure is not None
    assert failure.retry_after == 0.0


@pytest.fixture
def in_tokyo(monkeypatch):
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def test_a_date_without_a_zone_is_in_universal_time(in_tokyo):
    """HTTP dates are in UTC, whatever the time zone of this machine."""
    assert read_retry_after("Sat, 21 Nov 2026 09:31:00 -0000", NOW) == 60.0
