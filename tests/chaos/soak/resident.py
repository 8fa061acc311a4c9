# SPDX-License-Identifier: Apache-2.0
"""Long-lived process that buys generations: hours of a busy day, in minutes.

``python -m tests.chaos.soak.resident NAME PICTURES VIDEOS INTERVAL`` runs flows in one event loop
and starts one every INTERVAL seconds, at most eight at a time: single videos, batches, and
``collect``. It writes the result of each as a line of JSON. On SIGTERM it finishes the flows that
it has started.
"""

import asyncio
import json
import signal
import sys
from collections.abc import Coroutine, Iterator
from contextlib import suppress
from dataclasses import asdict
from itertools import count
from typing import Any

from prefect_cometapi.flows import acollect, agenerate_batch, aimage_to_video, avideo_to_video

from ..harness.endings import await_ending
from ..harness.sources import batch_rows, image_request, video_request

AT_ONCE = 8
ROWS = 5
"""Rows of each batch."""

EXPECTED = ("prefect_cometapi.", "prefect.", "httpx")
"""Modules whose errors are expected: this package, and Prefect while no server can be reached."""


def calls(name: str, pictures: str, videos: str) -> Iterator[tuple[str, Coroutine[Any, Any, Any]]]:
    """Yield one flow after the other, each with the key of its purchase."""
    buy_image: Any = aimage_to_video  # a flow accepts a dict as well
    buy_video: Any = avideo_to_video
    for number in count():
        key = f"{name}-{number:05}"
        if number % 30 == 29:
            yield "collect", acollect()
        elif number % 10 == 9:
            yield key, agenerate_batch(batch_rows(pictures, key, ROWS), idempotency_key=key)
        elif number % 2:
            yield key, buy_video(video_request(videos, key), idempotency_key=key)
        else:
            yield key, buy_image(image_request(pictures, key), idempotency_key=key)


async def buy_until_stopped(name: str, pictures: str, videos: str, interval: float) -> None:
    """Buy until SIGTERM, and finish the flows in progress."""
    stopped, slots = asyncio.Event(), asyncio.Semaphore(AT_ONCE)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)

    async def run(key: str, call: Coroutine[Any, Any, Any]) -> None:
        try:
            ending = await await_ending(key, call, EXPECTED)
            print(json.dumps(asdict(ending)), flush=True)
        finally:
            slots.release()

    async with asyncio.TaskGroup() as running:
        for key, call in calls(name, pictures, videos):
            await slots.acquire()
            running.create_task(run(key, call))
            with suppress(TimeoutError):
                await asyncio.wait_for(stopped.wait(), interval)
            if stopped.is_set():
                return


if __name__ == "__main__":
    own_name, pictures_url, videos_url, seconds = sys.argv[1:]
    asyncio.run(buy_until_stopped(own_name, pictures_url, videos_url, float(seconds)))
