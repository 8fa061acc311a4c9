# SPDX-License-Identifier: Apache-2.0
"""Checks that nothing was paid twice, lost or damaged: pure functions of a snapshot."""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum


class ViolationKind(StrEnum):
    """Kinds of violations."""

    DUPLICATE = "duplicate"
    LOST = "lost"
    WRONG_FILE = "wrong file"
    PARTIAL_FILE = "partial file"
    UNTYPED = "untyped error"
    UNSETTLED = "unsettled"


@dataclass(frozen=True)
class Violation:
    """Violation of a promise, with the key or file that it concerns."""

    kind: ViolationKind
    detail: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.detail}"


@dataclass(frozen=True)
class Job:
    """Job that the service accepted and would have charged for.

    Attributes:
        task_id: Its id.
        key: Key of the generation that it was bought for.
        end: Its final state: ``stored``, ``failed`` or ``cancelled``.
        sha256: Hash of its clip at the service; empty if there is none.
    """

    task_id: str
    key: str
    end: str = "stored"
    sha256: str = ""


@dataclass(frozen=True)
class Row:
    """Ledger row of a key.

    Attributes:
        key: The key.
        state: State of the row.
        task_id: Task id of the row, if any.
        videos: File and recorded SHA-256 of each video.
        beside: Other files: posters and JSON sidecars.
    """

    key: str
    state: str
    task_id: str | None = None
    videos: Mapping[str, str] = field(default_factory=dict)
    beside: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Ending:
    """Result of one call of a flow.

    Attributes:
        key: Key of the generation.
        error: Name of the error's type; empty if the call succeeded.
        typed: Whether the error is one of the package's own.
        text: First line of the error's message.
    """

    key: str
    error: str = ""
    typed: bool = True
    text: str = ""


@dataclass(frozen=True)
class Snapshot:
    """Snapshot that the checker examines.

    Attributes:
        keys: Generations that were requested.
        jobs: Jobs that the service accepted.
        rows: All rows of the ledger.
        files: SHA-256 of every visible file of the storage; empty for a broken one.
        endings: Results of all calls of a flow, in order.
        listed: Keys that the user was shown as uncertain.
    """

    keys: Sequence[str]
    jobs: Sequence[Job]
    rows: Sequence[Row]
    files: Mapping[str, str]
    endings: Sequence[Ending]
    listed: frozenset[str]


ALLOWED_STATES = {"stored": {"stored"}, "failed": {"failed"}, "cancelled": {"cancelled", "failed"}}
"""States that the ledger may have for each end. Two of the reply shapes report a cancellation as a
failure, since they have no word for it."""

ERROR_OF = {"failed": "GenerationFailed", "cancelled": "GenerationCancelled"}
"""Error type of a flow, by the end of its generation upstream."""


def find_violations(snapshot: Snapshot, *, decided: bool = False) -> list[Violation]:
    """Return all violations.

    Args:
        snapshot: Snapshot taken when nothing was under way any more.
        decided: Whether the user has settled every uncertain generation, so that none may be left.
    """
    checks = [
        _duplicates(snapshot),
        _lost(snapshot),
        _counted(snapshot),
        _files(snapshot),
        _untyped(snapshot),
    ]
    if decided:
        checks.append(unsettled(snapshot.keys, snapshot.rows, ALLOWED_STATES))
    return [violation for check in checks for violation in check]


def _duplicates(snapshot: Snapshot) -> Iterator[Violation]:
    per_key = Counter(job.key for job in snapshot.jobs)
    for key, count in per_key.items():
        if count > 1:
            yield Violation(ViolationKind.DUPLICATE, f"{key} was accepted {count} times")


