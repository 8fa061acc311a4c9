# SPDX-License-Identifier: Apache-2.0
"""Poll schedule, learned from the durations of earlier generations of the same kind.

The service asks for at least five seconds between two polls of one generation. Above that minimum,
one rule decides: a poll is due once the lag that has probably built up since the last one is worth
a request. This is optimal, because it makes the polls as dense as the square root of the hazard;
docs/polling.md derives it and has the figures. Without earlier generations the schedule is a fixed
interval, and with them it never polls more often than that.

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

KEPT = 200
"""Maximum number of the newest generations of a kind that are used."""

FEWEST = 10
"""Minimum number of generations that were observed to their end before anything is concluded from
them."""

JITTER = 0.1
"""Maximum share of a delay that is added at random. Nothing is ever subtracted."""

WORTH = 0.025
"""Expected lag that is worth a poll, as a share of the interval: 0.125 s at an interval of 5 s."""

SPARSEST = 1.5
"""Maximum number of intervals between two polls. It bounds the lag after the first poll."""

LATEST = 0.85
"""Share of the typical duration before which the first poll is due, however certain the rest is.

Otherwise nothing would be learned about the time before the first poll, and a slow collector that
polls once an hour could not be told apart from a service that takes an hour.
"""

UNSEEN = 0.95
"""Maximum share of its age for which a generation may go unobserved and still teach a duration.

It is above ``LATEST``, so that the gap before this schedule's own first poll never counts as a
generation that nobody polled.
"""

CHANGED = 2.0
"""Factor between two typical durations above which the service counts as changed."""

LONGEST = 86_400.0
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


class _Ended(NamedTuple):
    """Earlier generation: its age when its end was seen, its longest unobserved time, its polls."""

    waited: float
    unseen: float
    polls: int

    def watched(self) -> bool:
        return self.polls > 1 and self.unseen <= UNSEEN * self.waited


def learn(history: Sequence[tuple[float, int]], interval: float) -> DurationStats | None:
    """Return the duration statistics of a kind of generation, or None if too little is known; pure.

    Args:
        history: Seconds until the end was seen, and number of polls, of earlier generations of the
            same kind, newest submission first. The newest end must not come first: at the end of a
            batch, those are its slowest generations.
        interval: Minimum seconds between two polls of one generation.
    """
    ended = [
        _Ended(waited, max(0.0, waited - (polls - 1) * interval), polls)
        for waited, polls in history[:KEPT]
        if 0.0 < waited <= LONGEST and polls >= 1
    ]
    watched = [at for at, one in enumerate(ended) if one.watched()]
    if len(watched) < FEWEST:
        return None
    watched = _of_this_time(watched, ended)
    ages = sorted(ended[at].waited for at in watched)
    typical = median(ages)
    telling = [
        one
        for one in ended[: watched[-1] + 1]
        if one.watched() or one.waited <= typical  # a late first poll teaches nothing
    ]
    if 2 * sum(one.polls == 1 for one in telling[:FEWEST]) >= FEWEST:
        return None  # too many end before the first poll, so their durations are unknown
    width = _width(ages, typical)
    likely = (_duration(one, interval, width) for one in telling)
    return DurationStats(durations=_blurred(likely, len(telling), width), typical=typical)


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
    first = max(interval, min(_due(stats, 0.0, WORTH * interval), LATEST * stats.typical))
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
        due = _due(stats, age, WORTH * interval) - age
        gap = min(max(interval, due), SPARSEST * interval)
    return gap * (1.0 + JITTER * chance)


def _due(stats: DurationStats, since: float, worth: float) -> float:
    """Return the age at which the lag expected since a poll at age ``since`` is worth a poll."""
    passed = bisect_right(stats.durations, since)
    left = len(stats.durations) - passed
    due, total = math.inf if left else since, 0.0
    for count, duration in enumerate(islice(stats.durations, passed, None), start=1):
        if duration >= due:
            break
        total += duration
        due = (worth * left + total) / count
    return due


def _of_this_time(watched: list[int], ended: list[_Ended]) -> list[int]:
    """Return the observed generations from after the last sudden change of the service."""
    now = median(ended[at].waited for at in watched[:FEWEST])
    for start in range(FEWEST, len(watched), FEWEST):
        older = watched[start : start + FEWEST]
        then = median(ended[at].waited for at in older)
        if 2 * len(older) >= FEWEST and not now / CHANGED <= then <= now * CHANGED:
            return watched[:start]
    return watched


def _width(ages: list[float], typical: float) -> float:
    """Return the scatter of durations, as the standard deviation of their logarithm.

    Only the upper half counts, because the first poll hides a part of the lower half. The result is
    bounded, so that a few generations that nobody polled for long do not blur the rest.
    """
    upper = ages[int(0.84 * len(ages))]
    return min(max(0.03, math.log(upper / typical)), 0.7)


def _duration(one: _Ended, interval: float, width: float) -> float:
    """Return the likely duration of a generation.

    The end lies half a gap before the poll that saw it. If that was the first poll, the end may lie
    anywhere before it. If the time of that poll counted as the duration, a service that becomes
    faster would look as slow as before. In the tail of a lognormal distribution, the end lies about
    half a standard deviation before. The first poll then settles where few generations end before
    it. If more of them do, it moves ahead by that share again and again.
    """
    if one.polls == 1:
        return one.waited * math.exp(-0.5 * width)
    return one.waited - 0.5 * min(interval, one.waited)


def _blurred(likely: Iterable[float], count: int, width: float) -> tuple[float, ...]:
    """Return each duration with a neighbour on either side; a smaller sample spreads them further.

    A small sample seldom includes an early end. The distance is Silverman's rule of thumb for the
    bandwidth of a kernel, on a logarithmic scale.
    """
    factor = math.exp(width * count**-0.2)
    return tuple(sorted(x for one in likely for x in (one / factor, one, one * factor)))
