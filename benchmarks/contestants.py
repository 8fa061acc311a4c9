# SPDX-License-Identifier: Apache-2.0
"""Ways to make a batch of videos, each in a process of its own, and all with the same duties.

Each contestant submits, waits, downloads to a temporary file, demuxes it to its end, syncs it to
the disk and gives it its final name. `batch.py` starts this file once for each. A contestant prints
``ready`` once everything is imported and Prefect has been used once, and begins at the word ``go``.
"""

import asyncio
import importlib
import json
import os
import pkgutil
import random
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.request import Request, urlopen

KEY = "benchmark"
INTERVAL = 5.0
"""Seconds between two polls of a job, as the service asks for."""

EARLIER = 100
"""Videos whose durations the ledger knows in advance."""

GROUP = 100
"""Videos that share a task run."""

DECODER = {f"prefect_cometapi.runway.media.{name}" for name in ("decoder", "contact_sheet")}
"""Modules that only the process of the decoder loads."""

CALLS = 32
CONNECTIONS = 40
"""Concurrency limits that the bare contestant sets itself."""


@dataclass(frozen=True)
class Spec:
    """Work of a contestant.

    Attributes:
        url: Base URL of the service.
        items: Number of videos to make.
        in_flight: Number of videos at a time.
        folder: Folder for the videos.
    """

    url: str
    items: int
    in_flight: int
    folder: str

    def path_of(self, number: int) -> Path:
        """Return the path of a video."""
        return Path(self.folder) / f"{number}.mp4"


@dataclass(frozen=True)
class Report:
    """Report that a contestant prints at its end.

    Attributes:
        succeeded: Number of videos that it reports as made.
        seconds: Duration since ``go``.
        cpu_before: Processor seconds until ``go``.
        memory_before: Bytes of memory at ``go``.
        peak: Bytes of memory at most, including its child processes.
    """

    succeeded: int
    seconds: float
    cpu_before: float
    memory_before: int
    peak: int


class NotHereError(Exception):
    """Error for a missing dependency of a contestant."""


def rows(count: int) -> list[dict[str, Any]]:
    """Return the items as the API expects them."""
    return [
        {
            "promptImage": f"https://example.com/{number}.jpg",
            "promptText": f"slow zoom, picture {number}",
            "model": "gen3a_turbo",
            "ratio": "1280:768",
            "duration": 5,
        }
        for number in range(count)
    ]


def publish(part: Path, path: Path) -> None:
    """Make a downloaded file visible once it is certainly a complete video and on the disk.

    Raises:
        ValueError: It is cut off.
    """
    import av

    ends, corrupt = 0.0, False
    with av.open(str(part)) as container:
        stream = container.streams.video[0]
        promised = float((stream.duration or 0) * (stream.time_base or 0))
        for packet in container.demux(stream):
            corrupt = corrupt or packet.is_corrupt
            if packet.pts is not None and packet.time_base is not None:
                ends = max(ends, float((packet.pts + (packet.duration or 0)) * packet.time_base))
    if corrupt or not ends or ends < 0.98 * promised:
        raise ValueError(f"{part} is cut off")
    with part.open("rb") as file:
        os.fsync(file.fileno())
    part.replace(path)


def threads(spec: Spec) -> Callable[[], int]:
    """Make the videos with the official SDK, in a task that is mapped over threads."""
    try:
        sdk = importlib.import_module("runwayml")
    except ImportError:
        raise NotHereError("runwayml is not installed (pip install runwayml)") from None
    import httpx
    from prefect import flow, task
    from prefect.task_runners import ThreadPoolTaskRunner

    client = sdk.RunwayML(api_key=KEY, base_url=f"{spec.url}/runwayml")
    http = httpx.Client(timeout=60)

    @task
    def make_video(number: int, row: dict[str, Any]) -> str:
        created = client.image_to_video.create(
            model=row["model"],
            prompt_image=row["promptImage"],
            prompt_text=row["promptText"],
            ratio=row["ratio"],
            duration=row["duration"],
        )
        finished = created.wait_for_task_output()
        path = spec.path_of(number)
        part = path.with_suffix(".part")
        with http.stream("GET", finished.output[0]) as response, part.open("wb") as file:
            response.raise_for_status()
            for chunk in response.iter_bytes():
                file.write(chunk)
        publish(part, path)
        return str(path)

    runner: Any = ThreadPoolTaskRunner(max_workers=spec.in_flight)

    @flow(task_runner=runner)
    def make_videos() -> int:
        made = make_video.map(range(spec.items), rows(spec.items))
        made.wait()
        return sum(future.state.is_completed() for future in made)

    _use_prefect_once()
    return make_videos


