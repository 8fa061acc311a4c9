# SPDX-License-Identifier: Apache-2.0
"""SQL conditions on rows of the ledger's table."""

from sqlalchemy import ColumnElement, FromClause, and_

from .entry import Entry, State
from .schema import generations

_table = generations.c


def has_id_of_other_request(table: FromClause, task_id: str, claimed: Entry) -> ColumnElement[bool]:
    """Return the condition that a row has the task id for a different request.

    In SQL, NULL never compares unequal. So a row without a fingerprint, such as that of an adopted
    id, does not match: its id may be ours.
    """
    same = and_(table.c.task_id == task_id, table.c.base_url == claimed.base_url)
    other = and_(
        table.c.idempotency_key != claimed.idempotency_key,
        table.c.fingerprint != claimed.fingerprint,
    )
    return and_(same, other)


def has_unconfirmed_id(entry: Entry) -> list[ColumnElement[bool]]:
    """Return the conditions that an entry still has its unconfirmed task id."""
    bought = _table.state.in_([str(State.SUBMITTED), str(State.ABANDONED)])
    same = [_table.idempotency_key == entry.idempotency_key, _table.claim == entry.claim, bought]
    return [*same, _table.task_id == entry.task_id, _table.task_id_checked.is_(False)]


def is_unchanged_since(seen: Entry) -> list[ColumnElement[bool]]:
    """Return the conditions that an entry has not changed since it was read."""
    where = [_table.state == str(seen.state), _table.claim == seen.claim]
    if not seen.task_id_checked:  # an id that was confirmed since must not be replaced
        where.append(_table.task_id_checked.is_(False))
    if seen.state is State.CLAIMED:  # a lease that was renewed since has an active owner
        where.append(has_lease_of(seen))
    return where


def has_lease_of(entry: Entry) -> ColumnElement[bool]:
    """Return the condition that a row has the same lease as an entry that was read before."""
    return _table.leased_until.is_not_distinct_from(entry.leased_until)
