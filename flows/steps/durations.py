# SPDX-License-Identifier: Apache-2.0
"""How long generations of a kind take, asked of the ledger once in a while for all of them.

Nothing waits for the answer: it comes while a generation is too young to be looked at.
"""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from ...runway.api.poll_schedule import KEPT, Habit, learn
from ...runway.ledger.entry import Entry, Kind
from ...runway.models.generation import Submission
from ..runtime.ledger_access import record_soon
from ..runtime.run_context import settings_now

if TYPE_CHECKING:
    from ...runway.ledger.store import Ledger

FRESH = 30.0
"""Seconds after which the ledger is asked again."""

_known: dict[tuple[Kind, float], tuple[float, Habit | None]] = {}
"""When the ledger was asked last, and what it taught, by kind and poll interval."""


def habit_of(
    submission: Submission, entry: Entry | None, base_url: str
) -> Callable[[], Habit | None]:
    """Tells what is known of the kind of a generation by the time that it is called."""
    if not (submission.route and submission.model):
        return lambda: None
    by_request = submission.route == "image_to_video"  # of a video only its result tells
    seconds = entry.billed_seconds if entry and by_request else None
    kind = Kind(base_url, submission.route, submission.model, seconds)
    interval = settings_now().poll_interval

    def habit() -> Habit | None:
        asked, known = _known.get((kind, interval), (-FRESH, None))
        if time.monotonic() >= asked + FRESH:
            _ask(kind, interval, known)
        return _known[kind, interval][1]

    habit()
    return habit


def _ask(kind: Kind, interval: float, known: Habit | None) -> None:
    asked = time.monotonic()
    _known[kind, interval] = asked, known

    async def learnt(ledger: "Ledger") -> None:
        history = await ledger.durations(kind, KEPT)
        _known[kind, interval] = asked, learn(history, interval)

    record_soon(learnt)
