# SPDX-License-Identifier: Apache-2.0
"""A resubmission waits until the first submission can no longer arrive."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_cometapi.runway import Entry, State
from prefect_cometapi.runway.api.client import TOTAL_TIMEOUT
from prefect_cometapi.runway.errors import SubmissionUncertain
from prefect_cometapi.runway.ledger.resubmission import ARRIVAL_WINDOW, may_arrive_until, sent_at

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
UNKNOWN = {State.UNCERTAIN, State.WRITTEN_OFF}
ages = st.timedeltas(timedelta(days=-400), timedelta(days=400))


def entry(state: State, claimed_at: datetime | None, **values: object) -> Entry:
    known = {"idempotency_key": "k", "claim": "c", "base_url": "https://h", "created_at": NOW}
    values = {"changed_at": NOW, "claimed_at": claimed_at, **values}
    return Entry.model_validate({**known, **values, "state": state})


@given(age=ages, state=st.sampled_from(sorted(UNKNOWN)))
def test_it_waits_for_the_whole_window_and_no_longer(age, state):
    """A resubmission is refused within the window and allowed from its end on."""
    until = may_arrive_until(entry(state, NOW - age), NOW)
    assert (until is None) == (age >= ARRIVAL_WINDOW)
    assert until is None or NOW < until <= NOW + ARRIVAL_WINDOW


@given(age=ages, state=st.sampled_from(sorted(set(State) - UNKNOWN)))
def test_what_ended_upstream_need_not_wait(age, state):
    """A failure, a cancellation or a refusal is final, so no wait is needed."""
    assert may_arrive_until(entry(state, NOW - age), NOW) is None


@pytest.mark.parametrize("state", [State.SUBMITTED, State.ABANDONED])
def test_an_id_that_nobody_confirmed_is_not_an_answer(state):
    """A mistyped id, adopted while the service was away, hides an open submission."""
    fresh = NOW - timedelta(minutes=1)
    unconfirmed = entry(state, fresh, task_id="task-1", task_id_checked=False)
    assert may_arrive_until(unconfirmed, NOW) == fresh + ARRIVAL_WINDOW


def test_a_clock_that_was_ahead_counts_as_just_now():
    """A claim in the future does not shorten the wait."""
    ahead = entry(State.UNCERTAIN, NOW + timedelta(days=3))
    assert sent_at(ahead, NOW) == NOW
    assert may_arrive_until(ahead, NOW) == NOW + ARRIVAL_WINDOW


def test_a_row_without_a_claim_time_is_as_old_as_its_last_change():
    """Without a claim time, the last change is the latest time at which it was sent."""
    old = entry(State.WRITTEN_OFF, None, changed_at=NOW - timedelta(minutes=1))
    assert may_arrive_until(old, NOW) == NOW + ARRIVAL_WINDOW - timedelta(minutes=1)


def test_the_window_is_what_the_advice_says_and_outlasts_the_request():
    """The error gives the wait in minutes, and a request always ends within that time."""
    minutes = ARRIVAL_WINDOW.total_seconds() / 60
    advice = SubmissionUncertain("no answer").with_context(idempotency_key="sku 17").hint()
    assert f"{minutes:g} minutes after it was sent" in advice
    assert "prefect-cometapi ledger resubmit 'sku 17'." in advice
    assert 2 * timedelta(seconds=TOTAL_TIMEOUT) < ARRIVAL_WINDOW
