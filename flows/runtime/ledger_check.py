# SPDX-License-Identifier: Apache-2.0
"""Comparison of a ledger with the marks in storages, before money is spent.

A mark in a storage records the progress of a ledger. It reveals a ledger that is an older copy.
"""

import asyncio
import time

from ...runway.errors import LedgerUnavailable, StorageError
from ...runway.ledger.marks import LedgerMark, ledgers_in_use, read_marks, write_mark
from . import log
from .run_context import RunContext

CHECK_INTERVAL = 60.0
"""Seconds before a process compares the ledger with the same storage again."""

MARK_INTERVAL = 5.0
"""Minimum seconds between two marks of a ledger in one storage, to limit writes by a batch."""


async def check_ledger(context: RunContext) -> None:
    """Check that the ledger knows every purchase that the storage knows of.

    A storage that does not answer is skipped. If another ledger recently stored videos there, a
    warning is logged, because each ledger would buy the generations that the other already has.

    Raises:
        LedgerOutdated: The ledger is an older copy of itself.
        LedgerUnavailable: The ledger cannot be used.
    """
    ledger, location = await context.ledger(), context.location
    last, now = ledger.history.locations_checked.get(location), time.monotonic()
    if last is not None and now - last < CHECK_INTERVAL:
        return
    ledger.history.locations_checked[location] = now
    identity = await ledger.history.identity()
    try:
        target = await context.storage()
        marks = await asyncio.to_thread(read_marks, target, identity)
    except StorageError:
        marks = []
    try:
        await ledger.history.check_current(marks)
    except BaseException:
        ledger.history.locations_checked.pop(location, None)
        raise
    if others := ledgers_in_use(marks, identity):
        log.logger().warning("%s", other_ledgers(location, others))


def other_ledgers(location: str, others: list[LedgerMark]) -> str:
    """Return a warning about other ledgers that store videos in the same location; pure."""
    named = ", ".join(
        f"{mark.location} on {mark.host} (last on {mark.written_at:%Y-%m-%d at %H:%M} UTC)"
        for mark in others[:3]
    )
    more = f" and {len(others) - 3} more" if len(others) > 3 else ""
    return (
        f"{location} is also used with another ledger: {named}{more}. Each ledger buys again what "
        "the other has already bought. Set the same COMETAPI_LEDGER_URL for all workers"
    )


async def leave_mark(context: RunContext, *, now: bool = True) -> None:
    """Write a mark with the progress of the ledger into a storage.

    Unless ``now`` is set, a mark is skipped if the last one was written less than
    ``MARK_INTERVAL`` seconds ago. A mark that cannot be written reduces the protection, but it is
    not an error.
    """
    location, marked_at = context.location, time.monotonic()
    try:
        ledger = await context.ledger()
        last = ledger.history.locations_marked.get(location)
        if not now and last is not None and marked_at - last < MARK_INTERVAL:
            return
        ledger.history.locations_marked[location] = marked_at
        target = await context.storage()
        await asyncio.to_thread(write_mark, target, await ledger.history.mark())
    except (StorageError, LedgerUnavailable) as error:
        log.logger().debug(
            "Could not write the mark of the ledger in %s: %s", location, error.message
        )
