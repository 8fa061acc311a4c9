# SPDX-License-Identifier: Apache-2.0
"""Time the commands of a shell: help, lists, refusals, and the purchase of one clip.

    python benchmarks/command_line.py [--rounds 5] [--report docs/benchmarks.md]

Each command is a new process in a folder of its own, with a stand-in for CometAPI. The commands
take turns, so that a busy machine slows all of them alike. A time of a purchase ends with its POST.
Processor time includes the processes that the command has started by then.
"""

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))

from prefect_cometapi.runway import State
from prefect_cometapi.runway.ledger.entry import Intent
from prefect_cometapi.runway.ledger.store import get_ledger
from prefect_cometapi.sandbox import Sandbox
from tests.chaos.harness import markdown
from tests.first_run import own_server
from tests.installation import ROOT
from tests.limits import usual_signals

IMAGE_TO_VIDEO = ("image-to-video", "https://example.com/cat.jpg", "slow zoom")
CLIENT = "from prefect.client.orchestration import get_client"
ABOUT = (
    "Medians of new processes that take turns. A purchase ends with its POST, and its goal without "
    "a\nserver is what Prefect's client needs by itself to start one. Processor time includes the "
    "processes\nthat a command has started by then."
)
PATIENCE = 120
"""Longest acceptable time of a command, in seconds."""


@dataclass(frozen=True)
class Command:
    """Command to time.

    Attributes:
        name: Description in the table.
        words: Arguments of the command.
        settings: Environment variables; an empty value unsets one.
        status: Expected exit status.
        goal: Seconds that it may take, or None if it has no goal of its own.
        has_server: Whether a Prefect server is running.
        buys: Whether the time ends with the POST.
    """

    name: str
    words: Sequence[str]
    settings: Mapping[str, str] = field(default_factory=dict[str, str])
    status: int = 0
    goal: float | None = 1.0
    has_server: bool = True
    buys: bool = False


REFUSED = (
    Command("no API key", IMAGE_TO_VIDEO, {"COMETAPI_KEY": ""}, 1),
    Command("no API key, `batch`", ("batch", "rows.jsonl"), {"COMETAPI_KEY": ""}, 1),
    Command("no API key, `finish`", ("finish", "some-task-id"), {"COMETAPI_KEY": ""}, 1),
    Command("bad base URL", IMAGE_TO_VIDEO, {"COMETAPI_BASE_URL": "http://example.com"}, 1),
    Command("bad setting", IMAGE_TO_VIDEO, {"COMETAPI_POLL_INTERVAL": "often"}, 1),
    Command("bad ledger URL", IMAGE_TO_VIDEO, {"COMETAPI_LEDGER_URL": "mysql://db/x"}, 1),
    Command("unwritable storage", (*IMAGE_TO_VIDEO, "--storage", "rows.jsonl/videos"), {}, 1),
    Command("request out of range", (*IMAGE_TO_VIDEO, "--duration", "77"), {}, 1),
    Command("missing source", ("image-to-video", "no.png"), {}, 1),
    Command("missing manifest", ("batch", "no.jsonl"), {}, 1),
)
BLOCK = (*IMAGE_TO_VIDEO, "--storage", "s3-bucket/none")
COMMANDS = (
    Command("`--help`", ("--help",)),
    Command("`image-to-video --help`", ("image-to-video", "--help")),
    Command("`--version`", ("--version",)),
    Command("`ledger list`, 50 rows", ("ledger", "list")),
    Command("`ledger list`, no file", ("ledger", "list"), {"COMETAPI_LEDGER_URL": ""}),
    *REFUSED,
    Command("missing block", BLOCK, {}, 1, goal=None),
    Command("POST, running server", IMAGE_TO_VIDEO, goal=2.0, buys=True),
    Command("POST, no server", IMAGE_TO_VIDEO, goal=None, has_server=False, buys=True),
)


@dataclass(frozen=True)
class Took:
    """Seconds of the clock and of a processor."""

    wall: float
    processor: float


