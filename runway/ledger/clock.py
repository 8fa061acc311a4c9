# SPDX-License-Identifier: Apache-2.0
"""Points in time on two clocks, to notice that a process was suspended.

A process, its machine or its virtual machine may be suspended without any signal. A lease that is
measured on only one clock could then expire unnoticed.
"""

import time
from typing import NamedTuple, Self

_BOOT_CLOCK = getattr(time, "CLOCK_BOOTTIME", None)


class Instant(NamedTuple):
    """Point in time on the monotonic clock and on the wall clock.

    The monotonic clock is never set; on Linux it includes the time in which the machine sleeps. The
    wall clock can be set; that happens after a pause that the machine itself did not notice.

    Attributes:
        monotonic: Seconds on the monotonic clock.
        wall: Seconds on the wall clock, since 1970.
    """

    monotonic: float
    wall: float

    @classmethod
    def now(cls) -> Self:
        """Return the current time."""
        monotonic = time.clock_gettime(_BOOT_CLOCK) if _BOOT_CLOCK else time.monotonic()
        return cls(monotonic, time.time())

    def later(self, seconds: float) -> Self:
        """Return the time that is the given number of seconds later, on both clocks."""
        return self._replace(monotonic=self.monotonic + seconds, wall=self.wall + seconds)

    def has_passed(self) -> bool:
        """Return True if the time has passed on at least one of the clocks."""
        now = Instant.now()
        return now.monotonic >= self.monotonic or now.wall >= self.wall
