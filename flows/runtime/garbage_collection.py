# SPDX-License-Identifier: Apache-2.0
"""Rarer garbage collection while a command loads its modules, and while a large batch runs.

Python looks for garbage after each few hundred new objects. Modules create a million that stay, so
these collections are a sixth of the time until a command can begin. With thousands of generations
in flight, the collector looks at hundreds of thousands of objects again and again, although nearly
all of them are still in use. docs/benchmarks.md has its share.
"""

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_USUAL = gc.get_threshold()
_WHILE_LOADING = 200_000
"""New objects before a collection while modules are loaded."""

_IN_A_BATCH = 20_000
"""New objects before a collection of the youngest ones in a batch; Python's default is 700."""

_lock = threading.Lock()
_restored: list[tuple[tuple[int, int, int], bool]] = []
"""Thresholds to restore, and whether objects were frozen before, once for each block that runs. The
collector belongs to the process."""


def pause_collections() -> None:
    """Look for garbage so seldom that the modules of a command are loaded without."""
    gc.set_threshold(_WHILE_LOADING)


def resume_collections() -> None:
    """Return to the usual collections after a pause; they skip all that was loaded until now."""
    if gc.get_threshold()[0] == _WHILE_LOADING:
        gc.freeze()
        gc.set_threshold(*_USUAL)


@contextmanager
def rarer_collections() -> Iterator[None]:
    """Collect garbage less often within the block, and leave out what existed before it.

    The last of several blocks restores the collector.
    """
    with _lock:
        before, was_frozen = gc.get_threshold(), gc.get_freeze_count() > 0
        if not _restored:
            if not was_frozen:  # else objects that other code has frozen would be thawed at the end
                gc.freeze()
            gc.set_threshold(max(_IN_A_BATCH, before[0]), *before[1:])
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
