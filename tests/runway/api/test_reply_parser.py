# SPDX-License-Identifier: Apache-2.0
"""Every shape of reply is parsed, and no reply leads to an invented success."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from prefect_cometapi.runway import Status
from prefect_cometapi.runway.api.reply_parser import (
    error_of,
    read_generation,
    read_task_id,
    says_not_found,
    why_unread,
)

DOCUMENTED = json.loads((Path(__file__).parents[1] / "documented.json").read_text(encoding="utf-8"))

SUCCESS_WORDS = ["success", "succeed", "succeeded", "completed", "finished", "ready", "done", "3"]
WORDS = [
    *SUCCESS_WORDS,
    *["QUEUED", "RUNNING", "FAILED", "cancelled", "task_not_exist", "0", "1", "2", "odd"],
]
FINISHED = {"status": "SUCCEEDED", "output": ["https://example.com/o.mp4"]}
FAILURES = "error errored exception rejected timeout timed_out timedout expired"
ENDS = dict.fromkeys(FAILURES.split(), Status.FAILED) | dict.fromkeys(
    ("aborted", "terminated", "revoked"), Status.CANCELLED
)
"""Words for an end in related gateways, and the status that each means."""

NAMES = st.sampled_from(
    [
        "id",
        "task_id",
        "status",
        "state",
        "code",
        "data",
        "message",
        "msg",
        "error",
        "fail_reason",
        "failure",
        "failureCode",
        "progress",
        "output",
        "outputs",
        "result_url",
        "video_url",
        "url",
        "uri",
        "type",
    ]
)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-5, 5)
    | st.integers()
    | st.floats()
    | st.sampled_from([*WORDS, "https://example.com/o.mp4", "50%", "", "  ", "success"])
    | st.text(max_size=8)
)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=6),
    max_leaves=30,
)
REPLIES = st.dictionaries(NAMES, JSON, max_size=8)


def nested(depth: int, name: str) -> dict[str, Any]:
    value: Any = "https://example.com/o.mp4"
    for _ in range(depth):
        value = {name: value}
    return {"status": "SUCCEEDED", "output": value}


@pytest.mark.parametrize("name", DOCUMENTED["tasks"])
def test_every_documented_state_is_understood(name):
    """State, progress and outputs are read from each documented shape."""
    sample = DOCUMENTED["tasks"][name]
    generation = read_generation(sample["body"], read_task_id(sample["body"]) or "a")
    assert generation is not None
    assert generation.status.value == sample["status"]
    assert generation.progress == sample["progress"]
    assert [url.reveal() for url in generation.outputs] == sample["outputs"]
    assert generation.failure == sample.get("failure", "")
    assert generation.failure_code == sample.get("failure_code", "")
    assert error_of(sample["body"]) is None


@pytest.mark.parametrize("name", DOCUMENTED["tasks"])
def test_a_reply_about_another_generation_says_nothing_about_this_one(name):
    """A reply for another generation is ignored, so no video is stored under the wrong key."""
    body = DOCUMENTED["tasks"][name]["body"]
    if read_task_id(body):
        assert read_generation(body, "another") is None


@pytest.mark.parametrize(
    ("body", "asked"),
    [
        ({"id": "A-1", "status": "RUNNING"}, "a-1"),
        ({"id": 7, "status": "RUNNING"}, "7"),
        ({"id": 9, "status": "RUNNING", "data": {"task_id": "a"}}, "a"),
        ({"id": " ", "status": "RUNNING"}, "a"),
        ({"id": None, "status": "RUNNING"}, "a"),
    ],
)
def test_one_of_the_ids_that_are_named_is_enough(body, asked):
    """A gateway has its own row ids, and some replies name no id at all."""
    assert read_generation(body, asked) is not None


@pytest.mark.parametrize("word", ["failed", "FAILURE", "CANCELLED", "2"])
def test_a_failure_of_nobody_is_no_answer(word):
    """A failure without an id may come from another server and does not end a paid generation."""
    assert read_generation({"status": word, "message": "upstream timeout"}, "a") is None
    assert read_generation({"id": "a", "status": word}, "a") is not None


@pytest.mark.parametrize("word", ["ok", "success", "done", "healthy", "failed", "Remixing"])
def test_a_status_of_nobody_is_no_answer(word):
    """A status of a health page or a portal is not the state of a paid generation."""
    assert read_generation({"status": word}, "a") is None
    assert "names no generation" in why_unread({"status": word}, "a")
    assert read_generation({"id": "a", "status": word}, "a") is not None


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ({"error": {"message": "no"}}, "the reply is an error"),
        (
            {"code": "success", "data": None},
            "the reply has no status; the reply has the fields code, data",
        ),
        ({}, "the reply has no status; the reply is empty"),
        ({"id": "a", "status": 5}, "the reply has the status '5', which is not known here"),
        (
            {"id": "a", "phase": "done", "video": "https://h/a?sig=s3cr3t"},
            "the reply has no status; the reply has a web address in video",
        ),
        ({"id": "b-7", "status": "SUCCEEDED"}, "the reply is about the generation b-7"),
        ({"id": "a", "status": "Remixing"}, ""),
    ],
)
def test_a_reply_that_says_nothing_is_explained(body, why):
    """The reason names what the reply has instead of the state of the generation."""
    assert why_unread(body, "a") == why
    assert (read_generation(body, "a") is None) == bool(why)


@pytest.mark.parametrize(
    ("body", "unread"),
    [
        (
            {"status": "SUCCEEDED", "result": {"videos": [{"link": "https://h/a?sig=s3cr3t"}]}},
            "the reply has a web address in result.videos.0.link",
        ),
        ({"status": "SUCCEEDED", "at": 7}, "the reply has the fields status, at, id"),
        (
            {"status": "RENDERED", "output": ["https://h/a?sig=s3cr3t"]},
            "the reply has a web address in output.0",
        ),
        (
            {"status": "BLOCKED", "failure": "moderated"},
            "the reply has the reason 'moderated'; the reply has the fields status, failure, id",
        ),
        ({"status": "RUNNING"}, ""),
        ({"status": "SUCCEEDED", "output": "https://h/a"}, ""),
        ({"status": "FAILED", "failure": "no"}, ""),
    ],
)
def test_what_is_not_understood_is_named_without_its_content(body, unread):
    """Fields with a web address are named, or else all fields; a signed address is not shown."""
    found = read_generation({**body, "id": "a"}, "a")
    assert found is not None
    assert found.unread == unread


@given(body=JSON | REPLIES)
def test_any_reply_can_be_described(body):
    """The description of a reply is short, and has no address, whatever the reply contains."""
    found = read_generation(body, "a")
    told = why_unread(body, "a") + (found.unread if found else "")
    assert len(told) < 2000


@pytest.mark.parametrize("name", DOCUMENTED["created"])
def test_the_id_is_found_in_every_documented_reply_to_a_create_call(name):
    """A paid generation is never lost because of the shape of its reply."""
    body, task_id = DOCUMENTED["created"][name]
    assert read_task_id(body) == task_id


@given(body=JSON | REPLIES)
@example(body={"status": "1", "progress": 10**400})
@example(body={"data": {"data": {"data": {"data": {"data": {"status": "SUCCESS"}}}}}})
def test_no_reply_is_too_strange_to_be_read(body):
    """The parsers accept any JSON without an exception."""
    generation = read_generation(body, "a")
    assert generation is None or generation.task_id == "a"
    assert says_not_found(body) in {True, False}
    assert error_of(body) is None or len(error_of(body) or ()) == 2
    assert read_task_id(body) is None or (read_task_id(body) or "").strip()


@pytest.mark.parametrize("name", ["url", "data", "error"])
def test_a_reply_nested_beyond_reason_is_read(name):
    """A deeply nested reply does not exceed Python's recursion limit."""
    generation = read_generation(nested(5000, name) | {"id": "a"}, "a")
    assert generation is not None
    assert generation.outputs == ()


