# SPDX-License-Identifier: Apache-2.0
"""The job block where Prefect's own job blocks work: scripts, notebooks, sync and async flows."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest
from prefect import flow, task

from prefect_cometapi.flows import RunwayJob, RunwayJobRun
from prefect_cometapi.runway import CompletedGeneration, GenerationResult

pytestmark = pytest.mark.server

IMAGE = {"promptImage": "https://example.com/cat.jpg", "promptText": "slow zoom"}


def make_video(key: str | None = None) -> GenerationResult:
    """Trigger the job, wait for it and fetch its result, as sync code does."""
    run = RunwayJob(request=IMAGE).trigger(idempotency_key=key)
    assert isinstance(run, RunwayJobRun)
    assert isinstance(run.wait_for_completion(), CompletedGeneration)
    result = run.fetch_result()
    assert isinstance(result, GenerationResult)
    return result


async def amake_video(key: str | None = None) -> GenerationResult:
    """Trigger the job, wait for it and fetch its result, as async code does."""
    run = await RunwayJob(request=IMAGE).trigger(idempotency_key=key)
    assert isinstance(run, RunwayJobRun)
    assert isinstance(await run.wait_for_completion(), CompletedGeneration)
    result = await run.fetch_result()
    assert isinstance(result, GenerationResult)
    return result


@flow
def sync_flow() -> GenerationResult:
    return make_video()


@flow
async def async_flow() -> GenerationResult:
    return await amake_video()


async def test_a_sync_flow_in_a_notebook_gets_results_and_not_coroutines(prefect_server, sandbox):
    """Somebody runs a sync flow in a notebook, where an event loop runs: the job has results."""
    assert sync_flow().videos
    assert len(sandbox.accepted) == 1


async def test_an_async_flow_calls_a_sync_flow_and_a_sync_task(prefect_server, sandbox):
    """An async flow calls a sync flow and a sync task: each of the three uses the job its way."""

    @flow
    async def parent() -> list[GenerationResult]:
        return [sync_flow(), task(make_video)("in-task"), await amake_video("own")]

    assert len({result.task_id for result in await parent()}) == 3
    assert len(sandbox.accepted) == 3


def test_a_sync_flow_runs_async_code_of_its_own(prefect_server, sandbox):
    """A sync flow runs an async function with asyncio.run, which awaits several jobs at once."""

    @flow
    def several() -> list[GenerationResult]:
        async def together() -> list[GenerationResult]:
            return await asyncio.gather(*(amake_video(f"clip-{n}") for n in range(2)))

        return asyncio.run(together())

    assert len(several()) == 2
    assert len(sandbox.accepted) == 2


async def test_a_thread_of_an_async_flow_is_sync_code(prefect_server, sandbox):
    """An async flow leaves the job to a thread, with its context or without, and gets results."""

    @flow
    async def parent() -> list[GenerationResult]:
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(1) as threads:
            return [
                await asyncio.to_thread(make_video),
                await loop.run_in_executor(threads, make_video, "thread"),
            ]

    assert all(result.videos for result in await parent())


async def test_code_outside_of_flows_uses_the_job(prefect_server, sandbox):
    """A plain script calls the job, an async one awaits it, and both get the same video."""
    result = await amake_video("script")
    assert (await asyncio.to_thread(make_video, "script")).videos == result.videos
    assert len(sandbox.accepted) == 1
