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

from ...postgres import Postgres
from ..harness.markdown import cells
from .plan import (
    INTERRUPTIONS,
    RECOVERIES_AFTER_KILL,
    REMOTE,
    REMOTE_CRASHES,
    Boundary,
    Case,
    CrashKind,
    Recovery,
    plan,
    remote_plan,
)
from .report import Run, markdown
from .run_case import CaseResult, problems_of, run_case
from .run_matrix import audit, case_envs, run_cases

SEED = 2
SQLITE = plan("SQLite", 16, 2, SEED)
POSTGRESQL = plan("PostgreSQL", 5, 3, SEED)
REMOTE_CASES = remote_plan(12, SEED)

MUTANTS = {
    "unclaimed": Case(1, "SQLite", Boundary.UNREAD, CrashKind.KILL, Recovery.SAME_KEY),
    "unrecorded": Case(2, "SQLite", Boundary.ID_COMMITTED, CrashKind.KILL, Recovery.SAME_KEY),
    "partial-files": Case(3, "SQLite", Boundary.DOWNLOADING, CrashKind.KILL, Recovery.SAME_KEY),
    "uncollected": Case(4, "SQLite", Boundary.ID_COMMITTED, CrashKind.KILL, Recovery.COLLECT),
}


on_linux = pytest.mark.skipif(
    sys.platform != "linux", reason="the processes are forked as Linux does it"
)


@dataclass(frozen=True)
class Sample:
    """Results of cases and of each mutant."""

    results: list[CaseResult]
    differences: list[str]
    mutants: dict[str, CaseResult]


@pytest.fixture(scope="module")
def sample(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Sample:
    """Run the cases on PostgreSQL and on object stores, and the mutants, once for all tests."""
    return asyncio.run(run_heavy_cases(tmp_path_factory.mktemp("kills"), postgres))


async def run_on_sqlite(folder: Path, api: str) -> Sample:
    """Run one kill at each boundary, and two interruptions."""
    async with case_envs(folder, api=api) as groups:
        return Sample(await run_cases(groups, SQLITE), await audit(groups), {})


async def run_heavy_cases(folder: Path, postgres: Postgres) -> Sample:
    """Run the cases in two environments, and the mutants in a third."""
    async with case_envs(folder, postgres=postgres, at_once=3, remote=True) as (*groups, apart):
        results = await run_cases(groups, REMOTE_CASES + POSTGRESQL)
        differences = await audit(groups)
        mutants: dict[str, CaseResult] = {}
        env = apart["SQLite"]
        for env.mutant, case in MUTANTS.items():
            mutants[str(env.mutant)] = await run_case(env, case)
            for entry in await env.ledger.entries(states=[State.SUBMITTED, State.UNCERTAIN]):
                await env.ledger._change(
                    entry.idempotency_key, State.FAILED
                )  # The next case starts with nothing to do.
        return Sample(results, differences, mutants)


def check(sample: Sample, cases: int) -> None:
    """Check that each case ended well and nothing was paid twice or lost."""
    assert problems_of(sample.results) == []
    assert sample.differences == []
    assert sum(result.duplicates + result.lost for result in sample.results) == 0
    assert len(sample.results) == cases


@on_linux
@pytest.mark.server
@pytest.mark.slow
async def test_a_killed_run_pays_once_and_what_is_paid_for_is_stored(prefect_server, tmp_path):
    """A run that is killed at any step and recovered in any way pays once and stores its clip."""
    check(await run_on_sqlite(tmp_path, prefect_server), len(SQLITE))


@on_linux
@pytest.mark.heavy
def test_kills_cost_nothing_with_postgresql_and_with_object_stores(sample):
    """Killed runs pay once and store their clips on PostgreSQL, with an S3 URL and a block."""
    check(sample, len(REMOTE_CASES) + len(POSTGRESQL))


@on_linux
@pytest.mark.heavy
@pytest.mark.parametrize(
    ("mutant", "problem"),
    [
        ("unclaimed", "2 jobs were paid for"),
        ("unrecorded", "it is uncertain, not stored"),
        ("partial-files", ".mp4 is visible and incomplete"),
        ("uncollected", "it is submitted, not stored"),
    ],
)
def test_a_product_that_breaks_its_promise_does_not_pass(sample, mutant, problem):
    """The checks find a second payment, a forgotten id, a partial file and an uncollected clip."""
    result = sample.mutants[mutant]
    assert problem in "\n".join(result.problems)
    assert result.duplicates == (mutant == "unclaimed")
    assert result.lost == (mutant in {"unclaimed", "uncollected"})


def test_the_sample_meets_every_boundary_and_every_way():
    """The sample kills a run at each step and tries each recovery, on both databases."""
    kills = [case for case in SQLITE if case.crash is CrashKind.KILL]
    assert {case.boundary for case in kills} == set(Boundary)
    assert {case.recovery for case in SQLITE} == set(Recovery)
    assert {case.recovery for case in POSTGRESQL} == set(Recovery)
    assert {case.sync for case in SQLITE} == {True, False}
    assert {case.collector for case in SQLITE} == {True, False}
    assert {case.crash for case in SQLITE} == set(CrashKind)


def test_eighty_kills_meet_every_way_at_every_boundary():
    """A matrix of eighty kills covers every recovery at every boundary, and N kills are N cases."""
    cases = plan("SQLite", 100, len(INTERRUPTIONS), 1)
    killed = [(case.boundary, case.recovery) for case in cases if case.crash is CrashKind.KILL]
    assert len(killed) == 100
    assert set(killed) == {
        (boundary, recovery) for boundary in Boundary for recovery in RECOVERIES_AFTER_KILL
    }
    interrupted = {
        (case.boundary, case.crash) for case in cases if case.crash is not CrashKind.KILL
    }
    assert interrupted == set(INTERRUPTIONS)


def test_runs_are_killed_in_each_step_that_differs_with_the_storage():
    """Fetch and persist are killed at each point with an S3 URL and with a storage block."""
    crashes = {(case.storage, case.boundary, case.file) for case in REMOTE_CASES}
    assert crashes == {(storage, *crash) for storage in REMOTE for crash in REMOTE_CRASHES}
    recoveries = {
        (case.storage, case.boundary, case.file, case.recovery) for case in remote_plan(60, 1)
    }
    assert len(recoveries) == 60


def test_a_seed_is_a_plan():
    """The same seed gives the same plan, case by case, and another seed gives another plan."""
    assert plan("SQLite", 40, 10, 5) == plan("SQLite", 40, 10, 5)
    assert plan("SQLite", 40, 10, 5) != plan("SQLite", 40, 10, 6)


def test_the_report_counts_every_case_once():
    """The report counts every case once, and shows each problem."""
    results = [CaseResult(case, accepted=1, state="stored", lost=0) for case in SQLITE]
    run = Run("python …", SEED, 12.3, "", results, ["sqlite-001: half a file"])
    page = cells(markdown(run))
    kills, others = 16, 2
    assert f"| **total** | **{kills}** | **{kills}** | **{kills}** | **0** |" in page
    assert f"| **total** | **{others}** | **{others}** | **{others}** | **0** |" in page
    assert "- sqlite-001: half a file" in page
    assert "PostgreSQL from Debian" in page
    assert cells(markdown(run)) == page
