# SPDX-License-Identifier: Apache-2.0
"""A moment on two clocks, for time in which a process may stand still without noticing."""

import time
from typing import NamedTuple, Self

_RUNNING_CLOCK = getattr(time, "CLOCK_BOOTTIME", None)


class Moment(NamedTuple):
    """Seconds on two clocks.

    One is never set and on Linux counts a machine's sleep; the other, which people see, is
    mended after a pause that the machine itself did not notice.
    """

    running: float
    shown: float

    @classmethod
    def now(cls) -> Self:
        """This moment."""
        running = time.clock_gettime(_RUNNING_CLOCK) if _RUNNING_CLOCK else time.monotonic()
        return cls(running, time.time())

    def later(self, seconds: float) -> Self:
        """So many seconds after it."""
        return self._replace(running=self.running + seconds, shown=self.shown + seconds)

    def has_passed(self) -> bool:
        """Whether either clock says so."""
        now = Moment.now()
        return now.running >= self.running or now.shown >= self.shown
