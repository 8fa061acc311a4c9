# SPDX-License-Identifier: Apache-2.0
"""Costs in the ledger that become known after the purchase."""

from collections.abc import Callable
from datetime import datetime
from typing import Any

from sqlalchemy import or_

from .conditions import has_key
from .costs import billed_cost, listed_cost
from .entry import CostSource, Entry, State
from .schema import generations
from .store import Ledger
from .table import ENTRIES

_table = generations.c
_ENDED = [str(state) for state in (State.STORED, State.FAILED, State.CANCELLED)]
_UNSUCCESSFUL = {State.FAILED, State.CANCELLED}

REFUNDED = "CometAPI refunded it"
FULLY_REFUNDED_BY_RUNWAY = "Runway reports 0 credits for it"


async def record_billed(ledger: Ledger, entry: Entry, amount: float) -> Entry | None:
    """Record what CometAPI charged for a task; return the entry, or None if nothing changed."""
    refund = REFUNDED if amount == 0 else ""
    return await _record(ledger, entry, lambda there: billed_cost(there, amount), refund)


async def record_listed(ledger: Ledger, entry: Entry, credits_: float) -> Entry | None:
    """Record Runway's credits for a task; return the entry, or None if nothing changed."""
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
    same = [has_key(there.idempotency_key), _table.claim == there.claim]
    unchanged = [_table.state == str(there.state), _table.charges == there.charges]
    return await ledger.table.update([*same, *unchanged], changes)


async def unbilled_entries(ledger: Ledger, since: datetime, limit: int) -> list[Entry]:
    """Return ended generations whose charge is not known yet, newest first.

    Args:
        ledger: Ledger of the generations.
        since: Time since which they were submitted.
        limit: Maximum number of entries.
    """
    billed = str(CostSource.BILLED)
    query = ENTRIES.where(
        _table.state.in_(_ENDED),
        _table.task_id.is_not(None),
        _table.submitted_at >= since,
        or_(_table.cost_source.is_(None), _table.cost_source != billed),
    )
    return await ledger.table.fetch(query.order_by(_table.submitted_at.desc()).limit(limit))
