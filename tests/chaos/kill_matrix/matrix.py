# SPDX-License-Identifier: Apache-2.0
"""Kill flow runs at every step, recover them in every way, and check that none is paid twice.

``python tests/chaos/kill_matrix/matrix.py --sqlite 100 --postgresql 50`` starts a Prefect server,
stand-ins for CometAPI, and PostgreSQL. The exit status is 1 if a promise is broken.
"""

import argparse
import asyncio
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[3]


def arguments(words: list[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--sqlite", type=int, default=16, metavar="N", help="kills with the ledger in SQLite")
    add("--postgresql", type=int, default=0, metavar="N", help="kills with it in PostgreSQL")
    add("--remote", type=int, default=0, metavar="N", help="kills with videos in S3")
    add("--interruptions", type=int, metavar="N", help="per database; a third of its kills if not")
    add("--seed", type=int, default=1, metavar="N", help="of the plan")
    add("--report", type=Path, metavar="FILE", help="where to write the result as Markdown")
    mutants = ["unclaimed", "unbooked", "half-files", "uncollected"]
    add("--mutant", choices=mutants, help="break the product first, to see that it is noticed")
    return parser.parse_args(words)


async def run(asked: argparse.Namespace) -> int:
    """Run the matrix and report the result; return the exit status."""
    from tests.chaos.kill_matrix.campaign import audit, lanes, play_all
    from tests.chaos.kill_matrix.plan import Case, Database, plan, remote_plan
    from tests.chaos.kill_matrix.report import Run, markdown, summary
    from tests.chaos.kill_matrix.run_case import Tally, problems_of
    from tests.postgres import Postgres, binaries

    wanted: dict[Database, int] = {"SQLite": asked.sqlite, "PostgreSQL": asked.postgresql}
    cases: list[Case] = []
    for database, kills in wanted.items():
        others = kills // 3 if asked.interruptions is None else asked.interruptions
        cases += plan(database, kills, others if kills else 0, asked.seed)
    cases += remote_plan(asked.remote, asked.seed)
    seen = 0

    def tell(tally: Tally) -> None:
        nonlocal seen
        seen += 1
        print("!" if tally.problems else ".", end="", flush=True)
        if seen % 50 == 0 or seen == len(cases):
            print(f" {seen}/{len(cases)}")
        for problem in tally.problems:
            print(f"\n{tally.case}: {problem}")

    postgres, version = None, ""
    if asked.postgresql:
        found = binaries()
        if found is None:
            print("PostgreSQL is not installed (apt-get install postgresql)", file=sys.stderr)
            return 2
        postgres = Postgres(found)
        version = postgres.execute("SHOW server_version").partition(" ")[0]
    try:
        with tempfile.TemporaryDirectory(prefix="cometapi-kills-") as folder:
            remote = asked.remote > 0
            async with lanes(
                Path(folder), postgres=postgres, mutant=asked.mutant, remote=remote
            ) as places:
                started = time.monotonic()
                tallies = await play_all(places, cases, tell)
                seconds = time.monotonic() - started
                problems = [*problems_of(tallies), *await audit(places)]
    finally:
        if postgres:
            postgres.remove()
    command = f"python tests/chaos/kill_matrix/matrix.py --sqlite {asked.sqlite}"
    command += f" --postgresql {asked.postgresql}" if asked.postgresql else ""
    command += f" --remote {asked.remote}" if asked.remote else ""
    done = Run(command, asked.seed, seconds, version, tallies, problems)
    print(summary(done))
    for problem in problems:
        print(f"  {problem}", file=sys.stderr)
    if asked.report:
        asked.report.write_text(markdown(done), encoding="utf-8")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    from tests.limits import usual_signals

    usual_signals()
    sys.exit(asyncio.run(run(arguments(sys.argv[1:]))))
