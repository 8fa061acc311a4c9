# SPDX-License-Identifier: Apache-2.0
"""Each shape of a reply, from the first poll to the last."""

from typing import get_args

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_cometapi.sandbox import ReplyShape
from prefect_cometapi.sandbox.jobs import stage_and_progress
from prefect_cometapi.sandbox.messages.replies import Snapshot, Stage, feed_reply, task_reply

WHERE = {
    "bare": lambda reply: reply["output"][0],
    "wrapped": lambda reply: reply["data"]["data"]["output"][0],
    "wrapped_inner_null": lambda reply: reply["data"]["data"]["output"][0],
    "wrapped_lagging": lambda reply: reply["data"]["data"]["output"][0],
    "flat": lambda reply: reply["result_url"],
    "legacy": lambda reply: reply["data"]["fail_reason"],
    "integer_code": lambda reply: reply["data"]["video_url"],
    "output_string": lambda reply: reply["output"],
    "output_objects": lambda reply: reply["output"][0]["url"],
    "late_output": lambda reply: reply["output"][0],
    "nested": lambda reply: reply["data"]["data"]["data"]["output"][0],
}
ENVELOPES = {
    "wrapped",
    "wrapped_inner_null",
    "wrapped_lagging",
    "flat",
    "legacy",
    "integer_code",
    "nested",
}


def snapshot(stage, **changes):
    told = {
        "task_id": "id",
        "action": "IMAGE_TO_VIDEO",
        "prompt": "",
        "stage": stage,
        "progress": 0.3,
        "accepted": 1_777_639_667.351,
    }
    return Snapshot(**(told | changes))


@pytest.mark.parametrize("shape", get_args(ReplyShape))
@pytest.mark.heavy
def test_every_shape_leads_to_the_video(talk, shape):
    """A finished job names its output where its shape has it, and the video can be downloaded."""
    conversation = talk(shapes=[shape])
    task_id = conversation.finished()
    conversation.task(task_id)
    url = WHERE[shape](conversation.task(task_id).json())
    assert httpx.get(url).content[4:8] == b"ftyp"


@pytest.mark.parametrize("shape", get_args(ReplyShape))
@pytest.mark.heavy
def test_the_feed_leads_to_the_video_too(talk, shape):
    """The feed has the job's own shape if that is an envelope, and is flat otherwise."""
    conversation = talk(shapes=[shape])
    url = WHERE[shape if shape in ENVELOPES else "flat"](
        conversation.feed(conversation.finished()).json()
    )
    assert httpx.get(url).content[4:8] == b"ftyp"


def test_jobs_take_the_shapes_in_turns(talk):
    """Jobs get the configured shapes in turn."""
    conversation = talk(shapes=("bare", "integer_code"))
    ids = [conversation.finished() for _ in range(3)]
    assert ["data" in conversation.task(task_id).json() for task_id in ids] == [False, True, False]


@pytest.mark.parametrize("shape", get_args(ReplyShape))
def test_a_job_on_its_way_names_no_output(shape):
    """A job in progress has no URL in any shape."""
    for stage in (Stage.PENDING, Stage.RUNNING, Stage.UNKNOWN):
        assert "http" not in str(task_reply(shape, snapshot(stage)))


@pytest.mark.parametrize("shape", get_args(ReplyShape))
def test_a_failed_job_says_why(shape):
    """The reason of a failure is in every shape, in the task's reply and in the feed."""
    failed = snapshot(Stage.FAILED, failure="Broken.", failure_code="INTERNAL")
    assert "Broken." in str(task_reply(shape, failed))
    told = snapshot(Stage.FAILED, failure="Broken.", before=failed)
    assert "Broken." in str(feed_reply(shape, told))


def test_progress_is_written_in_three_ways():
    """Progress is a percentage in a string, a share, or absent."""
    running = snapshot(Stage.RUNNING)
    assert task_reply("wrapped", running)["data"]["progress"] == "30%"
    assert task_reply("bare", running)["progress"] == 0.3
    assert task_reply("output_string", running)["progress"] is None


def test_the_states_have_three_vocabularies():
    """States are Runway's words, the gateway's words, or numbers in strings."""
    running = snapshot(Stage.RUNNING)
    assert task_reply("bare", running)["status"] == "RUNNING"
    assert task_reply("wrapped", running)["data"]["status"] == "IN_PROGRESS"
    assert task_reply("integer_code", running)["data"]["status"] == "1"
    assert task_reply("integer_code", running)["code"] == 200


def test_the_inner_object_may_come_last():
    """In one shape, the inner object is empty until the job is over."""
    assert task_reply("wrapped_inner_null", snapshot(Stage.RUNNING))["data"]["data"] is None


def test_the_envelope_may_lag_behind(talk):
    """The outer status may be that of the previous poll."""
    conversation = talk(shapes=["wrapped_lagging"])
    task_id = conversation.finished()
    replies = [conversation.task(task_id).json()["data"] for _ in range(2)]
    assert [reply["status"] for reply in replies] == ["QUEUED", "SUCCESS"]
    assert [reply["data"]["status"] for reply in replies] == ["SUCCEEDED", "SUCCEEDED"]


def test_the_output_may_come_late(talk):
    """The first SUCCEEDED may have no output yet."""
    conversation = talk(shapes=["late_output"])
    task_id = conversation.finished()
    replies = [conversation.task(task_id).json() for _ in range(2)]
    assert [reply["status"] for reply in replies] == ["SUCCEEDED", "SUCCEEDED"]
    assert ["output" in reply for reply in replies] == [False, True]


def test_times_are_written_as_the_docs_write_them():
    """Runway's times are ISO 8601 in UTC; the gateway's are whole seconds, 0 if in the future."""
    reply = task_reply("wrapped", snapshot(Stage.PENDING))["data"]
    assert reply["data"]["createdAt"] == "2026-05-01T12:47:47.351Z"
    assert (reply["submit_time"], reply["start_time"], reply["finish_time"]) == (1777639667, 0, 0)


def test_a_job_takes_its_time(talk):
    """A job takes at least `render_seconds`, even if its clip is drawn sooner."""
    conversation = talk(render_seconds=30)
    assert conversation.task(conversation.finished()).json()["status"] == "PENDING"
    assert conversation.client.get("/_sandbox").json()["jobs"] == {"PENDING": 1}


def test_a_new_job_is_invisible_for_as_many_polls_as_asked(talk):
    """The first polls of a job answer that it does not exist."""
    conversation = talk(not_visible_polls=2)
    task_id = conversation.finished()
    polls = [
        conversation.task(task_id),
        conversation.feed(task_id),
        conversation.task(task_id),
    ]
    assert [poll.status_code for poll in polls] == [400, 400, 200]
    assert polls[0].json() == {
        "code": "task_not_exist",
        "message": "task_not_exist",
        "data": None,
    }


@given(st.lists(st.floats(0, 1000), min_size=2), st.floats(0, 500), st.booleans())
def test_progress_never_goes_back(moments, least, ready):
    """PENDING, RUNNING and SUCCEEDED come in this order, and progress only grows."""
    order = [Stage.PENDING, Stage.RUNNING, Stage.SUCCEEDED]
    steps = [stage_and_progress(moment, least, ready=ready) for moment in sorted(moments)]
    assert [order.index(stage) for stage, _ in steps] == sorted(
        order.index(stage) for stage, _ in steps
    )
    assert [progress for _, progress in steps] == sorted(progress for _, progress in steps)
    assert all(0 <= progress <= 1 for _, progress in steps)
