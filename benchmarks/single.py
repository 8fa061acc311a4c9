# SPDX-License-Identifier: Apache-2.0
"""Measure the processor time of one flow run, beside that of its parts.

    python benchmarks/single.py [--runs 10] [--rounds 5] [--report docs/benchmarks.md]

Three ways take turns in one process, against a service that renders nothing and one Prefect server:

- ours: the flow ``image_to_video``, four task runs with all that they record and show.
- tasks: a flow with four tasks that do nothing.
- calls: the four HTTP calls, and a file that is flushed to the disk, without Prefect.

What this package adds is ours, less tasks, less calls. The figures are the processor time of this
process, with all of its threads. The server, the service and the decoder are processes of their
own. A round ends when Prefect has sent what it still had to send.
"""

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import httpx
from contestants import KEY, rows
from measuring import prefect, settings_for
from service import draw_clip, lean_process

from tests.chaos.harness import markdown

GOAL_MILLISECONDS = 30.0
SETTLES = 1.0
"""Seconds within which Prefect has sent the events and logs of the runs before."""

Way = Callable[[], Awaitable[None]]


def ours(folder: Path) -> Way:
    """Return a function that runs the flow for another video."""
    from prefect_cometapi.flows import aimage_to_video

    numbers = iter(range(1_000_000))
    (request,) = rows(1)

    async def run() -> None:
        await aimage_to_video(request, storage=str(folder), idempotency_key=f"v-{next(numbers)}")

    return run


def tasks() -> Way:
    """Return a function that runs a flow with four tasks that do nothing."""
    from prefect import flow, task

    @task
    async def nothing() -> None:
        pass

    @flow
    async def nothings() -> None:
        for _ in range(4):
            await nothing()

    return nothings


def calls(client: httpx.AsyncClient, folder: Path) -> Way:
    """Return a function that makes the four calls and keeps the video."""
    (request,) = rows(1)

    async def run() -> None:
        created = await client.post("/runwayml/v1/image_to_video", json=request)
        task_id = created.raise_for_status().json()["id"]
        await client.get(f"/runwayml/v1/tasks/{task_id}")
        reply = await client.get(f"/runwayml/v1/tasks/{task_id}")
        video = await client.get(reply.raise_for_status().json()["output"][0])
        path = folder / f"{task_id}.mp4"
        with path.open("wb") as file:
            file.write(video.raise_for_status().content)
            file.flush()
            os.fsync(file.fileno())

    return run


async def measure(way: Way, runs: int) -> float:
    """Return the processor milliseconds of a run, the mean of several."""
    before = time.process_time()
    for _ in range(runs):
        await way()
    await asyncio.sleep(SETTLES)
    return 1000 * (time.process_time() - before) / runs


async def compare(folder: Path, url: str, runs: int, rounds: int) -> dict[str, list[float]]:
    """Return the milliseconds of each way in each round."""
    headers = {"Authorization": f"Bearer {KEY}", "X-Runway-Version": "2024-11-06"}
    async with httpx.AsyncClient(base_url=url, headers=headers) as client:
        ways = {"ours": ours(folder), "tasks": tasks(), "calls": calls(client, folder)}
        for way in ways.values():
            await measure(way, 2)
        found: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(rounds):
            for name, way in ways.items():
                found[name].append(await measure(way, runs))
            print(*(f"{name} {times[-1]:.1f}" for name, times in found.items()), flush=True)
    return found


def shown(command: str, found: dict[str, list[float]]) -> str:
    """Return the section of the page."""
    medians = {name: statistics.median(times) for name, times in found.items()}
    added = [
        one - two - three
        for one, two, three in zip(found["ours"], found["tasks"], found["calls"], strict=True)
    ]
    lines = [
        ["`image_to_video`", f"{medians['ours']:.0f}"],
        ["four tasks that do nothing", f"{medians['tasks']:.0f}"],
        ["four bare calls and a flush", f"{medians['calls']:.1f}"],
        ["added by this package", f"{statistics.median(added):.0f}"],
    ]
    table = markdown.table(["one run", "ms of a processor"], lines)
    return _SECTION.format(
        command=command,
        table=table,
        least=min(added),
        most=max(added),
        machine=markdown.machine("prefect", "httpx"),
    )


_SECTION = """## One video

`{command}`

{table}

Medians of the rounds; what is added was {least:.0f} to {most:.0f} ms. The service renders nothing.
The times are those of the process of the flow; the server, the service and the decoder have
processes of their own.

{machine}"""


async def run(options: argparse.Namespace) -> dict[str, list[float]]:
    """Start the servers and measure."""
    with tempfile.TemporaryDirectory(prefix="cometapi-benchmark-") as name:
        folder = Path(name)
        with lean_process(draw_clip(folder / "clip.mp4")) as url:
            async with prefect("sqlite") as server:
                os.environ |= settings_for(folder, server.api) | {
                    "COMETAPI_BASE_URL": url,
                    "COMETAPI_POLL_INTERVAL": "0.01",
                }
                return await compare(folder, url, options.runs, options.rounds)


def main() -> None:
    """Measure, print, and write the section where requested."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=int, default=10, metavar="N", help="of a way in a round")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="rounds")
    parser.add_argument("--report", type=Path, metavar="FILE", help="page to write the section to")
    options = parser.parse_args()
    page = options.report and options.report.absolute()
    command = f"python benchmarks/single.py --runs {options.runs} --rounds {options.rounds}"
    text = shown(command, asyncio.run(run(options)))
    print(f"\n{text}")
    if page:
        markdown.put_section(page, "one video", text)


if __name__ == "__main__":
    main()
