# SPDX-License-Identifier: Apache-2.0
"""A ledger that loses a row during a run has it again when the run ends."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from prefect import flow
from sqlalchemy import delete

from prefect_cometapi.flows import (
    afetch_output,
    aimage_to_video,
    apersist_output,
    apoll_generation,
    asubmit_generation,
)
from prefect_cometapi.runway import GenerationFailed, ImageToVideoRequest, State, StoredVideo
from prefect_cometapi.runway.ledger.schema import generations

pytestmark = pytest.mark.server


async def lose_all(book: Any) -> None:
    """Delete every row, as a database does that was replaced by an older copy."""
    await book.ledger.database.rows(delete(generations))


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 -- what is awaited happens in other threads
            await asyncio.sleep(0.02)


async def bought_once(image: Any, sandbox: Any) -> bool:
    """Run the flow again with the key: it finds what was bought."""
    again = await aimage_to_video(image, key="sku-17")
    return bool(again.videos) and len(sandbox.accepted) == 1


async def test_a_row_that_is_lost_while_the_video_renders_is_stored_in_the_end(
    prefect_server, sandbox, image, book, finish_rendering, caplog
):
    """The run says so, and the key is not bought again."""
    run = asyncio.create_task(aimage_to_video(image, key="sku-17"))
    await until(lambda: any(request.route == "task" for request in sandbox.requests))
    await lose_all(book)
    finish_rendering()
    result = await run
    there = book["sku-17"]
    assert (there.state, there.task_id) == (State.STORED, result.task_id)
    assert [video.uri for videos in there.videos.values() for video in videos] == [
        result.videos[0].uri
    ]
    assert "had lost the row of key 'sku-17'" in caplog.text
    assert await bought_once(image, sandbox)


async def test_a_row_that_is_lost_before_a_failure_tells_of_the_failure(
    prefect_server, sandbox, image, book, finish_rendering
):
    """It is no free key."""
    sandbox.add_fault("create:failed:value=SAFETY.INPUT.TEXT")
    run = asyncio.create_task(aimage_to_video(image, key="sku-17"))
    await until(lambda: any(request.route == "task" for request in sandbox.requests))
    await lose_all(book)
    finish_rendering()
    with pytest.raises(GenerationFailed):
        await run
    assert book["sku-17"].state is State.FAILED


async def test_a_row_that_is_lost_between_two_steps_of_an_own_flow_is_written_again(
    prefect_server, sandbox, image, book
):
    """What the next step is handed is enough."""

    @flow
    async def own() -> str:
        request = ImageToVideoRequest.model_validate(image)
        submission = await asubmit_generation(request, key="sku-17")
        await lose_all(book)
        finished = await apoll_generation(submission)
        await lose_all(book)
        videos = await afetch_output(submission, finished)
        await lose_all(book)
        stored = await apersist_output(submission, finished, videos)
        return stored[0].uri

    uri = await own()
    assert Path(uri).exists()
    assert book["sku-17"].state is State.STORED
    assert book["sku-17"].model == "gen3a_turbo"
    assert await bought_once(image, sandbox)


async def test_a_key_that_was_bought_again_keeps_both_purchases(
    prefect_server, sandbox, image, book
):
    """The run that bought first stores its own video, and the ledger names it beside the other."""
    first: list[StoredVideo] = []

    @flow
    async def own() -> None:
        request = ImageToVideoRequest.model_validate(image)
        submission = await asubmit_generation(request, key="k")
        by_another_worker = {"task_id": "5d2c5f51-4b6a-4a5c-9d1c-6f1f5e1f7d11", "claim": "theirs"}
        theirs = book["k"].model_copy(update=by_another_worker)
        await lose_all(book)
        await book.ledger.insert([theirs])
        finished = await apoll_generation(submission)
        videos = await afetch_output(submission, finished)
        first.extend(await apersist_output(submission, finished, videos))

    await own()
    (mine,) = sandbox.accepted
    there = book[f"k+{mine.task_id}"]
    assert (there.state, there.task_id) == (State.STORED, mine.task_id)
    assert [video for videos in there.videos.values() for video in videos] == first
    assert (book["k"].state, book["k"].claim) == (State.SUBMITTED, "theirs")


async def test_a_run_that_is_cancelled_after_its_row_was_lost_leaves_its_purchase(
    prefect_server, sandbox, image, book, finish_rendering
):
    """The next run with the key buys nothing."""
    run = asyncio.create_task(aimage_to_video(image, key="sku-17"))
    await until(lambda: any(request.route == "task" for request in sandbox.requests))
    await lose_all(book)
    run.cancel()
    with suppress(asyncio.CancelledError):
        await run
    assert book["sku-17"].state is State.SUBMITTED
    finish_rendering()
    assert await bought_once(image, sandbox)
