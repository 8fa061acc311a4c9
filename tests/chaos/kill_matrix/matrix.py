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


def arguments(words: list[str]) -> argparse.Namespace:
    """Parse the command line."""
    from tests.chaos.harness import command

    parser = command.parser(__doc__)
    add = parser.add_argument
    add("--sqlite", type=int, default=16, metavar="N", help="kills with the ledger in SQLite")
    add("--postgresql", type=int, default=0, metavar="N", help="kills with it in PostgreSQL")
    add("--remote", type=int, default=0, metavar="N", help="kills with videos in S3")
    add("--interruptions", type=int, metavar="N", help="per database (default: a third of kills)")
    add("--seed", type=int, default=1, metavar="N", help="of the plan")
    mutants = ["unclaimed", "unrecorded", "partial-files", "uncollected"]
    add("--mutant", choices=mutants, help="put a bug into the product, which must be found")
    return parser.parse_args(words)


async def run(options: argparse.Namespace) -> int:
    """Run the matrix and report the result; return the exit status."""
    from tests.chaos.harness import command
    from tests.chaos.harness.servers import postgres_server
    from tests.chaos.kill_matrix.plan import Case, Database, plan, remote_plan
    from tests.chaos.kill_matrix.report import Run, markdown, summary
    from tests.chaos.kill_matrix.run_case import CaseResult, problems_of
    from tests.chaos.kill_matrix.run_matrix import audit, case_envs, run_cases
    from tests.machine import how_to_get

    kills_in: dict[Database, int] = {"SQLite": options.sqlite, "PostgreSQL": options.postgresql}
    cases: list[Case] = []
    for database, kills in kills_in.items():
        others = kills // 3 if options.interruptions is None else options.interruptions
        cases += plan(database, kills, others if kills else 0, options.seed)
    cases += remote_plan(options.remote, options.seed)
    done = 0

    def show_progress(result: CaseResult) -> None:
        nonlocal done
        done += 1
        print("!" if result.problems else ".", end="", flush=True)
        if done % 50 == 0 or done == len(cases):
            print(f" {done}/{len(cases)}")
        for problem in result.problems:
            print(f"\n{result.case}: {problem}")

    version = ""
    with (
        postgres_server(wanted=options.postgresql > 0) as postgres,
        tempfile.TemporaryDirectory(prefix="cometapi-kills-") as folder,
    ):
        if postgres:
            version = postgres.execute("SHOW server_version").partition(" ")[0]
        elif options.postgresql:
            print(how_to_get("PostgreSQL", "postgresql"), file=sys.stderr)
            return 2
        async with case_envs(
            Path(folder), postgres=postgres, mutant=options.mutant, remote=options.remote > 0
        ) as groups:
            started = time.monotonic()
            results = await run_cases(groups, cases, show_progress)
            seconds = time.monotonic() - started
            problems = [*problems_of(results), *await audit(groups)]
    line = f"python tests/chaos/kill_matrix/matrix.py --sqlite {options.sqlite}"
    line += f" --postgresql {options.postgresql}" if options.postgresql else ""
    line += f" --remote {options.remote}" if options.remote else ""
    finished = Run(line, options.seed, seconds, version, results, problems)
    return command.conclude(summary(finished), problems, options.report, lambda: markdown(finished))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[3]))
    from tests.chaos.harness.command import isolate

    isolate()
    sys.exit(asyncio.run(run(arguments(sys.argv[1:]))))
