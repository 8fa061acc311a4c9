# SPDX-License-Identifier: Apache-2.0
"""What processes hold while time goes by, and whether that grows."""

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from statistics import median

import psutil

GROWTH = 1.03
"""How much more than early on a process may hold late; beside it, what a measure may have more."""

SLACK = {"memory, MB": 8.0, "descriptors": 3.0, "threads": 8.0, "connections": 3.0}
"""By measure: what comes and goes with the load of the moment.

Prefect has a thread for the heartbeat of each run and one for the renewal of each slot it holds.
"""


@dataclass(frozen=True)
class Trend:
    """How a measure went.

    Attributes:
        early: The median of the second quarter of the time; the first is for warming up.
        late: The median of the last quarter.
        most: The highest value.
    """

    early: float
    late: float
    most: float

    def is_flat(self, slack: float) -> bool:
        """Whether it did not grow."""
        return self.late <= max(self.early * GROWTH, self.early + slack)


def trend(values: Sequence[float]) -> Trend:
    """What a series of values, taken at even intervals, comes to; pure.

    Raises:
        ValueError: There are fewer than eight.
    """
    if len(values) < 8:
        raise ValueError(f"{len(values)} values show no trend")
    quarter = len(values) // 4
    return Trend(
        early=median(values[quarter : 2 * quarter]),
        late=median(values[-quarter:]),
        most=max(values),
    )


@dataclass
class Watch:
    """The series of all that is watched.

    Attributes:
        series: Values by who and what.
    """

    series: defaultdict[tuple[str, str], list[float]] = field(
        default_factory=lambda: defaultdict(list)
    )

    def look(self, processes: Mapping[str, psutil.Process]) -> None:
        """Take the values of some processes; of one that is gone, none."""
        for who, process in processes.items():
            with suppress(psutil.NoSuchProcess):
                values = _values(process)
                for what, value in values.items():
                    self.series[who, what].append(value)

    def note(self, who: str, what: str, value: float) -> None:
        """Take a value that somebody else found."""
        self.series[who, what].append(value)

    def trends(self) -> dict[tuple[str, str], Trend]:
        """How each measure went."""
        return {name: trend(values) for name, values in self.series.items()}

    def growing(self) -> list[str]:
        """What grew, in words."""
        return [
            f"{what} of {who} grew from {found.early:g} to {found.late:g}"
            for (who, what), found in self.trends().items()
            if not found.is_flat(SLACK[what])
        ]


def _values(process: psutil.Process) -> dict[str, float]:
    with process.oneshot():
        return {
            "memory, MB": process.memory_info().rss / 1e6,
            "descriptors": process.num_fds(),
            "threads": process.num_threads(),
        }


def child_of(process: psutil.Process, program: str) -> psutil.Process | None:
    """The child of a process that runs a program."""
    with suppress(psutil.NoSuchProcess):
        for child in process.children(recursive=True):
            if any(program in word for word in child.cmdline()):
                return child
    return None


@dataclass
class Now:
    """Actions that are due at intervals.

    Attributes:
        clock: Seconds.
    """

    clock: Callable[[], float] = time.monotonic
    _due: list[tuple[float, float, Callable[[], None]]] = field(default_factory=list)

    def every(self, seconds: float, action: Callable[[], None]) -> None:
        """Have an action carried out at this interval, for the first time after one."""
        self._due.append((self.clock() + seconds, seconds, action))

    def run_due(self) -> None:
        """Carry out what is due; what was missed meanwhile is left out."""
        for place, (at, seconds, action) in enumerate(self._due):
            if self.clock() >= at:
                action()
                on_time = at + seconds
                next_at = on_time if on_time > self.clock() else self.clock() + seconds
                self._due[place] = (next_at, seconds, action)
