# SPDX-License-Identifier: Apache-2.0
"""A batch of a kind that nobody knows polls its scouts, and the others when ends are likely."""

import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from random import Random
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_cometapi.runway import Submission
from prefect_cometapi.runway.api.cohort import (
    MAX_GAP,
    MIN_ENDS,
    SCOUT_EVERY,
    SCOUTS,
    Cohort,
    can_wait,
    is_scout,
    recheck_delay,
)
from prefect_cometapi.runway.api.poll_schedule import JITTER, first_delay, next_delay
from prefect_cometapi.runway.api.polling import PollPolicy, PollState, wait_until_finished

from .test_poll_schedule import lognormal

INTERVAL = 5.0
DONE = {"id": "task-1", "status": "SUCCEEDED", "output": ["https://example.com/o.mp4"]}
RUNNING = {"id": "task-1", "status": "RUNNING", "progress": 0.5}
UNKNOWN = (400, {"code": "task_not_exist", "message": "task_not_exist", "data": None})
FAST = PollPolicy(interval=0.05, timeout=20.0, not_found_grace=10.0)

ages = st.floats(0, 1e6)
intervals = st.floats(1e-3, 1e4)
ends = st.lists(ages, max_size=MIN_ENDS).map(sorted)


def polled(durations: Sequence[float], draw: Random, *, alone: bool = False):
    """Poll generations that start together; return the polls and the lag of each, and all gaps."""
    cohort, seen, gaps = Cohort(), [], []
    waits = []
    for number, duration in enumerate(durations):
        scout = cohort.join() or alone
        waits.append([first_delay(0.0, INTERVAL, None, draw.random()), number, duration, scout])
    last, polls = [0.0] * len(durations), [0] * len(durations)
    while waits:
        waits.sort()
        age, number, duration, scout = waits.pop(0)
        unobserved = age - last[number]
        if not scout and cohort.can_wait(age, unobserved, INTERVAL):
            waits.append([age + recheck_delay(INTERVAL, draw.random()), number, duration, scout])
            continue
        polls[number] += 1
        gaps.append(unobserved)
        if age >= duration:
            cohort.add_end(age, unobserved, INTERVAL)
            seen.append((polls[number], age - duration))
            continue
        last[number] = age
        gap = next_delay(age, INTERVAL, None, draw.random())
        waits.append([age + gap, number, duration, scout])
    return seen, gaps


@given(position=st.integers(0, 10**6))
def test_a_small_batch_has_only_scouts(position):
    """The first generations are scouts, and a fixed share of the others."""
    assert is_scout(position) or position >= SCOUTS
    assert any(is_scout(position + step) for step in range(SCOUT_EVERY))
    assert is_scout(SCOUTS + position) == is_scout(SCOUTS + position + SCOUT_EVERY)


@given(age=ages, unobserved=ages, interval=intervals, ends=ends)
def test_no_poll_waits_beyond_the_bound(age, unobserved, interval, ends):
    """A generation that ends far earlier than all others is found within the bound."""
    if unobserved >= MAX_GAP * interval:
        assert not can_wait(age, unobserved, interval, ends)


@given(interval=intervals, chance=st.floats(0, 1))
def test_a_poll_that_waits_is_decided_again_soon(interval, chance):
    """No delay between two decisions is longer than half an interval."""
    assert 0.0 <= recheck_delay(interval, chance) <= interval / 2


@given(age=ages, older=ages, unobserved=ages, more=ages, interval=intervals, ends=ends)
def test_a_poll_that_is_due_stays_due(age, older, unobserved, more, interval, ends):
    """A higher age or a longer time without a poll never makes a poll wait."""
    if not can_wait(age, unobserved, interval, ends):
        assert not can_wait(age + older, unobserved + more, interval, ends)


@given(seen=st.lists(ages, max_size=8), new=ages, age=ages, unobserved=ages, interval=intervals)
def test_another_end_never_makes_a_poll_wait(seen, new, age, unobserved, interval):
    """Ends that are seen only bring polls forward, in whatever order they are seen."""
    cohort = Cohort()
    for end in seen:
        cohort.add_end(end, interval, interval)
    before = cohort.can_wait(age, unobserved, interval)
    cohort.add_end(new, interval, interval)
    assert before or not cohort.can_wait(age, unobserved, interval)
    assert cohort.ends == sorted([*seen, new])[:MIN_ENDS]


