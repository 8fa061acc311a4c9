# SPDX-License-Identifier: Apache-2.0
"""SQL conditions on rows of the ledger's table."""

from sqlalchemy import ColumnElement, FromClause, and_, exists, or_

from .entry import Entry, State
from .schema import generations

_table = generations.c


def has_key(key: str) -> ColumnElement[bool]:
    """Return the condition that a row has an idempotency key."""
    return _table.idempotency_key == key


def has_task_id(task_id: str, base_url: str) -> ColumnElement[bool]:
    """Return the condition that a row has a task id of the service at a base URL."""
    return and_(_table.task_id == task_id, _table.base_url == base_url)


def has_claim(claimed: Entry) -> list[ColumnElement[bool]]:
    """Return the conditions that a row still has the claim of an entry."""
    return [has_key(claimed.idempotency_key), _table.claim == claimed.claim]


def has_or_lacks_id(key: str, task_id: str, claim: str | None) -> list[ColumnElement[bool]]:
    """Return the conditions that a key has a task id, or a claim that still lacks its id.

    A row without an id and with another claim belongs to another purchase.

    Args:
        key: Idempotency key of the row.
        task_id: Task id.
        claim: Claim that received the task id.
    """
    lacks_id = and_(_table.task_id.is_(None), _table.claim == claim)
    return [has_key(key), or_(_table.task_id == task_id, lacks_id)]


def has_id_of_other_request(task_id: str, claimed: Entry) -> ColumnElement[bool]:
    """Return the condition that a row has the task id for a different request.

    In SQL, NULL never compares unequal. So a row without a fingerprint, such as that of an adopted
    id, does not match: its id may be ours.
    """
    return _has_id_of_other_request(generations, task_id, claimed)


def no_other_request_has(task_id: str, claimed: Entry) -> ColumnElement[bool]:
    """Return the condition that no row has the task id for a different request."""
    other = generations.alias()
    return ~exists().where(_has_id_of_other_request(other, task_id, claimed))


def has_unconfirmed_id(entry: Entry) -> list[ColumnElement[bool]]:
    """Return the conditions that an entry still has its unconfirmed task id."""
    bought = _table.state.in_([str(State.SUBMITTED), str(State.ABANDONED)])
    unconfirmed = [_table.task_id == entry.task_id, _table.task_id_checked.is_(False)]
    return [*has_claim(entry), bought, *unconfirmed]


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


def _has_id_of_other_request(
    table: FromClause, task_id: str, claimed: Entry
) -> ColumnElement[bool]:
    same = and_(table.c.task_id == task_id, table.c.base_url == claimed.base_url)
    other = and_(
        table.c.idempotency_key != claimed.idempotency_key,
        table.c.fingerprint != claimed.fingerprint,
    )
    return and_(same, other)
