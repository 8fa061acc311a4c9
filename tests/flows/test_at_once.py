# SPDX-License-Identifier: Apache-2.0
"""Collectors, flows and followers at the same time do nothing twice."""

import asyncio
import json
import threading
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

from prefect_cometapi.flows import (
    CollectResult,
    acollect,
    afinish_generation,
    aimage_to_video,
    image_to_video,
)
from prefect_cometapi.flows.steps import fetch, persist
from prefect_cometapi.runway import GenerationFailed, State

pytestmark = pytest.mark.server

KEYS = [f"sku-{number}" for number in range(4)]

COLLECTS_WHEN_TOLD = """
import sys
from prefect_cometapi.flows import collect
print("ready", flush=True)
sys.stdin.readline()
print(collect().model_dump_json())
"""


def downloads(sandbox) -> dict[str, int]:
    """Count the downloads of each clip."""
    return Counter(request.path for request in sandbox.requests if request.route == "asset")


def polls(sandbox) -> int:
    return len([request for request in sandbox.requests if request.route == "task"])


async def until(condition) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 -- what is awaited happens in other threads
            await asyncio.sleep(0.02)


def stored(place: Path) -> list[Path]:
    return sorted(path for path in place.glob("*.mp4"))


def check_that_each_was_stored_once(sandbox, ledger_probe, place: Path) -> None:
    """Check that each generation has one download, one video file and one end in the ledger."""
    assert downloads(sandbox) == {f"/assets/{job.task_id}/0.mp4": 1 for job in sandbox.accepted}
    assert len(stored(place)) == len(sandbox.accepted) == len(KEYS)
    assert {entry.idempotency_key: entry.state for entry in ledger_probe.all()} == dict.fromkeys(
        KEYS, State.STORED
    )
    assert [entry.owner for entry in ledger_probe.all()] == [None] * len(KEYS)


@pytest.mark.heavy
def test_collectors_in_two_processes_do_nothing_twice(
    prefect_server, sandbox, ledger_probe, start, tmp_path
):
    """Two collectors in two processes download and store each clip once."""
    for key in KEYS:
        ledger_probe.buy(key)
    sandbox.add_fault("asset:slow:value=0.3,times=4")
    collectors = [start("-c", COLLECTS_WHEN_TOLD) for _ in range(2)]
    assert [process.stdout.readline() for process in collectors] == ["ready\n"] * 2
    for process in collectors:
        process.stdin.write("go\n")
        process.stdin.flush()
    results = [CollectResult(**json.loads(process.communicate()[0])) for process in collectors]
    assert sum(result.stored for result in results) == len(KEYS)
    check_that_each_was_stored_once(sandbox, ledger_probe, tmp_path / "videos")


@pytest.mark.heavy
async def test_collectors_in_one_process_do_nothing_twice(
    prefect_server, sandbox, ledger_probe, tmp_path
):
    """Two collectors in one process share the work or wait for each other."""
    for key in KEYS:
        ledger_probe.buy(key)
    sandbox.add_fault("asset:slow:value=0.3,times=4")
    await asyncio.gather(acollect(), acollect())
    check_that_each_was_stored_once(sandbox, ledger_probe, tmp_path / "videos")


async def test_a_collector_leaves_alone_what_a_run_works_on(
    prefect_server, sandbox, image, ledger_probe, finish_rendering, caplog
):
    """A scheduled collector beside a waiting run neither polls nor stores its generation."""
    run = asyncio.create_task(aimage_to_video(image, idempotency_key="awaited"))
    await until(lambda: polls(sandbox) > 0)
    holder = ledger_probe["awaited"].owner
    result = await acollect()
    assert result.generations == ()
    assert "Skipped 1 generations owned by other runs" in caplog.text
    assert ledger_probe["awaited"].owner == holder
    finish_rendering()
    assert Path((await run).videos[0].uri).exists()
    assert list(downloads(sandbox).values()) == [1]


async def test_a_second_run_with_the_key_follows_the_first(
    prefect_server, sandbox, image, finish_rendering, caplog
):
    """A second run with a key waits, names the first run, and returns the same result."""
    first = asyncio.create_task(aimage_to_video(image, idempotency_key="shared"))
    await until(lambda: polls(sandbox) > 0)
    second = asyncio.create_task(aimage_to_video(image, idempotency_key="shared"))
    await until(lambda: "which works on this generation" in caplog.text)
    finish_rendering()
    results = await asyncio.gather(first, second)
    assert results[0] == results[1]
    assert Path(results[0].videos[0].uri).exists()
    assert len(sandbox.accepted) == 1
    assert list(downloads(sandbox).values()) == [1]


async def test_a_follower_of_a_failure_fails_alike(
    prefect_server, sandbox, image, finish_rendering, caplog
):
    """A follower of a failed generation fails in the same way, and buys nothing."""
    sandbox.add_fault("create:failed:value=SAFETY.INPUT.TEXT")
    first = asyncio.create_task(aimage_to_video(image, idempotency_key="doomed"))
    await until(lambda: polls(sandbox) > 0)
    second = asyncio.create_task(aimage_to_video(image, idempotency_key="doomed"))
    await until(lambda: "which works on this generation" in caplog.text)
    finish_rendering()
    errors = await asyncio.gather(first, second, return_exceptions=True)
    assert [type(error) for error in errors] == [GenerationFailed] * 2
    assert str(errors[0]) == str(errors[1])
    assert len(sandbox.accepted) == 1


