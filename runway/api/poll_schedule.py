# SPDX-License-Identifier: Apache-2.0
"""When to look at a generation, learned from how long earlier ones of its kind took.

The service asks for at least five seconds between two polls of one generation. Within that, one
rule decides: a look is due once the lag that has likely built up since the last one is worth a
request. That is the best there is, for it makes the polls as dense as the square root of the
hazard; docs/polling.md derives it, and has the figures. Without earlier generations the schedule
is a fixed interval, and with them it never polls more often than that.

Everything is pure: a random number is an argument, and a deadline is the caller's to keep. All
times are in seconds.
"""

import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from statistics import median
from typing import NamedTuple

KEPT = 200
"""How many of the newest generations of a kind are looked at."""

FEWEST = 10
"""Generations that must have been watched to their end before anything is concluded from them."""

JITTER = 0.1
"""Share of a delay that is added at random, never taken away."""

WORTH = 0.025
"""Expected lag that a look is worth, as a share of the interval: an eighth of a second at 5 s."""

SPARSEST = 1.5
"""Intervals between two looks at most; it bounds the lag after the first look."""

LATEST = 0.85
"""The first look comes before this share of the typical duration, however sure the rest is.

Else nothing would be known any more of the time before it, and a slow sweep that looks once an
hour could not be told from a service that takes an hour.
"""

UNSEEN = 0.95
"""A generation that may have been out of sight for more than this share tells no duration.

Above ``LATEST``, so that what this schedule does is never taken for somebody not looking.
"""

CHANGED = 2.0
"""Generations whose typical duration differs by this factor are not of the same time."""

LONGEST = 86_400.0
"""Seconds. Nothing renders for longer than a day; whoever looked then was late."""


@dataclass(frozen=True)
class Habit:
    """What earlier generations of a kind teach.

    Attributes:
        durations: How long one may take in seconds, ascending, each as likely as the next.
        typical: How long half of them took at most, in seconds.
    """

    durations: tuple[float, ...] = field(repr=False)
    typical: float


class _Ended(NamedTuple):
    """An earlier generation: its age when its end was seen, and the longest it was out of sight."""

    waited: float
    unseen: float
    polls: int

    def watched(self) -> bool:
        return self.polls > 1 and self.unseen <= UNSEEN * self.waited


def learn(history: Sequence[tuple[float, int]], interval: float) -> Habit | None:
    """What to expect of the next generation of a kind, or None if too little is known; pure.

    Args:
        history: Seconds until the end was seen, and the polls it took, of earlier generations of
            the same kind; the newest submission first. Not the newest end first: at the end of a
            batch those are its slowest.
        interval: Least seconds between two polls of one generation.
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
        if one.watched() or one.waited <= typical  # a later first look tells nothing
    ]
    if 2 * sum(one.polls == 1 for one in telling[:FEWEST]) >= FEWEST:
        return None  # most are done before the first look, so their duration is anybody's guess
    width = _width(ages, typical)
    likely = (_duration(one, interval, width) for one in telling)
    return Habit(durations=_blurred(likely, len(telling), width), typical=typical)


def first_delay(age: float, interval: float, habit: Habit | None, chance: float = 0.0) -> float:
    """Seconds until the first poll of a generation of this age; pure.

    Args:
        age: Seconds since the submission.
        interval: Least seconds between two polls of one generation.
        habit: What earlier ones teach, if anything.
        chance: Where in its jitter it falls, from 0 to 1, drawn at random once per generation.
            Where there is time before the first look, the jitter is a whole interval wide: from
            then on a batch that was started at once is spread evenly over the interval.
    """
    soonest = max(0.0, interval - age) * (1.0 + JITTER * chance)
    if habit is None:
        return soonest
    first = max(interval, min(_due(habit, 0.0, WORTH * interval), LATEST * habit.typical))
    return max(soonest, first + chance * min(interval, first - interval) - age)


def next_delay(age: float, interval: float, habit: Habit | None, chance: float = 0.0) -> float:
    """Seconds from one poll of a generation to the next; pure.

    Args:
        age: Seconds from the submission to the last poll.
        interval: Least seconds between two polls of one generation.
        habit: What earlier ones teach, if anything.
        chance: Where in its jitter it falls, from 0 to 1, drawn at random each time.
    """
    gap = interval
    if habit is not None:
        due = _due(habit, age, WORTH * interval) - age
        gap = min(max(interval, due), SPARSEST * interval)
    return gap * (1.0 + JITTER * chance)


def _due(habit: Habit, since: float, worth: float) -> float:
    """The age at which the expected lag since the last look, at this age, is worth a look."""
    passed = bisect_right(habit.durations, since)
    left = len(habit.durations) - passed
    due, total = math.inf if left else since, 0.0
    for count, duration in enumerate(islice(habit.durations, passed, None), start=1):
        if duration >= due:
            break
        total += duration
        due = (worth * left + total) / count
    return due


def _of_this_time(watched: list[int], ended: list[_Ended]) -> list[int]:
    """Which of those that were watched are from after the last sudden change of the service."""
    now = median(ended[at].waited for at in watched[:FEWEST])
    for start in range(FEWEST, len(watched), FEWEST):
        older = watched[start : start + FEWEST]
        then = median(ended[at].waited for at in older)
        if 2 * len(older) >= FEWEST and not now / CHANGED <= then <= now * CHANGED:
            return watched[:start]
    return watched


def _width(ages: list[float], typical: float) -> float:
    """How far durations scatter, as the standard deviation of their logarithm.

    From the upper half only, because of the lower one the first look hides a part. Bounded, so
    that a few that nobody looked at for long do not blur the rest.
    """
    upper = ages[int(0.84 * len(ages))]
    return min(max(0.03, math.log(upper / typical)), 0.7)


def _duration(one: _Ended, interval: float, width: float) -> float:
    """How long a generation likely took.

    Its end lies half a gap before the poll that saw it. If that was the first poll, it may lie
    anywhere before: were that poll's own time taken for it, a service that becomes faster would
    look as slow as ever. In the tail of a lognormal distribution it lies about half a standard
    deviation before. Few such generations then balance where the first look is, and more than
    those few move it ahead by that share again and again.
    """
    if one.polls == 1:
        return one.waited * math.exp(-0.5 * width)
    return one.waited - 0.5 * min(interval, one.waited)


def _blurred(likely: Iterable[float], count: int, width: float) -> tuple[float, ...]:
    """Each duration with one beside it on either side; the fewer there are, the farther off.

    Few generations seldom include an early one. The distance is Silverman's rule of thumb for
    the bandwidth of a kernel, on a logarithmic scale.
    """
    factor = math.exp(width * count**-0.2)
    return tuple(sorted(x for one in likely for x in (one / factor, one, one * factor)))
