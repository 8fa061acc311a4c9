# SPDX-License-Identifier: Apache-2.0
"""Cached duration statistics of each kind of generation, refreshed in the background.

The statistics come from the ledger and are shared by all generations of a kind. No step waits for
the query: the answer arrives while a new generation is still too young to be polled.
"""

import time
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING

from ...runway.api.cohort import Cohort
from ...runway.api.poll_schedule import HISTORY_SIZE, DurationStats, estimate_durations
from ...runway.ledger.entry import Entry, GenerationKind
from ...runway.models.generation import Submission
from ...runway.models.requests import ROUTES
from ..runtime.ledger_writes import write_in_background
from ..runtime.run_context import RunContext

if TYPE_CHECKING:
    from ...runway.ledger.store import Ledger

FRESH = 30.0
"""Seconds for which cached statistics are used before the ledger is queried again."""

LONGEST_POST = timedelta(minutes=2)
"""Maximum time from the claim of a generation to the answer that has its id. A later id was
adopted."""

_known: dict[tuple[GenerationKind, float], tuple[float, DurationStats | None]] = {}
"""Time of the last query and its statistics, by kind and poll interval.

The time is in seconds of the monotonic clock.
"""


def duration_stats_of(
    context: RunContext, submission: Submission, entry: Entry | None
) -> Callable[[], DurationStats | None]:
    """Return a function that gives the latest duration statistics for a generation.

    The function returns None while no statistics are known.

    Args:
        context: Context of the run.
        submission: The generation.
        entry: Its ledger entry, if known.
    """
    kind = _kind_of(context, submission, entry)
    if kind is None:
        return lambda: None
    interval = context.settings.poll_interval

    def stats() -> DurationStats | None:
        asked, known = _known.get((kind, interval), (-FRESH, None))
        if time.monotonic() >= asked + FRESH:
            _ask(context, kind, interval, known)
        return _known[kind, interval][1]

    stats()
    return stats


def cohort_of(context: RunContext, submission: Submission, entry: Entry | None) -> Cohort | None:
    """Return the generations of the same kind that the run waits for together.

    The result is None if the kind or the age of the generation is not known. An adopted id may be
    much older than its entry says, so its first poll must not wait for other generations.

    Args:
        context: Context of the run.
        submission: The generation.
        entry: Its ledger entry, if known.
    """
    kind = _kind_of(context, submission, entry)
    claimed_at = entry and entry.claimed_at
    if kind is None or claimed_at is None or submission.submitted_at > claimed_at + LONGEST_POST:
        return None
    return context.cohorts[kind]


def _kind_of(
    context: RunContext, submission: Submission, entry: Entry | None
) -> GenerationKind | None:
    """Return the kind of a generation, or None if its request is not known."""
    if not (submission.route and submission.model):
        return None
    # The length of a restyled video is not in the request and is known only from the result.
    request = ROUTES.get(submission.route)
    by_request = request is not None and "duration" in request.model_fields
    seconds = entry.billed_seconds if entry and by_request else None
    return GenerationKind(context.base_url, submission.route, submission.model, seconds)


def _ask(
    context: RunContext, kind: GenerationKind, interval: float, known: DurationStats | None
) -> None:
    asked = time.monotonic()
    _known[kind, interval] = asked, known

    async def learnt(ledger: "Ledger") -> None:
        history = await ledger.durations(kind, HISTORY_SIZE)
        _known[kind, interval] = asked, estimate_durations(history, interval)

    write_in_background(context, learnt)
