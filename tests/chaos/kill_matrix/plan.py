# SPDX-License-Identifier: Apache-2.0
"""Plan of the matrix: a seed determines each case, its crash and its recovery."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

Database = Literal["SQLite", "PostgreSQL"]
StorageKind = Literal["a folder", "an s3:// URL", "a storage block"]
REMOTE: tuple[StorageKind, ...] = ("an s3:// URL", "a storage block")


class Boundary(StrEnum):
    """Boundary in the life of a generation, in order; the report uses the same words."""

    BEFORE_CLAIM = "before the claim"
    CLAIMED = "claim committed"
    POST_BEGUN = "headers of the POST sent"
    POST_SENT = "whole POST sent"
    UNREAD = "accepted, reply unread"
    ID_READ = "id read, not committed"
    ID_COMMITTED = "id committed"
    POLLING = "polled, still running"
    SUCCESS_READ = "success read, not recorded"
    SUCCESS_RECORDED = "success recorded"
    DOWNLOADING = "first piece downloaded"
    BEFORE_RENAME = "before a rename into the storage"
    RENAMED = "after a rename into the storage"
    BEFORE_STORED = "all files there, not recorded"
    STORED = "storage recorded"
    RETURNING = "flow done, not reported to Prefect"


class CrashKind(StrEnum):
    """Kind of a crash."""

    KILL = "SIGKILL"
    ERROR = "an error"
    TIMEOUT = "a timeout of the flow"


class Recovery(StrEnum):
    """Way of recovery after a crash."""

    FLOW_RETRY = "retry in the same process"
    RUN_RETRY = "retry of the crashed flow run"
    SAME_KEY = "new run with the same key"
    COLLECT = "collect"
    TWO_COLLECTORS = "two collectors at once"
    COLLECTOR_AND_RUN = "a collector and a new run at once"


RECOVERIES_AFTER_KILL = [recovery for recovery in Recovery if recovery is not Recovery.FLOW_RETRY]
RECOVERIES_WITH_RUN = {
    Recovery.FLOW_RETRY,
    Recovery.RUN_RETRY,
    Recovery.SAME_KEY,
    Recovery.COLLECTOR_AND_RUN,
}
INTERRUPTIONS = [
    (boundary, crash) for crash in (CrashKind.ERROR, CrashKind.TIMEOUT) for boundary in Boundary
]

UNCERTAIN_AT = {Boundary.CLAIMED, Boundary.POST_BEGUN, Boundary.POST_SENT, Boundary.UNREAD}
"""Boundaries at which the run cannot know whether the generation was bought."""

DELIVERY = list(Boundary)[list(Boundary).index(Boundary.POLLING) :]
"""Boundaries after the purchase, which a collector also passes."""

ACCEPTED_JOBS_AT = {Boundary.CLAIMED: {0}, Boundary.POST_BEGUN: {0}, Boundary.POST_SENT: {0, 1}}
"""Numbers of jobs that the service may have accepted at these boundaries; one at all others."""


@dataclass(frozen=True)
class Case:
    """One process that crashes, and its recovery.

    Attributes:
        number: Number of the case, unique in its database.
        database: Database of the ledger.
        boundary: Boundary of the crash.
        crash: Kind of the crash.
        recovery: Way of recovery.
        sync: Whether the flow is the one for sync code.
        file: Suffix of the file at whose rename or upload the process crashes.
        storage: Storage that keeps the videos.
        hook: Whether a worker reports the crash to the flow's own hook before the recovery.
        collector: Whether the victim is a collector, for a run that did not wait.
    """

    number: int
    database: Database
    boundary: Boundary
    crash: CrashKind
    recovery: Recovery
    sync: bool = False
    file: str = ".mp4"
    hook: bool = False
    collector: bool = False
    storage: StorageKind = "a folder"

    @property
    def name(self) -> str:
        """Name of the case for folders, tags and keys."""
        return f"{self.database.lower()}-{self.number:03}"

    def __str__(self) -> str:
        victim = (
            f"{'a sync' if self.sync else 'an async'} {'collector' if self.collector else 'run'}"
        )
        storage = "" if self.storage == "a folder" else f" with {self.storage}"
        crash = f"{self.crash} at <{self.boundary}> of {victim}{storage}"
        return f"{self.name}: {crash}, then {self.recovery}"

    def allowed_states(self) -> set[str]:
        """Return the states that recovery alone may leave: stored, uncertain or nothing."""
        if self.boundary is Boundary.BEFORE_CLAIM:
            return {"stored"} if self.recovery in RECOVERIES_WITH_RUN else {"nothing"}
        expired = self.crash is CrashKind.TIMEOUT  # It acts at the next await, if there is one.
        if self.boundary in UNCERTAIN_AT:
            answered = expired and self.boundary in {Boundary.POST_SENT, Boundary.UNREAD}
            return {"uncertain", "stored"} if answered else {"uncertain"}
        if self.boundary is Boundary.ID_READ and not expired:  # A commit is not cancelled.
            return {"uncertain"}
        return {"stored"}


def plan(database: Database, kills: int, interruptions: int, seed: int) -> list[Case]:
    """Return cases in a shuffled order that the seed determines; pure.

    Sixteen kills meet every boundary once, and eighty meet every recovery at every boundary.
    """
    rng = random.Random(f"{seed}:{database}")
    crashes = [*_kills(rng, kills), *_interruptions(rng, interruptions)]
    rng.shuffle(crashes)
    cases: list[Case] = []
    for number, (boundary, crash, recovery) in enumerate(crashes, 1):
        is_kill = crash is CrashKind.KILL
        may_collect = is_kill and boundary in DELIVERY and recovery is not Recovery.RUN_RETRY
        collector = rng.random() < 0.3 and may_collect
        case = Case(
            number=number,
            database=database,
            boundary=boundary,
            crash=crash,
            recovery=recovery,
            sync=rng.random() < 0.25 and crash is not CrashKind.TIMEOUT,
            file=rng.choice([".mp4", ".mp4", ".jpg", ".json"]),
            hook=rng.random() < 0.5 and is_kill and not collector,
            collector=collector,
        )
        cases.append(case)
    return cases


REMOTE_CRASHES: tuple[tuple[Boundary, str], ...] = (
    (Boundary.DOWNLOADING, ".mp4"),
    (Boundary.BEFORE_RENAME, ".jpg"),
    (Boundary.RENAMED, ".jpg"),
    (Boundary.RENAMED, ".mp4"),
    (Boundary.BEFORE_STORED, ".mp4"),
    (Boundary.STORED, ".mp4"),
)
"""Boundaries at which fetch and persist depend on the storage; an upload replaces the rename."""


def remote_plan(kills: int, seed: int) -> list[Case]:
    """Return kills of runs that keep their videos in a remote storage; pure.

    Twelve meet every such boundary with each kind of storage, and sixty with every recovery.
    """
    rng = random.Random(f"{seed}:remote")
    combinations: list[tuple[StorageKind, Boundary, str]] = [
        (storage, boundary, file) for boundary, file in REMOTE_CRASHES for storage in REMOTE
    ]
    recoveries = rng.sample(RECOVERIES_AFTER_KILL, len(RECOVERIES_AFTER_KILL))
    cases: list[Case] = []
    for number in range(kills):
        cycle, index = divmod(number, len(combinations))
        storage, boundary, file = combinations[index]
        recovery = recoveries[(index + cycle) % len(recoveries)]
        cases.append(
            Case(
                number=900 + number,
                database="SQLite",
                boundary=boundary,
                crash=CrashKind.KILL,
                recovery=recovery,
                sync=rng.random() < 0.25,
                file=file,
                collector=rng.random() < 0.3 and recovery is not Recovery.RUN_RETRY,
                storage=storage,
            )
        )
    return cases


def _kills(rng: random.Random, count: int) -> Iterator[tuple[Boundary, CrashKind, Recovery]]:
    recoveries = rng.sample(RECOVERIES_AFTER_KILL, len(RECOVERIES_AFTER_KILL))
    order = rng.sample(list(Boundary), len(Boundary))
    for number in range(count):
        cycle, index = divmod(number, len(order))
        yield order[index], CrashKind.KILL, recoveries[(index + cycle) % len(recoveries)]


def _interruptions(
    rng: random.Random, count: int
) -> Iterator[tuple[Boundary, CrashKind, Recovery]]:
    for boundary, crash in rng.sample(INTERRUPTIONS, min(count, len(INTERRUPTIONS))):
        yield boundary, crash, Recovery.FLOW_RETRY
