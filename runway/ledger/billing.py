# SPDX-License-Identifier: Apache-2.0
"""Costs in the ledger that become known after the purchase."""

from collections.abc import Callable
from datetime import datetime
from typing import Any

from .conditions import has_claim
from .costs import billed_cost, listed_cost
from .entry import CostSource, Entry, State
from .statement import Sql, texts_in
from .store import Ledger
from .table import entries_where

_ENDED = texts_in([State.STORED, State.FAILED, State.CANCELLED])
_UNSUCCESSFUL = {State.FAILED, State.CANCELLED}

REFUNDED = "CometAPI refunded it"
FULLY_REFUNDED_BY_RUNWAY = "Runway reports 0 credits for it"


async def record_billed(ledger: Ledger, entry: Entry, amount: float) -> Entry | None:
    """Record what CometAPI charged for a task; return the entry, or None if nothing changed.

    Args:
        ledger: Ledger with the entry.
        entry: Entry of the task.
        amount: US dollars that CometAPI billed for the task; 0 after a refund.

    Raises:
        LedgerUnavailable: The ledger cannot be used.
    """
    refund = REFUNDED if amount == 0 else ""
    return await _record(ledger, entry, lambda there: billed_cost(there, amount), refund)


async def record_listed(ledger: Ledger, entry: Entry, credits_: float) -> Entry | None:
    """Record Runway's credits for a task; return the entry, or None if nothing changed.

    Args:
        ledger: Ledger with the entry.
        entry: Entry of the task.
        credits_: Runway credits for the task.

    Raises:
        LedgerUnavailable: The ledger cannot be used.
    """
    refund = FULLY_REFUNDED_BY_RUNWAY if credits_ == 0 else ""
    return await _record(ledger, entry, lambda there: listed_cost(there, credits_), refund)


async def _record(
    ledger: Ledger, entry: Entry, columns: Callable[[Entry], dict[str, Any]], refund: str
) -> Entry | None:
    there = await ledger.get(entry.idempotency_key)
    if there is None or there.task_id != entry.task_id:
        return None
    changes = columns(there)
    if refund and there.state in _UNSUCCESSFUL and refund not in there.note:
        changes["note"] = "; ".join(filter(None, [there.note, refund]))
    if not changes:
        return None
    unchanged = Sql(
        "state = :seen_state AND charges = :seen_charges",
        {"seen_state": str(there.state), "seen_charges": there.charges},
    )
    return await ledger.table.update([*has_claim(there), unchanged], changes)


async def unbilled_entries(ledger: Ledger, since: datetime, limit: int) -> list[Entry]:
    """Return ended generations whose charge is not known yet, newest first.

    Args:
        ledger: Ledger of the generations.
        since: Time since which they were submitted.
        limit: Maximum number of entries.
    """
    # An expression for the state keeps SQLite from reading all ended rows by the index of states.
    unbilled = Sql(
        f"state || '' IN {_ENDED} AND task_id IS NOT NULL AND submitted_at >= :since "
        f"AND (cost_source IS NULL OR cost_source <> '{CostSource.BILLED}')",
        {"since": since},
    )
    newest = Sql(" ORDER BY submitted_at DESC LIMIT :limit", {"limit": limit})
    return await ledger.table.fetch(entries_where(unbilled) + newest)
