# SPDX-License-Identifier: Apache-2.0
"""Separate grace times apply to an unknown id and to a success without its output."""

import pytest

from prefect_cometapi.runway import Generation, Status
from prefect_cometapi.runway.api.polling import PollPolicy, missing_since, wait_until_finished

UNKNOWN = Generation(task_id="t", status=Status.NOT_FOUND)
RUNNING = Generation(task_id="t", status=Status.RUNNING)
EMPTY = Generation(task_id="t", status=Status.SUCCEEDED)


@pytest.mark.parametrize(
    ("reply", "before", "since", "expected"),
    [
        (RUNNING, None, None, None),
        (RUNNING, UNKNOWN, 3.0, None),
        (UNKNOWN, None, None, 9.0),
        (UNKNOWN, UNKNOWN, 3.0, 3.0),
        (UNKNOWN, RUNNING, None, 9.0),
        (EMPTY, EMPTY, 3.0, 3.0),
        (EMPTY, UNKNOWN, 3.0, 9.0),
        (UNKNOWN, EMPTY, 3.0, 9.0),
    ],
)
def test_each_lack_has_its_own_time(reply, before, since, expected):
    """The time for which the id was unknown does not count for a success without output."""
    assert missing_since(reply, before, since, now=9.0) == expected


async def test_an_output_that_comes_after_a_long_invisibility_is_waited_for(
    answers, client_of, submitted
):
    """An output that comes after an almost complete grace time of unknown polls still arrives."""
    unknown = (400, {"code": "task_not_exist", "message": "task_not_exist", "data": None})
    empty = {"id": "task-1", "status": "SUCCEEDED"}
    done = {**empty, "output": ["https://example.com/a.mp4"]}
    policy = PollPolicy(interval=0.05, timeout=30, not_found_grace=0.4)
    script = answers(*[unknown] * 5, empty, empty, done)
    finished = await wait_until_finished(await client_of(script), submitted(), policy)
    assert len(finished.generation.outputs) == 1