@given(body=JSON | REPLIES)
def test_a_success_is_never_invented(body):
    """Outputs are web addresses of a success, and a success needs its word."""
    generation = read_generation(body, "a")
    if generation is None:
        return
    assert generation.status is Status.SUCCEEDED or not generation.outputs
    for url in generation.outputs:
        assert (url.reveal() or "").lower().startswith(("http://", "https://"))
    if generation.status is Status.SUCCEEDED:
        text = json.dumps(body).lower()
        assert any(word in text for word in SUCCESS_WORDS) or ("2" in text and generation.outputs)


@given(body=REPLIES)
def test_progress_is_a_share_or_unknown(body):
    """Progress is between 0 and 1 or unknown, whatever was sent."""
    generation = read_generation(body, "a")
    assert generation is None or generation.progress is None or 0.0 <= generation.progress <= 1.0


@pytest.mark.parametrize(
    ("sent", "read"),
    [
        ("0%", 0.0),
        ("30%", 0.3),
        ("100%", 1.0),
        ("1%", 0.01),
        (" 45 % ", 0.45),
        (0.275, 0.275),
        (55, 0.55),
        ("0.5", 0.5),
        ("250%", 1.0),
        (-3, 0.0),
        (None, None),
        (True, None),
        ("soon", None),
        ("nan", None),
        (float("inf"), None),
        ([1], None),
    ],
)
def test_progress_is_read_as_percent_and_as_a_fraction(sent, read):
    """Progress in percent and as a fraction is documented; anything else counts as unknown."""
    generation = read_generation({"status": "RUNNING", "progress": sent}, "a")
    assert generation is not None
    assert generation.progress == read


