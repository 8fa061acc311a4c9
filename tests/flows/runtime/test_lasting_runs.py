# SPDX-License-Identifier: Apache-2.0
"""A run pays once for a request, however often it is retried; without a run, a key is required."""

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
    """Call a function in a thread, and return its result or its error."""
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
    """Call the step in a thread with the context that Prefect passes to other processes."""
    call = with_context(submit_generation.fn)
    return in_thread(lambda: call(image))


@flow
def theirs(image: dict[str, Any]) -> str:
    """Run the user's own flow."""
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
    """A retried task outside of a flow pays once, as its task run is the outermost run."""
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
@pytest.mark.heavy
async def test_an_async_task_that_is_retried_pays_once(prefect_server, sandbox, image, step):
    """A retried async task outside of a flow pays once."""
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
    """Two calls of a task outside of a flow are two purchases, as two runs of a flow are."""

    @task
    def make() -> str:
        return submit_generation(image).idempotency_key

    assert make() != make()
    assert len(sandbox.accepted) == 2


@pytest.mark.parametrize("step", [submit_generation, submit_generation.fn])
def test_a_call_in_no_run_needs_a_key(prefect_server, sandbox, image, step):
    """A call outside of a run is refused with the name of the key's parameter."""
    with pytest.raises(InvalidRequest, match="the parameter idempotency_key is missing") as caught:
        step(image)
    assert "nothing was charged" in str(caught.value)
    assert sandbox.requests == []
    assert (
        step(image, idempotency_key="sku-17").task_id
        == step(image, idempotency_key="sku-17").task_id
    )
    assert len(sandbox.accepted) == 1


def test_a_thread_without_context_needs_a_key(prefect_server, sandbox, image):
    """A thread without context needs a key even within a flow, as it does not know its run."""

    @flow(retries=1)
    def pipeline(key: str | None) -> list[Any]:
        return [in_thread(lambda: submit_generation(image, idempotency_key=key)) for _ in range(3)]

    assert [type(error) for error in pipeline(None)] == [InvalidRequest] * 3
    assert sandbox.requests == []
    assert len({submission.task_id for submission in pipeline("sku-17")}) == 1
    assert len(sandbox.accepted) == 1


def test_a_job_in_no_run_needs_a_key(prefect_server, sandbox, image):
    """A job outside of a run needs a key, on the block or for one call."""
    with pytest.raises(InvalidRequest, match="idempotency_key="):
        RunwayJob(request=image).trigger()
    assert sandbox.accepted == []
    assert (
        RunwayJob(request=image).trigger(idempotency_key="sku-17").submission.idempotency_key
        == "sku-17"
    )


def test_an_id_is_attached_in_no_run(prefect_server, sandbox, image):
    """An id is adopted outside of a run without a key, as nothing is bought."""
    bought = submit_generation(image, idempotency_key="sku-17")
    attached = submit_generation(image, task_id=bought.task_id)
    assert attached.task_id == bought.task_id
    assert len(sandbox.accepted) == 1


@pytest.mark.heavy
def test_the_flows_need_no_key_in_a_script(prefect_server, sandbox, image):
    """The flows need no key in a script, as each call is a flow run of its own."""
    assert image_to_video(image).idempotency_key != image_to_video(image).idempotency_key
    assert generate_batch(rows(1)).succeeded == 1
    assert len(sandbox.accepted) == 3
