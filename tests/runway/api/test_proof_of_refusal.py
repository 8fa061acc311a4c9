# SPDX-License-Identifier: Apache-2.0
"""The tables of docs/never-twice.md: replies that prove a refusal, and replies that prove nothing.

Each row of the docs has its examples here, and each example is sent through the client unchanged.
"""

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_cometapi.runway.api.certainty import (
    AFTER_SENDING_CODES,
    REFUSING_STATUSES,
    RELAYED_CODES,
    RULES,
    own_error,
    proof_of_refusal,
)
from prefect_cometapi.runway.errors import CometAPIError, SubmissionUncertain

PAGE = Path(__file__).parents[3] / "docs" / "never-twice.md"
HTML = {"content-type": "text/html"}
FORBIDDEN = b"<!DOCTYPE html><title>403 Forbidden</title>"


def table(heading: str) -> list[list[str]]:
    """Return the rows of the table in the docs that begins with this column."""
    text = PAGE.read_text(encoding="utf-8").partition(f"| {heading} |")[2].partition("\n\n")[0]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()[2:]]


def general(code: str | None = "", message: str = "it says no (request id: 7)") -> dict[str, Any]:
    return {"error": {"message": message, "type": "comet_api_error", "param": "", "code": code}}


def flat(code: str, message: str = "it says no") -> dict[str, Any]:
    return {"code": code, "message": message, "data": None}


RUNWAYS = {"error": "Validation of body failed", "issues": [{"path": ["ratio"], "message": "no"}]}
NO_ROUTE = {
    "error": {
        "message": "Invalid URL (POST /v1/runwayml/v1/image_to_video)",
        "type": "invalid_request_error",
        "param": "",
        "code": "",
    }
}

CERTAIN: dict[str, list[dict[str, Any]]] = {
    "refused by CometAPI": [general(), general(None), general("odd"), flat("odd"), NO_ROUTE],
    "refused by Runway, passed on by CometAPI": [flat(code) for code in sorted(RELAYED_CODES)],
    "refused by Runway in its own words": [RUNWAYS],
    "failed in CometAPI before the submission": [
        general("invalid_request"),
        general("convert_request_failed"),
        flat("get_user_quota_failed"),
        flat("pre_consume_quota_failed"),
    ],
    "route not implemented": [flat("api_not_implemented"), general("api_not_implemented")],
    "no channel for the model": [
        general("model_not_found"),
        general(None, "No available channel for group default and model gen9 (distributor)"),
    ],
    "CometAPI is overloaded": [general(""), general(None)],
}

FOREIGN: list[Any] = [
    b"",
    FORBIDDEN,
    b"no",
    {},
    {"message": "no route and no API found with those values"},
    {"detail": "Not Found"},
    {"error": "rate limited"},
    {"error": {"message": "model_not_found", "code": "model_not_found"}},
    {"error": {"code": 403, "message": "Forbidden", "status": "PERMISSION_DENIED"}},
    {"error": {"message": "busy", "type": "server_error", "code": None}},
    {"error": {"message": "", "type": "comet_api_error", "code": "quota_not_enough"}},
    {"error": {"message": "no", "type": "comet_api_error", "code": 403}},
    {"error": {"message": "Invalid URL (POST /)", "type": "other", "code": ""}},
    {"code": "quota_not_enough", "message": "no"},
    {"code": "rest_no_route", "message": "no", "data": {"status": 404}},
    {"code": 1020, "message": "no", "data": None},
    {"code": "No.Such-Slug", "message": "no", "data": None},
    {"code": "slug", "message": None, "data": None},
    {"error": "no", "issues": []},
    {"error": "no", "issues": ["no"]},
    {"error": {"message": "no"}, "issues": [{"path": [], "message": "no"}]},
    {"error": 7, "issues": [{"path": [], "message": "no"}]},
]
OPEN_STATUSES = [200, 201, 202, 408, 409, 423, 424, 425, 500, 502, 504, 520, 524]

UNCERTAIN: dict[str, list[tuple[int, Any, dict[str, str]]]] = {
    "an own error about a lost answer": [
        (status, make(code), {})
        for code in sorted(AFTER_SENDING_CODES)
        for make in (general, flat)
        for status in (400, 403, 429, 500, 503)
    ],
    "an own error under another status": [
        (status, body, {})
        for status in OPEN_STATUSES
        for body in (general("model_not_found"), general("quota_not_enough"), flat("odd"))
    ],
    "a page or foreign JSON under 400 to 499": [
        (status, body, HTML)
        for status in (*sorted(REFUSING_STATUSES), 407, 408, 409, 418, 421, 423, 424, 425, 451, 499)
        for body in FOREIGN
    ],
    "a page, a text or foreign JSON under 500 to 599": [
        (status, body, {"retry-after": "5"})
        for status in (500, 501, 502, 503, 504, 520, 524, 599)
        for body in FOREIGN
    ],
    "a redirect": [
        (status, body, {"location": at})
        for status in (300, 301, 302, 303, 304, 307, 308)
        for body in (b"", FORBIDDEN, general("invalid_request"))
        for at in ("/a", "https://www.cometapi.com/", "http:there", "//[", "ftp://x/")
    ],
    "a success without a task id": [
        *((200, body, HTML) for body in FOREIGN),
        (200, b'{"id": "3d95', {}),
        (204, b"", {}),
        (200, general("invalid_request"), {}),
        (200, {"status": "task_not_exist"}, {}),
    ],
    "a reply that names a task id beside its error": [
        (400, {**general("invalid_request"), "id": "3d957031"}, {}),
        (429, {**general(), "data": {"task_id": "3d957031"}}, {}),
        (503, {**general("model_not_found"), "task_id": 7}, {}),
    ],
    "a broken connection": [],  # all are in tests/runway/api/test_certainty.py
}


