# SPDX-License-Identifier: Apache-2.0
"""A plan of faults is deterministic."""

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from prefect_cometapi.sandbox import Fault, FaultKind, FaultPlan, FaultRoute
from prefect_cometapi.sandbox.faults.plan import KINDS

ROUTES = st.sampled_from(get_args(FaultRoute))


@st.composite
def faults(draw):
    route = draw(ROUTES)
    kind = draw(st.sampled_from([kind for kind in KINDS if route in KINDS[kind].routes]))
    after = draw(st.integers(0, 5))
    if draw(st.booleans()):
        return Fault(route=route, kind=kind, after=after, times=draw(st.integers(1, 5)))
    return Fault(route=route, kind=kind, after=after, rate=draw(st.floats(0, 1)))


PLANS = st.builds(FaultPlan, st.lists(faults(), max_size=6), seed=st.integers())


@given(PLANS, ROUTES, st.integers(0, 40))
def test_the_same_plan_decides_the_same(plan, route, number):
    """The same faults and seed strike at the same requests."""
    again = FaultPlan(plan.faults, plan.seed)
    assert plan.decide(route, number) == again.decide(route, number)


@given(PLANS, ROUTES, st.integers(0, 40))
def test_a_fault_strikes_its_own_route_and_not_too_early(plan, route, number):
    """A fault never strikes another route, nor a request before its start."""
    fault = plan.decide(route, number)
    assert fault is None or (fault.route == route and number >= fault.after)


@given(st.lists(faults(), max_size=6).map(FaultPlan), ROUTES)
def test_a_counted_fault_strikes_as_often_as_it_says(plan, route):
    """Counts of several faults add up, and no fault replaces another."""
    counted = [fault for fault in plan.faults if fault.rate is None and fault.route == route]
    struck = [plan.decide(route, number) for number in range(200)]
    hits = sum(1 for fault in struck if fault is not None and fault.rate is None)
    assert hits == sum(fault.times for fault in counted)


@given(st.integers(), st.floats(0.2, 0.8))
def test_a_rate_is_about_the_share_of_requests_that_are_struck(seed, rate):
    """Over many requests, the share of faults approaches the rate."""
    plan = FaultPlan([Fault(route="task", kind="503", rate=rate)], seed)
    struck = sum(plan.decide("task", number) is not None for number in range(1000))
    assert struck / 1000 == pytest.approx(rate, abs=0.12)


def test_faults_of_one_route_take_turns():
    """Two 429s and a reset on one route are three faults."""
    plan = FaultPlan([Fault.parse("create:429:times=2"), Fault.parse("create:reset-after")])
    struck = [plan.decide("create", number) for number in range(4)]
    kinds = [fault.kind if fault else None for fault in struck]
    assert kinds == ["429", "429", "reset-after", None]


@given(PLANS, faults(), st.integers(0, 20))
def test_a_fault_added_later_counts_from_then_on(plan, fault, seen):
    """A fault that is added at run time counts from the next request."""
    longer = plan.adding(fault, seen)
    assert longer.faults[-1].after == fault.after + seen
    assert all(
        longer.decide(fault.route, number) == plan.decide(fault.route, number)
        for number in range(seen)
    )


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("create:429", Fault(route="create", kind="429")),
        (
            "create:429:times=2,after=1,value=3",
            Fault(route="create", kind="429", times=2, after=1, value="3"),
        ),
        ("create:429:value=date:3", Fault(route="create", kind="429", value="date:3")),
        ("task:503:rate=0.3", Fault(route="task", kind="503", rate=0.3)),
        (
            "create:failed:value=SAFETY.INPUT.TEXT",
            Fault(route="create", kind="failed", value="SAFETY.INPUT.TEXT"),
        ),
    ],
)
def test_a_fault_fits_on_a_command_line(text, fault):
    """A fault can be written as a short string with all its options."""
    assert Fault.parse(text) == fault


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "route Input should be 'create', 'task', 'feed', 'asset', 'models'"),
        ("create", "kind Input should be '429', '500'"),
        ("make:429", "route Input should be"),
        ("create:418", "kind Input should be"),
        ("create:429:often", "'often' is not an option"),
        ("create:429:chance=1", "'chance=1' is not an option"),
        ("create:429:times=0", "times Input should be greater than or equal to 1"),
        ("create:429:times=x", "times Input should be a valid integer"),
        ("create:429:rate=0.5,times=2", "rate and times exclude each other"),
        ("create:429:value=soon", "could not convert string to float: 'soon'"),
        ("create:500:value=3", "500 takes no value"),
        ("task:silent-after:value=x", "could not convert string to float"),
        ("create:expired", "expired happens on asset, not on create"),
        ("asset:not-visible", "not-visible happens on task or feed, not on asset"),
    ],
)
def test_a_bad_fault_is_explained(text, reason):
    """An invalid fault is refused with its text, the reason and the correct form."""
    with pytest.raises(ValueError) as caught:
        Fault.parse(text)
    assert repr(text) in str(caught.value)
    assert reason in str(caught.value)
    assert "Expected ROUTE:KIND" in str(caught.value)


def test_a_fault_that_makes_no_sense_cannot_be_made():
    """Fault objects are validated as strictly as strings."""
    with pytest.raises(ValidationError, match="no-id happens on create, not on task"):
        Fault(route="task", kind="no-id")


def test_every_kind_of_fault_is_described():
    """Every kind of fault has a description, and no other description exists."""
    assert tuple(KINDS) == get_args(FaultKind)
