# SPDX-License-Identifier: Apache-2.0
"""Measurement of the resources of processes over time, and of their growth."""

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from statistics import median

import psutil

GROWTH = 1.03
"""Highest ratio of a late value to an early one that does not count as growth."""

SLACK = {"memory, MB": 8.0, "descriptors": 3.0, "threads": 8.0, "connections": 3.0}
"""Allowance per measure for changes with the current load; a smaller difference is no growth.

Prefect has a thread for the heartbeat of each run and one for the renewal of each slot it holds.
"""


@dataclass(frozen=True)
class Trend:
    """Trend of one measure.

    Attributes:
        early: Median of the second quarter of the time; the first quarter is for warming up.
        late: Median of the last quarter.
        highest: Highest value.
    """

    early: float
    late: float
    highest: float

    def is_flat(self, slack: float) -> bool:
        """Return whether the measure did not grow."""
        return self.late <= max(self.early * GROWTH, self.early + slack)


def trend(values: Sequence[float]) -> Trend:
    """Return the trend of values that were taken at even intervals; pure.

    Raises:
        ValueError: There are fewer than eight.
    """
    if len(values) < 8:
        raise ValueError(f"{len(values)} values show no trend")
    quarter = len(values) // 4
    return Trend(
        early=median(values[quarter : 2 * quarter]),
        late=median(values[-quarter:]),
        highest=max(values),
    )


@dataclass
class ResourceMonitor:
    """Series of all measurements.

    Attributes:
        series: Values by process and measure.
    """

    series: defaultdict[tuple[str, str], list[float]] = field(
        default_factory=lambda: defaultdict(list)
    )

    def measure(self, processes: Mapping[str, psutil.Process]) -> None:
        """Measure some processes; skip those that are gone."""
        for owner, process in processes.items():
            with suppress(psutil.NoSuchProcess):
                values = _values(process)
                for resource, value in values.items():
                    self.series[owner, resource].append(value)

    def record(self, owner: str, resource: str, value: float) -> None:
        """Record a value that was measured elsewhere."""
        self.series[owner, resource].append(value)

    def trends(self) -> dict[tuple[str, str], Trend]:
        """Return the trend of each measure."""
        return {name: trend(values) for name, values in self.series.items()}

    def growing(self) -> list[str]:
        """Describe the resources that grew."""
        return [
            f"{resource} of {owner} grew from {change.early:g} to {change.late:g}"
            for (owner, resource), change in self.trends().items()
            if not change.is_flat(SLACK[resource])
        ]


def _values(process: psutil.Process) -> dict[str, float]:
    with process.oneshot():
        return {
            "memory, MB": process.memory_info().rss / 1e6,
            "descriptors": process.num_fds(),
            "threads": process.num_threads(),
        }


def child_of(process: psutil.Process, program: str) -> psutil.Process | None:
    """Return the child of a process that runs a program."""
    with suppress(psutil.NoSuchProcess):
        for child in process.children(recursive=True):
            if any(program in word for word in child.cmdline()):
                return child
    return None


@dataclass
class Scheduler:
    """Scheduler of actions at intervals.

    Attributes:
        clock: Returns the time in seconds.
    """

    clock: Callable[[], float] = time.monotonic
    _due: list[tuple[float, float, Callable[[], None]]] = field(default_factory=list)

    def every(self, seconds: float, action: Callable[[], None]) -> None:
        """Schedule an action at an interval, for the first time after one interval."""
        self._due.append((self.clock() + seconds, seconds, action))

    def run_due(self) -> None:
        """Run the actions that are due; skip those that were missed meanwhile."""
        for index, (at, seconds, action) in enumerate(self._due):
            if self.clock() >= at:
                action()
                on_time = at + seconds
                next_at = on_time if on_time > self.clock() else self.clock() + seconds
                self._due[index] = (next_at, seconds, action)
