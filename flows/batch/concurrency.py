# SPDX-License-Identifier: Apache-2.0
"""Concurrency limits of a batch: generations in flight, downloads, and submissions per second.

The service limits how many generations an account has in flight. A slot is therefore acquired
before the submission. It is released when the generation has ended at the service, not when its
video is stored. If the user has created Prefect's global concurrency limit ``cometapi-in-flight``,
the slots of all processes also count against that limit.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

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


def next_send_time(last: float | None, now: float, per_second: float) -> float:
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
            self._last = next_send_time(self._last, now, self._per_second)
            await asyncio.sleep(self._last - now)


class GlobalLimit:
    """Prefect's global concurrency limit, whose slots any task may release.

    Prefect's context manager must be left by the task that entered it. Therefore each slot has a
    task of its own, which waits inside the context manager until the slot is released.

    Args:
        name: Name of the limit.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        # The event loop keeps only weak references to its tasks.
        self._tasks: set[asyncio.Task[None]] = set()

    async def acquire(self) -> Callable[[], None]:
        """Acquire a slot, and return a function that releases it.

        If Prefect grants no slot, the failure is logged and the batch continues.
        """
        granted, released = asyncio.Event(), asyncio.Event()
        task = asyncio.create_task(self._hold(granted, released))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            await granted.wait()
        except BaseException:
            task.cancel()
            raise
        return released.set

    async def _hold(self, granted: asyncio.Event, released: asyncio.Event) -> None:
        from prefect.concurrency.asyncio import concurrency

        try:
            async with concurrency(self._name, lease_duration=SLOT_LEASE):
                granted.set()
                await released.wait()
        except Exception as error:  # noqa: BLE001 -- CometAPI itself limits an account
            logger().warning(
                "The limit %s granted no slot: %s. The batch continues without it",
                self._name,
                type(error).__name__,
            )
        finally:
            granted.set()


class Slot:
    """Slot for one generation in flight.

    Any task may release it. Only the first release has an effect.
    """

    def __init__(self) -> None:
        self._releases: list[Callable[[], None]] = []

    def add(self, release: Callable[[], None]) -> None:
        """Add a function that is called when the slot is released."""
        self._releases.append(release)

    def release(self) -> None:
        """Release the slot."""
        while self._releases:
            self._releases.pop()()


class ConcurrencyLimits:
    """Concurrency limits and rate limiter of a batch.

    Args:
        in_flight: Maximum number of generations in flight.
        downloads: Maximum number of concurrent downloads.
        per_second: Maximum submissions per second, or None for no limit.
        limit: Name of Prefect's global concurrency limit, if there is one.
        apart: Seconds between an uncertain submission and the next one, for a batch whose uncertain
            submissions are looked up in the account, or None. Submissions then follow one another,
            since two that overlap cannot be told apart in the account's list.

    Attributes:
        started: Items in flight, or finished and waiting for a download.
        submissions: Submissions at the same time.
        apart: Seconds between an uncertain submission and the next one.
        downloads: Downloads at the same time.
        rate: Rate limiter of the submissions.
    """

    def __init__(
        self,
        in_flight: int,
        downloads: int,
        per_second: float | None,
        limit: str | None = None,
        apart: float | None = None,
    ) -> None:
        self._in_flight = asyncio.Semaphore(in_flight)
        self._global_limit = GlobalLimit(limit) if limit else None
        self.started = asyncio.Semaphore(in_flight + _BACKLOG * downloads)
        self.submissions = asyncio.Semaphore(SUBMISSIONS if apart is None else 1)
        self.apart = apart or 0.0
        self.downloads = asyncio.Semaphore(downloads)
        self.rate = RateLimiter(per_second)

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[Slot]:
        """Acquire a slot, and release it at the end of the block unless it is released before."""
        slot = Slot()
        try:
            await self._in_flight.acquire()
            slot.add(self._in_flight.release)
            if self._global_limit:
                slot.add(await self._global_limit.acquire())
            yield slot
        finally:
            slot.release()


@asynccontextmanager
async def all_together() -> AsyncIterator[
    Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]
]:
    """Yield a function that starts tasks; the block ends when all of them have ended.

    If one fails, or the block is cancelled, the others are cancelled. A failed one raises its own
    error, not an ``ExceptionGroup``.
    """
    running: set[asyncio.Task[None]] = set()

    def forget_if_successful(task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is None:
            running.discard(task)

    def start(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        running.add(task)
        task.add_done_callback(forget_if_successful)
        return task

    try:
        yield start
        await asyncio.gather(*running)
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def limit_across_processes(in_flight: int) -> str | None:
    """Return the name of the global concurrency limit, or None if it is missing or inactive.

    Args:
        in_flight: Maximum number of generations in flight of this run. If the limit is lower, that
            is logged, because the run would otherwise be slow for no visible reason.
    """
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound

    async with get_client() as client:
        try:
            found = await client.read_global_concurrency_limit_by_name(IN_FLIGHT_LIMIT)
        except ObjectNotFound:
            return None
    if not found.active:
        return None
    if found.limit < in_flight:
        logger().warning(
            "Prefect's global limit %s allows %d generations in flight for all batches together, "
            "and this run could have %d. To raise it: prefect-cometapi setup --limit %d",
            IN_FLIGHT_LIMIT,
            found.limit,
            in_flight,
            in_flight,
        )
    return IN_FLIGHT_LIMIT
