# SPDX-License-Identifier: Apache-2.0
"""Duration statistics by kind of generation, as read from the ledger."""

from datetime import timedelta
from typing import Any

import pytest

from prefect_cometapi.runway import State
from prefect_cometapi.runway.ledger.entry import GenerationKind

from ..factories import BASE, MOMENT, intent

S = State
KIND = GenerationKind(BASE, "image_to_video", "gen4_turbo", 5.0)


async def ended(ledger: Any, number: int, state: State = S.STORED, **changes: Any) -> None:
    """Make a generation, submitted some minutes after the first, with a duration in seconds."""
    submitted = MOMENT + timedelta(minutes=number)
    values = {
        "task_id": f"task-{number}",
        "submitted_at": submitted,
        "finished_at": submitted + timedelta(seconds=number),
        "polls": number,
    }
    wanted = {name: changes.pop(name) for name in list(changes) if name in intent().model_dump()}
    assert await ledger._insert(intent(f"k{number}", **wanted), state, "c", **(values | changes))


async def test_the_newest_submissions_come_first(ledger):
    """The newest submissions come first, up to a limit."""
    for number in (2, 1, 4, 3):
        await ended(ledger, number)
    assert await ledger.durations(KIND, 10) == [(4.0, 4), (3.0, 3), (2.0, 2), (1.0, 1)]
    assert await ledger.durations(KIND, 2) == [(4.0, 4), (3.0, 3)]


@pytest.mark.parametrize(
    "other",
    [
        {"base_url": "https://elsewhere.example.com"},
        {"route": "video_to_video"},
        {"model": "gen3a_turbo"},
        {"billed_seconds": 10.0},
        {"state": S.FAILED},
        {"state": S.SUBMITTED},
        {"finished_at": None},
        {"submitted_at": None},
    ],
)
async def test_other_kinds_teach_nothing(ledger, other):
    """Other kinds, failed generations and unknown durations are ignored."""
    await ended(ledger, 1)
    await ended(ledger, 2, **other)
    assert await ledger.durations(KIND, 10) == [(1.0, 1)]


async def test_without_seconds_all_lengths_are_one_kind(ledger):
    """The length of some videos is known only from their result, so all lengths are one kind."""
    await ended(ledger, 1, billed_seconds=5.0)
    await ended(ledger, 2, billed_seconds=9.5)
    anything = KIND._replace(seconds=None)
    assert await ledger.durations(anything, 10) == [(2.0, 2), (1.0, 1)]
