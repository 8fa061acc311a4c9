# SPDX-License-Identifier: Apache-2.0
"""Batches with lost replies and kills, decided by the account.

The full version is ``python tests/chaos/reconcile/reconcile.py --generations 300 --seed 1 2``.
"""

import pytest

from ..harness.markdown import cells
from .reconcile import arguments
from .report import markdown, summary
from .run_reconcile import run_alone, run_with_other_client

GENERATIONS = 60
"""A fifth of the generations of the command, so that the test takes a minute."""


@pytest.mark.server
@pytest.mark.heavy
async def test_lost_replies_and_kills_are_decided_by_the_account(prefect_server, tmp_path):
    """Nothing is bought twice or lost, and 95 % of the uncertain ones need no person."""
    outcome = await run_alone(GENERATIONS, 2, 1, tmp_path, prefect_server)
    print(summary([outcome]))
    assert outcome.problems == []
    assert outcome.accepted == outcome.stored == GENERATIONS
    assert outcome.uncertain >= GENERATIONS / 10
    assert outcome.share_decided >= 0.95
    page = cells(markdown("reconcile.py", [outcome]))
    assert f"| jobs accepted | {GENERATIONS} |" in page


@pytest.mark.server
@pytest.mark.heavy
async def test_beside_another_client_nothing_is_adopted_by_a_look(prefect_server, tmp_path):
    """The look changes nothing, names no wrong task for what was accepted, and leaves the rest."""
    outcome = await run_with_other_client(GENERATIONS, 2, tmp_path, prefect_server)
    print(summary([outcome]))
    assert outcome.problems == []
    assert outcome.foreign_jobs > 0
    assert outcome.left == outcome.uncertain == outcome.verdicts.total() > 0


def test_the_command_line_sets_the_size_the_kills_and_the_seeds():
    """The command runs 300 generations with 3 kills, once for each seed on the command line."""
    options = arguments(["--seed", "1", "2"])
    assert (options.generations, options.kills, options.seed) == (300, 3, [1, 2])
    assert options.report is None