async def outcome_of(client_of, answers, request_, reply) -> CometAPIError:
    client = await client_of(answers(reply))
    with pytest.raises(CometAPIError) as caught:
        await client.create(request_)
    return caught.value


def test_the_docs_name_every_rule_and_no_other():
    """The table of certain refusals has the same statuses and codes as the code."""
    rows = table("certain")
    assert [row[0] for row in rows] == [rule.name for rule in RULES] == list(CERTAIN)
    for row, rule in zip(rows, RULES, strict=True):
        assert {int(status) for status in row[1].split(",")} == rule.statuses
    codes = [set(re.findall(r"`([a-z]+(?:_[a-z]+)+)`", row[2])) for row in rows]
    for named, rule in zip(codes, RULES, strict=True):
        for code in named - {"comet_api_error"}:
            assert all(proof_of_refusal(status, flat(code)) is rule for status in rule.statuses)


def test_the_docs_name_every_kind_of_reply_that_proves_nothing():
    """Each row of the table of uncertain replies has its examples, and there are no others."""
    assert [row[0] for row in table("uncertain")] == list(UNCERTAIN)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
async def test_a_reply_that_a_rule_names_frees_the_key(client_of, answers, request_, rule):
    """CometAPI's own refusal under a status of its row is certain: nothing was charged."""
    for status in sorted(rule.statuses):
        for body in CERTAIN[rule.name]:
            assert proof_of_refusal(status, body) is rule
            error = await outcome_of(client_of, answers, request_, (status, body))
            assert not isinstance(error, SubmissionUncertain)
            assert "nothing was charged" in str(error)


@pytest.mark.parametrize("kind", UNCERTAIN)
async def test_a_reply_that_no_rule_names_keeps_the_key(client_of, answers, request_, kind):
    """Such a reply may follow an acceptance, so nothing is sent again."""
    for reply in UNCERTAIN[kind]:
        error = await outcome_of(client_of, answers, request_, reply)
        assert isinstance(error, SubmissionUncertain), reply
        assert "possibly charged, once" in str(error)


OWN = [body for bodies in CERTAIN.values() for body in bodies]


@given(status=st.integers(100, 999), body=st.sampled_from(OWN))
def test_no_other_status_makes_an_own_error_certain(status, body):
    """A rule applies only to its statuses, whatever the text is."""
    named = [rule for rule in RULES if status in rule.statuses and body in CERTAIN[rule.name]]
    rule = proof_of_refusal(status, body)
    assert rule in RULES if named else rule is None or status in rule.statuses


@pytest.mark.parametrize("body", FOREIGN, ids=repr)
def test_only_a_shape_of_cometapis_is_its_own(body):
    """Other gateways send errors that look similar."""
    assert own_error(body) is None


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        ((404, b"<html>", HTML), "text/html"),
        ((200, FORBIDDEN, HTML), "text/html"),
        ((301, b"", {"location": "https://www.cometapi.com/"}), "a redirect to"),
        ((404, {"detail": "Not Found"}, {}), "application/json"),
        ((407, b"no", {}), "'no'"),
    ],
)
async def test_a_wrong_base_url_is_named_as_a_likely_cause(
    client_of, answers, request_, reply, words
):
    """The message describes the reply and names the base URL setting."""
    error = await outcome_of(client_of, answers, request_, reply)
    assert isinstance(error, SubmissionUncertain)
    assert "https://api.cometapi.com does not respond like CometAPI" in str(error)
    assert "COMETAPI_BASE_URL" in str(error)
    assert words in str(error)


async def test_a_lost_receipt_is_not_blamed_on_the_base_url(client_of, answers, request_):
    """A gateway timeout does not indicate a wrong base URL."""
    error = await outcome_of(client_of, answers, request_, (504, b"error code: 504", {}))
    assert "COMETAPI_BASE_URL" not in str(error)


async def test_no_redirect_of_a_purchase_is_followed(client_of, answers, request_):
    """A purchase is sent once, and only to the configured address."""
    script = answers((307, b"", {"location": "https://www.cometapi.com/"}))
    client = await client_of(script)
    with pytest.raises(SubmissionUncertain):
        await client.create(request_)
    assert [str(sent.url.host) for sent in script.requests] == ["api.cometapi.com"]
