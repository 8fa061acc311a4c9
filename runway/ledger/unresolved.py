# SPDX-License-Identifier: Apache-2.0
"""Ledger side of a reconciliation: entries without an answer, and the changes that decide them."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

from ..models.account import AccountTask
from .conditions import has_key, is_unchanged_since
from .entry import Entry, State
from .purchase import adopt_into
from .reconciliation import Account, Decision, Tolerance, period_of, reconcile
from .resubmission import outcome_is_unknown
from .schema import GENERATIONS, UNRESOLVED
from .statement import Sql
from .store import Ledger
from .table import entries_where

PURCHASES = 5
"""Number of known purchases that the account's list must contain."""

OLDEST_PURCHASE = timedelta(days=7)
"""Age from which a purchase is too old to be looked up in the account's list."""


async def unresolved_entries(ledger: Ledger, base_url: str) -> list[Entry]:
    """Return the entries with a submission whose outcome is unknown, oldest first.

    They include submissions in progress, those that were written off, and those that were allowed
    to be sent again: a task of the account may belong to any of them.
    """
    at = Sql("base_url = :base_url", {"base_url": base_url})
    query = entries_where(at, Sql(UNRESOLVED))
    return await ledger.table.fetch(query + " ORDER BY created_at")


async def known_purchases(
    ledger: Ledger, base_url: str, credentials: str | None, before: datetime
) -> list[Entry]:
    """Return the newest purchases of an account whose time of submission is known.

    Args:
        ledger: Ledger of the purchases.
        base_url: Root of the service.
        credentials: Name of the credentials block that they were bought with, or None.
        before: Time before which they were submitted.
    """
    # An expression for the URL keeps SQLite from reading all rows of a service by another index.
    bought = Sql(
        "base_url || '' = :base_url AND credentials {same} :credentials "
        "AND task_id IS NOT NULL AND task_id_checked = TRUE "
        "AND claimed_at > :since AND submitted_at < :before AND submitted_at > :since",
        {
            "base_url": base_url,
            "credentials": credentials,
            "since": before - OLDEST_PURCHASE,
            "before": before,
        },
    )
    newest = Sql(" ORDER BY submitted_at DESC LIMIT :limit", {"limit": PURCHASES})
    return await ledger.table.fetch(entries_where(bought) + newest)


async def period_to_list(
    ledger: Ledger, entries: Sequence[Entry], tolerance: Tolerance, now: datetime
) -> tuple[tuple[datetime, datetime], list[Entry]]:
    """Return the period for which to list the account's tasks, and the purchases in it.

    Args:
        ledger: Ledger of the entries.
        entries: Uncertain entries of one account, at least one.
        tolerance: Tolerance of the comparison of times.
        now: Present time.
    """
    first = entries[0]
    before = now - tolerance.delay - tolerance.slack
    purchases = await known_purchases(ledger, first.base_url, first.credentials, before)
    return period_of(entries, purchases, tolerance.slack, now), purchases


async def decide(
    ledger: Ledger, base_url: str, account: Account, tolerance: Tolerance
) -> list[tuple[Entry, Decision]]:
    """Return each uncertain entry of a service with the decision about it.

    The ledger is read after the account's list. So an id that was recorded meanwhile is known, and
    a task that was accepted meanwhile is not in the list.

    Args:
        ledger: Ledger of the entries.
        base_url: Root of the service.
        account: List of the account's tasks; its known ids are read here.
        tolerance: Tolerance of the comparison of times.
    """
    entries = await unresolved_entries(ledger, base_url)
    ids = await ledger.known_ids([task.task_id for task in account.listed.tasks])
    known = Account(
        listed=account.listed,
        known_ids={*account.known_ids, *(task_id for task_id, _ in ids)},
        purchases=account.purchases,
        models=account.models,
        routes=account.routes,
    )
    by_key = {entry.idempotency_key: entry for entry in entries}
    return [(by_key[made.idempotency_key], made) for made in reconcile(entries, known, tolerance)]


async def adopt_task(
    ledger: Ledger, seen: Entry, task: AccountTask, decision: Decision
) -> Entry | None:
    """Record a task of the account in an uncertain entry, if it is not another key's by now.

    The service must have confirmed the id before.

    Args:
        ledger: Ledger of the entry.
        seen: Entry as read for the decision; it must not have changed since.
        task: Task that the account has.
        decision: Decision, which is written into the entry as evidence.

    Returns:
        The entry with the id, or None if the entry has changed or another key has the id.
    """
    adopted = await adopt_into(ledger, seen, task.task_id, uuid4().hex)
    if adopted is None:
        return None
    key = seen.idempotency_key
    other = await ledger.find_by_task_id(task.task_id, seen.base_url, except_key=key)
    if other:  # two decisions at the same time: neither is certain any more
        await ledger.withdraw_id(adopted)
        return None
    await ledger.table.update([has_key(key)], {"evidence": decision.in_words()})
    return await ledger.confirm_id(key, task.task_id)


async def allow_resubmission(ledger: Ledger, seen: Entry, decision: Decision) -> Entry | None:
    """Allow one more submission of an entry that was not accepted; None if it has changed.

    The charge of the first submission stays counted, so a spending limit holds even if the account
    lists it after all.

    Args:
        ledger: Ledger of the entry.
        seen: Entry as read for the decision; it must not have changed since.
        decision: Decision, which is written into the entry as evidence.
    """
    if not outcome_is_unknown(seen):
        return None
    changes: dict[str, Any] = {
        "state": str(State.RESUBMIT_ALLOWED),
        "changed_at": datetime.now(UTC),
        "note": "not accepted, according to the account's list",
        "unresolved_since": None,
        "evidence": decision.in_words(),
    }
    where = [has_key(seen.idempotency_key), *is_unchanged_since(seen)]
    return await ledger.table.update(where, changes)


async def record_evidence(ledger: Ledger, seen: Entry, decision: Decision) -> None:
    """Write the evidence about an entry that stays uncertain, unless it has changed."""
    where = [has_key(seen.idempotency_key), *is_unchanged_since(seen)]
    await ledger.table.update(where, {"evidence": decision.in_words()})


async def uncertain_entries(ledger: Ledger, keys: Sequence[str] | None = None) -> list[Entry]:
    """Return the uncertain entries, oldest first; with keys, only theirs."""
    query = entries_where(Sql(f"state = '{State.UNCERTAIN}'"))
    found = await ledger.table.fetch(query + " ORDER BY created_at")
    wanted = None if keys is None else set(keys)
    return [entry for entry in found if wanted is None or entry.idempotency_key in wanted]


async def models_in_use(ledger: Ledger, base_url: str) -> set[str]:
    """Return the models of all entries of a service, with one look in the index for each."""
    first = f"SELECT min(model) FROM {GENERATIONS} WHERE base_url = :base_url"
    query = (
        f"WITH RECURSIVE known (model) AS ({first} UNION ALL SELECT ({first} "
        "AND model > known.model) FROM known WHERE known.model IS NOT NULL) "
        "SELECT model FROM known WHERE model IS NOT NULL"
    )
    rows = await ledger.database.rows(Sql(query, {"base_url": base_url}))
    return {row["model"] for row in rows}
