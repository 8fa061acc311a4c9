# SPDX-License-Identifier: Apache-2.0
"""Poll schedule, learned from the durations of earlier generations of the same kind.

The service asks for at least five seconds between two polls of one generation. Above that minimum,
one rule decides: a poll is due once the lag that has probably built up since the last one is worth
a request. This is optimal, because it makes the polls as dense as the square root of the hazard;
docs/polling.md derives it and has the figures. Without earlier generations the schedule is a fixed
interval, of which ``cohort`` leaves out polls, and with them it never polls more often than that.

All functions are pure: a random number is an argument, and the caller enforces deadlines. All times
are in seconds.
"""

import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from statistics import median
from typing import NamedTuple

HISTORY_SIZE = 200
"""Maximum number of the newest generations of a kind that are used."""

MIN_SAMPLES = 10
"""Minimum number of generations that were observed to their end before anything is concluded from
them."""

JITTER = 0.1
"""Maximum share of a delay that is added at random. Nothing is ever subtracted."""

LAG_PER_POLL = 0.025
"""Expected lag that is worth a poll, as a share of the interval: 0.125 s at an interval of 5 s."""

MAX_GAP_FACTOR = 1.5
"""Maximum number of intervals between two polls. It bounds the lag after the first poll."""

FIRST_POLL_LIMIT = 0.85
"""Share of the typical duration before which the first poll is due, however certain the rest is.

Otherwise nothing would be learned about the time before the first poll, and a slow collector that
polls once an hour could not be told apart from a service that takes an hour.
"""

MAX_UNOBSERVED = 0.95
"""Maximum share of its age for which a generation may go unobserved and still teach a duration.

It is above ``FIRST_POLL_LIMIT``, so that the gap before this schedule's own first poll never counts
as a generation that nobody polled.
"""

DRIFT_FACTOR = 2.0
"""Factor between two typical durations above which the service counts as changed."""

MAX_DURATION = 86_400.0
"""Maximum duration in seconds. No generation renders for longer than a day; a longer one was polled
late."""


@dataclass(frozen=True)
class DurationStats:
    """Duration statistics of one kind of generation.

    Attributes:
        durations: Possible durations in seconds, ascending, each equally likely.
        typical: Median duration in seconds.
    """

    durations: tuple[float, ...] = field(repr=False)
    typical: float


class _Sample(NamedTuple):
    """Earlier generation: its age when its end was seen, its longest unobserved time, its polls."""

    waited: float
    unobserved: float
    polls: int

    def is_observed(self) -> bool:
        return self.polls > 1 and self.unobserved <= MAX_UNOBSERVED * self.waited


def estimate_durations(
    history: Sequence[tuple[float, int]], interval: float
) -> DurationStats | None:
    """Return the duration statistics of a kind of generation, or None if too little is known; pure.

    Args:
        history: Seconds until the end was seen, and number of polls, of earlier generations of the
            same kind, newest submission first. The newest end must not come first: at the end of a
            batch, those are its slowest generations.
        interval: Minimum seconds between two polls of one generation.
    """
    samples = [
        _Sample(waited, max(0.0, waited - (polls - 1) * interval), polls)
        for waited, polls in history[:HISTORY_SIZE]
        if 0.0 < waited <= MAX_DURATION and polls >= 1
    ]
    observed = [at for at, one in enumerate(samples) if one.is_observed()]
    if len(observed) < MIN_SAMPLES:
        return None
    observed = _since_last_change(observed, samples)
    ages = sorted(samples[at].waited for at in observed)
    typical = median(ages)
    usable = [
        one
        for one in samples[: observed[-1] + 1]
        if one.is_observed() or one.waited <= typical  # a late first poll teaches nothing
    ]
    if 2 * sum(one.polls == 1 for one in usable[:MIN_SAMPLES]) >= MIN_SAMPLES:
        return None  # too many end before the first poll, so their durations are unknown
    scatter = _scatter(ages, typical)
    likely = (_duration(one, interval, scatter) for one in usable)
    return DurationStats(durations=_smoothed(likely, len(usable), scatter), typical=typical)