@pytest.mark.parametrize("word", SUCCESS_WORDS)
def test_a_success_word_counts_in_any_case(word):
    """A success is recognised in any letter case, since clients have met all of them."""
    body = {"status": word.upper(), "output": ["https://example.com/o.mp4"]}
    generation = read_generation(body, "a")
    assert generation is not None
    assert generation.status is Status.SUCCEEDED
    assert generation.raw_status == word.upper()


@pytest.mark.parametrize(("word", "status"), ENDS.items())
def test_an_end_of_a_related_gateway_ends_a_wait(word, status):
    """Each of these words is an end in any letter case, and is marked as a vague one."""
    found = read_generation({"id": "a", "status": word.upper()}, "a")
    assert found is not None
    assert (found.status, found.raw_status, found.is_vague) == (status, word.upper(), True)
    plain = read_generation({"id": "a", "status": "FAILED"}, "a")
    assert plain is not None
    assert not plain.is_vague


@pytest.mark.parametrize("word", ENDS)
def test_a_vague_end_never_hides_a_success(word):
    """A gateway that gave up does not lose a video that Runway finished."""
    outer = {"task_id": "a", "status": word, "data": {**FINISHED, "id": "a"}}
    found = read_generation({"code": "success", "data": outer}, "a")
    assert found is not None
    assert (found.status, len(found.outputs), found.is_vague) == (Status.SUCCEEDED, 1, False)
    assert read_generation({"status": word, "message": "no id, so not surely of ours"}, "a") is None


def test_an_unknown_word_is_kept():
    """The word is named in the error if the wait ends without a result."""
    body = {"status": "QUEUED", "data": {"status": "Remixing"}}
    found = read_generation(body, "a")
    assert found is not None
    assert (found.status, found.unknown_status) == (Status.PENDING, "Remixing")
    known = read_generation({"status": "QUEUED", "data": {"status": "2"}, "id": "a"}, "a")
    assert known is not None
    assert known.unknown_status == ""


@given(word=st.text(min_size=1, max_size=20))
def test_an_unknown_word_means_keep_waiting(word):
    """A new upstream state neither fails nor finishes a generation."""
    known = {*SUCCESS_WORDS, *ENDS, "failure", "failed", "fail", "cancelled", "canceled", "2"}
    generation = read_generation({"status": word}, "a")
    if generation is not None and word.strip().lower() not in known:
        assert not generation.status.is_final


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"status": "SUCCESS", "data": {"status": "FAILED"}}, Status.FAILED),
        ({"status": "QUEUED", "data": {"status": "CANCELLED"}}, Status.CANCELLED),
        ({"status": "QUEUED", "data": {"status": "RUNNING"}}, Status.RUNNING),
        ({"status": "SUCCESS", "data": {"status": "RUNNING"}}, Status.SUCCEEDED),
        ({"status": 3, "video_url": "https://h/o.mp4"}, Status.SUCCEEDED),
        ({"status": 0}, Status.PENDING),
        ({"state": "task_not_exist"}, Status.NOT_FOUND),
        ({"status": "2"}, Status.FAILED),
        ({"status": "2", "video_url": "https://h/o.mp4"}, Status.SUCCEEDED),
    ],
)
def test_layers_that_disagree_are_weighed(body, status):
    """A failure in any layer is final, a success in any layer counts, and a URL decides on 2."""
    generation = read_generation({"id": "a", **body}, "a")
    assert generation is not None
    assert generation.status is status


@pytest.mark.parametrize("body", [None, [], "x", 5, {}, {"status": ""}, {"status": 7}, {"id": "a"}])
def test_a_reply_without_a_state_says_nothing(body):
    """A reply without a state is neither pending nor failed; it is not an answer."""
    assert read_generation(body, "a") is None


@pytest.mark.parametrize(
    ("output", "urls"),
    [
        ("https://h/o.mp4", ["https://h/o.mp4"]),
        ([{"url": "https://h/1.mp4"}, {"uri": "HTTPS://h/2.mp4"}], None),
        (["https://h/o.mp4", "https://h/o.mp4"], ["https://h/o.mp4"]),
        ([["https://h/o.mp4"], None, 5, "no url", {"url": None}], []),
        ("javascript:alert(1)", []),
    ],
)
def test_outputs_are_found_in_every_form(output, urls):
    """Outputs are a string, a list of strings or a list of objects; each address is used once."""
    generation = read_generation({"id": "a", "status": "SUCCEEDED", "output": output}, "a")
    assert generation is not None
    expected = urls if urls is not None else ["https://h/1.mp4", "HTTPS://h/2.mp4"]
    assert [url.reveal() for url in generation.outputs] == expected


