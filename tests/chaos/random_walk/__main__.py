# SPDX-License-Identifier: Apache-2.0
"""Buy, kill, pause, copy, fork, move and restore for a given time, and check the purchases.

``python -m tests.chaos.random_walk --minutes 60 --database sqlite`` starts a double of the service,
PostgreSQL if selected, buyers, collectors, and a person who decides. The seed chooses the
disturbances and their order. The exit status is 1 if anything was paid twice without leave, if
anything was lost, or if another promise is broken.
"""

import argparse
import gc
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from ...postgres import Postgres, binaries
from .checker import Left, violations
from .disturbances import DISTURBANCES, Disturbance, possible
from .report import REPORTED_AS, Outcome, markdown, missing, summary
from .service import FAULTS
from .walk import BUYERS, TICK, Walk

PACE = 0.45
"""Seconds between two disturbances, on average."""


def steps(
    seed: int, able: list[Disturbance], pace: float
) -> Iterator[tuple[float, Disturbance, random.Random]]:
    """Yield the pauses and the disturbances of a seed, each with a generator of its own.

    The first ones are one of each, so that also a short walk meets them all.
    """
    chance = random.Random(f"{seed} steps")
    number = 0
    coming = chance.sample(able, len(able))
    while True:
        number += 1
        one = coming.pop() if coming else chance.choices(able, [one.weight for one in able])[0]
        yield chance.expovariate(1 / pace), one, random.Random(f"{seed} step {number}")


def disturb(walk: Walk, seconds: float, able: list[Disturbance], pace: float) -> None:
    """Keep the buyers buying, and disturb them, until the time is over.

    It lasts up to a minute longer where a disturbance has not happened yet.
    """
    plan = steps(walk.seed, able, pace)
    start = time.monotonic()
    delay, one, chance = next(plan)
    due = start + 2 + delay
    end = 0.0
    while True:
        never = missing([one.name for one in able], walk.happened)
        is_over = time.monotonic() > start + seconds
        end = end or (time.monotonic() + 60 if is_over else 0.0)
        if is_over and (not never or walk.is_unreadable or time.monotonic() > end):
            return
        walk.tend()
        for _ in range(BUYERS - len(walk.of_kind("buyer"))):
            walk.buyer()
        if time.monotonic() >= due:
            if is_over:  # what is missing comes first
                one = next(other for other in able if other.name == never[0])
            if one.act(walk, chance) and one.name not in REPORTED_AS:
                walk.happened[one.name] += 1
            delay, one, chance = next(plan)
            due = time.monotonic() + delay
        time.sleep(TICK)


def play(
    folder: Path,
    seed: int,
    seconds: float,
    database: str,
    without: set[str],
    pace: float,
    tell: Callable[[str], None],
) -> Outcome:
    """Play one walk and check what it left."""
    able = possible(database, without)
    found = binaries() if database == "postgresql" else None
    postgres = Postgres(found) if found else None
    started = time.monotonic()
    try:
        walk = Walk(folder, seed, postgres, set(FAULTS) - without)
        gc.collect()
        gc.freeze()
        with walk.service():
            disturb(walk, seconds, able, pace)
            bought = len(walk.accepted.lines())
            tell(f"{bought} purchases after {seconds:.0f} s; everything is settled now")
            walk.end_actors()
            walk.ask_service("calm")
            walk.wait_for_service()
            walk.settle(every=True)
            left: Left = walk.left()
            return Outcome(
                seed=seed,
                seconds=seconds,
                all_seconds=time.monotonic() - started,
                database=database,
                happened=walk.happened,
                expected=[one.name for one in able],
                faults=walk.ask_service("state")["faults"],
                events=walk.events.lines(),
                left=left,
                incoming=len(list((walk.place.storage / ".incoming").glob("*"))),
                violations=violations(left),
            )
    finally:
        if postgres:
            postgres.remove()


def main(asked: argparse.Namespace) -> int:
    """Play a walk, report it, and return the exit status."""
    without = {name for name in asked.without.split(",") if name}
    known = {one.name for one in DISTURBANCES} | set(FAULTS)
    if unknown := without - known:
        print(f"{', '.join(sorted(unknown))}: not one of {', '.join(sorted(known))}")
        return 2
    if asked.database == "postgresql" and not binaries():
        print("PostgreSQL is not installed (apt-get install postgresql)", file=sys.stderr)
        return 2
    command = f"python -m tests.chaos.random_walk --minutes {asked.minutes:g}"
    command += f" --database {asked.database} --seed {asked.seed}"
    command += f" --without {','.join(sorted(without))}" if without else ""
    with tempfile.TemporaryDirectory(prefix="cometapi-walk-") as name:
        folder = asked.folder or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        os.environ["PREFECT_HOME"] = str(folder / "prefect")
        seconds = 60 * asked.minutes
        outcome = play(folder, asked.seed, seconds, asked.database, without, asked.pace, print)
    print(summary(outcome))
    if asked.report:
        asked.report.write_text(markdown(command, outcome), encoding="utf-8")
    return 1 if outcome.violations else 0


def _end(_number: int, _frame: object) -> None:
    sys.exit(143)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _end)  # so that no process is left behind
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=60, metavar="N")
    parser.add_argument("--database", choices=("sqlite", "postgresql"), default="sqlite")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--report", type=Path, metavar="FILE", help="Markdown page for the figures")
    parser.add_argument(
        "--pace", type=float, default=PACE, metavar="S", help="seconds between two disturbances"
    )
    parser.add_argument(
        "--without", default="", metavar="A,B", help="disturbances and faults to leave out"
    )
    parser.add_argument("--folder", type=Path, help="where to leave the logs; deleted otherwise")
    for variable in [name for name in os.environ if name.startswith(("COMETAPI_", "PREFECT_"))]:
        del os.environ[variable]
    sys.exit(main(parser.parse_args()))
