# SPDX-License-Identifier: Apache-2.0
"""Restoring of entries that a run works on and the ledger has lost.

Entries are lost when a standby server takes over too early, when an older copy replaces the ledger,
or when a person deletes a row.
"""

import logging
from collections.abc import Callable

from ..redact import scrub
from .conditions import has_key, has_task_id, is_unchanged_since
from .entry import Entry, is_another_purchase, is_outdated
from .entry_rows import columns_of
from .schema import NEXT_SERIAL
from .table import EntryTable, entries_where

_logger = logging.getLogger(__name__)


async def restore_entry(
    table: EntryTable, entry: Entry, warn: Callable[[str], None] = _logger.warning
) -> Entry | None:
    """Write an entry again that the ledger has lost.

    The key may belong to another purchase by now. Then the entry replaces a row that is outdated or
    free, or it is written under a new key, so that no purchase is lost.

    Args:
        table: Table of the ledger.
        entry: Entry as the run last read it.
        warn: Called with a warning that describes the loss.

    Returns:
        The entry as recorded now, possibly under a new key, or None if it was not lost.
    """
    key = scrub(entry.idempotency_key)
    task_id = entry.task_id or "not known"
    if written := await table.insert([entry]):
        warn(
            f"the ledger at {table.database.redacted_url} had lost the row of key {key!r} "
            f"(id {task_id}), and the run that works on it wrote it again; an older copy of the "
            "ledger may have been put in its place"
        )
        return written[0]
    there = await table.get(entry.idempotency_key)
    if there is None or not is_another_purchase(there, entry):
        return None
    if entry.task_id and (known := await _find(table, entry.task_id, entry.base_url)):
        return known
    if is_outdated(there, entry) and (replaced := await _replace(table, there, entry)):
        warn(f"the ledger had forgotten that key {key!r} was being bought; its id is {task_id}")
        return replaced
    return await _write_beside(table, entry, warn)


async def _find(table: EntryTable, task_id: str, base_url: str) -> Entry | None:
    same = entries_where(has_task_id(task_id, base_url))
    return await table.first(same + " ORDER BY created_at")


async def _replace(table: EntryTable, there: Entry, entry: Entry) -> Entry | None:
    """Replace an outdated row with an entry of its key; return None if the row has changed."""
    values = columns_of(entry) | {
        "attempts": max(entry.attempts, there.attempts + 1),
        "charges": max(entry.charges, there.charges + 1),
        "serial": NEXT_SERIAL,
    }
    return await table.update([has_key(entry.idempotency_key), *is_unchanged_since(there)], values)


async def _write_beside(
    table: EntryTable, entry: Entry, warn: Callable[[str], None]
) -> Entry | None:
    """Write an entry under a new key, since its own key belongs to another purchase."""
    new_key = f"{entry.idempotency_key}+{entry.task_id or entry.claim[:8]}"
    written = await table.insert([entry.model_copy(update={"idempotency_key": new_key})])
    attempt = entry.task_id or "the attempt without an answer"
    warn(
        f"key {scrub(entry.idempotency_key)!r} was submitted twice; {attempt} is recorded as "
        f"{new_key}"
    )
    return written[0] if written else await table.get(new_key)
