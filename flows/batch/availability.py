# SPDX-License-Identifier: Apache-2.0
"""Pause of a batch while CometAPI is not reached.

A firewall, a captive portal or an outage answers every submission alike. If all items were sent
into it, each would fail, or would be possibly charged. So after the first one, the batch sends
nothing more until CometAPI itself answers a free request, and then continues. A service that has
not answered once since the batch began is probably the wrong one, and is given up sooner.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable

from ...runway.api.polling import jittered
from ...runway.errors import CometAPIError, ServiceUnavailable, UnexpectedResponse
from ..runtime.log import logger, show_waiting
from ..steps.retries import LONGEST_DELAY, delay_before_retry

FIRST_TIMEOUT = 120.0
"""Maximum seconds of a pause before the first answer of CometAPI."""

NOT_REACHED = (ServiceUnavailable, UnexpectedResponse)
"""Errors of a request that CometAPI itself did not answer, or could not answer for now."""


class Availability:
    """Knowledge of a batch about whether CometAPI is reached.

    Args:
        ask: Sends a free request; it raises if CometAPI does not answer, or refuses.
        interval: Seconds before the first repetition of the request.
        timeout: Seconds after which a pause ends although CometAPI is not reached.
        address: Origin of the service, for messages.
    """

    def __init__(
        self,
        ask: Callable[[], Awaitable[None]],
        *,
        interval: float,
        timeout: float,
        address: str,
    ) -> None:
        self._ask = ask
        self._interval = interval
        self._timeout = timeout
        self._address = address
        self._was_reached = False
        self._lock = asyncio.Lock()
        self._reached = asyncio.Event()
        self._reached.set()
        self._asked_at: float | None = None

    def note_answer(self) -> None:
        """Record that CometAPI accepted a submission."""
        self._was_reached = True

    async def reached(self) -> None:
        """Wait until no pause is in progress."""
        await self._reached.wait()

    async def recover(self, error: CometAPIError, since: float) -> str | None:
        """Pause the batch until CometAPI answers; return the reason if it takes too long.

        Concurrent callers share one pause.

        Args:
            error: Error of the submission after which to pause.
            since: Time of the first failure of the same item, in seconds of the monotonic clock.

        Raises:
            CometAPIError: CometAPI answers the free request with a refusal.
        """
        failed_at = time.monotonic()
        async with self._lock:
            if self._asked_at is not None and self._asked_at >= failed_at:
                return None  # another caller has had an answer since
            self._reached.clear()
            try:
                return await self._pause(error, since)
            finally:
                self._reached.set()

    async def _pause(self, problem: CometAPIError, since: float) -> str | None:
        failures = 0
        timeout = self._timeout
        if not self._was_reached:
            timeout = min(timeout, FIRST_TIMEOUT)
        end = since + timeout
        while True:
            asked_at = time.monotonic()
            try:
                await self._ask()
            except NOT_REACHED as trouble:
                problem, failures = trouble, failures + 1
            else:
                if asked_at >= end:
                    return self._reason(problem, timeout)
                self._asked_at = asked_at
                self._was_reached = True
                if failures:
                    logger().info("CometAPI answers again; the batch continues")
                return None
            if time.monotonic() >= end:
                return self._reason(problem, timeout)
            show_waiting(f"paused, CometAPI is unreachable at {self._address}")
            if failures == 1:
                logger().warning(
                    "CometAPI is unreachable at %s. The batch pauses and retries for up to "
                    "%.0f s: %s",
                    self._address,
                    timeout,
                    problem.summary(),
                )
            cap = self._interval * LONGEST_DELAY
            delay = delay_before_retry(failures, problem.retry_after, self._interval, cap)
            await asyncio.sleep(min(jittered(delay), max(0.0, end - time.monotonic())))

    def _reason(self, problem: CometAPIError, timeout: float) -> str:
        return (
            f"CometAPI at {self._address} accepted nothing for {timeout:g} s: {problem.summary()}"
        )
