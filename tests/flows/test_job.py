# SPDX-License-Identifier: Apache-2.0
"""Job block: configured once, triggered in sync and async flows, never paid for twice."""

from typing import Any

import pytest
from prefect import flow
from pydantic import ValidationError

from prefect_cometapi.blocks import CometAPICredentials
from prefect_cometapi.flows import RunwayJob, RunwayJobRun
from prefect_cometapi.runway import GenerationFailed, StorageUnavailable
from prefect_cometapi.sandbox import Fault

from ..block_suite import OfflineBlockSuite

pytestmark = pytest.mark.server


class TestTheBlock(OfflineBlockSuite):
    """Prefect's requirements for the blocks of an integration."""

    @pytest.fixture
    def block(self):
        return RunwayJob


def test_a_sync_flow_triggers_waits_and_fetches(prefect_server, sandbox, image, history):
    """A sync flow triggers, waits and fetches, and each step is a task run in the history."""

    @flow
    def teaser():
        run = RunwayJob(request=image).trigger()
        assert isinstance(run, RunwayJobRun)
        finished = run.wait_for_completion()
        assert finished.generation.task_id == run.submission.task_id
        return run.fetch_result()

    state = teaser(return_state=True)
    (video,) = state.result().videos
    assert video.uri.endswith(".mp4")
    assert len(sandbox.accepted) == 1
    assert {"submit", "poll", "fetch", "persist"} <= set(
        history.task_runs(state.state_details.flow_run_id)
    )


async def test_an_async_flow_awaits_the_same_calls(prefect_server, sandbox, image):
    """An async flow awaits the same calls, with plain names or with the prefix a."""

    @flow
    async def teaser() -> tuple[str, str]:
        job = RunwayJob(request=image)
        run = await job.trigger()
        await run.wait_for_completion()
        again = await job.atrigger()
        await again.await_for_completion()
        return (await run.fetch_result()).task_id, (await again.afetch_result()).task_id

    first, second = await teaser()
    assert first == second
    assert len(sandbox.accepted) == 1


@pytest.mark.heavy
def test_a_key_of_its_own_pays_once_across_runs(prefect_server, sandbox, image):
    """A block's key gives one video across runs, and another key gives another one."""

    @flow
    def teaser(key: str | None = None):
        return (
            RunwayJob(request=image, idempotency_key="sku-17")
            .trigger(idempotency_key=key)
            .fetch_result()
            .idempotency_key
        )

    assert [teaser(), teaser(), teaser("sku-18")] == ["sku-17", "sku-17", "sku-18"]
    assert len(sandbox.accepted) == 2


@pytest.mark.heavy
def test_a_saved_job_is_what_was_saved(prefect_server, sandbox, image):
    """A saved job has the request, credentials, storage and key when it is loaded, and runs."""
    credentials = CometAPICredentials.from_settings()
    credentials.save("of-job", overwrite=True)
    kept: Any = CometAPICredentials.load("of-job")
    RunwayJob(request=image, credentials=kept, idempotency_key="saved").save(
        "teaser", overwrite=True
    )
    loaded: Any = RunwayJob.load("teaser")
    assert loaded.request == RunwayJob(request=image).request
    assert loaded.trigger().fetch_result().idempotency_key == "saved"


def test_a_request_that_cannot_be_made_is_refused_by_the_block(image):
    """An invalid request is refused with the name of the field before the block is saved."""
    with pytest.raises(ValidationError, match="duration"):
        RunwayJob.model_validate({"request": dict(image, duration=7)})


def test_a_failure_upstream_is_told_to_who_waits(prefect_server, sandbox, image):
    """A failure upstream reaches the waiting flow with its reason."""
    sandbox.add_fault(Fault.parse("create:failed"))
    run = RunwayJob(request=image, idempotency_key="sku-17").trigger()
    with pytest.raises(GenerationFailed):
        run.wait_for_completion()


def test_nothing_is_bought_where_nothing_can_be_stored(prefect_server, sandbox, image):
    """An unusable storage is reported before anything is bought."""
    with pytest.raises(StorageUnavailable):
        RunwayJob(request=image, storage="/proc/videos").trigger()
    assert sandbox.accepted == []
