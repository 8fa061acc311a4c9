# SPDX-License-Identifier: Apache-2.0
"""Compare the speed and memory of a download with curl.

    python benchmarks/download.py [--megabytes 1000] [--rounds 5] [--report FILE]

Both fetch the same file from the same server on this machine, in turn. A download of this package
also computes the SHA-256 and ends when the file is on the disk, so curl is timed up to an fsync as
well. Each download of this package runs in a fresh process, whose memory is measured: for a small
file, for the large one, and for a hundred files of 20 MB at once.
"""

import argparse
import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from urllib.parse import urlsplit

sys.path.insert(0, str(Path(__file__).parents[1]))

from contestants import cpu_seconds, memory
from service import script_process

from tests.chaos.harness import markdown

GOAL = 0.8
"""Longest time of a download as a multiple of curl's, both until the file is on the disk."""

SMALL = 20
AT_ONCE = 100
MEGABYTE = 1_000_000


@dataclass(frozen=True)
class Fetched:
    """Cost of a fetch: seconds, processor seconds, and the memory before it and at its peak."""

    seconds: float
    cpu: float
    before: int = 0
    peak: int = 0

    @property
    def growth(self) -> float:
        """Memory that the fetch added, in megabytes."""
        return (self.peak - self.before) / MEGABYTE


async def fetch(url: str, folder: Path, count: int) -> Fetched:
    """Download a file several times at once with this package, in this process."""
    from prefect_cometapi.runway import aiohttp_transport
    from prefect_cometapi.runway.http_clients import tls_context
    from prefect_cometapi.runway.media.download import AssetClients, download

    assert aiohttp_transport, "imported before the clock starts"
    tls_context()
    host = urlsplit(url).hostname or ""
    before, cpu, started = memory("VmRSS"), cpu_seconds(), time.perf_counter()
    paths = [folder / f"{number}.mp4" for number in range(count)]
    async with AssetClients() as clients:
        await asyncio.gather(*(download(clients, url, path, trusted={host}) for path in paths))
    seconds = time.perf_counter() - started
    return Fetched(seconds, cpu_seconds() - cpu, before, memory("VmHWM"))


def ours(url: str, folder: Path, count: int = 1) -> Fetched:
    """Download a file several times at once with this package, in a fresh process."""
    words = [sys.executable, __file__, "--fetch", url, "--into", str(folder), "--count", str(count)]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
    return Fetched(**json.loads(done.stdout))


def curl(url: str, path: Path) -> tuple[Fetched, float]:
    """Download a file with curl; time it to its own end and until the file is on the disk."""
    started = time.perf_counter()
    process = subprocess.Popen(["curl", "-sS", "--fail", "-o", str(path), url])
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"curl ended with {process.returncode}")
    seconds = time.perf_counter() - started
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return Fetched(seconds, used.ru_utime + used.ru_stime), time.perf_counter() - started


@dataclass(frozen=True)
class Round:
    """One fetch by each contestant."""

    ours: Fetched
    curl: Fetched
    curl_on_disk: float


def compare(megabytes: int, rounds: int, folder: Path) -> list[Round]:
    """Fetch a file with each contestant in turn."""
    rounds_: list[Round] = []
    with script_process("files.py", megabytes * MEGABYTE) as url:
        curl(url, folder / "curl")  # The first fetch only warms the server's page cache.
        for _ in range(rounds):
            plain, on_disk = curl(url, folder / "curl")
            (folder / "curl").unlink()
            mine = ours(url, folder)
            (folder / "0.mp4").unlink()
            rounds_.append(Round(mine, plain, on_disk))
    return rounds_


def many(megabytes: int, count: int, folder: Path) -> Fetched:
    """Fetch a file many times at once."""
    with script_process("files.py", megabytes * MEGABYTE) as url:
        fetched = ours(url, folder, count)
    sizes = {path.stat().st_size for path in folder.glob("*.mp4")}
    if sizes != {megabytes * MEGABYTE}:
        raise SystemExit(f"files of {sizes} bytes arrived")
    for path in folder.glob("*.mp4"):
        path.unlink()
    return fetched


def shown(
    command: str, megabytes: int, rounds: Sequence[Round], small: Fetched, at_once: Fetched
) -> str:
    """Return the section of the page."""
    mine = median(one.ours.seconds for one in rounds)
    plain = median(one.curl.seconds for one in rounds)
    on_disk = median(one.curl_on_disk for one in rounds)
    ratio = median(one.curl_on_disk / one.ours.seconds for one in rounds)
    ratio_plain = median(one.curl.seconds / one.ours.seconds for one in rounds)

    def row(name: str, seconds: float, cpu: float) -> list[str]:
        return [name, f"{seconds:.2f}", f"{megabytes / seconds:,.0f}", f"{cpu:.2f}"]

    cpu_curl = median(one.curl.cpu for one in rounds)
    speed = markdown.table(
        [f"{megabytes:,} MB", "seconds", "MB/s", "CPU seconds"],
        [
            row("download, with SHA-256, on the disk", mine, median(r.ours.cpu for r in rounds)),
            row("curl, on the disk", on_disk, cpu_curl),
            row("curl, in the page cache", plain, cpu_curl),
        ],
    )
    memories = markdown.table(
        ["memory beyond the start", "MB"],
        [
            [f"{SMALL} MB", f"{small.growth:.0f}"],
            [f"{megabytes:,} MB", f"{max(one.ours.growth for one in rounds):.0f}"],
            [f"{AT_ONCE} of {SMALL} MB at once", f"{at_once.growth:.0f}"],
        ],
    )
    met = "met" if ratio >= GOAL else "**missed**"
    return _SECTION.format(
        command=command,
        machine=markdown.machine("aiohttp"),
        speed=speed,
        rounds=len(rounds),
        ratio=ratio,
        goal=GOAL,
        met=met,
        ratio_plain=ratio_plain,
        memories=memories,
        count=AT_ONCE,
        seconds=at_once.seconds,
        rate=AT_ONCE * SMALL / at_once.seconds,
    )


_SECTION = """## A download

`{command}`

{machine}

{speed}

Medians of {rounds} rounds in turn. Up to the disk it is {ratio:.2f} times as fast as curl (goal: at
least {goal}; {met}); as curl alone, {ratio_plain:.2f} times.

{memories}

{count} at once took {seconds:.1f} s, {rate:,.0f} MB/s."""


def main() -> None:
    """Measure and print the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--megabytes", type=int, default=1000, metavar="N", help="size of the large file")
    add("--rounds", type=int, default=5, metavar="N", help="of each; medians count")
    add("--report", type=Path, metavar="FILE", help="Markdown page to write the figures to")
    for hidden in ("--fetch", "--into", "--count"):
        add(hidden, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.fetch:
        done = asyncio.run(fetch(options.fetch, Path(options.into), int(options.count)))
        print(json.dumps(asdict(done)))
        return
    if not shutil.which("curl"):
        raise SystemExit("curl is not installed (apt-get install curl)")
    page = options.report and options.report.absolute()
    command = "python benchmarks/download.py"
    command += f" --megabytes {options.megabytes} --rounds {options.rounds}"
    with tempfile.TemporaryDirectory(prefix="cometapi-benchmark-") as name:
        folder = Path(name)
        rounds = compare(options.megabytes, options.rounds, folder)
        small, at_once = many(SMALL, 1, folder), many(SMALL, AT_ONCE, folder)
    text = shown(command, options.megabytes, rounds, small, at_once)
    print(text)
    if page:
        markdown.put_section(page, "download", text)


if __name__ == "__main__":
    main()
