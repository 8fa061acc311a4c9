# SPDX-License-Identifier: Apache-2.0
"""Concurrency limits of a batch: generations in flight, downloads, and submissions per second.

The service limits how many generations an account has in flight. A slot is therefore acquired
before the submission. It is released when the generation has ended at the service, not when its
video is stored. If the user has created Prefect's global concurrency limit ``cometapi-in-flight``,
the slots of all processes also count against that limit.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from ..runtime.log import logger

IN_FLIGHT_LIMIT = "cometapi-in-flight"
"""Name of Prefect's global concurrency limit for generations in flight."""

SUBMISSIONS = 8
"""Maximum number of concurrent submissions.

A submission waits for its slot before it writes its claim to the ledger. If it waited with a claim
and the process died, the generation would be uncertain although nothing was sent.
"""

SLOT_LEASE = 60.0
"""Seconds after which Prefect releases the slots of a process that was killed.

This is the minimum that Prefect accepts. The lease is renewed while the process is alive.
"""

_BACKLOG = 4
"""Finished generations that may wait per download slot; few, because their URLs expire."""


def next_turn(last: float | None, now: float, per_second: float) -> float:
    """Return the time at which the next request may be sent; pure.

    Args:
        last: Time of the last request, or None before the first one.
        now: Current time in seconds, on the same clock.
        per_second: Maximum requests per second.
    """
    return now if last is None else max(now, last + 1.0 / per_second)


class RateLimiter:
    """Rate limiter that spaces requests evenly, in the order of arrival.

    Args:
        per_second: Maximum requests per second, or None for no limit.
    """

    def __init__(self, per_second: float | None) -> None:
        self._per_second = per_second
        self._last: float | None = None

    async def acquire(self) -> None:
        """Wait until the next request may be sent."""
        if self._per_second:
            now = time.monotonic()
            self._last = next_turn(self._last, now, self._per_second)
            await asyncio.sleep(self._last - now)


class Slot:
    """Slot for one generation in flight.

    Any task may release it. Only the first release has an effect.
    """

    def __init__(self, *give_back: Callable[[], object]) -> None:
        self._give_back = give_back

    def free(self) -> None:
        """Release the slot."""
        give_back, self._give_back = self._give_back, ()
        for action in give_back:
            action()


class ConcurrencyLimits:
    """Concurrency limits and rate limiter of a batch.

    Args:
        in_flight: Maximum number of generations in flight.
        downloads: Maximum number of concurrent downloads.
        per_second: Maximum submissions per second, or None for no limit.
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
        self.pace = RateLimiter(per_second)

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[Slot]:
        """Acquire a slot, and release it at the end of the block unless it is released before."""
        await self._in_flight.acquire()
        slot = Slot(self._in_flight.release)
        try:
            if self._limit:
                slot = Slot(await _held(self._limit), self._in_flight.release)
            yield slot
        finally:
            slot.free()


async def _held(limit: str) -> Callable[[], object]:
    """Acquire one of Prefect's slots, and return a function that releases it.

    A separate task has the slot, because Prefect's context manager must be left by the task that
    entered it. If Prefect grants no slot, the failure is logged and the batch continues.
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
"""Strong references to the tasks with a slot; the event loop keeps only weak ones."""


async def limit_across_processes() -> str | None:
    """Return the name of the global concurrency limit, or None if it is missing or inactive."""
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound

    async with get_client() as client:
        try:
            found = await client.read_global_concurrency_limit_by_name(IN_FLIGHT_LIMIT)
        except ObjectNotFound:
            return None
    return IN_FLIGHT_LIMIT if found.active else None
