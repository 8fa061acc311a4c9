# SPDX-License-Identifier: Apache-2.0
"""Measure the resources of a thousand slow downloads at once.

    python benchmarks/slow_downloads.py [--report docs/benchmarks.md]

A server on this machine sends a file of one megabyte to each client at 20 to 50 kB/s. Each row is a
fresh process with one event loop. A download of this package also computes the SHA-256 and ends
with the file on the disk. The other rows are the usual handwritten code: a stream into a file,
and a response that is read in one piece.
"""

import argparse
import asyncio
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import httpx
from contestants import cpu_seconds, memory

from tests.chaos.harness import markdown

SIZE = 1_000_000
SLOWEST, FASTEST = 20_000, 50_000
"""Bytes per second."""

CHUNK_INTERVAL = 0.25
"""Seconds between two chunks."""

RUNS = [
    ("ours", 10),
    ("ours", 100),
    ("ours", 1000),
    ("stream by hand", 1000),
    ("in one piece", 1000),
]


@dataclass(frozen=True)
class Usage:
    """Resources of a process at most: seconds, bytes, descriptors and threads."""

    seconds: float
    cpu: float
    before: int
    peak: int
    descriptors: int
    threads: int


async def send_slowly(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer one request after the other, chunk by chunk."""
    loop, pace = asyncio.get_running_loop(), random.uniform(SLOWEST, FASTEST)
    try:
        while True:
            await reader.readuntil(b"\r\n\r\n")
            head = f"HTTP/1.1 200 OK\r\nContent-Type: video/mp4\r\nContent-Length: {SIZE}\r\n\r\n"
            writer.write(head.encode())
            began, sent = loop.time() + random.uniform(0, CHUNK_INTERVAL), 0
            while sent < SIZE:
                drop = bytes(min(SIZE - sent, int(pace * CHUNK_INTERVAL)))
                writer.write(drop)
                sent += len(drop)
                await writer.drain()
                await asyncio.sleep(max(0.0, began + sent / pace - loop.time()))
    except (OSError, asyncio.IncompleteReadError):
        writer.close()


async def serve() -> None:
    """Print the address and serve until standard input ends."""
    server = await asyncio.start_server(send_slowly, "127.0.0.1", 0, backlog=4096)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/o.mp4", flush=True)
    await asyncio.to_thread(sys.stdin.read)


async def fetch(who: str, url: str, folder: Path, count: int) -> Usage:
    """Download N files at once and record the resources of this process meanwhile."""
    from prefect_cometapi.runway.http_clients import tls_context
    from prefect_cometapi.runway.media.download import AssetClients, download

    tls_context()
    most = {"fd": 0, "task": 0}
    paths = [folder / f"{number}.mp4" for number in range(count)]

    async def watch() -> None:
        while True:
            for what, number in most.items():
                most[what] = max(number, len(list(Path(f"/proc/self/{what}").iterdir())))
            await asyncio.sleep(CHUNK_INTERVAL)

    async def by_hand(http: httpx.AsyncClient, path: Path) -> None:
        if who == "in one piece":
            path.write_bytes((await http.get(url)).raise_for_status().content)
            return
        async with http.stream("GET", url) as response:
            with path.open("wb") as file:
                async for chunk in response.raise_for_status().aiter_bytes():
                    file.write(chunk)

    watching = asyncio.create_task(watch())
    before, cpu, began = memory("VmRSS"), cpu_seconds(), time.perf_counter()
    if who == "ours":
        async with AssetClients() as clients:
            trusted = {"127.0.0.1"}
            await asyncio.gather(*(download(clients, url, to, trusted=trusted) for to in paths))
    else:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(timeout=60, limits=limits, verify=tls_context()) as http:
            await asyncio.gather(*(by_hand(http, path) for path in paths))
    seconds = time.perf_counter() - began
    watching.cancel()
    assert all(path.stat().st_size == SIZE for path in paths)
    return Usage(seconds, cpu_seconds() - cpu, before, memory("VmHWM"), most["fd"], most["task"])


def measure(who: str, count: int, url: str) -> Usage:
    """Download N files in a fresh process and return its resources."""
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, __file__, "--who", who, "--url", url, "--into", folder]
        done = subprocess.run(
            [*words, "--count", str(count)], stdout=subprocess.PIPE, text=True, check=True
        )
        return Usage(**json.loads(done.stdout))


def table() -> str:
    """Run all contestants, one after the other, and return a Markdown table."""
    rows = []
    with subprocess.Popen(
        [sys.executable, __file__, "--serve"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as server:
        assert server.stdout
        url = server.stdout.readline().strip()
        for who, count in RUNS:
            usage = measure(who, count, url)
            rows.append(
                (
                    f"{who}, {count:,} at once",
                    f"{usage.seconds:.0f}",
                    f"{usage.cpu:.1f}",
                    f"{(usage.peak - usage.before) / 1e6:.0f}",
                    f"{(usage.peak - usage.before) / count / 1e3:.0f}",
                    f"{usage.descriptors:,}",
                    f"{usage.threads}",
                )
            )
            print("  ".join(rows[-1]), flush=True)
        server.kill()
    head = ["", "s", "CPU s", "MB more at the peak", "kB each", "descriptors", "threads"]
    return markdown.table(head, rows)


_SECTION = """## A thousand slow downloads

`python benchmarks/slow_downloads.py`

A server on this machine sends a file of a megabyte at 20 to 50 kB/s to each client. Each row is a
fresh process with one event loop. Ours also computes the SHA-256 and has each file on the disk at
its end; the others are the usual handwritten code: a stream into a file, and a reply read in one
piece. A connection takes two descriptors, with its file.

{machine}

{table}"""


def main() -> None:
    """Serve, fetch, or run both and print the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--report", type=Path, metavar="FILE", help="Markdown page for the figures")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    for name in ("--who", "--url", "--into", "--count"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    options = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if options.serve:
        asyncio.run(serve())
    elif options.who:
        usage = asyncio.run(fetch(options.who, options.url, Path(options.into), int(options.count)))
        print(json.dumps(asdict(usage)))
    else:
        found = table()
        print(found)
        if options.report:
            text = _SECTION.format(machine=markdown.machine("httpx"), table=found)
            markdown.put_section(options.report, "slow downloads", text)


if __name__ == "__main__":
    main()