def first_delay(
    age: float, interval: float, stats: DurationStats | None, chance: float = 0.0
) -> float:
    """Return the seconds until the first poll of a generation of this age; pure.

    Args:
        age: Seconds since the submission.
        interval: Minimum seconds between two polls of one generation.
        stats: Duration statistics, if there are any.
        chance: Position within the jitter, from 0 to 1, drawn at random once per generation. If
            there is time before the first poll, the jitter is up to a whole interval wide. From
            then on, the polls of a batch that was started at once are spread evenly over the
            interval.
    """
    soonest = max(0.0, interval - age) * (1.0 + JITTER * chance)
    if stats is None:
        return soonest
    first = max(
        interval, min(_due(stats, 0.0, LAG_PER_POLL * interval), FIRST_POLL_LIMIT * stats.typical)
    )
    return max(soonest, first + chance * min(interval, first - interval) - age)


def next_delay(
    age: float, interval: float, stats: DurationStats | None, chance: float = 0.0
) -> float:
    """Return the seconds from one poll of a generation to the next; pure.

    Args:
        age: Seconds from the submission to the last poll.
        interval: Minimum seconds between two polls of one generation.
        stats: Duration statistics, if there are any.
        chance: Position within the jitter, from 0 to 1, drawn at random for each poll.
    """
    gap = interval
    if stats is not None:
        due = _due(stats, age, LAG_PER_POLL * interval) - age
        gap = min(max(interval, due), MAX_GAP_FACTOR * interval)
    return gap * (1.0 + JITTER * chance)


def _due(stats: DurationStats, since: float, threshold: float) -> float:
    """Return the age at which the lag expected since a poll at age ``since`` is worth a poll."""
    passed = bisect_right(stats.durations, since)
    left = len(stats.durations) - passed
    due, total = math.inf if left else since, 0.0
    for count, duration in enumerate(islice(stats.durations, passed, None), start=1):
        if duration >= due:
            break
        total += duration
        due = (threshold * left + total) / count
    return due


def _since_last_change(observed: list[int], samples: list[_Sample]) -> list[int]:
    """Return the observed generations from after the last sudden change of the service."""
    now = median(samples[at].waited for at in observed[:MIN_SAMPLES])
    for start in range(MIN_SAMPLES, len(observed), MIN_SAMPLES):
        older = observed[start : start + MIN_SAMPLES]
        then = median(samples[at].waited for at in older)
        if 2 * len(older) >= MIN_SAMPLES and not now / DRIFT_FACTOR <= then <= now * DRIFT_FACTOR:
            return observed[:start]
    return observed


def _scatter(ages: list[float], typical: float) -> float:
    """Return the scatter of durations, as the standard deviation of their logarithm.

    Only the upper half counts, because the first poll hides a part of the lower half. The result is
    bounded, so that a few generations that nobody polled for long do not blur the rest.
    """
    upper = ages[int(0.84 * len(ages))]
    return min(max(0.03, math.log(upper / typical)), 0.7)


def _duration(one: _Sample, interval: float, scatter: float) -> float:
    """Return the likely duration of a generation.

    The end lies half a gap before the poll that saw it. If that was the first poll, the end may lie
    anywhere before it. If the time of that poll counted as the duration, a service that becomes
    faster would look as slow as before. In the tail of a lognormal distribution, the end lies about
    half a standard deviation before. The first poll then settles where few generations end before
    it. If more of them do, it moves ahead by that share again and again.
    """
    if one.polls == 1:
        return one.waited * math.exp(-0.5 * scatter)
    return one.waited - 0.5 * min(interval, one.waited)


def _smoothed(likely: Iterable[float], count: int, scatter: float) -> tuple[float, ...]:
    """Return each duration with a neighbour on either side; a smaller sample spreads them further.

    A small sample seldom includes an early end. The distance is Silverman's rule of thumb for the
    bandwidth of a kernel, on a logarithmic scale.
    """
    factor = math.exp(scatter * count**-0.2)
    return tuple(sorted(x for one in likely for x in (one / factor, one, one * factor)))
