# SPDX-License-Identifier: Apache-2.0
"""Kill a batch several times, restart it, and check that each row is bought once.

``python tests/chaos/kill_matrix/batches.py --rows 500 --kills 3 --report docs/benchmarks.md``
starts a Prefect server and a stand-in for CometAPI. The exit status is 1 if a promise is broken.
"""

import argparse
import asyncio
import hashlib
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.chaos.harness.batch_commands import BatchCommands


@dataclass
class BatchResult:
    """Result of a run.

    Attributes:
        accepted_at_kills: Number of jobs that the service had accepted at each kill.
        adopted: Uncertain rows whose job the service had, and whose id was adopted.
        resubmitted: Uncertain rows that the service had never received.
        problems: Violations of the promises.
    """

    rows: int
    accepted: int = 0
    stored: int = 0
    adopted: int = 0
    resubmitted: int = 0
    seconds: float = 0.0
    accepted_at_kills: list[int] = field(default_factory=list[int])
    problems: list[str] = field(default_factory=list[str])

    def __str__(self) -> str:
        kills = ", ".join(map(str, self.accepted_at_kills))
        return (
            f"{self.rows} rows, killed with {kills} jobs accepted, {self.seconds:.0f} s: "
            f"{self.accepted} jobs accepted, {self.stored} rows stored; "
            f"{self.adopted} adopted, {self.resubmitted} submitted once more by hand"
        )


async def run_batch(
    rows: int,
    kills: int,
    seed: int,
    folder: Path,
    api: str,
    *,
    together: int | None = None,
    per_second: float | None = None,
) -> BatchResult:
    """Run a batch with some kills to its end, and check the result.

    Args:
        rows: Rows of the manifest.
        kills: Number of kills.
        seed: Seed of the times of the kills.
        folder: Folder for the ledger and the videos.
        api: Address of Prefect's server.
        together: Rows that share a task run, or None for the package's own choice.
        per_second: Submissions per second, or None for no limit. A small batch needs one: otherwise
            all its rows are bought before the first kill arrives.
    """
    from prefect_cometapi.sandbox import Sandbox
    from tests.chaos.harness.batch_commands import BatchCommands, write_manifest
    from tests.chaos.harness.sources import PICTURE, serve_file

    rng = random.Random(seed)
    started = time.monotonic()
    with serve_file(PICTURE) as address, Sandbox(render_seconds=0.5) as sandbox:
        rows_of = write_manifest(folder, address, rows)
        environment = _environment(folder, api, sandbox.url)
        if together:
            environment["COMETAPI_MAX_ITEMS_WITH_STEP_TASKS"] = "0"
            environment["COMETAPI_ITEMS_PER_TASK_RUN"] = str(together)
        if per_second:
            environment["COMETAPI_SUBMISSIONS_PER_SECOND"] = str(per_second)
        commands = BatchCommands(folder, environment)
        result = BatchResult(rows)
        for share in sorted(rng.uniform(0.05, 0.95) for _ in range(kills)):
            killed = await commands.kill_batch(sandbox, int(share * rows), rng.uniform(0.0, 0.3))
            result.accepted_at_kills.append(killed)
        await _finish(commands, sandbox, rows_of, result)
        result.seconds = time.monotonic() - started
        check(folder, list(rows_of), sandbox.accepted, result)
    return result


def _environment(folder: Path, api: str, service: str) -> dict[str, str]:
    return {
        "PREFECT_API_URL": api,
        "PREFECT_HOME": str(folder / "prefect"),
        "COMETAPI_KEY": "kills",
        "COMETAPI_BASE_URL": service,
        "COMETAPI_STORAGE": str(folder / "videos"),
        "COMETAPI_LEDGER_URL": f"sqlite:///{folder}/ledger.db",
        "COMETAPI_POLL_INTERVAL": "0.2",
        "COMETAPI_MAX_IN_FLIGHT": "40",
    }


