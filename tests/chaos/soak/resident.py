# SPDX-License-Identifier: Apache-2.0
"""Long-lived process that buys generations: hours of a busy day, in minutes.

``python -m tests.chaos.soak.resident NAME PICTURE VIDEO PACE`` runs flows in one event loop and
starts one every PACE seconds, at most eight at a time: single videos, batches, and ``collect``. It
writes the result of each as a line of JSON. On SIGTERM it finishes the flows that it has started.
"""

import asyncio
import json
import signal
import sys
from collections.abc import Coroutine, Iterator
from contextlib import suppress
from itertools import count
from typing import Any

from prefect_cometapi.flows import acollect, agenerate_batch, aimage_to_video, avideo_to_video
from prefect_cometapi.runway.errors import CometAPIError

from .wanted import image_request, rows, video_request

AT_ONCE = 8
ROWS = 5
"""Rows of each batch."""

PROMISED = ("prefect_cometapi.", "prefect.", "httpx")
"""Modules whose errors are expected: this package, and Prefect whose server cannot be reached."""


def orders(name: str, picture: str, video: str) -> Iterator[tuple[str, Coroutine[Any, Any, Any]]]:
    """Yield one flow after the other, each with the key of its purchase."""
    buy_image: Any = aimage_to_video  # they take dicts, too
    buy_video: Any = avideo_to_video
    for number in count():
        key = f"{name}-{number:05}"
        if number % 30 == 29:
            yield "collect", acollect()
        elif number % 10 == 9:
            yield key, agenerate_batch(rows(picture, key, ROWS), idempotency_key=key)
        elif number % 2:
            yield key, buy_video(video_request(video, key), idempotency_key=key)
        else:
            yield key, buy_image(image_request(picture, key), idempotency_key=key)


async def ended(key: str, flow: Coroutine[Any, Any, Any]) -> dict[str, Any]:
    """Return the result of a flow."""
    try:
        await flow
    except CometAPIError as error:
        return {"key": key, "error": type(error).__name__, "text": error.message}
    except Exception as error:  # noqa: BLE001 -- which it is, is looked at
        known = type(error).__module__.startswith(PROMISED)
        return {"key": key, "error": type(error).__name__, "text": str(error)[:300], "typed": known}
    return {"key": key}


async def live(name: str, picture: str, video: str, pace: float) -> None:
    """Buy until SIGTERM, and finish the flows in progress."""
    stopped, slots = asyncio.Event(), asyncio.Semaphore(AT_ONCE)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)

    async def take(key: str, flow: Coroutine[Any, Any, Any]) -> None:
        try:
            print(json.dumps(await ended(key, flow)), flush=True)
        finally:
            slots.release()

    async with asyncio.TaskGroup() as running:
        for key, flow in orders(name, picture, video):
            await slots.acquire()
            running.create_task(take(key, flow))
            with suppress(TimeoutError):
                await asyncio.wait_for(stopped.wait(), pace)
            if stopped.is_set():
                return


if __name__ == "__main__":
    given_name, given_picture, given_video, given_pace = sys.argv[1:]
    asyncio.run(live(given_name, given_picture, given_video, float(given_pace)))
