# SPDX-License-Identifier: Apache-2.0
"""Run for long under faults, and check that nothing grows, is paid twice or is lost.

``python tests/chaos/soak/soak.py --minutes 20`` starts PostgreSQL, Redis, two API servers of
Prefect, workers, two processes that buy without end, and a stand-in for CometAPI. The exit status
is 1 if a promise is broken.
"""

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

POOL = "soak"


def arguments(words: list[str]) -> argparse.Namespace:
    """Parse the command line."""
    from tests.chaos.harness import command

    parser = command.parser(__doc__)
    parser.add_argument("--minutes", type=float, default=20, metavar="N")
    return parser.parse_args(words)


def main(options: argparse.Namespace) -> int:
    """Run the soak and report the outcome; return the exit status."""
    from tests.chaos.harness import command
    from tests.chaos.harness.servers import postgres_server
    from tests.chaos.soak.report import markdown, summary
    from tests.chaos.soak.run_soak import SETTINGS, Plan, run_soak, soak_service, workers_of
    from tests.cluster import cluster
    from tests.machine import how_to_get

    redis_server = shutil.which("redis-server")
    with postgres_server(wanted=redis_server is not None) as postgres:
        if not postgres or not redis_server:
            missing = ("PostgreSQL", "postgresql") if redis_server else ("Redis", "redis-server")
            print(how_to_get(*missing), file=sys.stderr)
            return 2
        with (
            tempfile.TemporaryDirectory(prefix="cometapi-soak-") as name,
            soak_service() as sandbox,
            cluster(
                Path(name), postgres, redis_server, COMETAPI_BASE_URL=sandbox.url, **SETTINGS
            ) as machines,
        ):
            machines.run("setup", "--pool", POOL)
            machines.run("deploy", "--pool", POOL)
            machines.notice_silence_soon()
            outcome = run_soak(
                lambda _soak, seconds: seconds >= 60 * options.minutes,
                Plan(),
                Path(name),
                machines.environment | {"PREFECT_API_URL": machines.apis[0]},
                sandbox,
                postgres,
                lambda text: print(text, flush=True),
                workers_of(machines, POOL),
            )
    line = f"python tests/chaos/soak/soak.py --minutes {options.minutes:g}"
    return command.conclude(
        summary(outcome),
        [*outcome.violations, *outcome.growing],
        options.report,
        lambda: markdown(line, outcome),
    )


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[3]))
    from tests.chaos.harness.command import isolate

    isolate()
    sys.exit(main(arguments(sys.argv[1:])))
