# SPDX-License-Identifier: Apache-2.0
"""Tests of the fault profile: every kind of fault occurs, at the intended rate."""

from collections import Counter
from typing import get_args

import pytest

from prefect_cometapi.sandbox import FaultKind, FaultPlan

from .fault_profile import ROUTES, SHARE, fault_profile, kinds_of, unused_faults

REQUESTS = 4000


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.heavy
def test_every_kind_of_fault_occurs_about_equally_often(route):
    """Three of ten requests meet a fault, and each kind occurs about equally often."""
    plan = FaultPlan(fault_profile(), seed=1)
    hits = Counter(fault.kind for n in range(REQUESTS) if (fault := plan.decide(route, n)))
    assert set(hits) == set(kinds_of(route))
    assert hits.total() / REQUESTS == pytest.approx(SHARE, abs=0.03)
    even = SHARE * REQUESTS / len(kinds_of(route))
    assert all(even / 2 < count < even * 2 for count in hits.values())


def test_no_kind_of_fault_is_left_out():
    """A kind of fault that is added to the sandbox becomes part of the profile."""
    assert {kind for route in ROUTES for kind in kinds_of(route)} == set(get_args(FaultKind))


def test_unused_faults_are_reported():
    """The report names the kinds of faults that no request met."""
    hits = Counter({(route, kind): 1 for route in ROUTES for kind in kinds_of(route)})
    assert unused_faults(hits) == []
    del hits["feed", "html"]
    assert unused_faults(hits) == ["feed:html"]
