# SPDX-License-Identifier: Apache-2.0
"""How much a batch does at once: generations upstream, downloads, and submissions per second.

The service limits how many generations an account has in flight, so a slot is taken before the
submission and given back when the generation has ended upstream, not when its video is stored.
Where the user has set up Prefect's global concurrency limit of the name below, the slots of all
processes are taken from it too.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from ..runtime.log import logger

IN_FLIGHT_LIMIT = "cometapi-in-flight"
"""Name of Prefect's global concurrency limit for generations that are upstream."""

SUBMISSIONS = 8
"""Submissions at a time. They take turns before each is claimed in the ledger: a claim that waits
for its turn would be in doubt for nothing if the process dies."""

SLOT_LEASE = 60.0
"""Seconds after which Prefect frees the slots of a process that was killed; the least it takes.
They are renewed while the process lives."""

_BACKLOG = 4
"""Finished generations that may wait for one download: their addresses expire, so it is few."""


def next_turn(last: float | None, now: float, per_second: float) -> float:
    """When the next request may be sent, so that there are at most so many a second; pure."""
    return now if last is None else max(now, last + 1.0 / per_second)


class Pace:
    """At most so many requests per second, evenly, first come first served."""

    def __init__(self, per_second: float | None) -> None:
        self._per_second = per_second
        self._last: float | None = None

    async def turn(self) -> None:
        """Wait for the next turn."""
        if self._per_second:
            now = time.monotonic()
            self._last = next_turn(self._last, now, self._per_second)
            await asyncio.sleep(self._last - now)


class Slot:
    """One generation's place upstream; it can be given back once, by any task."""

    def __init__(self, *give_back: Callable[[], object]) -> None:
        self._give_back = give_back

    def free(self) -> None:
        """Give the place back."""
        give_back, self._give_back = self._give_back, ()
        for action in give_back:
            action()


class Lanes:
    """What a batch does at once.

    Args:
        in_flight: Most generations upstream.
        downloads: Most downloads.
        per_second: Most submissions per second, or None.
        limit: Name of Prefect's global concurrency limit, if there is one.
    """

    def __init__(
        self, in_flight: int, downloads: int, per_second: float | None, limit: str | None = None
    ) -> None:
        self._in_flight = asyncio.Semaphore(in_flight)
        self._limit = limit
        self.open = asyncio.Semaphore(in_flight + _BACKLOG * downloads)
        self.submissions = asyncio.Semaphore(SUBMISSIONS)
        self.downloads = asyncio.Semaphore(downloads)
        self.pace = Pace(per_second)

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[Slot]:
        """A place upstream, which is given back at the end if it was not before."""
        await self._in_flight.acquire()
        slot = Slot(self._in_flight.release)
        try:
            if self._limit:
                slot = Slot(await _held(self._limit), self._in_flight.release)
            yield slot
        finally:
            slot.free()


async def _held(limit: str) -> Callable[[], object]:
    """Hold one of Prefect's slots, in a task of its own, until the result is called.

    Prefect's context manager must be left by the task that entered it.
    """
    entered, over = asyncio.Event(), asyncio.Event()

    async def hold() -> None:
        from prefect.concurrency.asyncio import concurrency

        try:
            async with concurrency(limit, lease_duration=SLOT_LEASE):
                entered.set()
                await over.wait()
        except Exception as error:  # noqa: BLE001 -- CometAPI itself refuses what is too much
            logger().warning("No slot of the limit %s: %s", limit, type(error).__name__)
        finally:
            entered.set()

    holding = asyncio.create_task(hold())
    try:
        await entered.wait()
    except BaseException:
        holding.cancel()
        raise
    _holding.add(holding)
    holding.add_done_callback(_holding.discard)
    return over.set


_holding: set[asyncio.Task[None]] = set()
"""The event loop itself keeps only weak references to tasks."""


async def limit_across_processes() -> str | None:
    """The name of the global concurrency limit, where the user has set it up."""
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound

    async with get_client() as client:
        try:
            found = await client.read_global_concurrency_limit_by_name(IN_FLIGHT_LIMIT)
        except ObjectNotFound:
            return None
    return IN_FLIGHT_LIMIT if found.active else None
