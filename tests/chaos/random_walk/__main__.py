# SPDX-License-Identifier: Apache-2.0
"""Buy, kill, pause, copy, fork, move and restore for a given time, and check the purchases.

``python -m tests.chaos.random_walk --minutes 60 --database sqlite`` starts a double of the service,
PostgreSQL if selected, buyers, collectors, and a user who decides. The seed chooses the
disturbances and their order. The exit status is 1 if anything was paid twice without permission,
if anything was lost, or if another promise is broken.
"""

import argparse
import gc
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from ...machine import how_to_get
from ...postgres import binaries
from ..harness import command
from ..harness.servers import postgres_server
from .checker import find_violations
from .disturbances import DISTURBANCES, Disturbance, possible
from .report import REPORTED_AS, Outcome, distinct_violations, markdown, missing, summary
from .service import FAULTS
from .walk import BUYERS, TICK, Walk

INTERVAL = 0.45
"""Seconds between two disturbances, on average."""


def plan(
    seed: int, candidates: list[Disturbance], interval: float
) -> Iterator[tuple[float, Disturbance, random.Random]]:
    """Yield the pauses and the disturbances of a seed, each with a generator of its own.

    The first ones are one of each, so that a short walk meets them all as well.
    """
    rng = random.Random(f"{seed} steps")
    number = 0
    first = rng.sample(candidates, len(candidates))
    weights = [disturbance.weight for disturbance in candidates]
    while True:
        number += 1
        chosen = first.pop() if first else rng.choices(candidates, weights)[0]
        yield rng.expovariate(1 / interval), chosen, random.Random(f"{seed} step {number}")


def disturb(walk: Walk, seconds: float, candidates: list[Disturbance], interval: float) -> None:
    """Keep the buyers buying, and disturb them, until the time is over.

    It lasts up to a minute longer if a disturbance has not happened yet.
    """
    steps = plan(walk.seed, candidates, interval)
    start = time.monotonic()
    delay, disturbance, rng = next(steps)
    due = start + 2 + delay
    end = 0.0
    while True:
        never = missing([candidate.name for candidate in candidates], walk.counts)
        is_over = time.monotonic() > start + seconds
        end = end or (time.monotonic() + 60 if is_over else 0.0)
        if is_over and (not never or walk.is_unreadable or time.monotonic() > end):
            return
        walk.maintain()
        for _ in range(BUYERS - len(walk.actors_of("buyer"))):
            walk.buyer()
        if time.monotonic() >= due:
            if is_over:  # a missing one comes first
                disturbance = next(other for other in candidates if other.name == never[0])
            if disturbance.act(walk, rng) and disturbance.name not in REPORTED_AS:
                walk.counts[disturbance.name] += 1
            delay, disturbance, rng = next(steps)
            due = time.monotonic() + delay
        time.sleep(TICK)


def run_walk(
    folder: Path,
    seed: int,
    seconds: float,
    database: str,
    without: set[str],
    interval: float,
    log: Callable[[str], None],
) -> Outcome:
    """Run one walk, settle everything, and check the final state."""
    candidates = possible(database, without)
    started = time.monotonic()
    with postgres_server(wanted=database == "postgresql") as postgres:
        walk = Walk(folder, seed, postgres, set(FAULTS) - without)
        gc.collect()
        gc.freeze()
        with walk.service():
            disturb(walk, seconds, candidates, interval)
            bought = len(walk.accepted.lines())
            log(f"{bought} purchases after {seconds:.0f} s; everything is settled now")
            walk.end_actors()
            walk.ask_service("end-faults")
            walk.wait_for_service()
            walk.settle(every=True)
            state = walk.final_state()
            return Outcome(
                seed=seed,
                seconds=seconds,
                all_seconds=time.monotonic() - started,
                database=database,
                counts=walk.counts,
                expected=[disturbance.name for disturbance in candidates],
                faults=walk.ask_service("state")["faults"],
                events=walk.events.lines(),
                state=state,
                incoming=len(list((walk.env.storage / ".incoming").glob("*"))),
                violations=find_violations(state),
            )


def arguments(words: list[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = command.parser(__doc__)
    add = parser.add_argument
    add("--minutes", type=float, default=60, metavar="N")
    add("--database", choices=("sqlite", "postgresql"), default="sqlite")
    add("--seed", type=int, default=1)
    add("--pace", type=float, default=INTERVAL, metavar="S", help="seconds between disturbances")
    add("--without", default="", metavar="A,B", help="disturbances and faults to leave out")
    add("--folder", type=Path, help="folder for the logs (default: a temporary one)")
    return parser.parse_args(words)


def main(options: argparse.Namespace) -> int:
    """Run a walk, report it, and return the exit status."""
    without = {name for name in options.without.split(",") if name}
    known = {disturbance.name for disturbance in DISTURBANCES} | set(FAULTS)
    if unknown := without - known:
        print(f"{', '.join(sorted(unknown))}: not one of {', '.join(sorted(known))}")
        return 2
    if options.database == "postgresql" and not binaries():
        print(how_to_get("PostgreSQL", "postgresql"), file=sys.stderr)
        return 2
    line = f"python -m tests.chaos.random_walk --minutes {options.minutes:g}"
    line += f" --database {options.database} --seed {options.seed}"
    line += f" --without {','.join(sorted(without))}" if without else ""
    with tempfile.TemporaryDirectory(prefix="cometapi-walk-") as name:
        folder = options.folder or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        os.environ["PREFECT_HOME"] = str(folder / "prefect")
        outcome = run_walk(
            folder,
            options.seed,
            60 * options.minutes,
            options.database,
            without,
            options.pace,
            print,
        )
    return command.conclude(
        summary(outcome),
        distinct_violations(outcome),
        options.report,
        lambda: markdown(line, outcome),
    )


if __name__ == "__main__":
    command.isolate()
    sys.exit(main(arguments(sys.argv[1:])))
