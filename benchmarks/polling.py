# SPDX-License-Identifier: Apache-2.0
"""Simulate poll schedules: their cost and their lag, compared with the best possible schedule.

    python benchmarks/polling.py [--report docs/polling.md] [--plot docs/images/polling.svg]

The simulation needs no service and no waiting. The durations of the generations are lognormal, and
each generation is polled by a schedule until a poll comes after its end. The schedule of this
package learns as in production, from the ends that it detects. The same seed gives the same figures
on every machine.
"""

import argparse
import heapq
import math
from bisect import insort
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, chain, repeat
from pathlib import Path
from random import Random
from statistics import NormalDist, fmean, quantiles
from typing import NamedTuple

from polling_plot import TIMES, Bar, drawing

from prefect_cometapi.runway.api.cohort import Cohort, recheck_delay
from prefect_cometapi.runway.api.poll_schedule import (
    HISTORY_SIZE,
    DurationStats,
    estimate_durations,
    first_delay,
    next_delay,
)

SEED = 1
INTERVAL = 5.0
GENERATIONS = 6000
WARM = 300
"""Generations that a schedule learns from before its figures count."""
BATCH = 1000
BATCHES = ((100, 24), (300, 16), (1000, 6))
"""Sizes of batches of an unknown kind, and how many of each are simulated."""
REFRESH = 30.0
"""Seconds between two looks of a run at the durations in its ledger."""
CHANGES = 16
"""Simulated services with a sudden change, per profile and change."""
BEGIN, END = "<!-- polling: figures -->", "<!-- polling: end of figures -->"


class Profile(NamedTuple):
    """Lognormal durations: their mean in seconds, and the standard deviation over the mean."""

    mean: float
    cv: float

    def __str__(self) -> str:
        return f"{self.mean:g} s, cv {self.cv:g}"

    @property
    def sigma(self) -> float:
        return math.sqrt(math.log1p(self.cv**2))

    def at(self, z: float) -> float:
        """Return the duration that is ``z`` standard deviations above the median, in logarithm."""
        return self.mean * math.exp(self.sigma * z - self.sigma**2 / 2)

    def durations(self, count: int, draw: Random) -> list[float]:
        """Return N durations in random order, taken at evenly spread quantiles."""
        found = [self.at(NormalDist().inv_cdf((n + 0.5) / count)) for n in range(count)]
        draw.shuffle(found)
        return found


SHORT = Profile(20, 0.1)
PROFILES = (Profile(64, 0.25), Profile(64, 0.5), Profile(120, 0.4), Profile(256, 0.3))


class Watched(NamedTuple):
    """Result of polling one generation."""

    polls: int
    waited: float
    lag: float


class Means(NamedTuple):
    """Mean polls and mean seconds of lag per generation."""

    polls: float
    lag: float

    def __str__(self) -> str:
        return f"{self.polls:.1f} {TIMES} {self.lag:.2f} = {self.polls * self.lag:.1f}"


Schedule = Callable[[Random], Iterator[float]]
"""Seconds before each poll of a generation."""


def ours(stats: DurationStats | None) -> Schedule:
    """Yield the delays of this package's schedule."""

    def delays(draw: Random) -> Iterator[float]:
        age = first_delay(0.0, INTERVAL, stats, draw.random())
        yield age
        while True:
            gap = next_delay(age, INTERVAL, stats, draw.random())
            yield gap
            age += gap

    return delays


def around_six(draw: Random) -> Iterator[float]:
    """Yield delays of six seconds with a random jitter of 1.5 s."""
    return (6.0 + 3.0 * draw.random() - 1.5 for _ in repeat(None))


def growing(_draw: Random) -> Iterator[float]:
    """Yield a delay of five seconds, then 1.5 times the last one each time, up to 45 s."""
    return accumulate(repeat(None), lambda last, _: min(1.5 * last, 45.0), initial=5.0)


OTHERS: dict[str, Schedule] = {
    "fixed 5 s": lambda _draw: repeat(5.0),
    "runwayml: 6 s ± 1.5 s": around_six,
    "google-genai: 20 s": lambda _draw: repeat(20.0),
    "Google operations: 5 to 45 s": growing,
    "fal-client: 0.1 s": lambda _draw: repeat(0.1),
}
OURS, INFORMED = "this package, having learned", "this package, true distribution known"


