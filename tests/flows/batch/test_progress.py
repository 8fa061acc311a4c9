# SPDX-License-Identifier: Apache-2.0
"""Progress of a batch: its counts, and an estimate of the remaining time."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_cometapi.flows.batch.artifacts import facts_of, span
from prefect_cometapi.flows.batch.progress import (
    BatchProgress,
    ProgressSnapshot,
    batch_listener,
    seconds_left,
)
from prefect_cometapi.runway.batch.models import ItemResult, Outcome
from prefect_cometapi.runway.ledger.budget import Budget
from prefect_cometapi.runway.ledger.figures import Spending
from prefect_cometapi.runway.models.prices import Price


def item(name: str, outcome: Outcome = Outcome.WAITING) -> ItemResult:
    """Return a result with an outcome only."""
    return ItemResult(id=name, outcome=outcome)


def progress_of(*results: ItemResult) -> BatchProgress:
    progress = BatchProgress(Budget("b/"))
    progress.begin(results)
    return progress


@given(st.lists(st.tuples(st.integers(0, 4), st.sampled_from(list(Outcome)))))
def test_the_counts_are_those_of_the_results(changes):
    """The counts match the results in any order of events, and the items keep their order."""
    progress = progress_of(*[item(f"{number}") for number in range(5)])
    for number, outcome in changes:
        progress.put(item(f"{number}", outcome))
    found = progress.results()
    assert [result.id for result in found] == ["0", "1", "2", "3", "4"]
    snapshot = progress.snapshot()
    assert snapshot.total == 5
    for outcome in Outcome:
        assert snapshot.counts[outcome] == sum(one.outcome is outcome for one in found)
    assert snapshot.done == sum(one.outcome.is_final for one in found)


@given(done=st.integers(0, 10**6), left=st.integers(0, 10**6), elapsed=st.floats(0, 1e7))
def test_the_time_left_is_what_the_rest_takes_at_the_same_rate(done, left, elapsed):
    """The remaining time assumes the rate so far, and is unknown before the first item is done."""
    found = seconds_left(done, done + left, elapsed)
    if not done:
        assert found is None
    else:
        assert found == pytest.approx(elapsed * left / done)


def test_what_was_stored_before_does_not_make_the_rest_look_quick():
    """Items that were stored before do not count for the rate."""
    progress = progress_of(*[item(f"{n}", Outcome.STORED) for n in range(99)], item("new"))
    assert progress.snapshot().left is None
    assert (progress.snapshot().done, progress.snapshot().total) == (99, 100)


def test_each_change_is_told_to_who_listens():
    """Each change calls the listener, from which the terminal draws its bar."""
    heard: list[ProgressSnapshot] = []
    token = batch_listener.set(heard.append)
    try:
        progress = progress_of(item("a"), item("b"))
        progress.put(item("a", Outcome.STORED))
        progress.put(item("b", Outcome.FAILED))
    finally:
        batch_listener.reset(token)
    assert [snapshot.done for snapshot in heard] == [1, 2]
    assert heard[-1].sentence() == "1 stored, 1 failed"


def test_what_was_spent_stands_beside_its_limit():
    """The spending is shown beside its limit, in money only if there are prices."""
    counts = {Outcome.STORED: 2, Outcome.WAITING: 3}
    spending = Spending(
        seconds=25,
        estimate=1.6,
        spent_seconds=10,
        spent=0.64,
        run_seconds=5,
        run_spent=0.32,
        max_seconds=25,
        max_spend=0.7,
    )
    facts = facts_of(ProgressSnapshot(counts, 61.0, 90.0, spending))
    assert facts == {
        "stored": "2",
        "waiting": "3",
        "running for": "1 min 1 s",
        "time left, about": "1 min 30 s",
        "bought by this run": "5 s of video, 0.32 as estimated",
        "bought by this batch so far": "10 of 25 s of video (15 left), "
        "0.64 of 0.70 (0.06 left) as estimated",
        "estimated for all": "25 s of video, 1.60 as estimated",
    }
    unpriced = facts_of(
        ProgressSnapshot(counts, 61.0, None, Spending(seconds=25, spent_seconds=10))
    )
    assert unpriced["bought by this batch so far"] == "10 s of video"


def test_spending_is_shown_only_with_prices():
    """Without prices, no money is shown."""
    unpriced = BatchProgress(Budget("b/"), Spending(seconds=5)).spending()
    assert (unpriced.spent, unpriced.run_spent) == (None, None)
    priced = BatchProgress(
        Budget("b/", {"gen3a_turbo": Price(0.3)}), Spending(seconds=5, estimate=0.3)
    )
    assert (priced.spending().spent, priced.spending().run_spent) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.4, "0 s"), (59.6, "1 min 0 s"), (61, "1 min 1 s"), (7325, "2 h 2 min")]
)
def test_a_time_is_said_as_people_say_it(seconds, said):
    """A duration shows seconds below an hour only."""
    assert span(seconds) == said
