# SPDX-License-Identifier: Apache-2.0
"""A run pays once for a request, however often it is retried; where none lasts a key is due."""

import contextvars
import threading
from collections.abc import Callable
from typing import Any

import pytest
from prefect import flow, task
from prefect.context import with_context

from prefect_cometapi.flows import (
    RunwayJob,
    aimage_to_video,
    asubmit_generation,
    generate_batch,
    image_to_video,
    submit_generation,
)
from prefect_cometapi.runway import InvalidRequest

from ..batch.catalogue import rows

pytestmark = pytest.mark.server


def in_thread(work: Callable[[], Any]) -> Any:
    """Call it in a thread, and return what it returns or the error that it raises."""
    results: list[Any] = []

    def run() -> None:
        try:
            results.append(work())
        except Exception as error:  # noqa: BLE001 -- it is what is tested
            results.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return results[0]


def with_copied_context(image: Any) -> Any:
    """Call the step in a thread that got a copy of this one's context."""
    context = contextvars.copy_context()
    return in_thread(lambda: context.run(submit_generation, image))


def with_prefects_context(image: Any) -> Any:
    """Call the step in a thread with what Prefect carries over to other processes."""
    call = with_context(submit_generation.fn)
    return in_thread(lambda: call(image))


@flow
def theirs(image: dict[str, Any]) -> str:
    """A flow of the user's own."""
    return submit_generation(image).task_id


STEPS: dict[str, Callable[[Any], Any]] = {
    "the step": submit_generation,
    "its function": submit_generation.fn,
    "the flow": image_to_video,
    "a batch": lambda image: generate_batch([image]),
    "the job": lambda image: RunwayJob(request=image).trigger(),
    "a task of yours": task(submit_generation.fn),
    "a flow of yours": theirs,
    "a thread with a copied context": with_copied_context,
    "a thread with Prefect's context": with_prefects_context,
}


@pytest.mark.parametrize("step", STEPS)
def test_a_task_that_is_retried_outside_of_a_flow_pays_once(prefect_server, sandbox, image, step):
    """The user's task run is the outermost run, whatever is called in it."""
    attempts: list[int] = []

    @task(retries=2)
    def make() -> None:
        attempts.append(len(attempts))
        STEPS[step](image)
        if len(attempts) < 3:
            raise RuntimeError("later in the task")

    make()
    assert len(attempts) == 3
    assert len(sandbox.accepted) == 1


@pytest.mark.parametrize("step", [asubmit_generation, aimage_to_video])
async def test_an_async_task_that_is_retried_pays_once(prefect_server, sandbox, image, step):
    """As a sync one does."""
    attempts: list[int] = []

    @task(retries=1)
    async def make() -> None:
        attempts.append(len(attempts))
        await step(image)
        if len(attempts) < 2:
            raise RuntimeError("later in the task")

    await make()
    assert len(sandbox.accepted) == 1


def test_two_runs_of_a_task_are_two_runs(prefect_server, sandbox, image):
    """Each call of the user's task pays, as each run of a flow does."""

    @task
    def make() -> str:
        return submit_generation(image).key

    assert make() != make()
    assert len(sandbox.accepted) == 2


@pytest.mark.parametrize("step", [submit_generation, submit_generation.fn])
def test_a_call_in_no_run_needs_a_key(prefect_server, sandbox, image, step):
    """Nothing tells its repetition from a new wish; the error names the parameter."""
    with pytest.raises(InvalidRequest, match="the parameter key= is missing") as caught:
        step(image)
    assert "nothing was charged" in str(caught.value)
    assert sandbox.requests == []
    assert step(image, key="sku-17").task_id == step(image, key="sku-17").task_id
    assert len(sandbox.accepted) == 1


def test_a_thread_without_context_needs_a_key(prefect_server, sandbox, image):
    """Within a flow, too: the thread does not know in which run it is."""

    @flow(retries=1)
    def pipeline(key: str | None) -> list[Any]:
        return [in_thread(lambda: submit_generation(image, key=key)) for _ in range(3)]

    assert [type(error) for error in pipeline(None)] == [InvalidRequest] * 3
    assert sandbox.requests == []
    assert len({submission.task_id for submission in pipeline("sku-17")}) == 1
    assert len(sandbox.accepted) == 1


def test_a_job_in_no_run_needs_a_key(prefect_server, sandbox, image):
    """The block's own, or one for this time."""
    with pytest.raises(InvalidRequest, match="key="):
        RunwayJob(request=image).trigger()
    assert sandbox.accepted == []
    assert RunwayJob(request=image).trigger(key="sku-17").submission.key == "sku-17"


def test_an_id_is_attached_in_no_run(prefect_server, sandbox, image):
    """Nothing is bought, so there is nothing to pay twice for."""
    bought = submit_generation(image, key="sku-17")
    attached = submit_generation(image, task_id=bought.task_id)
    assert attached.task_id == bought.task_id
    assert len(sandbox.accepted) == 1


def test_the_flows_need_no_key_in_a_script(prefect_server, sandbox, image):
    """Each call is a flow run of its own."""
    assert image_to_video(image).key != image_to_video(image).key
    assert generate_batch(rows(1)).succeeded == 1
    assert len(sandbox.accepted) == 3
