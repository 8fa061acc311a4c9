# SPDX-License-Identifier: Apache-2.0
"""Cohort of generations of one kind that a run waits for together, while their duration is unknown.

Nothing is known about the duration of a new kind. But the first generations of a batch show when
the others can end: a few scouts are polled at the fixed interval, and until some generations have
been seen to end, most polls of the others would find a generation that is still being rendered.
These polls wait, for a bounded time. As soon as ends are seen, polls that can find one are due.

The decisions are pure. All times are in seconds. docs/polling.md has the figures.
"""

from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass, field

SCOUTS = 20
"""Number of generations that are polled at the fixed interval before any other poll can wait.

A smaller batch has only scouts, so its polls do not change.
"""

SCOUT_EVERY = 20
"""Distance between further scouts, so that a large batch notices early ends sooner than a small
one."""

MIN_ENDS = 2
"""Number of ends that must be seen at an age before polls are due there. One alone may be a video
that the service had in its cache."""

MAX_GAP = 5.0
"""Number of intervals without a poll after which a due poll no longer waits. A poll that waits is
decided again within half an interval, so no gap is longer than 5.5 intervals."""


def is_scout(position: int) -> bool:
    """Return whether the generation that joins a cohort at a position, from 0, is a scout; pure."""
    return position < SCOUTS or position % SCOUT_EVERY == 0


def recheck_delay(interval: float, chance: float) -> float:
    """Return the seconds after which a poll that waits is decided again; pure.

    Random delays spread the polls of a batch that was started at once.

    Args:
        interval: Minimum seconds between two polls of one generation.
        chance: Random number from 0 to 1.
    """
    return 0.5 * interval * chance


def can_wait(age: float, unobserved: float, interval: float, ends: Sequence[float]) -> bool:
    """Return whether the due poll of a generation can wait, as it probably finds no end; pure.

    Args:
        age: Seconds since the submission.
        unobserved: Seconds since the last poll, or since the submission if there was none.
        interval: Minimum seconds between two polls of one generation.
        ends: Lowest ages at which ends were seen, ascending.
    """
    if unobserved >= MAX_GAP * interval:
        return False
    # An end is seen up to one interval after it happened.
    return len(ends) < MIN_ENDS or age < ends[MIN_ENDS - 1] - interval


@dataclass
class Cohort:
    """Generations of one kind that a run waits for together.

    Attributes:
        size: Number of generations that have joined.
        ends: Lowest ages at which ends were seen, ascending, at most ``MIN_ENDS``.
    """

    size: int = 0
    ends: list[float] = field(default_factory=list)

    def join(self) -> bool:
        """Add a generation, and return whether it is a scout."""
        self.size += 1
        return is_scout(self.size - 1)

    def add_end(self, age: float, unobserved: float, interval: float) -> None:
        """Note that the success of a generation was seen.

        An end that nobody could have seen for longer than a poll can wait, such as one that
        happened before this process started, may have been at any age.

        Args:
            age: Seconds from the submission to the poll that saw it.
            unobserved: Seconds from the poll before, or from the submission, to that poll.
            interval: Minimum seconds between two polls of one generation.
        """
        is_late = unobserved > (MAX_GAP + 2.0) * interval
        insort(self.ends, 0.0 if is_late else age)
        del self.ends[MIN_ENDS:]

    def can_wait(self, age: float, unobserved: float, interval: float) -> bool:
        """Return whether a due poll of a generation that is not a scout can wait."""
        return can_wait(age, unobserved, interval, self.ends)
