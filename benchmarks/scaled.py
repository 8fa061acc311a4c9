# SPDX-License-Identifier: Apache-2.0
"""Measure polls and lag of real batches on a clock that runs ten times faster.

    python benchmarks/scaled.py [--items 500] [--report docs/polling.md]

This script measures what `polling.py` simulates: batches against a service, over sockets and under
Prefect, with the same four profiles of durations. Rendering times and the poll interval are a tenth
of the simulated ones, and the lags are shown ten times as long. For each profile, a first batch
fills the ledger, and the service measures a second one.
"""

import argparse
import asyncio
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

sys.path.insert(0, str(Path(__file__).parents[1]))

from contestants import rows
from measuring import prefect, settings_for
from polling import INTERVAL, PROFILES, Means, Profile, bound
from service import draw_clip, lean_process

from tests.chaos.harness import markdown

SCALE = 10.0
WARM = 300
IN_FLIGHT = 100
GOAL = 1.25
"""Highest acceptable multiple of the least possible product of polls and lag."""


async def measure(profile: Profile, items: int, clip: Path, folder: Path) -> Means:
    """Run a batch to learn from and one that counts; the lag is in seconds of the true clock."""
    from prefect_cometapi.flows import agenerate_batch
    from prefect_cometapi.flows.steps import durations

    durations.FRESH = 30.0 / SCALE
    mean, variation = profile.mean / SCALE, profile.cv
    with lean_process(clip, rendering=mean, variation=variation) as url:
        os.environ["COMETAPI_BASE_URL"] = url
        for count, key in ((WARM, "earlier"), (items, "counted")):
            await asyncio.to_thread(_read, Request(f"{url}/_stats", method="DELETE"))
            name = f"{profile.mean:g}-{profile.cv:g}-{key}"
            await agenerate_batch(rows(count), storage=str(folder / name), idempotency_key=name)
        stats = await asyncio.to_thread(_read, f"{url}/_stats")
    return Means(stats["polls"] / stats["accepted"], SCALE * stats["lag_mean"])


def _read(request: str | Request) -> dict[str, Any]:
    with urlopen(request) as reply:
        return json.load(reply)


def shown(command: str, items: int, results: Sequence[tuple[Profile, Means]]) -> str:
    """Return the section of the page."""
    lines = []
    for profile, means in results:
        least = bound(profile)
        ratio = means.polls * means.lag / least
        lines.append(
            [str(profile), str(means), f"{least:.1f}", f"{ratio:.2f}", _met(ratio, profile, means)]
        )
    head = ["profile", "polls and lag", "least possible", "of the least", "goal"]
    return _SECTION.format(
        command=command,
        machine=markdown.machine("prefect", "httpx"),
        items=items,
        warm=WARM,
        in_flight=IN_FLIGHT,
        table=markdown.table(head, lines),
        goal=GOAL,
    )


def _met(ratio: float, profile: Profile, means: Means) -> str:
    product = means.polls * means.lag
    good = ratio <= GOAL and (profile is not PROFILES[0] or product <= 17.0)
    return "met" if good else "**missed**"


_SECTION = """### Measured

`{command}`

Real batches of {items} videos, {in_flight} at a time, over sockets and under Prefect, on a clock
that runs ten times faster; {warm} videos before them are what the ledger knows. Of the least: at
most {goal}, and the product on the first profile at most 17.

{table}

{machine}"""


async def run(items: int) -> list[tuple[Profile, Means]]:
    """Run all profiles, one after the other."""
    with tempfile.TemporaryDirectory(prefix="cometapi-benchmark-") as name:
        folder = Path(name)
        clip = draw_clip(folder / "clip.mp4")
        async with prefect("sqlite") as server:
            os.environ |= settings_for(folder, server.api) | {
                "COMETAPI_POLL_INTERVAL": str(INTERVAL / SCALE),
                "COMETAPI_MAX_IN_FLIGHT": str(IN_FLIGHT),
                "COMETAPI_MAX_ITEMS_WITH_STEP_TASKS": "0",
            }
            results = []
            for profile in PROFILES:
                results.append((profile, await measure(profile, items, clip, folder)))
                print(*results[-1], f"least {bound(profile):.1f}", sep="; ", flush=True)
            return results


def main() -> None:
    """Measure, print, and write the section where requested."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--items", type=int, default=500, metavar="N", help="videos that count")
    parser.add_argument("--report", type=Path, metavar="FILE", help="page to write the section to")
    options = parser.parse_args()
    page = options.report and options.report.absolute()
    command = f"python benchmarks/scaled.py --items {options.items}"
    text = shown(command, options.items, asyncio.run(run(options.items)))
    print(f"\n{text}")
    if page:
        markdown.put_section(page, "scaled", text)


if __name__ == "__main__":
    main()