def _lost(snapshot: Snapshot) -> Iterator[Violation]:
    rows = {row.key: row for row in snapshot.rows}
    last = {ending.key: ending for ending in snapshot.endings}
    for job in snapshot.jobs:
        row = rows.get(job.key)
        which = f"{job.key}, job {job.task_id},"
        if row is None:
            yield Violation(ViolationKind.LOST, f"{which} is not in the ledger")
        elif row.task_id is None and row.state == "uncertain":
            if job.key not in snapshot.listed:
                yield Violation(
                    ViolationKind.LOST, f"{which} is uncertain and was not listed for the user"
                )
        elif row.task_id != job.task_id:
            yield Violation(ViolationKind.LOST, f"{which} has the id {row.task_id} in the ledger")
        elif row.state not in ALLOWED_STATES[job.end]:
            yield Violation(ViolationKind.LOST, f"{which} is {row.state} and not {job.end}")
        elif job.end == "stored":
            yield from _delivered(job, row, snapshot.files)
        elif job.key not in last or last[job.key].error != ERROR_OF[row.state]:
            ended = last[job.key].error if job.key in last else ""
            yield Violation(
                ViolationKind.LOST,
                f"{which} {row.state}, and its run ended as {ended or 'succeeded'}",
            )


def _delivered(job: Job, row: Row, files: Mapping[str, str]) -> Iterator[Violation]:
    if not row.videos:
        yield Violation(ViolationKind.LOST, f"{row.key} is stored, and the ledger names no file")
    yield from check_videos(row, files, job.sha256)


def check_videos(row: Row, files: Mapping[str, str], sha256: str) -> Iterator[Violation]:
    """Check that the videos of a row are in the storage, and are the clip of its job."""
    for name, recorded in row.videos.items():
        if name not in files:
            yield Violation(ViolationKind.LOST, f"{row.key}: {name} is missing")
        elif files[name] != sha256 or recorded != sha256:
            detail = f"{row.key}: {name} is not the clip of its job"
            yield Violation(ViolationKind.WRONG_FILE, detail)


def _counted(snapshot: Snapshot) -> Iterator[Violation]:
    """Check that each id in the ledger is a job of its key, and that the sums agree."""
    jobs: defaultdict[str, set[str]] = defaultdict(set)
    for job in snapshot.jobs:
        jobs[job.key].add(job.task_id)
    with_id = [row for row in snapshot.rows if row.task_id]
    for row in with_id:
        if row.task_id not in jobs[row.key]:
            yield Violation(
                ViolationKind.LOST,
                f"{row.key} has the id {row.task_id}, which is not the id of one of its jobs",
            )
    for row in snapshot.rows:
        if row.key not in snapshot.keys:
            yield Violation(
                ViolationKind.DUPLICATE, f"the ledger has {row.key}, which was never requested"
            )
    bought = sum(row.state == "uncertain" and row.key in jobs for row in snapshot.rows)
    if len(snapshot.jobs) != len(with_id) + bought:
        accepted = f"{len(snapshot.jobs)} jobs were accepted"
        known = f"{len(with_id)} ids and {bought} uncertain purchases are known"
        yield Violation(ViolationKind.LOST, f"{accepted}, {known}")


def _files(snapshot: Snapshot) -> Iterator[Violation]:
    known = {name for row in snapshot.rows for name in (*row.videos, *row.beside)}
    for name in sorted(snapshot.files.keys() - known):
        yield Violation(
            ViolationKind.PARTIAL_FILE, f"{name} is visible, and belongs to no stored generation"
        )
    for name in sorted(known - snapshot.files.keys()):
        yield Violation(ViolationKind.LOST, f"{name} is in the ledger and not in the storage")
    yield from incomplete_files(snapshot.files)


def incomplete_files(files: Mapping[str, str]) -> Iterator[Violation]:
    """Find visible files that are incomplete."""
    for name, sha256 in files.items():
        if not sha256:
            yield Violation(ViolationKind.PARTIAL_FILE, f"{name} is visible and incomplete")


def _untyped(snapshot: Snapshot) -> Iterator[Violation]:
    for ending in snapshot.endings:
        if not ending.typed:
            yield Violation(ViolationKind.UNTYPED, f"{ending.key}: {ending.error}: {ending.text}")


def unsettled(
    keys: Iterable[str], rows: Iterable[Row], settled: Collection[str]
) -> Iterator[Violation]:
    """Find keys whose rows are in none of the settled states."""
    states = {row.key: row.state for row in rows}
    for key in keys:
        if states.get(key) not in settled:
            detail = f"{key} is {states.get(key, 'not in the ledger')}"
            yield Violation(ViolationKind.UNSETTLED, detail)


def count(kind: ViolationKind, violations: Iterable[Violation]) -> int:
    """Return the number of violations of a kind."""
    return sum(violation.kind is kind for violation in violations)
