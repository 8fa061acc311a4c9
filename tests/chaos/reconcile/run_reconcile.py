# SPDX-License-Identifier: Apache-2.0
"""Batches with lost replies and kills, whose uncertain submissions the account decides."""

import asyncio
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from prefect_cometapi.runway import Entry, Ledger, State
from prefect_cometapi.sandbox import AcceptedJob, Sandbox
from tests.chaos.harness.batch_commands import BatchCommands, write_manifest
from tests.chaos.harness.sources import PICTURE, serve_file

PROGRAM = (sys.executable, "-m", "tests.chaos.reconcile.batch_process")

RUNS = 4
"""Maximum number of undisturbed runs after the kills."""

TOKEN = "sandbox-access-token"

LOST = (
    "create:reset-after:rate=0.08",
    "create:error-after:rate=0.05",
    "create:no-id:rate=0.03",
    "create:504:rate=0.06",
)
"""Faults by which a fifth of the replies is lost: the first three after an acceptance."""

OTHER_CLIENT = "other-client"
"""Folder of the pictures of another client of the account."""


@dataclass
class Outcome:
    """Result of a run.

    Attributes:
        rows: Rows of the batch.
        seed: Seed of the faults and of the kills.
        other_client: True if another client bought on the same account.
        accepted: Jobs of the batch that the service accepted.
        stored: Rows of the ledger whose video is stored.
        uncertain: Generations that were uncertain at some time.
        decided: Those that the account decided.
        left: Those that are left to a person.
        verdicts: Verdicts of the last look.
        foreign_jobs: Jobs of the other client.
        looks_like_ours: Generations that were not accepted, and which one task of the other client
            fits; only with another client.
        kills: Number of jobs that the service had accepted at each kill.
        problems: Violations of the promises.
    """

    rows: int
    seed: int
    other_client: bool = False
    accepted: int = 0
    stored: int = 0
    uncertain: int = 0
    decided: int = 0
    left: int = 0
    verdicts: Counter[str] = field(default_factory=Counter[str])
    foreign_jobs: int = 0
    looks_like_ours: int = 0
    kills: list[int] = field(default_factory=list[int])
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list[str])

    @property
    def share_decided(self) -> float:
        """Share of the uncertain generations that were decided without a person."""
        return self.decided / self.uncertain if self.uncertain else 1.0


def environment(folder: Path, api: str, service: str, on_uncertain: str) -> dict[str, str]:
    """Return the settings of the batch."""
    return {
        "PREFECT_API_URL": api,
        "PREFECT_HOME": str(folder / "prefect"),
        "COMETAPI_KEY": "reconciles",
        "COMETAPI_ACCESS_TOKEN": TOKEN,
        "COMETAPI_BASE_URL": service,
        "COMETAPI_STORAGE": str(folder / "videos"),
        "COMETAPI_LEDGER_URL": f"sqlite:///{folder}/ledger.db",
        "COMETAPI_ON_UNCERTAIN": on_uncertain,
        "COMETAPI_ACCOUNT_DELAY": "1",
        "COMETAPI_CLOCK_SLACK": "0.2",
        "COMETAPI_POLL_INTERVAL": "0.5",
        "COMETAPI_MAX_IN_FLIGHT": "40",
        "COMETAPI_MAX_ITEMS_WITH_STEP_TASKS": "0",
    }


async def run_alone(rows: int, kills: int, seed: int, folder: Path, api: str) -> Outcome:
    """Run a batch that nobody disturbs but kills and lost replies, to its end."""
    rng, started, outcome = random.Random(seed), time.monotonic(), Outcome(rows, seed)
    with (
        serve_file(PICTURE) as address,
        Sandbox(render_seconds=0.3, faults=LOST, seed=seed, balance=None) as sandbox,
    ):
        keys = write_manifest(folder, address, rows)
        commands = BatchCommands(
            folder, environment(folder, api, sandbox.url, "reconcile"), PROGRAM
        )
        for share in sorted(rng.uniform(0.05, 0.95) for _ in range(kills)):
            killed = await commands.kill_batch(sandbox, int(share * rows), rng.uniform(0.0, 0.2))
            outcome.kills.append(killed)
        runs, output = 0, ""
        while runs < RUNS and not await _is_stored(folder, rows):
            _, *texts = await commands.run_batch("r.jsonl")
            runs, output = runs + 1, "\n".join(texts)
        if not await _is_stored(folder, rows):
            outcome.problems.append(f"the batch is not stored: {output[-2000:]}")
        outcome.seconds = time.monotonic() - started
        _check(keys, await _entries(folder), sandbox.accepted, outcome)
    return outcome


