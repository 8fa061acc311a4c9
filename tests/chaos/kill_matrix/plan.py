# SPDX-License-Identifier: Apache-2.0
"""Plan of the matrix: a seed determines each case, its strike and its recovery."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

Database = Literal["SQLite", "PostgreSQL"]
Kind = Literal["a folder", "an s3:// URL", "a storage block"]
REMOTE: tuple[Kind, ...] = ("an s3:// URL", "a storage block")


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
    RETURNING = "flow done, Prefect not told"


class How(StrEnum):
    """Kind of strike at the boundary."""

    KILL = "SIGKILL"
    ERROR = "an error"
    TIMEOUT = "a timeout of the flow"


class Way(StrEnum):
    """Way of recovery after the strike."""

    FLOW_RETRY = "retry in the same process"
    RUN_RETRY = "retry of the crashed flow run"
    SAME_KEY = "new run with the same key"
    COLLECT = "collect"
    TWO_COLLECTORS = "two collectors at once"
    COLLECTOR_AND_RUN = "a collector and a new run at once"


WAYS_AFTER_A_KILL = [way for way in Way if way is not Way.FLOW_RETRY]
WITH_A_RUN = {Way.FLOW_RETRY, Way.RUN_RETRY, Way.SAME_KEY, Way.COLLECTOR_AND_RUN}
INTERRUPTIONS = [(boundary, how) for how in (How.ERROR, How.TIMEOUT) for boundary in Boundary]

OPEN = {Boundary.CLAIMED, Boundary.POST_BEGUN, Boundary.POST_SENT, Boundary.UNREAD}
"""Boundaries at which nobody can know whether the generation was bought."""

DELIVERY = list(Boundary)[list(Boundary).index(Boundary.POLLING) :]
"""Boundaries after the purchase, which a collector also passes."""

BOUGHT = {Boundary.CLAIMED: {0}, Boundary.POST_BEGUN: {0}, Boundary.POST_SENT: {0, 1}}
"""Numbers of jobs that the service may have accepted at these boundaries; one at all others."""


@dataclass(frozen=True)
class Case:
    """One victim and its recovery.

    Attributes:
        number: Number of the case, unique in its database.
        database: Database of the ledger.
        boundary: Boundary of the strike.
        how: Kind of strike.
        way: Way of recovery.
        sync: Whether the flow is the one for sync code.
        file: Suffix of the file whose rename or upload is struck.
        kind: Kind of storage that keeps the videos.
        hook: Whether a worker reports the crash to the flow's own hook before the recovery.
        collector: Whether the victim is a collector, for a run that did not wait.
    """

    number: int
    database: Database
    boundary: Boundary
    how: How
    way: Way
    sync: bool = False
    file: str = ".mp4"
    hook: bool = False
    collector: bool = False
    kind: Kind = "a folder"

    @property
    def name(self) -> str:
        """Name of the case for folders, tags and keys."""
        return f"{self.database.lower()}-{self.number:03}"

    def __str__(self) -> str:
        victim = (
            f"{'a sync' if self.sync else 'an async'} {'collector' if self.collector else 'run'}"
        )
        kept = "" if self.kind == "a folder" else f" with {self.kind}"
        return f"{self.name}: {self.how} at <{self.boundary}> of {victim}{kept}, then {self.way}"

    def may_end(self) -> set[str]:
        """Return the states that recovery alone may leave: stored, uncertain or nothing."""
        if self.boundary is Boundary.BEFORE_CLAIM:
            return {"stored"} if self.way in WITH_A_RUN else {"nothing"}
        expired = self.how is How.TIMEOUT  # A timeout strikes at the next await, if there is one.
        if self.boundary in OPEN:
            answered = expired and self.boundary in {Boundary.POST_SENT, Boundary.UNREAD}
            return {"uncertain", "stored"} if answered else {"uncertain"}
        if self.boundary is Boundary.ID_READ and not expired:  # A commit is not cancelled.
            return {"uncertain"}
        return {"stored"}


def plan(database: Database, kills: int, interruptions: int, seed: int) -> list[Case]:
    """Return cases in a shuffled order that the seed determines; pure.

    Sixteen kills meet every boundary once, and eighty meet every way at every boundary.
    """
    dice = random.Random(f"{seed}:{database}")
    struck = [*_kills(dice, kills), *_interruptions(dice, interruptions)]
    dice.shuffle(struck)
    cases: list[Case] = []
    for number, (boundary, how, way) in enumerate(struck, 1):
        killed = how is How.KILL
        may_collect = killed and boundary in DELIVERY and way is not Way.RUN_RETRY
        collector = dice.random() < 0.3 and may_collect
        case = Case(
            number=number,
            database=database,
            boundary=boundary,
            how=how,
            way=way,
            sync=dice.random() < 0.25 and how is not How.TIMEOUT,
            file=dice.choice([".mp4", ".mp4", ".jpg", ".json"]),
            hook=dice.random() < 0.5 and killed and not collector,
            collector=collector,
        )
        cases.append(case)
    return cases


REMOTE_STRIKES: tuple[tuple[Boundary, str], ...] = (
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

    Twelve meet every such boundary with each kind of storage, and sixty in every way.
    """
    dice = random.Random(f"{seed}:remote")
    places: list[tuple[Kind, Boundary, str]] = [
        (kind, boundary, file) for boundary, file in REMOTE_STRIKES for kind in REMOTE
    ]
    ways = dice.sample(WAYS_AFTER_A_KILL, len(WAYS_AFTER_A_KILL))
    cases: list[Case] = []
    for number in range(kills):
        turn, place = divmod(number, len(places))
        kind, boundary, file = places[place]
        way = ways[(place + turn) % len(ways)]
        cases.append(
            Case(
                number=900 + number,
                database="SQLite",
                boundary=boundary,
                how=How.KILL,
                way=way,
                sync=dice.random() < 0.25,
                file=file,
                collector=dice.random() < 0.3 and way is not Way.RUN_RETRY,
                kind=kind,
            )
        )
    return cases


def _kills(dice: random.Random, count: int) -> Iterator[tuple[Boundary, How, Way]]:
    ways = dice.sample(WAYS_AFTER_A_KILL, len(WAYS_AFTER_A_KILL))
    order = dice.sample(list(Boundary), len(Boundary))
    for number in range(count):
        turn, place = divmod(number, len(order))
        yield order[place], How.KILL, ways[(place + turn) % len(ways)]


def _interruptions(dice: random.Random, count: int) -> Iterator[tuple[Boundary, How, Way]]:
    for boundary, how in dice.sample(INTERRUPTIONS, min(count, len(INTERRUPTIONS))):
        yield boundary, how, Way.FLOW_RETRY
