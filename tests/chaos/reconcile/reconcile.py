# SPDX-License-Identifier: Apache-2.0
"""Lose a fifth of the replies of a batch, and let the account decide what became of them.

``python tests/chaos/reconcile/reconcile.py --generations 300 --kills 3 --seed 1 2`` starts Prefect
and a stand-in for CometAPI. The exit status is 1 if a promise is broken.
"""

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path


def arguments(words: list[str]) -> argparse.Namespace:
    """Parse the command line."""
    from tests.chaos.harness import command

    parser = command.parser(__doc__)
    add = parser.add_argument
    add("--generations", type=int, default=300, metavar="N", help="in each batch")
    add("--kills", type=int, default=3, metavar="N", help="of the process that runs the batch")
    add("--seed", type=int, nargs="+", default=[1], metavar="N", help="of the faults")
    return parser.parse_args(words)


async def run(options: argparse.Namespace) -> int:
    """Run the batches and report the outcome; return the exit status."""
    from tests.chaos.harness import command
    from tests.chaos.harness.servers import postgres_server, prefect_server
    from tests.chaos.reconcile.report import markdown, summary
    from tests.chaos.reconcile.run_reconcile import Outcome, run_alone, run_with_other_client

    outcomes: list[Outcome] = []
    with (
        postgres_server() as postgres,
        tempfile.TemporaryDirectory(prefix="cometapi-reconcile-") as name,
    ):
        folder = Path(name)
        database = postgres.create_database() if postgres else None
        async with prefect_server(folder / "server", database) as api:
            for seed in options.seed:
                alone, beside = folder / f"alone-{seed}", folder / f"beside-{seed}"
                alone.mkdir()
                beside.mkdir()
                outcomes.append(
                    await run_alone(options.generations, options.kills, seed, alone, api)
                )
                print(summary(outcomes[-1:]), flush=True)
                outcomes.append(await run_with_other_client(options.generations, seed, beside, api))
                print(summary(outcomes[-1:]), flush=True)
    seeds = " ".join(map(str, options.seed))
    script = "python tests/chaos/reconcile/reconcile.py"
    line = f"{script} --generations {options.generations} --kills {options.kills} --seed {seeds}"
    return command.conclude(
        summary(outcomes),
        [problem for outcome in outcomes for problem in outcome.problems],
        options.report,
        lambda: markdown(line, outcomes),
    )


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[3]))
    from tests.chaos.harness.command import isolate

    isolate()
    sys.exit(asyncio.run(run(arguments(sys.argv[1:]))))
