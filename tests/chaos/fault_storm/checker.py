# SPDX-License-Identifier: Apache-2.0
"""Check for anything that was paid twice, lost or spoilt: a pure function of a snapshot."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum


class Wrong(StrEnum):
    """Kinds of violations."""

    DUPLICATE = "duplicate"
    LOST = "lost"
    WRONG_FILE = "wrong file"
    HALF_FILE = "half file"
    UNTYPED = "untyped error"
    UNSETTLED = "unsettled"


@dataclass(frozen=True)
class Violation:
    """Violation of a promise, and the key or file that it concerns."""

    wrong: Wrong
    what: str

    def __str__(self) -> str:
        return f"{self.wrong}: {self.what}"


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
        beside: Other files: posters and descriptions.
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
class Found:
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


TOLD_AS = {"stored": {"stored"}, "failed": {"failed"}, "cancelled": {"cancelled", "failed"}}
"""States that the ledger may have for each end. Two of the reply shapes have no word for a
cancellation and report it as a failure."""

ERROR_OF = {"failed": "GenerationFailed", "cancelled": "GenerationCancelled"}
"""Error type of a flow, by the end of its generation upstream."""


def violations(found: Found, *, decided: bool = False) -> list[Violation]:
    """Return all violations.

    Args:
        found: Snapshot taken when nothing was under way any more.
        decided: Whether the user has settled every uncertain generation, so that none may be left.
    """
    checks = [_duplicates(found), _lost(found), _counted(found), _files(found), _untyped(found)]
    if decided:
        checks.append(_unsettled(found))
    return [violation for check in checks for violation in check]


def _duplicates(found: Found) -> Iterator[Violation]:
    per_key = Counter(job.key for job in found.jobs)
    for key, count in per_key.items():
        if count > 1:
            yield Violation(Wrong.DUPLICATE, f"{key} was accepted {count} times")


def _lost(found: Found) -> Iterator[Violation]:
    rows = {row.key: row for row in found.rows}
    last = {ending.key: ending for ending in found.endings}
    for job in found.jobs:
        row = rows.get(job.key)
        which = f"{job.key}, job {job.task_id},"
        if row is None:
            yield Violation(Wrong.LOST, f"{which} is not in the ledger")
        elif row.task_id is None and row.state == "uncertain":
            if job.key not in found.listed:
                yield Violation(Wrong.LOST, f"{which} is uncertain and the user was not told")
        elif row.task_id != job.task_id:
            yield Violation(Wrong.LOST, f"{which} has the id {row.task_id} in the ledger")
        elif row.state not in TOLD_AS[job.end]:
            yield Violation(Wrong.LOST, f"{which} is {row.state} and not {job.end}")
        elif job.end == "stored":
            yield from _delivered(job, row, found.files)
        elif job.key not in last or last[job.key].error != ERROR_OF[row.state]:
            ended = last[job.key].error if job.key in last else ""
            yield Violation(Wrong.LOST, f"{which} {row.state}, and its run ended {ended or 'well'}")


def _delivered(job: Job, row: Row, files: Mapping[str, str]) -> Iterator[Violation]:
    if not row.videos:
        yield Violation(Wrong.LOST, f"{job.key} is stored, and the ledger names no file")
    for name, recorded in row.videos.items():
        if name not in files:
            yield Violation(Wrong.LOST, f"{job.key}: {name} is not there")
        elif files[name] != job.sha256 or recorded != job.sha256:
            yield Violation(Wrong.WRONG_FILE, f"{job.key}: {name} is not the clip of its job")


def _counted(found: Found) -> Iterator[Violation]:
    """Check that each id in the ledger is a job of its key, and that the sums agree."""
    jobs: defaultdict[str, set[str]] = defaultdict(set)
    for job in found.jobs:
        jobs[job.key].add(job.task_id)
    with_id = [row for row in found.rows if row.task_id]
    for row in with_id:
        if row.task_id not in jobs[row.key]:
            yield Violation(
                Wrong.LOST, f"{row.key} has the id {row.task_id}, which is no job of it"
            )
    for row in found.rows:
        if row.key not in found.keys:
            yield Violation(Wrong.DUPLICATE, f"the ledger has {row.key}, which nobody asked for")
    bought = sum(row.state == "uncertain" and row.key in jobs for row in found.rows)
    if len(found.jobs) != len(with_id) + bought:
        accepted = f"{len(found.jobs)} jobs were accepted"
        known = f"{len(with_id)} ids and {bought} uncertain purchases are known"
        yield Violation(Wrong.LOST, f"{accepted}, {known}")


def _files(found: Found) -> Iterator[Violation]:
    known = {name for row in found.rows for name in (*row.videos, *row.beside)}
    for name in sorted(found.files.keys() - known):
        yield Violation(Wrong.HALF_FILE, f"{name} is visible, and no stored generation has it")
    for name in sorted(known - found.files.keys()):
        yield Violation(Wrong.LOST, f"{name} is in the ledger and not in the storage")
    for name, sha256 in found.files.items():
        if not sha256:
            yield Violation(Wrong.HALF_FILE, f"{name} is visible and not whole")


def _untyped(found: Found) -> Iterator[Violation]:
    for ending in found.endings:
        if not ending.typed:
            yield Violation(Wrong.UNTYPED, f"{ending.key}: {ending.error}: {ending.text}")


def _unsettled(found: Found) -> Iterator[Violation]:
    states = {row.key: row.state for row in found.rows}
    for key in found.keys:
        if states.get(key) not in {"stored", "failed", "cancelled"}:
            yield Violation(Wrong.UNSETTLED, f"{key} is {states.get(key, 'not in the ledger')}")


def count(wrong: Wrong, of: Iterable[Violation]) -> int:
    """Return the number of violations of a kind."""
    return sum(violation.wrong is wrong for violation in of)
