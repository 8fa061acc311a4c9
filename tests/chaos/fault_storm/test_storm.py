# SPDX-License-Identifier: Apache-2.0
"""Many generations against a service that meets three of ten requests with a fault."""

import pytest

from ..harness.markdown import cells
from .report import markdown, summary
from .run_storm import run_storm
from .storm import arguments, prefect

GENERATIONS = 44
"""Four generations in each of the eleven reply shapes."""

SEED = 48
"""Seed of a storm whose first submissions are accepted, and then reset, left unanswered, answered
with an error or answered without an id. Other submissions fail or are cancelled upstream."""


@pytest.mark.server
@pytest.mark.heavy
async def test_a_storm_of_faults_costs_nothing_twice_and_loses_nothing(tmp_path):
    """No generation is paid twice, and each paid one is stored, failed upstream or decided."""
    async with prefect(tmp_path) as api:
        folder = tmp_path / "storm"
        folder.mkdir()
        outcome = await run_storm(GENERATIONS, SEED, folder, api, print)
    print(summary([outcome]))
    assert [str(violation) for violation in outcome.violations] == []
    assert outcome.accepted == outcome.states.total() == GENERATIONS
    assert set(outcome.states) <= {"stored", "failed", "cancelled"}
    assert outcome.faulted.total() > GENERATIONS
    assert outcome.adopted > 0
    page = cells(markdown("storm.py", GENERATIONS, [outcome]))
    assert f"| jobs accepted | {GENERATIONS} |" in page


def test_the_command_line_sets_the_size_and_the_seeds():
    """The command runs 300 generations, once for each seed on the command line."""
    options = arguments(["--seed", "1", "2"])
    assert (options.generations, options.seed, options.report) == (300, [1, 2], None)