@given(age=ages, interval=intervals, seen=ages, beyond=st.floats(0.1, 1e3))
def test_polls_are_due_where_ends_were_seen(age, interval, seen, beyond):
    """Once enough ends are seen, no generation of that age or older waits."""
    cohort = Cohort()
    for _ in range(MIN_ENDS):
        assert cohort.can_wait(age, 0.0, interval)
        cohort.add_end(seen, interval, interval)
    assert cohort.can_wait(age, 0.0, interval) == (age < seen - interval)
    for _ in range(MIN_ENDS):  # ends that nobody saw when they happened, as after a restart
        cohort.add_end(seen, (MAX_GAP + 2.0 + beyond) * interval, interval)
    assert not cohort.can_wait(age, 0.0, interval)


@pytest.mark.parametrize(
    ("mean", "cv", "most"),
    [(20, 0.1, 0.55), (64, 0.25, 0.65), (64, 0.5, 0.8), (120, 0.4, 0.75), (256, 0.3, 0.7)],
)
def test_a_batch_teaches_itself_when_to_poll(mean, cv, most):
    """A batch of an unknown kind needs fewer polls, with the lag of the fixed interval."""
    durations = lognormal(mean, cv, 200, Random(1))
    fixed, _ = polled(durations, Random(2), alone=True)
    ours, gaps = polled(durations, Random(2))
    assert fmean(polls for polls, _ in ours) < most * fmean(polls for polls, _ in fixed)
    lags = [sorted(lag for _, lag in seen) for seen in (fixed, ours)]
    assert fmean(lags[1]) < 1.2 * fmean(lags[0])
    assert lags[1][int(0.9 * len(durations))] < INTERVAL * (1 + JITTER)
    assert min(gaps) >= INTERVAL * (1 - 1e-9)
    assert max(gaps) <= (MAX_GAP + 0.5) * INTERVAL


async def test_the_others_wait_for_the_scouts(answers, client_of, submitted):
    """A generation after the scouts is polled once ends are seen, or the bound is reached."""
    cohort = Cohort(size=SCOUTS + 1)
    script = answers(RUNNING, DONE)
    finished = await wait_until_finished(await client_of(script), submitted(), FAST, cohort=cohort)
    assert finished.polls == 2
    for gap in (finished.waited, script.times[1] - script.times[0]):
        assert gap >= MAX_GAP * FAST.interval
    assert cohort.ends == [finished.waited]
    cohort.ends = [0.0] * MIN_ENDS
    again = await wait_until_finished(
        await client_of(answers(DONE)), submitted(), FAST, cohort=cohort
    )
    assert again.waited < MAX_GAP * FAST.interval


async def test_a_scout_does_not_wait(answers, client_of, submitted):
    """Each of the first generations is polled at the interval."""
    cohort, script = Cohort(), answers(RUNNING, DONE)
    policy = PollPolicy(interval=0.2, timeout=20.0, not_found_grace=10.0)
    finished = await wait_until_finished(
        await client_of(script), submitted(), policy, cohort=cohort
    )
    assert finished.waited < MAX_GAP * policy.interval
    assert cohort.size == 1


async def test_an_unknown_id_does_not_wait_for_the_scouts(answers, client_of, submitted):
    """An id that the service does not know, or a refusal, is asked about at the interval."""
    cohort, script = Cohort(size=SCOUTS + 1), answers(UNKNOWN, RUNNING, DONE)
    policy = PollPolicy(interval=0.2, timeout=20.0, not_found_grace=10.0)
    wait = PollState(started=time.monotonic(), missing_since=time.monotonic(), is_scout=False)
    await wait_until_finished(
        await client_of(script), submitted(), policy, wait=wait, cohort=cohort
    )
    assert script.times[1] - script.times[0] < MAX_GAP * policy.interval


async def test_no_poll_waits_beyond_the_deadline(answers, client_of, submitted):
    """A wait for the scouts ends at the deadline of the generation."""
    policy = PollPolicy(interval=0.1, timeout=0.2, not_found_grace=10.0)
    finished = await wait_until_finished(
        await client_of(answers(DONE)), submitted(), policy, cohort=Cohort(size=SCOUTS + 1)
    )
    assert finished.waited < MAX_GAP * policy.interval


async def test_a_generation_that_is_attached_late_is_polled_at_once(answers, client_of):
    """A generation that ended while no run waited is found at once, and teaches no age."""
    old = Submission(
        idempotency_key="sku-17",
        task_id="task-1",
        submitted_at=datetime.now(UTC) - timedelta(seconds=500),
    )
    cohort = Cohort(size=SCOUTS + 1)
    finished = await wait_until_finished(
        await client_of(answers(DONE)), old, PollPolicy(), cohort=cohort
    )
    assert finished.waited < 500 + PollPolicy().interval
    assert cohort.ends == [0.0]
