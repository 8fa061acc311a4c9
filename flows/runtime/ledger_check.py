# SPDX-License-Identifier: Apache-2.0
"""Comparison of a ledger with what storages know of it, before money is spent."""

import asyncio
import time
from typing import TYPE_CHECKING

from ...runway.errors import LedgerUnavailable, StorageError
from ...runway.ledger.marks import LedgerMark, ledgers_in_use, read_marks, write_mark
from . import log
from .block_storage import full_name, resolve_storage

if TYPE_CHECKING:
    from ...runway.ledger.store import Ledger

CHECK_AGAIN = 60.0
"""Seconds for which one comparison with a storage is enough for a process."""

MARK_AGAIN = 5.0
"""Seconds between two marks of one ledger in one storage, so that a batch writes few of them."""


async def check_ledger(ledger: "Ledger", storage: str) -> None:
    """See that the ledger knows every purchase that the storage knows of.

    A storage that does not answer is not compared. A second ledger that stored videos there lately
    is worth a warning: each would buy what the other one has.

    Raises:
        LedgerOutdated: The ledger is an older copy.
        LedgerUnavailable: The ledger cannot be used.
    """
    place = full_name(storage)
    last, now = ledger.history.places_checked.get(place), time.monotonic()
    if last is not None and now - last < CHECK_AGAIN:
        return
    ledger.history.places_checked[place] = now
    identity = await ledger.history.identity()
    try:
        target = await resolve_storage(storage)
        marks = await asyncio.to_thread(read_marks, target, identity)
    except StorageError:
        marks = []
    try:
        await ledger.history.check_current(marks)
    except BaseException:
        ledger.history.places_checked.pop(place, None)
        raise
    if others := ledgers_in_use(marks, identity):
        log.logger().warning("%s", other_ledgers(place, others))


def other_ledgers(place: str, others: list[LedgerMark]) -> str:
    """Return a sentence about other ledgers that store videos in the same place; pure."""
    named = ", ".join(
        f"{mark.location} on {mark.host} (last on {mark.written_at:%Y-%m-%d at %H:%M} UTC)"
        for mark in others[:3]
    )
    more = f" and {len(others) - 3} more" if len(others) > 3 else ""
    return (
        f"{place} is used with another ledger too: {named}{more}. Each ledger buys what the other "
        "one has bought already; workers of one catalogue need one COMETAPI_LEDGER_URL"
    )


async def leave_mark(ledger: "Ledger", storage: str, *, now: bool = True) -> None:
    """Write into a storage how far the ledger has come; seldom, unless it is to be ``now``.

    A mark that cannot be written only protects less, so it stops nothing.
    """
    place, moment = full_name(storage), time.monotonic()
    last = ledger.history.places_marked.get(place)
    if not now and last is not None and moment - last < MARK_AGAIN:
        return
    ledger.history.places_marked[place] = moment
    try:
        target = await resolve_storage(storage)
        await asyncio.to_thread(write_mark, target, await ledger.history.mark())
    except (StorageError, LedgerUnavailable) as error:
        log.logger().debug("No mark of the ledger in %s: %s", storage, error.what)