def bare(spec: Spec) -> Callable[[], int]:
    """Make the videos with asyncio and httpx only."""
    import av  # noqa: F401 -- loaded before the clock starts
    import httpx

    async def make_video(
        http: httpx.AsyncClient, calls: asyncio.Semaphore, number: int, row: dict[str, Any]
    ) -> None:
        async with calls:
            created = await http.post("/runwayml/v1/image_to_video", json=row)
        task_id = created.raise_for_status().json()["id"]
        while True:
            await asyncio.sleep(INTERVAL * (1 + 0.1 * random.random()))
            async with calls:
                reply = await http.get(f"/runwayml/v1/tasks/{task_id}")
            state = reply.raise_for_status().json()
            if state["status"] == "SUCCEEDED":
                break
            if state["status"] in {"FAILED", "CANCELLED"}:
                raise RuntimeError(state)
        path = spec.path_of(number)
        part = path.with_suffix(".part")
        async with calls, http.stream("GET", state["output"][0]) as response:
            response.raise_for_status()
            with part.open("wb") as file:
                async for chunk in response.aiter_bytes():
                    file.write(chunk)
        await asyncio.to_thread(publish, part, path)

    async def make_videos() -> int:
        slots, calls = asyncio.Semaphore(spec.in_flight), asyncio.Semaphore(CALLS)
        async with httpx.AsyncClient(
            base_url=spec.url,
            headers={"Authorization": f"Bearer {KEY}", "X-Runway-Version": "2024-11-06"},
            limits=httpx.Limits(max_connections=CONNECTIONS, max_keepalive_connections=CONNECTIONS),
            timeout=60,
        ) as http:

            async def one(number: int, row: dict[str, Any]) -> None:
                async with slots:
                    await make_video(http, calls, number, row)

            work = (one(number, row) for number, row in enumerate(rows(spec.items)))
            ended = await asyncio.gather(*work, return_exceptions=True)
        return sum(error is None for error in ended)

    return lambda: asyncio.run(make_videos())


def floor(spec: Spec) -> Callable[[], int]:
    """Run as many Prefect tasks that do nothing."""
    from prefect import flow, task

    @task
    async def nothing(number: int) -> int:
        return number

    @flow
    async def nothings() -> int:
        return len(await asyncio.gather(*(nothing(number) for number in range(spec.items))))

    _use_prefect_once()
    return lambda: asyncio.run(nothings())


def ours(spec: Spec) -> Callable[[], int]:
    """Make the videos with this package's batch."""
    flows = importlib.import_module("prefect_cometapi.flows")
    generate_batch = getattr(flows, "agenerate_batch", None)
    if generate_batch is None:
        raise NotHereError("this package has no batch yet")
    for package in ("runway", "flows"):
        path = importlib.import_module(f"prefect_cometapi.{package}").__path__
        for module in pkgutil.walk_packages(path, f"prefect_cometapi.{package}."):
            if module.name not in DECODER:
                importlib.import_module(module.name)

    async def make_videos() -> int:
        result = await generate_batch(
            rows(spec.items), storage=spec.folder, idempotency_key=KEY, max_in_flight=spec.in_flight
        )
        return result.succeeded

    _use_prefect_once()
    return lambda: asyncio.run(make_videos())


def grouped(spec: Spec) -> Callable[[], int]:
    """Make the videos with this package's batch, many of them in one task run."""
    os.environ["COMETAPI_ITEMS_PER_TASK_RUN"] = str(GROUP)
    return ours(spec)


def known(spec: Spec) -> Callable[[], int]:
    """Make the videos with this package's batch and a ledger that knows earlier durations."""
    make_videos = ours(spec)
    generate_batch = importlib.import_module("prefect_cometapi.flows").generate_batch
    with TemporaryDirectory() as folder:
        generate_batch(
            rows(EARLIER), storage=folder, idempotency_key="earlier", max_in_flight=EARLIER
        )
    urlopen(Request(f"{spec.url}/_stats", method="DELETE")).close()
    return make_videos


def _use_prefect_once() -> None:
    """Load what Prefect loads with its first run."""
    from prefect import flow, task

    @task
    async def nothing() -> None:
        pass

    @flow
    async def once() -> None:
        await nothing()

    asyncio.run(once())


CONTESTANTS: dict[str, Callable[[Spec], Callable[[], int]]] = {
    "ours": ours,
    "grouped": grouped,
    "known": known,
    "bare": bare,
    "threads": threads,
    "floor": floor,
}


def memory(name: str) -> int:
    """Return a memory figure of this process and its children, in bytes."""
    children = [path.read_text().split() for path in Path("/proc/self/task").glob("*/children")]
    return sum(_memory(pid, name) for pid in chain(["self"], *children))


def _memory(pid: str, name: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return 0


def cpu_seconds() -> float:
    """Return the processor time of this process so far, in seconds."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Run one contestant: ``contestants.py WHO SPEC``."""
    who, spec = sys.argv[1], Spec(**json.loads(sys.argv[2]))
    try:
        run = CONTESTANTS[who](spec)
    except NotHereError as reason:
        print(json.dumps({"skipped": str(reason)}), flush=True)
        return
    print("ready", flush=True)
    sys.stdin.readline()
    cpu_before, memory_before, started = cpu_seconds(), memory("VmRSS"), time.perf_counter()
    succeeded = run()
    report = Report(
        succeeded=succeeded,
        seconds=time.perf_counter() - started,
        cpu_before=cpu_before,
        memory_before=memory_before,
        peak=memory("VmHWM"),
    )
    print(json.dumps(asdict(report)), flush=True)


if __name__ == "__main__":
    main()
