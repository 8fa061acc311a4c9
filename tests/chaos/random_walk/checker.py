# SPDX-License-Identifier: Apache-2.0
"""Check of the promises in the state after a random walk: a pure function.

It compares three independent sources: the purchases that the service accepted, the rows of the
ledger, and the files in the storage. A user may permit one more submission of a key. So a key may
have been bought once, and once more for each permission that was given before.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ..harness.checker import (
    Job,
    Row,
    Violation,
    ViolationKind,
    check_videos,
    incomplete_files,
    unsettled,
)


@dataclass(frozen=True)
class Purchase(Job):
    """Job that the service accepted.

    Attributes:
        at: Time of acceptance, in seconds.
    """

    at: float = 0.0


@dataclass(frozen=True)
class Permission:
    """Permission to submit a key once more.

    Attributes:
        key: The key.
        at: Time of the permission, in seconds.
    """

    key: str
    at: float = 0.0


@dataclass(frozen=True)
class FinalState:
    """State after a random walk, once everything was settled.

    Attributes:
        keys: Every key that was requested.
        purchases: Purchases that the service accepted.
        permissions: Permissions that a user gave.
        rows: All rows of the ledger.
        files: SHA-256 of every visible file of the storage; empty for a broken one.
        untyped: Errors of other packages.
        integrity: Result of the database's own check; ``ok`` if it is sound.
        incomplete: Copies and backups that lack a purchase, as text.
    """

    keys: Sequence[str]
    purchases: Sequence[Purchase]
    permissions: Sequence[Permission]
    rows: Sequence[Row]
    files: Mapping[str, str]
    untyped: Sequence[str] = ()
    integrity: str = "ok"
    incomplete: Sequence[str] = ()


def find_violations(state: FinalState) -> list[Violation]:
    """Return all violations."""
    checks = (_duplicates, _lost, _unknown_ids, _undelivered, _partial_files, _unsettled, _reported)
    return [violation for check in checks for violation in check(state)]


def repeated_purchases(state: FinalState) -> int:
    """Return the number of purchases beyond the first of each key, with or without permission."""
    return sum(count - 1 for count in Counter(job.key for job in state.purchases).values())


def _times(permissions: Sequence[Permission]) -> dict[str, list[float]]:
    times: defaultdict[str, list[float]] = defaultdict(list)
    for permission in permissions:
        times[permission.key].append(permission.at)
    return times


def _by_key(state: FinalState) -> dict[str, list[Purchase]]:
    bought: defaultdict[str, list[Purchase]] = defaultdict(list)
    for purchase in sorted(state.purchases, key=lambda job: job.at):
        bought[purchase.key].append(purchase)
    return bought


def _duplicates(state: FinalState) -> Iterator[Violation]:
    """Find the purchases of a key for which no permission had been given before."""
    times = _times(state.permissions)
    for key, bought in _by_key(state).items():
        for before, purchase in enumerate(bought):
            given = sum(at <= purchase.at for at in times.get(key, ()))
            if before > given:
                detail = f"{key} was accepted {before + 1} times, with {given} permissions"
                yield Violation(ViolationKind.DUPLICATE, detail)


def _lost(state: FinalState) -> Iterator[Violation]:
    """Find purchases that the ledger does not record under their key.

    A second one may be under its key and id. A user who had a key submitted again afterwards has
    given up the earlier purchase.
    """
    keys = {row.task_id: row.key for row in state.rows if row.task_id}
    times = _times(state.permissions)
    for key, bought in _by_key(state).items():
        given_up = Counter[str]()
        for purchase in bought:
            recorded = keys.get(purchase.task_id)
            is_second = recorded == f"{key}+{purchase.task_id}" and key in keys.values()
            if recorded == key or is_second:
                continue
            permissions = len(times.get(key, ()))
            given_up[key] += 1
            if given_up[key] > permissions:
                where = f"is recorded as {recorded}" if recorded else "is not in the ledger"
                yield Violation(ViolationKind.LOST, f"{key}, job {purchase.task_id}, {where}")


def _unknown_ids(state: FinalState) -> Iterator[Violation]:
    """Find ids in the ledger that the service never issued."""
    accepted = {purchase.task_id for purchase in state.purchases}
    for row in state.rows:
        if row.task_id and row.task_id not in accepted:
            yield Violation(
                ViolationKind.LOST, f"{row.key} has the id {row.task_id}, which was never issued"
            )


def _undelivered(state: FinalState) -> Iterator[Violation]:
    """Find recorded purchases that are not stored as they were served."""
    purchases = {purchase.task_id: purchase for purchase in state.purchases}
    for row in state.rows:
        purchase = purchases.get(row.task_id or "")
        if purchase is None:
            continue
        if row.state != purchase.end:
            yield Violation(ViolationKind.LOST, f"{row.key} is {row.state} and not {purchase.end}")
        elif purchase.end == "stored" and not row.videos:
            yield Violation(
                ViolationKind.LOST, f"{row.key} is stored, and the ledger names no file"
            )
        yield from check_videos(row, state.files, purchase.sha256)


def _partial_files(state: FinalState) -> Iterator[Violation]:
    """Find visible files that are incomplete, and videos that the service never served."""
    yield from incomplete_files(state.files)
    served = {purchase.sha256 for purchase in state.purchases}
    for name, sha256 in state.files.items():
        if sha256 and name.endswith(".mp4") and sha256 not in served:
            yield Violation(ViolationKind.PARTIAL_FILE, f"{name} is not what the service served")


def _unsettled(state: FinalState) -> Iterator[Violation]:
    return unsettled(state.keys, state.rows, {"stored", "failed"})


def _reported(state: FinalState) -> Iterator[Violation]:
    """Return the violations found during the walk, and those that the database itself reports."""
    yield from (Violation(ViolationKind.UNTYPED, error) for error in state.untyped)
    yield from (Violation(ViolationKind.LOST, detail) for detail in state.incomplete)
    if state.integrity != "ok":
        yield Violation(ViolationKind.LOST, f"the ledger's file is damaged: {state.integrity}")
