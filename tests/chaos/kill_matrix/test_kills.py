# SPDX-License-Identifier: Apache-2.0
"""A sample of the kill matrix: real processes, killed at every step, and recovered in every way.

The full version is ``python tests/chaos/kill_matrix/matrix.py --sqlite 100 --postgresql 50``.
"""

import asyncio
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from prefect_cometapi.runway.ledger.entry import State

from ...postgres import Postgres, binaries
from .campaign import audit, lanes, play_all
from .plan import (
    INTERRUPTIONS,
    REMOTE,
    REMOTE_STRIKES,
    WAYS_AFTER_A_KILL,
    Boundary,
    Case,
    How,
    Way,
    plan,
    remote_plan,
)
from .report import Run, markdown
from .run_case import Tally, play, problems_of

SEED = 8
SQLITE = plan("SQLite", 16, 4, SEED)
POSTGRESQL = plan("PostgreSQL", 5, 1, SEED)
REMOTE_CASES = remote_plan(12, SEED)

MUTANTS = {
    "unclaimed": Case(1, "SQLite", Boundary.UNREAD, How.KILL, Way.SAME_KEY),
    "unbooked": Case(2, "SQLite", Boundary.ID_COMMITTED, How.KILL, Way.SAME_KEY),
    "half-files": Case(3, "SQLite", Boundary.DOWNLOADING, How.KILL, Way.SAME_KEY),
    "uncollected": Case(4, "SQLite", Boundary.ID_COMMITTED, How.KILL, Way.COLLECT),
}


@dataclass(frozen=True)
class Played:
    """Results of the sample and of each mutant."""

    tallies: list[Tally]
    audited: list[str]
    mutants: dict[str, Tally]


@pytest.fixture(scope="module")
def played(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Played:
    """Run the sample once; without PostgreSQL, its cases there are left out."""
    if sys.platform != "linux":
        pytest.skip("the processes are forked in the way of Linux")
    postgres = request.getfixturevalue("postgres") if binaries() else None
    return asyncio.run(play_sample(tmp_path_factory.mktemp("kills"), postgres))


async def play_sample(folder: Path, postgres: Postgres | None) -> Played:
    """Run the cases in two environments, and the mutants in a third."""
    async with lanes(folder, postgres=postgres, at_once=3, remote=True) as (*places, apart):
        cases = SQLITE + REMOTE_CASES + (POSTGRESQL if postgres else [])
        tallies = await play_all(places, cases)
        audited = await audit(places)
        mutants: dict[str, Tally] = {}
        lane = apart["SQLite"]
        for lane.mutant, case in MUTANTS.items():
            mutants[str(lane.mutant)] = await play(lane, case)
            for entry in await lane.ledger.entries(states=[State.SUBMITTED, State.UNCERTAIN]):
                await lane.ledger._change(
                    entry.idempotency_key, State.FAILED
                )  # The next case starts afresh.
        return Played(tallies, audited, mutants)


@pytest.mark.kills
@pytest.mark.server
@pytest.mark.slow
def test_a_killed_run_pays_once_and_what_is_paid_for_is_stored(played):
    """A run that is killed at any step and recovered in any way pays once and stores its clip."""
    assert problems_of(played.tallies) == []
    assert played.audited == []
    assert sum(tally.duplicates + tally.lost for tally in played.tallies) == 0
    assert len(played.tallies) >= len(SQLITE) + len(REMOTE_CASES)


@pytest.mark.kills
@pytest.mark.server
@pytest.mark.slow
@pytest.mark.parametrize(
    ("mutant", "found"),
    [
        ("unclaimed", "2 jobs were paid for"),
        ("unbooked", "it is uncertain, not stored"),
        ("half-files", ".mp4 is visible and not whole"),
        ("uncollected", "it is submitted, not stored"),
    ],
)
def test_a_product_that_breaks_its_promise_does_not_pass(played, mutant, found):
    """The checks find a second payment, a forgotten id, a half file and an uncollected clip."""
    tally = played.mutants[mutant]
    assert found in "\n".join(tally.problems)
    assert tally.duplicates == (mutant == "unclaimed")
    assert tally.lost == (mutant in {"unclaimed", "uncollected"})


def test_the_sample_meets_every_boundary_and_every_way():
    """The sample kills a run at each step and tries each recovery, on both databases."""
    kills = [case for case in SQLITE if case.how is How.KILL]
    assert {case.boundary for case in kills} == set(Boundary)
    assert {case.way for case in SQLITE} == set(Way)
    assert {case.way for case in POSTGRESQL} == set(Way)
    assert {case.sync for case in SQLITE} == {True, False}
    assert {case.collector for case in SQLITE} == {True, False}
    assert {case.how for case in SQLITE} == set(How)


def test_eighty_kills_meet_every_way_at_every_boundary():
    """A matrix of eighty kills covers every way at every boundary, and N kills are N cases."""
    cases = plan("SQLite", 100, len(INTERRUPTIONS), 1)
    killed = [(case.boundary, case.way) for case in cases if case.how is How.KILL]
    assert len(killed) == 100
    assert set(killed) == {(boundary, way) for boundary in Boundary for way in WAYS_AFTER_A_KILL}
    interrupted = {(case.boundary, case.how) for case in cases if case.how is not How.KILL}
    assert interrupted == set(INTERRUPTIONS)


def test_runs_are_killed_in_each_step_that_differs_with_the_storage():
    """Fetch and persist are killed at each point with an S3 URL and with a storage block."""
    struck = {(case.kind, case.boundary, case.file) for case in REMOTE_CASES}
    assert struck == {(kind, *strike) for kind in REMOTE for strike in REMOTE_STRIKES}
    ways = {(case.kind, case.boundary, case.file, case.way) for case in remote_plan(60, 1)}
    assert len(ways) == 60


def test_a_seed_is_a_plan():
    """The same seed gives the same plan, case by case, and another seed gives another plan."""
    assert plan("SQLite", 40, 10, 5) == plan("SQLite", 40, 10, 5)
    assert plan("SQLite", 40, 10, 5) != plan("SQLite", 40, 10, 6)


def test_the_report_tells_every_case_once():
    """The report counts every case once, and shows each problem."""
    tallies = [Tally(case, accepted=1, standing="stored", lost=0) for case in SQLITE]
    run = Run("python …", SEED, 12.3, "", tallies, ["sqlite-001: half a file"])
    page = markdown(run)
    kills, others = 16, 4
    assert f"| **total** | **{kills}** | **{kills}** | **{kills}** | **0** |" in page
    assert f"| **total** | **{others}** | **{others}** | **{others}** | **0** |" in page
    assert "- sqlite-001: half a file" in page
    assert "PostgreSQL from Debian" in page
    assert markdown(run) == page
