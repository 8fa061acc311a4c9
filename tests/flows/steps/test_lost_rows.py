# SPDX-License-Identifier: Apache-2.0
"""A ledger row that is lost during a run is restored when the run ends."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from prefect import flow

from prefect_cometapi.flows import (
    afetch_output,
    aimage_to_video,
    apersist_output,
    apoll_generation,
    asubmit_generation,
)
from prefect_cometapi.runway import GenerationFailed, ImageToVideoRequest, State, StoredVideo
from prefect_cometapi.runway.ledger.statement import Sql

pytestmark = pytest.mark.server


async def lose_all(ledger_probe: Any) -> None:
    """Delete every row, as a database that is replaced by an older copy does."""
    await ledger_probe.ledger.database.rows(Sql("DELETE FROM cometapi_generations"))


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 -- what is awaited happens in other threads
            await asyncio.sleep(0.02)


async def bought_once(image: Any, sandbox: Any) -> bool:
    """Run the flow again with the key, and check that it finds the purchase."""
    again = await aimage_to_video(image, idempotency_key="sku-17")
    return bool(again.videos) and len(sandbox.accepted) == 1


async def test_a_row_that_is_lost_while_the_video_renders_is_stored_in_the_end(
    prefect_server, sandbox, image, ledger_probe, finish_rendering, caplog
):
    """A run whose row is lost during the wait logs it and stores the video; its key stays used."""
    run = asyncio.create_task(aimage_to_video(image, idempotency_key="sku-17"))
    await until(lambda: any(request.route == "task" for request in sandbox.requests))
    await lose_all(ledger_probe)
    finish_rendering()
    result = await run
    there = ledger_probe["sku-17"]
    assert (there.state, there.task_id) == (State.STORED, result.task_id)
    assert [video.uri for videos in there.videos.values() for video in videos] == [
        result.videos[0].uri
    ]
    assert "had lost the row of key 'sku-17'" in caplog.text
    assert await bought_once(image, sandbox)


async def test_a_row_that_is_lost_before_a_failure_tells_of_the_failure(
    prefect_server, sandbox, image, ledger_probe, finish_rendering
):
    """A lost row of a failed generation is restored as failed, so its key is not free."""
    sandbox.add_fault("create:failed:value=SAFETY.INPUT.TEXT")
    run = asyncio.create_task(aimage_to_video(image, idempotency_key="sku-17"))
    await until(lambda: any(request.route == "task" for request in sandbox.requests))
    await lose_all(ledger_probe)
    finish_rendering()
    with pytest.raises(GenerationFailed):
        await run
    assert ledger_probe["sku-17"].state is State.FAILED


async def test_a_row_that_is_lost_between_two_steps_of_an_own_flow_is_written_again(
    prefect_server, sandbox, image, ledger_probe
):
    """A row that is lost between two steps of a user's flow is restored by the next step."""

    @flow
    async def own() -> str:
        request = ImageToVideoRequest.model_validate(image)
        submission = await asubmit_generation(request, idempotency_key="sku-17")
        await lose_all(ledger_probe)
        finished = await apoll_generation(submission)
        await lose_all(ledger_probe)
        videos = await afetch_output(submission, finished)
        await lose_all(ledger_probe)
        stored = await apersist_output(submission, finished, videos)
        return stored[0].uri

    uri = await own()
    assert Path(uri).exists()
    assert ledger_probe["sku-17"].state is State.STORED
    assert ledger_probe["sku-17"].model == "gen3a_turbo"
    assert await bought_once(image, sandbox)


async def test_a_key_that_was_bought_again_keeps_both_purchases(
    prefect_server, sandbox, image, ledger_probe
):
    """A key that was bought twice keeps both purchases, and the first run stores its own video."""
    first: list[StoredVideo] = []

    @flow
    async def own() -> None:
        request = ImageToVideoRequest.model_validate(image)
        submission = await asubmit_generation(request, idempotency_key="k")
        by_another_worker = {"task_id": "5d2c5f51-4b6a-4a5c-9d1c-6f1f5e1f7d11", "claim": "theirs"}
        theirs = ledger_probe["k"].model_copy(update=by_another_worker)
        await lose_all(ledger_probe)
        await ledger_probe.ledger.table.insert([theirs])
        finished = await apoll_generation(submission)
        videos = await afetch_output(submission, finished)
        first.extend(await apersist_output(submission, finished, videos))

    await own()
    (mine,) = sandbox.accepted
    there = ledger_probe[f"k+{mine.task_id}"]
    assert (there.state, there.task_id) == (State.STORED, mine.task_id)
    assert [video for videos in there.videos.values() for video in videos] == first
    assert (ledger_probe["k"].state, ledger_probe["k"].claim) == (State.SUBMITTED, "theirs")


@pytest.mark.heavy
async def test_a_run_that_is_cancelled_after_its_row_was_lost_leaves_its_purchase(
    prefect_server, sandbox, image, ledger_probe, finish_rendering
):
    """A run that is cancelled after its row was lost leaves its purchase to the next run."""
    run = asyncio.create_task(aimage_to_video(image, idempotency_key="sku-17"))
    await until(lambda: any(request.route == "task" for request in sandbox.requests))
    await lose_all(ledger_probe)
    run.cancel()
    with suppress(asyncio.CancelledError):
        await run
    assert ledger_probe["sku-17"].state is State.SUBMITTED
    finish_rendering()
    assert await bought_once(image, sandbox)
