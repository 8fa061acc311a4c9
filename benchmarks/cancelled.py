# SPDX-License-Identifier: Apache-2.0
"""Measure the seconds from cancelling a waiting run to its last poll and to the state Cancelled.

    python benchmarks/cancelled.py --runs 20 [--report docs/benchmarks.md]

The runs belong to a deployment under a process worker. They are cancelled in the same way as by the
button in the UI. They poll five times a second, so that a late poll is seen.
"""

import argparse
import asyncio
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from suspended import AT_A_TIME, ROOT, Bench, until, workbench

from tests.chaos.harness import markdown

TOGETHER = AT_A_TIME


async def main() -> None:
    """Measure and print the results."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--report", type=Path)
    options = parser.parse_args()
    quiet: list[float] = []
    cancelled: list[float] = []
    async with workbench(COMETAPI_POLL_INTERVAL="0.2") as bench:
        for first in range(0, options.runs, TOGETHER):
            await _cancel_some(bench, f"cancelled-{first}", quiet, cancelled)
    command = f"`python benchmarks/cancelled.py --runs {options.runs}`"
    last, most = statistics.median(quiet), max(quiet)
    ended, latest = statistics.median(cancelled), max(cancelled)
    text = (
        f"## Runs that are cancelled\n\n{command}\n\n{markdown.machine('prefect')}\n\n"
        f"{len(quiet)} runs that polled five times a second were cancelled as the button in the UI "
        f"does it,\n{TOGETHER} at a time. The last poll came {last:.1f} s after that in the median "
        f"and {most:.1f} s at most\n(0 where none came); the run was Cancelled after "
        f"{ended:.1f} s, {latest:.1f} s at most. In the\nledger each generation is free for "
        "`collect`, with a note that it goes on upstream.\n"
    )
    print(text)
    if options.report:
        markdown.put_section(ROOT / options.report, "cancelled", text)


async def _cancel_some(bench: Bench, kind: str, quiet: list[float], cancelled: list[float]) -> None:
    from prefect.states import Cancelling

    begun = time.monotonic()
    runs = await bench.start(TOGETHER, wait=True, kind=kind)

    async def all_poll() -> bool:
        polls = [r for r in bench.sandbox.requests if r.route == "task" and r.at > begun]
        return len({poll.path for poll in polls}) == TOGETHER

    await until(all_poll)
    pressed: dict[Any, float] = {}
    for run in runs:
        pressed[run] = time.monotonic()
        await bench.client.set_flow_run_state(run, Cancelling())
    done: dict[Any, float] = {}

    async def all_cancelled() -> bool:
        for run in runs:
            state = (await bench.client.read_flow_run(run)).state_name
            if state == "Cancelled":
                done.setdefault(run, time.monotonic())
        return len(done) == len(runs)

    await until(all_cancelled)
    await asyncio.sleep(5)  # A process that still polls shows itself in this time.
    tasks = await _tasks_of(runs)
    for run in runs:
        polls = [r.at for r in bench.sandbox.requests if r.path.endswith(tasks[str(run)])]
        quiet.append(max(0.0, max(polls) - pressed[run]))
        cancelled.append(done[run] - pressed[run])


async def _tasks_of(runs: list[Any]) -> dict[str, str]:
    """Return the task id of each run's generation, once no lease on it is left."""
    from prefect_cometapi.flows.runtime.ledger_access import open_ledger

    ledger = await open_ledger()
    found: dict[str, str] = {}
    for run in runs:
        (entry,) = await ledger.entries(flow_run_id=str(run))
        assert entry.owner is None, entry
        assert "goes on upstream" in (entry.note or ""), entry
        assert entry.task_id
        found[str(run)] = entry.task_id
    return found


if __name__ == "__main__":
    asyncio.run(main())