class Bench:
    """Folder with what the commands need, and the addresses of both services."""

    def __init__(self, script: Path, folder: Path, sandbox: Sandbox, api: str) -> None:
        self._script = script
        self._folder = folder
        self._sandbox = sandbox
        self._api = api
        (folder / "rows.jsonl").write_text('{"id": "a", "promptImage": "https://x.test/a.jpg"}\n')

    def measure(self, command: Command) -> Took:
        """Return the times of one command.

        Raises:
            AssertionError: The command ended with another exit status.
        """
        words = [self._script, *command.words]
        began = time.monotonic()
        process = psutil.Popen(
            words,
            env=self._environment(command),
            cwd=self._folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        took = self._until_post(process, began) if command.buys else None
        output = process.stdout.read().decode()
        _, status, usage = os.wait4(process.pid, 0)
        ended = Took(time.monotonic() - began, usage.ru_utime + usage.ru_stime)
        assert os.waitstatus_to_exitcode(status) == command.status, f"{words}: {output}"
        return took or ended

    def prefect_itself(self, *, has_server: bool) -> Took:
        """Return the times of Prefect alone: its import, and its client with or without a server.

        The client prints when it is ready, since the end of its server is no part of its start.
        """
        client = "with get_client(sync_client=True) as it: it.api_healthcheck()"
        began = time.monotonic()
        process = psutil.Popen(
            [sys.executable, "-c", f"{CLIENT}\n{client}\nprint('ready', flush=True)"],
            env=self._environment(Command("", (), has_server=has_server)),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert process.stdout.readline() == b"ready\n"
        took = Took(time.monotonic() - began, _processor_seconds(process))
        process.stdout.close()
        process.wait()
        return took

    def _environment(self, command: Command) -> dict[str, str]:
        ours = ("PREFECT", "COMETAPI")
        environment = {name: it for name, it in os.environ.items() if not name.startswith(ours)}
        environment |= {
            "PREFECT_HOME": str(self._folder / "home"),
            "PREFECT_API_URL": self._api if command.has_server else "",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": str(PATIENCE),
            "COMETAPI_BASE_URL": self._sandbox.url,
            "COMETAPI_KEY": "sk-of-the-benchmark",
            "COMETAPI_POLL_INTERVAL": "0.2",
            "COMETAPI_LEDGER_URL": f"sqlite:///{self._folder}/ledger.db",
            **command.settings,
        }
        return {name: value for name, value in environment.items() if value}

    def _until_post(self, process: psutil.Popen, began: float) -> Took:
        before = len(self._sandbox.accepted)
        while len(self._sandbox.accepted) == before:
            assert process.poll() is None, process.stdout.read().decode()
            assert time.monotonic() - began < PATIENCE
            time.sleep(0.005)
        wall = time.monotonic() - began
        return Took(wall, _processor_seconds(process))


def _processor_seconds(process: psutil.Popen) -> float:
    """Return the seconds of a process that runs, and of those that it has started."""
    family = [process, *process.children(recursive=True)]
    return sum(sum(each.cpu_times()[:4]) for each in family)


def row(name: str, all_took: Sequence[Took], goal: float | None) -> list[str]:
    """Return the row of the table with the medians of a command."""
    wall = median(took.wall for took in all_took)
    processor = median(took.processor for took in all_took)
    verdict = "" if goal is None else f"{goal:g} s: {'met' if wall <= goal else '**missed**'}"
    return [name, f"{wall:.2f}", f"{processor:.2f}", verdict]


PREFECT = {
    True: "Prefect's client alone, running server",
    False: "Prefect's client alone, no server",
}


def measure(bench: Bench, rounds: int) -> str:
    """Time all commands and return the table."""
    # The first purchase writes byte code, and the first temporary server creates its database.
    for has_server in (True, False):
        bench.measure(Command("", IMAGE_TO_VIDEO, has_server=has_server))
    took: dict[str, list[Took]] = {}
    for _ in range(rounds):
        for command in COMMANDS:
            took.setdefault(command.name, []).append(bench.measure(command))
        for has_server, name in PREFECT.items():
            took.setdefault(name, []).append(bench.prefect_itself(has_server=has_server))
    goals = {command.name: command.goal for command in COMMANDS} | {
        "missing block": 1 + median(it.wall for it in took[PREFECT[True]]),
        "POST, no server": median(it.wall for it in took[PREFECT[False]]),
    }
    rows = [row(name, all_took, goals.get(name)) for name, all_took in took.items()]
    return markdown.table(["command", "seconds", "of a processor", "goal"], rows)


def fill(url: str) -> None:
    """Write fifty generations into a ledger."""
    intents = [
        Intent(
            idempotency_key=f"row-{number}",
            base_url="https://api.cometapi.com",
            route="image_to_video",
            model="gen3a_turbo",
            fingerprint="f" * 64,
            request={"promptImage": "https://example.com/cat.jpg"},
        )
        for number in range(50)
    ]

    async def insert() -> None:
        for intent in intents:
            await get_ledger(url)._insert(intent, State.STORED, intent.idempotency_key)

    asyncio.run(insert())


def main() -> None:
    """Measure and print the results."""
    usual_signals()
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--command", type=Path, default=Path(sys.executable).parent / "prefect-cometapi"
    )
    parser.add_argument("--report", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, Sandbox() as sandbox:
        folder = Path(name)
        fill(f"sqlite:///{folder}/ledger.db")
        with own_server(folder) as api:
            table = measure(Bench(options.command, folder, sandbox, api), options.rounds)
    head = ["## Commands in a shell", "", "`python benchmarks/command_line.py`", "", ABOUT, ""]
    text = "\n".join([*head, markdown.machine("prefect"), "", table, ""])
    print(text)
    if options.report:
        markdown.put_section(ROOT / options.report, "command line", text)


if __name__ == "__main__":
    main()
