# SPDX-License-Identifier: Apache-2.0
"""Cache of clips, so that each is rendered once for all jobs that need it."""

from collections import OrderedDict
from concurrent.futures import Future
from dataclasses import replace
from hashlib import sha256
from threading import Lock

from .render import Recipe, render
from .sources import source_bytes

CAPACITY = 128 * 2**20
"""Bytes of finished clips to keep for later jobs."""


class ClipStore:
    """Finished clips by content of the request; the least recently used are dropped first.

    Args:
        capacity: Bytes of finished clips to keep.
    """

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._capacity = capacity
        self._clips: OrderedDict[tuple[Recipe, str], Future[bytes]] = OrderedDict()
        self._lock = Lock()

    def clip(self, recipe: Recipe) -> bytes:
        """Return the MP4 of `recipe`, rendered now, earlier, or by another thread at this moment.

        Raises:
            InvalidSourceError: The source is not a picture or a video.
        """
        source = source_bytes(recipe.uri)
        key = _key(recipe, source)
        promise, mine = self._claim(key)
        if mine:
            try:
                promise.set_result(render(recipe, source))
            except BaseException as error:  # noqa: BLE001 - whoever waits for it has to hear of it
                self._forget(key)
                promise.set_exception(error)
            self._trim()
        return promise.result()

    def _claim(self, key: tuple[Recipe, str]) -> tuple[Future[bytes], bool]:
        with self._lock:
            if key in self._clips:
                self._clips.move_to_end(key)
                return self._clips[key], False
            self._clips[key] = Future()
            return self._clips[key], True

    def _forget(self, key: tuple[Recipe, str]) -> None:
        with self._lock:
            self._clips.pop(key, None)

    def _trim(self) -> None:
        with self._lock:
            finished = {key: clip for key, clip in self._clips.items() if clip.done()}
            held = sum(len(clip.result()) for clip in finished.values())
            for key, clip in finished.items():
                if held <= self._capacity:
                    return
                held -= len(clip.result())
                del self._clips[key]


def _key(recipe: Recipe, source: bytes | None) -> tuple[Recipe, str]:
    """Return the cache key of a clip.

    A source that could be read is identified by its bytes, as its address does not affect the clip.
    """
    if source is None:
        return recipe, "drawn"
    return replace(recipe, uri=""), sha256(source).hexdigest()


CLIPS = ClipStore()
"""Cache of the whole process, because tests start many sandboxes that render the same clips."""