def watch(duration: float, schedule: Schedule, draw: Random) -> Watched:
    """Poll a generation until a poll comes after its end."""
    age = 0.0
    for polls, delay in enumerate(schedule(draw), start=1):
        age += delay
        if age >= duration:
            return Watched(polls, age, age - duration)
    raise AssertionError("a schedule ended before the generation")


def watch_all(durations: Sequence[float], draw: Random) -> list[Watched]:
    """Poll generations one after the other; each schedule learns from all earlier ones."""
    history: list[tuple[float, int]] = []
    seen: list[Watched] = []
    for duration in durations:
        seen.append(watch(duration, ours(estimate_durations(history, INTERVAL)), draw))
        history.insert(0, (seen[-1].waited, seen[-1].polls))
        del history[HISTORY_SIZE:]
    return seen


def watch_many(starts: Sequence[float], durations: Sequence[float], *, by_end: bool) -> Means:
    """Poll many at a time; each learns from those that ended before it. Count the second half."""
    draw, running, ended = Random(SEED), [], []
    seen: list[Watched] = []
    then, stats = -1.0, None
    for number, (start, duration) in enumerate(zip(starts, durations, strict=True)):
        while running and running[0][0] <= start:
            end, started, which = heapq.heappop(running)
            insort(ended, (end if by_end else started, which))
        if start != then:
            newest = [seen[which] for _, which in reversed(ended[-HISTORY_SIZE:])]
            then, stats = (
                start,
                estimate_durations([(one.waited, one.polls) for one in newest], INTERVAL),
            )
        seen.append(watch(duration, ours(stats), draw))
        heapq.heappush(running, (start + seen[-1].waited, start, number))
    return means(seen[len(seen) // 2 :])


def watch_batch(profile: Profile, draw: Random, count: int, *, alone: bool) -> list[Watched]:
    """Poll a batch of an unknown kind that starts at once.

    Its generations learn from one another, and after half a minute from the ledger.

    Args:
        profile: Durations.
        draw: Source of random numbers.
        count: Number of generations.
        alone: Whether none may wait for its scouts.
    """
    cohort, durations = Cohort(), profile.durations(count, draw)
    is_scout = [cohort.join() or alone for _ in durations]
    last, polls = [0.0] * count, [0] * count
    due = [(first_delay(0.0, INTERVAL, None, draw.random()), which) for which in range(count)]
    heapq.heapify(due)
    seen: dict[int, Watched] = {}
    asked, stats = 0.0, None
    while due:
        age, which = heapq.heappop(due)
        if age >= asked + REFRESH:
            newest = [(seen[one].waited, seen[one].polls) for one in sorted(seen, reverse=True)]
            asked, stats = age, estimate_durations(newest, INTERVAL)
        unobserved = age - last[which]
        if not is_scout[which] and stats is None and cohort.can_wait(age, unobserved, INTERVAL):
            heapq.heappush(due, (age + recheck_delay(INTERVAL, draw.random()), which))
            continue
        polls[which] += 1
        if age >= durations[which]:
            cohort.add_end(age, unobserved, INTERVAL)
            seen[which] = Watched(polls[which], age, age - durations[which])
            continue
        last[which] = age
        gap = next_delay(age, INTERVAL, stats, draw.random())
        heapq.heappush(due, (age + max(gap, first_delay(age, INTERVAL, stats)), which))
    return list(seen.values())


def means(seen: Sequence[Watched]) -> Means:
    """Return the means over generations."""
    return Means(fmean(one.polls for one in seen), fmean(one.lag for one in seen))


def bound(profile: Profile, steps: int = 20_000) -> float:
    """Return the least product of mean polls and lag: half the square of the integral of √(f S)."""
    normal, total = NormalDist(), 0.0
    for step in range(steps):
        z = -8.0 + 16.0 * (step + 0.5) / steps
        width = profile.sigma * profile.at(z)
        total += math.sqrt(normal.pdf(z) * normal.cdf(-z) * width)
    return 0.5 * (16.0 / steps * total) ** 2


def known(profile: Profile) -> DurationStats:
    """Return duration statistics that hold the true values instead of learned ones."""
    durations = profile.durations(2000, Random(SEED))
    return DurationStats(durations=tuple(sorted(durations)), typical=profile.at(0.0))


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; all columns but the first are aligned to the right."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, rule, *rows])


def compare() -> tuple[str, list[tuple[str, list[Bar]]]]:
    """Compare every schedule on every profile; return a table and bars."""
    columns: list[list[str]] = []
    panels: list[tuple[str, list[Bar]]] = []
    for profile in PROFILES:
        least, draw = bound(profile), Random(f"{SEED} {profile}")
        warm, durations = (profile.durations(count, draw) for count in (WARM, GENERATIONS))
        learned = watch_all([*warm, *durations], draw)
        found = {OURS: means(learned[WARM:])}
        others = {INFORMED: ours(known(profile)), **OTHERS}
        for name, schedule in others.items():
            found[name] = means([watch(duration, schedule, draw) for duration in durations])
        cells = [f"{one} ({one.polls * one.lag / least:.2f})" for one in found.values()]
        columns.append([f"{least:.1f}", *cells])
        names = [OURS, *OTHERS]
        panels.append((str(profile), [Bar(name, *found[name], least) for name in names]))
    names = ["least possible", OURS, INFORMED, *OTHERS]
    rows = list(zip(names, *columns, strict=True))
    return table([f"polls {TIMES} lag (of the least)", *map(str, PROFILES)], rows), panels


def begin() -> str:
    """Compare the first generations of a kind with a fixed interval on the same ones."""
    rows = []
    for profile in PROFILES:
        early: list[list[Watched]] = [[], [], []]
        fixed: list[Watched] = []
        for run in range(CHANGES):
            draw = Random(f"{SEED} {profile} {run}")
            durations = profile.durations(GENERATIONS, draw)[:50]
            seen = watch_all(durations, draw)
            for part, (start, stop) in zip(early, ((0, 10), (10, 20), (20, 50)), strict=True):
                part.extend(seen[start:stop])
            fixed += [watch(one, OTHERS["fixed 5 s"], draw) for one in durations]
        rows.append([str(profile), *(pair(means(part)) for part in [*early, fixed])])
    return table(["polls, lag", "1 to 10", "11 to 20", "21 to 50", "fixed 5 s"], rows)


def pair(one: Means) -> str:
    """Return polls and lag in one cell."""
    return f"{one.polls:.1f}, {one.lag:.1f} s"


def change(factor: float) -> str:
    """Simulate a service that suddenly becomes slower or faster after it has been learned."""
    parts = ((0, 5), (5, 10), (10, 20), (20, 50), (50, 200))
    rows = []
    for profile in PROFILES:
        after: list[list[Watched]] = [[] for _ in parts]
        fixed: list[Watched] = []
        for run in range(CHANGES):
            draw = Random(f"{SEED} {profile} {factor} {run}")
            durations = [factor * one for one in profile.durations(GENERATIONS, draw)[:200]]
            before = profile.durations(GENERATIONS, draw)[:250]
            seen = watch_all([*before, *durations], draw)[len(before) :]
            for part, (start, stop) in zip(after, parts, strict=True):
                part.extend(seen[start:stop])
            fixed += [watch(one, OTHERS["fixed 5 s"], draw) for one in durations]
        worst = max(one.lag for part in after for one in part)
        cells = [pair(means(part)) for part in [*after, fixed]]
        rows.append([str(profile), *cells[:-1], f"{worst:.0f} s", cells[-1]])
    names = [f"{start + 1} to {stop}" for start, stop in parts]
    return table(["polls, lag after it", *names, "worst lag", "fixed 5 s"], rows)


def unknown() -> str:
    """Poll batches of a kind about which nothing is known, with and without scouts."""
    rows = []
    for profile in (SHORT, *PROFILES):
        cells = []
        for count, runs in BATCHES:
            found = {
                alone: [
                    one
                    for run in range(runs)
                    for one in watch_batch(profile, Random(f"{run} {profile}"), count, alone=alone)
                ]
                for alone in (True, False)
            }
            ratio = means(found[False]).polls / means(found[True]).polls
            cells += [f"{ratio:.2f}", f"{lags(found[False])} ({lags(found[True])})"]
        rows.append([str(profile), *cells])
    head = ["unknown kind"]
    for count, _ in BATCHES:
        head += [f"{count} at once", "lag"]
    return table(head, rows)


def lags(seen: Sequence[Watched]) -> str:
    """Return the mean lag and the one that 95 % do not exceed, in one cell."""
    return f"{means(seen).lag:.1f}, {quantiles((one.lag for one in seen), n=20)[-1]:.1f} s"


def orders() -> str:
    """Poll many at a time, with the history in either order."""
    profile = PROFILES[0]
    durations = profile.durations(8 * BATCH, Random(SEED))
    at_once = [3600.0 * (number // BATCH) for number in range(len(durations))]
    in_turn = [profile.mean / 50 * number for number in range(len(durations))]
    rows = [
        [name, *(str(watch_many(starts, durations, by_end=by_end)) for by_end in (False, True))]
        for name, starts in (("50 at a time", in_turn), ("1000 at once, every hour", at_once))
    ]
    return table([f"polls {TIMES} lag", "newest submission first", "newest end first"], rows)


def peaks() -> str:
    """Return the polls of a batch in its busiest second and in its busiest tenth of a second."""
    profile, rows = PROFILES[0], []
    learned = watch_all(profile.durations(WARM, Random(SEED)), Random(SEED))
    stats = estimate_durations([(one.waited, one.polls) for one in reversed(learned)], INTERVAL)
    schedules = {
        "fixed 5 s, in step": OTHERS["fixed 5 s"],
        "runwayml: 6 s ± 1.5 s": around_six,
        "this package, nothing learned": ours(None),
        "this package, having learned": ours(stats),
    }
    for name, schedule in schedules.items():
        draw, polled = Random(SEED), []
        for duration in profile.durations(BATCH, draw):
            ages = accumulate(schedule(draw))
            polled.append(list(until(ages, duration)))
        seconds = Counter(int(age) for age in chain(*polled))
        tenths = Counter(int(10 * age) for age in chain(*polled))
        each = sum(map(len, polled)) / BATCH
        rows.append([name, str(max(seconds.values())), str(max(tenths.values())), f"{each:.1f}"])
    head = [f"{BATCH} at once, {profile}", "in 1 s", "in 0.1 s", "polls each"]
    return table(head, rows)


def until(ages: Iterator[float], duration: float) -> Iterator[float]:
    """Return the ages at which a generation is polled, including that of its detected end."""
    for age in ages:
        yield age
        if age >= duration:
            return


def figures() -> tuple[str, list[tuple[str, list[Bar]]]]:
    """Return all tables, each under its heading, and the bars."""
    compared, panels = compare()
    parts = {
        "Against other schedules": compared,
        "The first generations of a kind": begin(),
        "The service becomes three times slower": change(3.0),
        "The service becomes three times faster": change(1 / 3),
        "A batch of an unknown kind": unknown(),
        "Many at a time": orders(),
        "A batch started at once": peaks(),
    }
    return "\n\n".join(f"### {title}\n\n{text}" for title, text in parts.items()), panels


def main() -> None:
    """Simulate and print; write the figures and the plot where requested."""
    parser = argparse.ArgumentParser(description="What a schedule of polls costs and misses.")
    parser.add_argument("--report", type=Path, help="page with the markers between which to write")
    parser.add_argument("--plot", type=Path, help="SVG to write")
    options = parser.parse_args()
    text, panels = figures()
    print(text)
    if options.report:
        page = options.report.read_text(encoding="utf-8")
        before, _, rest = page.partition(BEGIN)
        _, marker, after = rest.partition(END)
        if not marker:
            parser.error(f"{options.report} has no place for figures")
        page = f"{before}{BEGIN}\n\n{text}\n\n{END}{after}"
        options.report.write_text(page, encoding="utf-8")
    if options.plot:
        options.plot.write_text(drawing(panels), encoding="utf-8")


if __name__ == "__main__":
    main()
