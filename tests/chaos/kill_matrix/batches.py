# SPDX-License-Identifier: Apache-2.0
"""Kill a batch several times, restart it, and check that each row is bought once.

``python tests/chaos/kill_matrix/batches.py --rows 500 --kills 3 --report docs/benchmarks.md``
starts a Prefect server and a stand-in for CometAPI. The exit status is 1 if a promise is broken.
"""

import argparse
import asyncio
import hashlib
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]
PATIENCE = 1800.0


@dataclass
class Played:
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


class Shell:
    """Shell that runs the package's command in a folder, with a server, a service and a ledger."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder = folder
        own = {name: value for name, value in os.environ.items() if not name.startswith("COMETAPI")}
        self.environment = own | environment

    async def start(self, *words: str) -> asyncio.subprocess.Process:
        """Start a command."""
        return await asyncio.create_subprocess_exec(
            *(Path(sys.executable).parent / "prefect-cometapi", *words),
            cwd=self.folder,
            env=self.environment,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )

    async def run(self, *words: str) -> tuple[int | None, str]:
        """Run a command to its end."""
        process = await self.start(*words)
        async with asyncio.timeout(PATIENCE):
            output, _ = await process.communicate()
        return process.returncode, output.decode(errors="replace")


async def play(rows: int, kills: int, seed: int, folder: Path, api: str) -> Played:
    """Run a batch with N kills to its end, and check the result."""
    from prefect_cometapi.sandbox import Sandbox
    from tests.chaos.kill_matrix.fork_client import pictures

    draw = random.Random(seed)
    picture = ROOT / "deployments" / "commands" / "comet.jpg"
    started = time.monotonic()
    with pictures(picture) as address, Sandbox(render_seconds=0.5) as sandbox:
        requests = [{"id": f"row-{n}", "promptImage": f"{address}/{n}.jpg"} for n in range(rows)]
        text = "".join(f"{json.dumps(row)}\n" for row in requests)
        (folder / "wanted.jsonl").write_text(text, encoding="utf-8")
        shell = Shell(folder, _environment(folder, api, sandbox.url))
        played = Played(rows)
        for share in sorted(draw.uniform(0.05, 0.95) for _ in range(kills)):
            await _killed(shell, sandbox, int(share * rows), draw.uniform(0.0, 0.3), played)
        await _finished(shell, sandbox, played)
        played.seconds = time.monotonic() - started
        check(folder, [row["promptImage"] for row in requests], sandbox.accepted, played)
    return played


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


async def _killed(shell: Shell, sandbox: Any, accepted: int, later: float, played: Played) -> None:
    """Start the batch, and send SIGKILL a moment after N jobs were accepted."""
    process = await shell.start("batch", "wanted.jsonl", "--json")
    async with asyncio.timeout(PATIENCE):
        while len(sandbox.accepted) < accepted and process.returncode is None:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    await asyncio.sleep(later)
    if process.returncode is None:
        process.kill()
    await process.communicate()
    played.accepted_at_kills.append(len(sandbox.accepted))


async def _finished(shell: Shell, sandbox: Any, played: Played) -> None:
    """Run the batch to its end; settle uncertain rows as a user would, and run it again."""
    await shell.run("batch", "wanted.jsonl", "--output", "results.jsonl")
    jobs = {job.body["promptImage"]: job.task_id for job in sandbox.accepted}
    wanted = _rows_of(shell.folder / "wanted.jsonl")
    images = {row["id"]: row["promptImage"] for row in wanted}
    for row in _rows_of(shell.folder / "results.jsonl"):
        if row["outcome"] != "uncertain":
            continue
        task_id = jobs.get(images[row["id"]])
        if task_id:
            await shell.run("ledger", "adopt", row["idempotency_key"], task_id)
            played.adopted += 1
        else:
            await shell.run("ledger", "resubmit", row["idempotency_key"], "--now")
            played.resubmitted += 1
    status, output = await shell.run("batch", "wanted.jsonl", "--output", "results.jsonl")
    if status:
        played.problems.append(f"the batch did not end well:\n{output}")


def check(folder: Path, images: list[str], accepted: Sequence[Any], played: Played) -> None:
    """Check that each image was bought once, and that its file is in place."""
    bought = Counter(job.body["promptImage"] for job in accepted)
    results = _rows_of(folder / "results.jsonl")
    played.accepted = len(accepted)
    played.stored = sum(row["outcome"] == "stored" for row in results)
    told = played.problems.append
    for image in images:
        if bought[image] != 1:
            told(f"{image} was bought {bought[image]} times")
    if played.stored != len(images):
        told(f"{played.stored} of {len(images)} rows are stored")
    for row in results:
        path = Path(row["uri"] or "missing")
        whole = path.exists() and hashlib.sha256(path.read_bytes()).hexdigest() == row["sha256"]
        if not whole:
            told(f"{row['id']}: its file is not what was checked")
    files = len(list((folder / "videos").glob("*.mp4")))
    if files != len(images):
        told(f"there are {files} files for {len(images)} rows")


def _rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


async def main(asked: argparse.Namespace) -> int:
    """Run the batch with a Prefect server of its own; return the exit status."""
    from tests.chaos.kill_matrix.fork_client import prefect_server
    from tests.postgres import Postgres, binaries

    found = binaries()
    postgres = Postgres(found) if found else None
    try:
        with tempfile.TemporaryDirectory(prefix="cometapi-batches-") as name:
            async with AsyncExitStack() as stack:
                database = postgres.create_database() if postgres else None
                server = prefect_server(Path(name) / "server", database)
                api = await stack.enter_async_context(server)
                played = await play(asked.rows, asked.kills, asked.seed, Path(name), api)
    finally:
        if postgres:
            postgres.remove()
    print(played)
    if asked.report:
        from tests.benchmarks import report

        command = (
            f"python tests/chaos/kill_matrix/batches.py --rows {asked.rows} --kills {asked.kills}"
        )
        text = _SECTION.format(command=command, played=played, problems=len(played.problems))
        report.put_section(asked.report.absolute(), "kills", text)
    for problem in played.problems:
        print(f"  {problem}", file=sys.stderr)
    return 1 if played.problems else 0


_SECTION = """## A batch that is killed

`{command}`

The process that runs the batch gets a SIGKILL at some moment of its buying, and is started again
with the same words; at the end the user decides about the rows of which nobody can know whether
they were accepted, and runs it once more. Every row must have been accepted once by the service,
and its file must be in place with the hash that the output tells.

{played}; {problems} problems."""


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    from tests.limits import usual_signals

    usual_signals()
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rows", type=int, default=500, metavar="N")
    parser.add_argument("--kills", type=int, default=3, metavar="N")
    parser.add_argument("--seed", type=int, default=1, metavar="N")
    parser.add_argument("--report", type=Path, metavar="FILE", help="Markdown page for the figures")
    sys.exit(asyncio.run(main(parser.parse_args())))