@pytest.mark.heavy
async def test_a_follower_takes_over_from_a_run_that_is_stopped(
    prefect_server, sandbox, image, ledger_probe, finish_rendering, caplog
):
    """A follower continues at once if the first run is cancelled during its wait."""
    first = asyncio.create_task(aimage_to_video(image, idempotency_key="handed-on"))
    await until(lambda: polls(sandbox) > 0)
    second = asyncio.create_task(aimage_to_video(image, idempotency_key="handed-on"))
    await until(lambda: "which works on this generation" in caplog.text)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    finish_rendering()
    result = await second
    assert Path(result.videos[0].uri).exists()
    assert len(sandbox.accepted) == 1


@pytest.mark.heavy
async def test_finishing_by_id_waits_for_the_run_that_works_on_it(
    prefect_server, sandbox, image, ledger_probe, finish_rendering, caplog
):
    """`finish-generation` of an id in progress joins its entry, and buys nothing."""
    run = asyncio.create_task(aimage_to_video(image, idempotency_key="by-key"))
    await until(lambda: polls(sandbox) > 0)
    (job,) = sandbox.accepted
    finish = asyncio.create_task(afinish_generation(job.task_id))
    await until(lambda: "which works on this generation" in caplog.text)
    finish_rendering()
    results = await asyncio.gather(run, finish)
    assert {result.idempotency_key for result in results} == {"by-key"}
    assert [entry.idempotency_key for entry in ledger_probe.all()] == ["by-key"]
    assert Path(results[1].videos[0].uri).exists()
    assert len(sandbox.accepted) == 1


async def test_not_waiting_does_not_wait_for_the_run_that_waits(
    prefect_server, sandbox, image, finish_rendering
):
    """`wait=False` returns the id at once, even if another run with the key waits."""
    run = asyncio.create_task(aimage_to_video(image, idempotency_key="looked-at"))
    await until(lambda: polls(sandbox) > 0)
    glance = await aimage_to_video(image, idempotency_key="looked-at", wait=False)
    assert not run.done()
    assert glance.task_id == sandbox.accepted[0].task_id
    finish_rendering()
    assert (await run).task_id == glance.task_id


@pytest.mark.heavy
def test_a_storage_wanted_later_downloads_once_more_and_buys_nothing(
    prefect_server, sandbox, image, ledger_probe, tmp_path
):
    """A second storage for a key costs a second download, and no second purchase."""
    places = [str(tmp_path / name) for name in "ab"]
    for place in places:
        image_to_video(image, idempotency_key="both", storage=place)
    assert list(ledger_probe["both"].videos) == places
    assert list(downloads(sandbox).values()) == [2]
    assert len(sandbox.accepted) == 1


@pytest.fixture
def barrier(monkeypatch):
    """Make a step's function wait until all calls are let through."""

    def shut(module: ModuleType, name: str) -> tuple[list[int], threading.Event]:
        function = getattr(module, name)
        arrived: list[int] = []
        opened = threading.Event()

        async def blocked(*args, **kwargs):
            arrived.append(1)
            await asyncio.to_thread(opened.wait)
            return await function(*args, **kwargs)

        def blocked_thread(*args, **kwargs):
            arrived.append(1)
            opened.wait()
            return function(*args, **kwargs)

        waits = blocked if asyncio.iscoroutinefunction(function) else blocked_thread
        monkeypatch.setattr(module, name, waits)
        return arrived, opened

    return shut


async def two_at_once(image, places, arrived, opened, caplog) -> None:
    """Start two runs with one key, the second in the middle of the first one's work."""
    first = asyncio.create_task(aimage_to_video(image, idempotency_key="wanted", storage=places[0]))
    await until(lambda: len(arrived) == 1)
    second = asyncio.create_task(
        aimage_to_video(image, idempotency_key="wanted", storage=places[1])
    )
    await until(lambda: len(arrived) == 2 or "which works on this generation" in caplog.text)
    opened.set()
    await asyncio.gather(first, second)


@pytest.mark.heavy
async def test_two_new_storages_at_once_are_both_remembered(
    prefect_server, sandbox, image, ledger_probe, tmp_path, barrier, caplog
):
    """A clip that two runs copy to new storages at once is recorded at both locations."""
    places = [str(tmp_path / name) for name in "abc"]
    await aimage_to_video(image, idempotency_key="wanted", storage=places[0])
    arrived, opened = barrier(persist, "_persist")
    await two_at_once(image, places[1:], arrived, opened, caplog)
    assert sorted(ledger_probe["wanted"].videos) == places


@pytest.mark.heavy
async def test_two_runs_that_want_one_new_storage_share_the_download(
    prefect_server, sandbox, image, tmp_path, barrier, caplog
):
    """Two runs that copy a clip to the same new storage share one download."""
    await aimage_to_video(image, idempotency_key="wanted", storage=str(tmp_path / "a"))
    arrived, opened = barrier(fetch, "download")
    await two_at_once(image, [str(tmp_path / "b")] * 2, arrived, opened, caplog)
    assert list(downloads(sandbox).values()) == [2]