async def _finish(
    commands: "BatchCommands", sandbox: Any, rows_of: dict[str, str], result: BatchResult
) -> None:
    """Run the batch to its end; settle uncertain rows as a user would, and run it again."""
    await commands.run_batch("results.jsonl")
    jobs = {rows_of[job.body["promptImage"]]: job.task_id for job in sandbox.accepted}
    for row in _rows_of(commands.folder / "results.jsonl"):
        if row["outcome"] != "uncertain":
            continue
        task_id = jobs.get(row["id"])
        if task_id:
            await commands.run("ledger", "adopt", row["idempotency_key"], task_id)
            result.adopted += 1
        else:
            await commands.run("ledger", "resubmit", row["idempotency_key"], "--now")
            result.resubmitted += 1
    status, *output = await commands.run_batch("results.jsonl")
    if status:
        result.problems.append("\n".join(["the batch failed:", *output]))


def check(folder: Path, images: list[str], accepted: Sequence[Any], result: BatchResult) -> None:
    """Check that each image was bought once, and that its file is in place."""
    bought = Counter(job.body["promptImage"] for job in accepted)
    results = _rows_of(folder / "results.jsonl")
    result.accepted = len(accepted)
    result.stored = sum(row["outcome"] == "stored" for row in results)
    report = result.problems.append
    for image in images:
        if bought[image] != 1:
            report(f"{image} was bought {bought[image]} times")
    if result.stored != len(images):
        report(f"{result.stored} of {len(images)} rows are stored")
    for row in results:
        path = Path(row["uri"] or "missing")
        is_complete = (
            path.exists() and hashlib.sha256(path.read_bytes()).hexdigest() == row["sha256"]
        )
        if not is_complete:
            report(f"{row['id']}: its file is not the one that was checked")
    files = len(list((folder / "videos").glob("*.mp4")))
    if files != len(images):
        report(f"there are {files} files for {len(images)} rows")


def _rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def arguments(words: list[str]) -> argparse.Namespace:
    """Parse the command line."""
    from tests.chaos.harness import command

    parser = command.parser(__doc__)
    parser.add_argument("--rows", type=int, default=500, metavar="N")
    parser.add_argument("--kills", type=int, default=3, metavar="N")
    parser.add_argument("--seed", type=int, default=1, metavar="N")
    parser.add_argument("--together", type=int, metavar="N", help="rows that share a task run")
    return parser.parse_args(words)


async def main(options: argparse.Namespace) -> int:
    """Run the batch with a Prefect server of its own; return the exit status."""
    from tests.chaos.harness import command, markdown
    from tests.chaos.harness.servers import postgres_server, prefect_server

    with (
        postgres_server() as postgres,
        tempfile.TemporaryDirectory(prefix="cometapi-batches-") as name,
    ):
        folder = Path(name)
        database = postgres.create_database() if postgres else None
        async with prefect_server(folder / "server", database) as api:
            result = await run_batch(
                options.rows,
                options.kills,
                options.seed,
                folder,
                api,
                together=options.together,
            )
    script = "python tests/chaos/kill_matrix/batches.py"
    line = f"{script} --rows {options.rows} --kills {options.kills}"
    line += f" --together {options.together}" if options.together else ""
    text = _SECTION.format(command=line, result=result, problems=len(result.problems))
    return command.conclude(
        str(result),
        result.problems,
        options.report,
        lambda: markdown.with_section(options.report, "kills", text),
    )


_SECTION = """## A batch that is killed

`{command}`

The process that runs the batch gets a SIGKILL while it buys, and is started again with the same
command. At the end the user settles the rows of which it is unknown whether they were accepted, and
runs the batch once more. The service must have accepted every row once, and the file of each row
must have the hash that the output states.

{result}; {problems} problems."""


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[3]))
    from tests.chaos.harness.command import isolate

    isolate()
    sys.exit(asyncio.run(main(arguments(sys.argv[1:]))))
