# SPDX-License-Identifier: Apache-2.0
"""Check of the promises in the state that a random walk left: a pure function.

It compares three independent sources: the purchases that the service accepted, the rows of the
ledger, and the files in the storage. A person may allow one more submission of a key (a leave). So
a key may have been bought once, and once more for each leave that was given before.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ..fault_storm.checker import Job, Row, Violation, Wrong


@dataclass(frozen=True)
class Purchase(Job):
    """Job that the service accepted.

    Attributes:
        at: Time of acceptance, in seconds.
    """

    at: float = 0.0


@dataclass(frozen=True)
class Leave:
    """Permission to submit a key once more.

    Attributes:
        key: The key.
        at: Time of the permission, in seconds.
    """

    key: str
    at: float = 0.0


@dataclass(frozen=True)
class Left:
    """State after a random walk, once everything was settled.

    Attributes:
        keys: Every key that was requested.
        purchases: Purchases that the service accepted.
        leaves: Permissions that a person gave.
        rows: All rows of the ledger.
        files: SHA-256 of every visible file of the storage; empty for a broken one.
        untyped: Errors of other packages.
        integrity: Result of the database's own check; ``ok`` if it is sound.
        incomplete: Copies and backups that lack a purchase, in words.
    """

    keys: Sequence[str]
    purchases: Sequence[Purchase]
    leaves: Sequence[Leave]
    rows: Sequence[Row]
    files: Mapping[str, str]
    untyped: Sequence[str] = ()
    integrity: str = "ok"
    incomplete: Sequence[str] = ()


def violations(left: Left) -> list[Violation]:
    """Return all violations."""
    checks = (_duplicates, _lost, _invented, _undelivered, _half_files, _unsettled, _reported)
    return [violation for check in checks for violation in check(left)]


def doubles(left: Left) -> int:
    """Return the number of purchases beyond the first one of each key, with leave or without."""
    return sum(count - 1 for count in Counter(job.key for job in left.purchases).values())


def _times(leaves: Sequence[Leave]) -> dict[str, list[float]]:
    times: defaultdict[str, list[float]] = defaultdict(list)
    for leave in leaves:
        times[leave.key].append(leave.at)
    return times


def _by_key(left: Left) -> dict[str, list[Purchase]]:
    bought: defaultdict[str, list[Purchase]] = defaultdict(list)
    for purchase in sorted(left.purchases, key=lambda job: job.at):
        bought[purchase.key].append(purchase)
    return bought


def _duplicates(left: Left) -> Iterator[Violation]:
    """Find the purchases of a key for which no leave had been given before."""
    times = _times(left.leaves)
    for key, bought in _by_key(left).items():
        for before, purchase in enumerate(bought):
            given = sum(at <= purchase.at for at in times.get(key, ()))
            if before > given:
                told = f"{key} was accepted {before + 1} times, with {given} leaves"
                yield Violation(Wrong.DUPLICATE, told)


def _lost(left: Left) -> Iterator[Violation]:
    """Find purchases that the ledger does not record under their key.

    A second one may be under its key and id. One whose key a person had submitted again afterwards
    was given up by that person.
    """
    keys = {row.task_id: row.key for row in left.rows if row.task_id}
    times = _times(left.leaves)
    for key, bought in _by_key(left).items():
        given_up = Counter[str]()
        for purchase in bought:
            recorded = keys.get(purchase.task_id)
            is_second = recorded == f"{key}+{purchase.task_id}" and key in keys.values()
            if recorded == key or is_second:
                continue
            leaves = len(times.get(key, ()))
            given_up[key] += 1
            if given_up[key] > leaves:
                where = f"is recorded as {recorded}" if recorded else "is not in the ledger"
                yield Violation(Wrong.LOST, f"{key}, job {purchase.task_id}, {where}")


def _invented(left: Left) -> Iterator[Violation]:
    """Find ids in the ledger that the service never issued."""
    accepted = {purchase.task_id for purchase in left.purchases}
    for row in left.rows:
        if row.task_id and row.task_id not in accepted:
            yield Violation(Wrong.LOST, f"{row.key} has the id {row.task_id}, which nobody gave")


def _undelivered(left: Left) -> Iterator[Violation]:
    """Find recorded purchases that are not stored as they were served."""
    purchases = {purchase.task_id: purchase for purchase in left.purchases}
    for row in left.rows:
        purchase = purchases.get(row.task_id or "")
        if purchase is None:
            continue
        if row.state != purchase.end:
            yield Violation(Wrong.LOST, f"{row.key} is {row.state} and not {purchase.end}")
        elif purchase.end == "stored" and not row.videos:
            yield Violation(Wrong.LOST, f"{row.key} is stored, and the ledger names no file")
        for name, recorded in row.videos.items():
            if name not in left.files:
                yield Violation(Wrong.LOST, f"{row.key}: {name} is not there")
            elif left.files[name] != purchase.sha256 or recorded != purchase.sha256:
                yield Violation(Wrong.WRONG_FILE, f"{row.key}: {name} is not what was served")


def _half_files(left: Left) -> Iterator[Violation]:
    """Find visible files that are not whole, and videos that the service never served."""
    served = {purchase.sha256 for purchase in left.purchases}
    for name, sha256 in left.files.items():
        if not sha256:
            yield Violation(Wrong.HALF_FILE, f"{name} is visible and not whole")
        elif name.endswith(".mp4") and sha256 not in served:
            yield Violation(Wrong.HALF_FILE, f"{name} is not what the service served")


def _unsettled(left: Left) -> Iterator[Violation]:
    states = {row.key: row.state for row in left.rows}
    for key in left.keys:
        if states.get(key) not in {"stored", "failed"}:
            yield Violation(Wrong.UNSETTLED, f"{key} is {states.get(key, 'not in the ledger')}")


def _reported(left: Left) -> Iterator[Violation]:
    """Return the violations found during the walk, and those that the database itself reports."""
    yield from (Violation(Wrong.UNTYPED, error) for error in left.untyped)
    yield from (Violation(Wrong.LOST, copy) for copy in left.incomplete)
    if left.integrity != "ok":
        yield Violation(Wrong.LOST, f"the ledger's file is damaged: {left.integrity}")
