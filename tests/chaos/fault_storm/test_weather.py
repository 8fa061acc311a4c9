# SPDX-License-Identifier: Apache-2.0
"""Tests of the fault profile: every kind strikes, at the rate that it states."""

from collections import Counter
from typing import get_args

import pytest

from prefect_cometapi.sandbox import FaultKind, FaultPlan

from .fault_profile import ROUTES, SHARE, kinds_of, unseen, weather

REQUESTS = 4000


@pytest.mark.parametrize("route", ROUTES)
def test_every_kind_of_fault_strikes_and_equally_often(route):
    """Three of ten requests meet a fault, and each kind strikes about equally often."""
    plan = FaultPlan(weather(), seed=1)
    struck = Counter(fault.kind for n in range(REQUESTS) if (fault := plan.decide(route, n)))
    assert set(struck) == set(kinds_of(route))
    assert struck.total() / REQUESTS == pytest.approx(SHARE, abs=0.03)
    even = SHARE * REQUESTS / len(kinds_of(route))
    assert all(even / 2 < count < even * 2 for count in struck.values())


def test_no_kind_of_fault_is_left_out():
    """A kind of fault that the service learns later becomes part of the storm."""
    assert {kind for route in ROUTES for kind in kinds_of(route)} == set(get_args(FaultKind))


def test_what_never_struck_is_told():
    """The report names the kinds of faults that never struck."""
    struck = Counter({(route, kind): 1 for route in ROUTES for kind in kinds_of(route)})
    assert unseen(struck) == []
    del struck["feed", "html"]
    assert unseen(struck) == ["feed:html"]
