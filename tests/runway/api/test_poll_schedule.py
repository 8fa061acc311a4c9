# SPDX-License-Identifier: Apache-2.0
"""Polls are scheduled by the durations of earlier generations, and are never too frequent."""

import math
from collections import Counter
from collections.abc import Sequence
from random import Random
from statistics import NormalDist, fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_cometapi.runway.api.poll_schedule import (
    FIRST_POLL_LIMIT,
    HISTORY_SIZE,
    JITTER,
    MAX_DURATION,
    MAX_GAP_FACTOR,
    MIN_SAMPLES,
    DurationStats,
    estimate_durations,
    first_delay,
    next_delay,
)

INTERVAL = 5.0
FIXED_LAG = INTERVAL / 2
RUNWAYML_POLLS = 64 / 6 + 0.5
LEAST = {(64, 0.25): 13.9, (64, 0.5): 22.6, (120, 0.4): 36.9, (256, 0.3): 64.2}
"""Least product of mean polls and mean lag, per mean and coefficient of variation of lognormal
durations; docs/polling.md derives it."""

intervals = st.floats(1e-3, 1e4)
ages = st.floats(0, 1e6)
chances = st.floats(0, 1)
anything = st.lists(st.tuples(st.floats(), st.integers()), max_size=40)
plausible = st.lists(st.tuples(st.floats(0, 1e5), st.integers(1, 100)), max_size=40)
regular = st.builds(  # like real poll times, so that most histories teach something
    lambda first, gaps: [(first + INTERVAL * gap, gap + 1) for gap in gaps],
    st.floats(INTERVAL, 300),
    st.lists(st.integers(0, 40), min_size=MIN_SAMPLES, max_size=40),
)
duration_stats = st.builds(
    lambda durations: DurationStats(
        tuple(sorted(durations)), sorted(durations)[len(durations) // 2]
    ),
    st.lists(st.floats(1e-3, 1e5), min_size=1, max_size=60),
)
maybe = st.none() | duration_stats


def lognormal(mean: float, cv: float, count: int, draw: Random) -> list[float]:
    """Return durations in random order, at evenly spaced quantiles so that few are enough."""
    sigma = math.sqrt(math.log1p(cv**2))
    quantiles = (NormalDist().inv_cdf((n + 0.5) / count) for n in range(count))
    found = [mean * math.exp(sigma * z - sigma**2 / 2) for z in quantiles]
    draw.shuffle(found)
    return found


def watch(duration: float, stats: DurationStats | None, draw: Random, interval: float = INTERVAL):
    """Return the age at which the end is seen, and the number of polls."""
    age, polls = first_delay(0.0, interval, stats, draw.random()), 1
    while age < duration:
        age, polls = age + next_delay(age, interval, stats, draw.random()), polls + 1
    return age, polls


def watch_all(durations: Sequence[float], draw: Random, history=()):
    """Poll each generation with what earlier ones teach; return polls, lags and the new history."""
    history, seen = list(history), []
    for duration in durations:
        waited, polls = watch(duration, estimate_durations(history, INTERVAL), draw)
        history = [(waited, polls), *history[: HISTORY_SIZE - 1]]
        seen.append((polls, waited - duration))
    return seen, history


def means(seen) -> tuple[float, float]:
    """Return the mean number of polls and the mean lag."""
    return fmean(polls for polls, _ in seen), fmean(lag for _, lag in seen)


@given(age=ages, interval=intervals)
def test_without_history_the_interval_is_fixed(age, interval):
    """A kind without history is polled at a fixed interval."""
    assert first_delay(age, interval, None) == max(0.0, interval - age)
    assert next_delay(age, interval, None) == interval


@given(waited=st.floats(10, 1000), count=st.integers(0, MIN_SAMPLES - 1))
def test_a_few_generations_teach_nothing(waited, count):
    """A few durations are not enough to change the schedule of all later generations."""
    polls = int(waited / INTERVAL)
    assert estimate_durations([(waited, polls)] * count, INTERVAL) is None
    assert estimate_durations([(waited, polls)] * MIN_SAMPLES, INTERVAL) is not None


@given(history=anything | plausible | regular, interval=intervals, age=ages, chance=chances)
def test_no_history_makes_polls_too_frequent_or_endlessly_late(history, interval, age, chance):
    """Zeros, negatives, nan, infinities and other invalid records do no harm."""
    stats = estimate_durations(history, interval)
    first = first_delay(age, interval, stats, chance)
    assert 0.0 <= first < MAX_DURATION + 2 * interval
    assert age + first >= interval * (1 - 1e-9)
    gap = next_delay(age, interval, stats, chance)
    assert interval <= gap <= interval * MAX_GAP_FACTOR * (1 + JITTER) * (1 + 1e-9)


@given(stats=duration_stats, interval=intervals, chance=chances)
def test_the_first_look_does_not_wait_for_the_typical_duration(stats, interval, chance):
    """The first poll comes one interval after the submission or later, but within its limit."""
    age = first_delay(0.0, interval, stats, chance)
    latest = max(interval * (1 + JITTER), FIRST_POLL_LIMIT * stats.typical + interval)
    assert interval <= age <= latest * (1 + 1e-9)


@given(stats=maybe, interval=intervals, ages=st.tuples(ages, ages), chance=chances)
def test_an_older_generation_waits_no_longer_for_its_first_look(stats, interval, ages, chance):
    """A generation that is attached again is polled first no later than a new one."""
    young, old = sorted(ages)
    assert first_delay(old, interval, stats, chance) <= first_delay(young, interval, stats, chance)


@given(stats=maybe, interval=intervals, ages=st.tuples(ages, ages))
def test_who_looks_later_looks_later_again(stats, interval, ages):
    """Apart from jitter, a poll at a higher age never makes the next one earlier."""
    young, old = sorted(ages)
    for delay in (first_delay, next_delay):
        due = young + delay(young, interval, stats)
        assert old + delay(old, interval, stats) >= due * (1 - 1e-9)


@given(stats=duration_stats, interval=intervals, longer=st.floats(1, 10))
def test_longer_durations_do_not_bring_the_first_look_forward(stats, interval, longer):
    """If all generations take longer, the first poll is at the same time or later."""
    slow = DurationStats(tuple(longer * one for one in stats.durations), longer * stats.typical)
    before, after = (first_delay(0.0, interval, one) for one in (stats, slow))
    assert after >= before * (1 - 1e-9)


@given(stats=maybe, interval=intervals, age=ages, chance=chances)
def test_jitter_in_a_schedule_only_ever_adds(stats, interval, age, chance):
    """Jitter lengthens every delay, by at most one interval or a tenth."""
    for delay, most in ((first_delay, interval), (next_delay, MAX_GAP_FACTOR * interval * JITTER)):
        least = delay(age, interval, stats)
        assert least <= delay(age, interval, stats, chance) <= least + most * (1 + 1e-9) + 1e-6


@given(stats=maybe, duration=st.floats(0, 2000), seed=st.integers(0, 99))
def test_no_generation_takes_more_polls_than_at_a_fixed_interval(stats, duration, seed):
    """A wrong history never causes more polls than a fixed interval."""
    waited, polls = watch(duration, stats, Random(seed))
    assert polls <= max(1, math.ceil(duration / INTERVAL))
    first = first_delay(0.0, INTERVAL, stats, 1.0)
    assert waited - duration <= max(first, INTERVAL * MAX_GAP_FACTOR * (1 + JITTER)) + 1e-9


@given(history=regular, power=st.integers(-6, 6))
def test_the_unit_of_time_does_not_matter(history, power):
    """A service that is twice as slow and polled half as often has the same schedule."""
    scale = 2.0**power
    stats = estimate_durations(history, INTERVAL)
    scaled = estimate_durations(
        [(scale * waited, polls) for waited, polls in history], scale * INTERVAL
    )
    delay = first_delay(0.0, INTERVAL, stats)
    assert first_delay(0.0, scale * INTERVAL, scaled) == pytest.approx(scale * delay)


@given(
    history=regular,
    late=st.lists(
        st.tuples(st.integers(0, 40), st.floats(7200, 1e9), st.integers(1, 9)), max_size=60
    ),
)
def test_generations_that_nobody_looked_at_do_not_spoil_it(history, late):
    """A video that is found hours later changes nothing, be it at the first poll or the ninth."""
    mixed = list(history)
    for at, waited, polls in late:
        mixed.insert(at, (waited, polls))
    assert estimate_durations(mixed, INTERVAL) == estimate_durations(history, INTERVAL)


@given(
    waits=st.lists(st.floats(600, 1e5), min_size=MIN_SAMPLES, max_size=60),
    polls=st.integers(1, 3),
    seen=st.integers(0, MIN_SAMPLES - 1),
)
def test_rare_collector_runs_do_not_count(waits, polls, seen):
    """Generations that only collectors find late do not count as taking an hour."""
    history = [(waited, polls) for waited in waits]
    assert estimate_durations([(60.0, 12)] * seen + history, INTERVAL) is None


@given(waited=st.floats(20, 300), count=st.integers(1, HISTORY_SIZE - 20))
def test_most_done_at_the_first_look_is_not_taken_for_a_duration(waited, count):
    """Statistics are dropped if most end by the first poll, which hides a faster service."""
    before = [(2 * waited + INTERVAL * (7 * n % 20), 7 * n % 20 + 20) for n in range(20)]
    known = estimate_durations(before, INTERVAL)
    assert known is not None
    stats = estimate_durations([(waited, 1)] * count + before, INTERVAL)
    assert (stats is None) == (2 * count >= MIN_SAMPLES)
    assert first_delay(0.0, INTERVAL, stats) <= first_delay(0.0, INTERVAL, known)


@pytest.mark.parametrize(("mean", "cv"), LEAST)
@pytest.mark.heavy
def test_what_it_learned_itself_comes_close_to_the_least_possible(mean, cv):
    """Polls times lag is within a quarter of the optimum, and the lag is near the interval's."""
    draw = Random(f"{mean} {cv}")
    _, history = watch_all(lognormal(mean, cv, 150, draw), draw)
    seen, _ = watch_all(lognormal(mean, cv, 500, draw), draw, history)
    polls, lag = means(seen)
    assert polls * lag <= 1.25 * LEAST[mean, cv]
    assert lag <= 1.35 * FIXED_LAG
    if (mean, cv) == (64, 0.25):
        assert polls * lag <= 17
        assert polls <= 0.55 * RUNWAYML_POLLS


def test_the_first_look_does_not_drift():
    """The time of the first poll is stable although it hides how early generations end."""
    draw, looks = Random(4), []
    _, history = watch_all(lognormal(64, 0.25, 200, draw), draw)
    for _ in range(4):
        _, history = watch_all(lognormal(64, 0.25, 200, draw), draw, history)
        looks.append(first_delay(0.0, INTERVAL, estimate_durations(history, INTERVAL)))
    assert max(looks) - min(looks) < INTERVAL


@pytest.mark.parametrize(("mean", "cv"), [(64, 0.25), (256, 0.3)])
@pytest.mark.parametrize("factor", [3.0, 1 / 3], ids=["slower", "faster"])
def test_a_sudden_change_is_learned_within_twenty_generations(mean, cv, factor):
    """Until then no lag exceeds the wait for the first poll, and polls do not become too many."""
    draw = Random(f"{mean} {factor}")
    _, history = watch_all(lognormal(mean, cv, 200, draw), draw)
    changed = [factor * duration for duration in lognormal(mean, cv, 80, draw)]
    seen, _ = watch_all(changed, draw, history)
    polls, lag = means(seen[20:])
    fixed = factor * mean / INTERVAL + 0.5
    assert polls < 0.7 * fixed
    assert lag < 2.5 * FIXED_LAG
    assert max(lag for _, lag in seen) <= FIRST_POLL_LIMIT * mean * max(1.0, factor) + INTERVAL
    assert all(
        polls <= max(1, math.ceil(duration / INTERVAL))
        for duration, (polls, _) in zip(changed, seen, strict=True)
    )


def test_a_batch_is_spread_over_the_interval():
    """A thousand generations that start at once are not polled at once."""
    draw = Random(5)
    _, history = watch_all(lognormal(64, 0.25, 200, draw), draw)
    stats = estimate_durations(history, INTERVAL)
    ages = [first_delay(0.0, INTERVAL, stats, draw.random()) for _ in range(1000)]
    for _ in range(5):
        seconds = Counter(math.floor(age) for age in ages)
        assert max(seconds.values()) < 1.3 * 1000 / INTERVAL
        ages = [age + next_delay(age, INTERVAL, stats, draw.random()) for age in ages]
