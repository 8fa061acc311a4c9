# SPDX-License-Identifier: Apache-2.0
"""Rarer garbage collection while a large batch runs.

With thousands of generations in flight, the collector looks at hundreds of thousands of objects
again and again, although nearly all of them are still in use. docs/benchmarks.md has its share.
"""

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_THRESHOLD = 20_000
"""New objects before a collection of the youngest ones; Python's default is 700."""

_lock = threading.Lock()
_restored: list[tuple[tuple[int, int, int], bool]] = []
"""Thresholds to restore, and whether objects were frozen before, once for each block that runs. The
collector belongs to the process."""


@contextmanager
def rarer_collections() -> Iterator[None]:
    """Collect garbage less often within the block, and leave out what existed before it.

    The last of several blocks restores the collector.
    """
    with _lock:
        before, was_frozen = gc.get_threshold(), gc.get_freeze_count() > 0
        if not _restored:
            if not was_frozen:  # else the objects of somebody else would be thawed at the end, too
                gc.freeze()
            gc.set_threshold(max(_THRESHOLD, before[0]), *before[1:])
        _restored.append(_restored[0] if _restored else (before, was_frozen))
    try:
        yield
    finally:
        with _lock:
            before, was_frozen = _restored.pop()
            if not _restored:
                gc.set_threshold(*before)
                if not was_frozen:
                    gc.unfreeze()
