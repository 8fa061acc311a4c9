# SPDX-License-Identifier: Apache-2.0
"""Small random walk; the full version is ``python -m tests.chaos.random_walk --minutes 60``."""

import subprocess
import sys
from collections import Counter
from itertools import islice

import pytest

from ..harness.markdown import cells
from ..harness.processes import ROOT
from .__main__ import plan
from .checker import FinalState
from .disturbances import DISTURBANCES
from .report import Outcome, markdown, missing


@pytest.mark.heavy
@pytest.mark.parametrize("seed", [1])
def test_whatever_happens_nothing_is_paid_twice_without_leave_or_lost(tmp_path, seed):
    """Every disturbance of the walk happens, and the checks of its end find nothing."""
    page = tmp_path / "report.md"
    words = ["--minutes", "0.5", "--seed", str(seed), "--report", str(page)]
    done = subprocess.run(
        [sys.executable, "-m", "tests.chaos.random_walk", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "never happened" not in done.stdout
    assert "| **paid twice without permission** | 0 |" in cells(page.read_text(encoding="utf-8"))


def test_a_seed_is_a_plan_of_disturbances():
    """The same seed gives the same order, one of each first; another seed gives another order."""

    def planned(seed: int) -> list[tuple[float, str, float]]:
        found = islice(plan(seed, list(DISTURBANCES), 0.5), 100)
        return [(pause, one.name, rng.random()) for pause, one, rng in found]

    first = planned(5)
    assert first == planned(5)
    assert first != planned(6)
    names = {one.name for one in DISTURBANCES}
    assert {name for _, name, _ in first[: len(names)]} == names


def test_a_disturbance_that_never_happened_is_named():
    """A disturbance that never happened is a violation and is named."""
    expected = ["kill", "fork", "vanish"]
    assert missing(expected, Counter({"kill": 3})) == ["fork", "vanish"]
    assert (
        missing(expected, Counter({"kill": 3, "forked": 1, "row deleted while claimed": 1})) == []
    )


def test_the_report_shows_what_happened():
    """The report shows the figures and the disturbances that never happened."""
    outcome = Outcome(
        seed=7,
        seconds=60,
        all_seconds=90,
        database="sqlite",
        counts=Counter({"kill": 1234}),
        expected=["kill", "move"],
        faults={"none": 40, "late": 2},
        events=[{"what": "ended", "error": ""}, {"what": "ended", "error": "StorageError"}],
        state=FinalState(["a"], [], [], [], {}),
        incoming=3,
        violations=[],
    )
    page = cells(markdown("python …", outcome))
    assert "| - processes killed | 1,234 |" in page
    assert "| - StorageError | 1 |" in page
    assert "Never happened: move." in page
    assert "## Violations" not in page