async def run_with_other_client(rows: int, seed: int, folder: Path, api: str) -> Outcome:
    """Run a batch while another client buys on the same account, and look at the verdicts."""
    started, outcome = time.monotonic(), Outcome(rows, seed, other_client=True)
    with (
        serve_file(PICTURE) as address,
        Sandbox(render_seconds=0.3, faults=LOST, seed=seed, balance=None) as sandbox,
    ):
        keys = write_manifest(folder, address, rows)
        commands = BatchCommands(folder, environment(folder, api, sandbox.url, "stop"), PROGRAM)
        other = asyncio.create_task(_buy_beside(sandbox, f"{address}/{OTHER_CLIENT}"))
        try:
            await commands.run_batch("r.jsonl")
        finally:
            other.cancel()
            with suppress(asyncio.CancelledError):
                await other
        before = await _entries(folder)
        # A list that may still grow decides nothing, so the command looks until it is final.
        while True:
            status, text, errors = await commands.run("ledger", "reconcile", "--json")
            found = json.loads(text) if status in {0, 2} else []
            if not any("ask again after" in one["reason"] for one in found):
                break
        if status not in {0, 2}:
            outcome.problems.append(f"ledger reconcile failed: {errors[-2000:]}")
        outcome.seconds = time.monotonic() - started
        if await _entries(folder) != before:
            outcome.problems.append("ledger reconcile without --apply changed the ledger")
        ours = [job for job in sandbox.accepted if not _is_foreign(job)]
        _check(keys, before, ours, outcome)
        _check_verdicts(found, keys, sandbox.accepted, outcome)
    return outcome


async def _buy_beside(sandbox: Sandbox, pictures: str) -> None:
    """Buy generations on the same account for as long as the batch runs."""
    headers = {"Authorization": "Bearer other-client", "X-Runway-Version": "2024-11-06"}
    async with httpx.AsyncClient(base_url=sandbox.url, headers=headers) as http:
        for number in range(100_000):
            body = {"model": "gen3a_turbo", "promptImage": f"{pictures}/{number}.jpg"}
            with suppress(httpx.HTTPError):
                await http.post("/runwayml/v1/image_to_video", json=body)
            await asyncio.sleep(0.5)


def _is_foreign(job: AcceptedJob) -> bool:
    return f"/{OTHER_CLIENT}/" in str(job.body["promptImage"])


async def _entries(folder: Path) -> list[Entry]:
    ledger = Ledger(f"sqlite:///{folder}/ledger.db")
    try:
        return await ledger.entries()
    finally:
        await ledger.database.close()


async def _is_stored(folder: Path, rows: int) -> bool:
    return sum(entry.state is State.STORED for entry in await _entries(folder)) == rows


def _check(
    keys: dict[str, str], entries: Sequence[Entry], jobs: Sequence[AcceptedJob], outcome: Outcome
) -> None:
    """Check that each picture was bought at most once, and that its own row has its own id."""
    report = outcome.problems.append
    by_row = {entry.idempotency_key.rpartition("/")[2]: entry for entry in entries}
    bought = Counter(job.body["promptImage"] for job in jobs)
    for picture, count in bought.items():
        if count > 1:
            report(f"{keys[picture]} was bought {count} times")
    for job in jobs:
        entry = by_row.get(keys[job.body["promptImage"]])
        if entry is None:
            report(f"{keys[job.body['promptImage']]} is lost: it is not in the ledger")
        elif entry.task_id is None and entry.state is not State.UNCERTAIN:
            report(f"{entry.idempotency_key} is {entry.state}, and was accepted")
        elif entry.task_id not in {None, job.task_id}:
            report(f"{entry.idempotency_key} has the id of another job")
    ids = {job.task_id for job in jobs}
    for entry in entries:
        if entry.task_id and entry.task_id not in ids:
            report(f"{entry.idempotency_key} has the id of a job that is not of the batch")
    outcome.accepted = len(jobs)
    outcome.stored = sum(entry.state is State.STORED for entry in entries)
    outcome.left = sum(entry.state is State.UNCERTAIN for entry in entries)
    outcome.uncertain = sum(
        bool(entry.evidence) or entry.state is State.UNCERTAIN for entry in entries
    )
    outcome.decided = outcome.uncertain - outcome.left


def _check_verdicts(
    found: Sequence[dict[str, Any]],
    keys: dict[str, str],
    jobs: Sequence[AcceptedJob],
    outcome: Outcome,
) -> None:
    """Check that no accepted generation is given a wrong task, or called not accepted."""
    ids = {keys[job.body["promptImage"]]: job.task_id for job in jobs if not _is_foreign(job)}
    foreign = {job.task_id for job in jobs if _is_foreign(job)}
    outcome.foreign_jobs = len(foreign)
    for one in found:
        row = one["idempotency_key"].rpartition("/")[2]
        outcome.verdicts[one["verdict"]] += 1
        named = {task["task_id"] for task in one["candidates"]}
        if one["verdict"] == "probably this" and row in ids and ids[row] not in named:
            outcome.problems.append(f"{row} was accepted, and another task is named for it")
        if one["verdict"] == "probably this" and row not in ids:
            outcome.looks_like_ours += 1
        if one["verdict"] == "not accepted" and row in ids:
            outcome.problems.append(f"{row} was accepted, and is called not accepted")
        if one["verdict"] != "undecided" and len(named) > 1:
            outcome.problems.append(f"{row} is ambiguous, and not left to a person")
