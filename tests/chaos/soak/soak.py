# SPDX-License-Identifier: Apache-2.0
"""Run for long under faults, and check that nothing grows, is paid twice or is lost.

``python tests/chaos/soak/soak.py --minutes 20`` starts PostgreSQL, Redis, two API servers of
Prefect, workers, two processes that buy without end, and a stand-in for CometAPI. The exit status
is 1 if a promise is broken.
"""

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[3]
POOL = "soak"


def main(minutes: float, report: Path | None) -> int:
    """Run the soak and report the outcome; return the exit status."""
    from tests.chaos.soak.report import markdown, summary
    from tests.chaos.soak.run_soak import SETTINGS, Plan, crew_of, play, service
    from tests.cluster import cluster
    from tests.machine import how_to_get
    from tests.postgres import Postgres, binaries

    found, redis_server = binaries(), shutil.which("redis-server")
    if not found or not redis_server:
        missing = ("redis-server", "redis-server") if found else ("PostgreSQL", "postgresql")
        print(how_to_get(*missing), file=sys.stderr)
        return 2
    postgres = Postgres(found)
    try:
        with (
            tempfile.TemporaryDirectory(prefix="cometapi-soak-") as name,
            service() as sandbox,
            cluster(
                Path(name), postgres, redis_server, COMETAPI_BASE_URL=sandbox.url, **SETTINGS
            ) as machines,
        ):
            machines.run("setup", "--pool", POOL)
            machines.run("deploy", "--pool", POOL)
            machines.notice_silence_soon()
            environment = machines.environment | {"PREFECT_API_URL": machines.apis[0]}
            outcome = play(
                lambda _soak, seconds: seconds >= 60 * minutes,
                Plan(),
                Path(name),
                environment,
                sandbox,
                postgres,
                lambda text: print(text, flush=True),
                crew_of(machines, POOL),
            )
    finally:
        postgres.remove()
    print(summary(outcome))
    for problem in [*map(str, outcome.found), *outcome.growing]:
        print(problem, file=sys.stderr)
    if report:
        command = f"python tests/chaos/soak/soak.py --minutes {minutes:g}"
        report.write_text(markdown(command, outcome), encoding="utf-8")
    return 1 if outcome.found or outcome.growing else 0


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    from tests.limits import usual_signals

    usual_signals()
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=20, metavar="N")
    parser.add_argument("--report", type=Path, metavar="FILE", help="Markdown page for the figures")
    asked = parser.parse_args()
    for variable in [name for name in os.environ if name.startswith(("COMETAPI_", "PREFECT_"))]:
        del os.environ[variable]
    sys.exit(main(asked.minutes, asked.report and asked.report.absolute()))
