# SPDX-License-Identifier: Apache-2.0
"""SQL conditions on rows of the ledger's table."""

from .entry import Entry, State
from .schema import GENERATIONS
from .statement import Sql, texts_in

_BOUGHT = texts_in([State.SUBMITTED, State.ABANDONED])


def has_key(key: str) -> Sql:
    """Return the condition that a row has an idempotency key."""
    return Sql("idempotency_key = :key", {"key": key})


def has_task_id(task_id: str, base_url: str) -> Sql:
    """Return the condition that a row has a task id of the service at a base URL."""
    return Sql(
        "task_id = :task_id AND base_url = :base_url", {"task_id": task_id, "base_url": base_url}
    )


def has_owner(owner: str) -> Sql:
    """Return the condition that an owner has the lease of a row."""
    return Sql("owner = :owner", {"owner": owner})


def has_claim(claimed: Entry) -> list[Sql]:
    """Return the conditions that a row still has the claim of an entry."""
    return [has_key(claimed.idempotency_key), Sql("claim = :claim", {"claim": claimed.claim})]


def has_or_lacks_id(key: str, task_id: str, claim: str | None) -> list[Sql]:
    """Return the conditions that a key has a task id, or a claim that still lacks its id.

    A row without an id and with another claim belongs to another purchase.

    Args:
        key: Idempotency key of the row.
        task_id: Task id.
        claim: Claim that received the task id.
    """
    either = "(task_id = :task_id OR (task_id IS NULL AND claim = :claim))"
    return [has_key(key), Sql(either, {"task_id": task_id, "claim": claim})]


def has_id_of_other_request(task_id: str, claimed: Entry) -> Sql:
    """Return the condition that a row has the task id for a different request.

    In SQL, NULL never compares unequal. So a row without a fingerprint, such as that of an adopted
    id, does not match: its id may be ours.
    """
    return Sql(
        "task_id = :other_id AND base_url = :other_base_url AND idempotency_key <> :other_key "
        "AND fingerprint <> coalesce(:other_fingerprint, '')",
        {
            "other_id": task_id,
            "other_base_url": claimed.base_url,
            "other_key": claimed.idempotency_key,
            "other_fingerprint": claimed.fingerprint,
        },
    )


def no_other_request_has(task_id: str, claimed: Entry) -> Sql:
    """Return the condition that no row has the task id for a different request."""
    same = has_id_of_other_request(task_id, claimed)
    return Sql(f"NOT EXISTS (SELECT 1 FROM {GENERATIONS} AS other WHERE ") + same + ")"


def has_unconfirmed_id(entry: Entry) -> list[Sql]:
    """Return the conditions that an entry still has its unconfirmed task id."""
    unconfirmed = Sql(
        f"state IN {_BOUGHT} AND task_id {{same}} :task_id AND task_id_checked = FALSE",
        {"task_id": entry.task_id},
    )
    return [*has_claim(entry), unconfirmed]


def is_unchanged_since(seen: Entry) -> list[Sql]:
    """Return the conditions that an entry has not changed since it was read."""
    where = [
        Sql(
            "state = :seen_state AND claim = :seen_claim",
            {"seen_state": str(seen.state), "seen_claim": seen.claim},
        )
    ]
    if not seen.task_id_checked:  # an id that was confirmed since must not be replaced
        where.append(Sql("task_id_checked = FALSE"))
    if seen.state is State.CLAIMED:  # a lease that was renewed since has an active owner
        where.append(has_lease_of(seen))
    return where


def has_lease_of(entry: Entry) -> Sql:
    """Return the condition that a row has the same lease as an entry that was read before."""
    return Sql("leased_until {same} :leased_until", {"leased_until": entry.leased_until})