@pytest.mark.parametrize("name", ["output", "outputs", "result_url", "video_url"])
@pytest.mark.parametrize("status", ["RUNNING", "SUCCEEDED", "FAILED"])
def test_an_output_counts_when_the_generation_is_done(name, status):
    """Outputs are read under each of their names, but only from a finished generation."""
    generation = read_generation({"id": "a", "status": status, name: "https://h/o.mp4"}, "a")
    assert generation is not None
    assert bool(generation.outputs) == (status == "SUCCEEDED")


def test_runways_own_progress_goes_before_the_gateways():
    """The progress of the gateway has only steps: 10, 20, 30 and 100 percent."""
    body = {"data": {"status": "IN_PROGRESS", "progress": "30%", "data": {"progress": 0.8}}}
    generation = read_generation(body, "a")
    assert generation is not None
    assert generation.progress == 0.8


def test_a_picture_is_not_taken_for_the_video():
    """Old feeds also contain a poster and a last frame, which are not the video."""
    body = {"id": "a", "status": "3", "poster": "https://h/p.jpg", "last_frame": "https://h/l.jpg"}
    generation = read_generation(body, "a")
    assert generation is not None
    assert generation.outputs == ()


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"status": "FAILED", "failure": "moderated"}, "moderated"),
        ({"status": "FAILURE", "fail_reason": "no channel"}, "no channel"),
        ({"status": "FAILED", "error": {"message": "broken"}}, "broken"),
        ({"status": "FAILED", "data": {"msg": "inner"}, "msg": "outer"}, "inner"),
        ({"status": "FAILED", "failure": "see https://h/x?token=s3cr3t"}, None),
        ({"status": "FAILED"}, ""),
    ],
)
def test_the_reason_of_a_failure_is_found_wherever_it_stands(body, reason):
    """The reason of a failure is in the service's words, without tokens."""
    generation = read_generation({"id": "a", **body}, "a")
    assert generation is not None
    if reason is None:
        assert generation.failure.startswith("see https://h/x?<sha256:")
    else:
        assert generation.failure == reason


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"error": {"message": "m", "code": "c"}}, ("c", "m")),
        ({"error": {"type": "t", "code": None}}, ("", "t")),
        ({"error": "text", "code": 7}, ("7", "text")),
        ({"error": "  "}, None),
        ({"code": "fail", "message": "m", "data": None}, ("fail", "m")),
        ({"code": 500, "msg": "m"}, ("500", "m")),
        ({"code": True}, None),
        ({"code": 200, "data": None}, None),
        ({"code": "SUCCESS"}, None),
        ({"code": "fail", "data": {"status": "QUEUED"}}, None),
        ({"status": "FAILED", "error": {"message": "m"}}, None),
        ([], None),
    ],
)
def test_errors_are_told_from_states(body, expected):
    """An error inside a 200 is an error, and a failed generation is a state."""
    assert error_of(body) == expected


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"code": "task_not_exist", "message": "", "data": None}, True),
        ({"error": {"message": "task_origin_not_exist"}}, True),
        ({"data": {"status": "task_not_exist"}}, True),
        ({"error": {"message": "model does not exist"}}, False),
        ({"status": "QUEUED"}, False),
        (None, False),
    ],
)
def test_an_unknown_id_is_recognised_in_every_form(body, expected):
    """An unknown id is recognised by a code, a message or a state."""
    assert says_not_found(body) is expected


@pytest.mark.parametrize(
    "body", [{}, {"id": ""}, {"id": True}, {"id": 0}, {"data": " "}, {"task_id": None}, "x", None]
)
def test_no_id_is_made_up(body):
    """A reply without an id makes the submission uncertain."""
    assert read_task_id(body) is None


@pytest.mark.parametrize(
    "body",
    [
        {"failureCode": "SAFETY.INPUT.TEXT", "failure": "no"},
        {"data": {"status": "FAILED", "failure_code": "SAFETY.INPUT.TEXT"}},
        {"error": {"code": "SAFETY.INPUT.TEXT", "message": "no"}},
        {"fail_reason": "task failed: SAFETY.INPUT.TEXT, moderated"},
        {"fail_reason": '{"failureCode":"SAFETY.INPUT.TEXT"}'},
    ],
)
def test_the_code_of_a_failure_is_found_wherever_it_is(body):
    """A code is a field, a part of an error, or a part of the reason."""
    found = read_generation({"id": "a", "status": "FAILURE", **body}, "a")
    assert found is not None
    assert (found.status, found.failure_code) == (Status.FAILED, "SAFETY.INPUT.TEXT")


@pytest.mark.parametrize("reason", ["the U.S. market", "www.example.com", "HTTP/1.1 503", ""])
def test_a_reason_without_a_code_has_none(reason):
    """Only words in the form of Runway's codes are codes."""
    found = read_generation({"id": "a", "status": "FAILURE", "fail_reason": reason}, "a")
    assert found is not None
    assert found.failure_code == ""
