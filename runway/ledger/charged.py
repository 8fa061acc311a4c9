# SPDX-License-Identifier: Apache-2.0
"""Entries that were or may have been charged, oldest first, read in pages of constant size."""

from collections.abc import AsyncIterator, Callable
from datetime import datetime
from typing import TYPE_CHECKING

from ..errors import LedgerCorrupted
from .entry import Entry
from .entry_rows import read_entries
from .schema import BINARY_KEY
from .statement import Sql
from .table import MAX_VALUES, entries_where

if TYPE_CHECKING:
    from .store import Ledger

_PURCHASED_AT = "coalesce(claimed_at, submitted_at, created_at)"


def purchased_at(entry: Entry) -> datetime:
    """Return the time of the latest purchase of an entry; pure.

    That is the claim just before the request was sent. An adopted generation has only the time of
    its adoption.
    """
    return entry.claimed_at or entry.submitted_at or entry.created_at


def is_uncertain(entry: Entry) -> bool:
    """Return True if a submission of an entry may have been charged or not; pure."""
    is_unknown = entry.task_id is None or not entry.task_id_checked
    return is_unknown or entry.unresolved_since is not None


async def charged_entries(
    ledger: "Ledger",
    *,
    since: datetime | None = None,
    until: datetime | None = None,
    on_corrupted: Callable[[LedgerCorrupted], None] | None = None,
) -> AsyncIterator[Entry]:
    """Yield the entries with a certain or possible charge, in the order of their creation.

    Args:
        ledger: Ledger to read.
        since: Earliest time of the purchase.
        until: Time before which it was purchased.
        on_corrupted: Called with the error of each corrupted row, which is then skipped.

    Raises:
        LedgerUnavailable: The ledger cannot be used.
        LedgerCorrupted: A row is corrupted, and ``on_corrupted`` is not given.
    """
    wanted = [Sql("charges > 0")]
    if since:
        wanted.append(Sql(f"{_PURCHASED_AT} >= :since", {"since": since}))
    if until:
        wanted.append(Sql(f"{_PURCHASED_AT} < :until", {"until": until}))
    order = Sql(f" ORDER BY created_at, {BINARY_KEY} LIMIT {MAX_VALUES}")
    last: dict[str, object] = {}
    following: list[Sql] = []
    while True:
        rows = await ledger.database.rows(entries_where(*wanted, *following) + order)
        for entry in read_entries(rows, ledger.database.redacted_url, on_corrupted):
            yield entry
        if len(rows) < MAX_VALUES:
            return
        reached = {"time": rows[-1]["created_at"], "key": rows[-1]["idempotency_key"]}
        if reached == last:  # a corrupted row that no page can follow
            return
        last = reached
        after = f"created_at >= :time AND (created_at > :time OR {BINARY_KEY} > :key)"
        following = [Sql(after, reached)]
