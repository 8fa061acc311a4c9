# SPDX-License-Identifier: Apache-2.0
"""Removal of staged files that killed runs left behind.

A fetch runs the sweep before it stages files of its own. The sweep also covers the temporary
staging folders of this user for any other storage. The ledger is read only if complete, old files
are found. A failed sweep does no harm, because the next one finds the same files.
"""

import asyncio
import time
from pathlib import Path

from ...runway.ledger.entry import UNFINISHED
from ...runway.models.keys import file_stem
from ...runway.storage.base import Storage
from ...runway.storage.fetched import abandoned_files, remove
from ...runway.storage.folder import FolderStorage
from ...runway.storage.staging import temporary_stagings
from . import log
from .run_context import RunContext

SWEEP_INTERVAL = 600.0
"""Minimum seconds between two sweeps of one folder by one process."""

_swept: dict[Path, float] = {}
"""Time of the last sweep of each folder. Of the process, since each run has its own context."""


async def sweep_staged_files(context: RunContext, storage: Storage, staging: Path) -> None:
    """Remove staged files that certainly belong to no active run; never raise.

    Args:
        context: Context of the run.
        storage: Storage for which a fetch is about to stage files.
        staging: Staging folder of the storage.
    """
    if not _is_due(staging):
        return
    _swept[staging] = time.monotonic()
    try:
        await _sweep(context, staging)
        for folder in await asyncio.to_thread(_other_folders, storage, staging):
            await _sweep(context, folder)
    except Exception as error:  # noqa: BLE001 -- tidying up must not cost a video
        log.logger().debug("Staged files were not swept: %s", type(error).__name__)


def _is_due(folder: Path) -> bool:
    return time.monotonic() - _swept.get(folder, -SWEEP_INTERVAL) >= SWEEP_INTERVAL


def _other_folders(storage: Storage, staging: Path) -> list[Path]:
    """Return the other folders that are due for a sweep, and record them as swept."""
    folders = set(temporary_stagings())
    if isinstance(storage, FolderStorage) and staging.parent != storage.folder:
        # A file that is copied from another file system is first written to this folder.
        folders.add(storage.folder)
    due = sorted(filter(_is_due, folders))
    _swept.update(dict.fromkeys(due, time.monotonic()))
    return due


async def _sweep(context: RunContext, folder: Path) -> None:
    files = await asyncio.to_thread(abandoned_files, folder, lambda _stem: False)
    if any(file.reusable for file in files):
        needed = await _stems_not_stored(context)

        def is_needed(stem: str) -> bool:
            return stem in needed or stem.rpartition("-")[0] in needed

        files = await asyncio.to_thread(abandoned_files, folder, is_needed)
    if files:
        removed = await asyncio.to_thread(remove, folder, files)
        log.logger().info("Removed %d staged files that killed runs left behind", removed)


async def _stems_not_stored(context: RunContext) -> set[str]:
    """Return the file names, without suffix, of generations that are bought but not stored.

    Raises:
        LedgerUnavailable: The ledger, or one of its entries, cannot be read.
    """
    ledger = await context.ledger()
    unfinished = [entry.submission() for entry in await ledger.entries(states=UNFINISHED)]
    return {file_stem(each.idempotency_key, each.task_id, each.submitted_at) for each in unfinished}
