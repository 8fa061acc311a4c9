# SPDX-License-Identifier: Apache-2.0
"""A resubmission after an unknown outcome or a failure is sent once, if the user allowed it."""

from typing import Any

import pytest
from prefect import flow, task
from prefect.client.orchestration import get_client
from prefect.flow_engine import run_flow
from prefect.settings import (
    PREFECT_RESULTS_PERSIST_BY_DEFAULT,
    PREFECT_TASKS_DEFAULT_PERSIST_RESULT,
    temporary_settings,
)
from prefect.states import Scheduled

from prefect_cometapi.flows import (
    fetch_output,
    generate_batch,
    image_to_video,
    persist_output,
    poll_generation,
    submit_generation,
)
from prefect_cometapi.runway import BatchFailed, State, SubmissionUncertain

from ..batch.catalogue import creates, manifest, rows

pytestmark = pytest.mark.server


@pytest.fixture
def resubmits(monkeypatch) -> None:
    """Allow each run one more submission."""
    monkeypatch.setenv("COMETAPI_ON_UNCERTAIN", "resubmit")


def test_a_flow_run_sends_it_once_more_however_often_it_is_retried(
    prefect_server, sandbox, image, ledger_probe, resubmits
):
    """A flow run resubmits once, however often it, its steps or its operator retry."""
    sandbox.add_fault("create:reset-after:times=50")
    state = image_to_video.with_options(retries=3)(
        image, idempotency_key="sku-17", return_state=True
    )
    assert state.is_failed()
    assert creates(sandbox) == len(sandbox.accepted) == 2
    run = state.state_details.flow_run_id
    assert retried(image_to_video, run, request=image, idempotency_key="sku-17").is_failed()
    assert creates(sandbox) == 2
    entry = ledger_probe["sku-17"]
    assert (entry.state, entry.charges) == (State.UNCERTAIN, 2)
    assert entry.resubmitted_by == (str(run),)


def test_each_flow_run_may_send_it_once_more(
    prefect_server, sandbox, image, ledger_probe, resubmits
):
    """Each flow run may resubmit once."""
    sandbox.add_fault("create:reset-after:times=50")
    for _ in range(2):
        with pytest.raises(SubmissionUncertain):
            image_to_video(image, idempotency_key="sku-17")
    assert creates(sandbox) == 3
    assert len(set(ledger_probe["sku-17"].resubmitted_by)) == 2


def test_a_users_task_with_retries_sends_it_once_more(prefect_server, sandbox, image, resubmits):
    """Attempts of a task within a flow share the flow run's one resubmission."""
    sandbox.add_fault("create:reset-after:times=50")

    @task(retries=2)
    def step() -> None:
        submit_generation(image)

    @flow(retries=1)
    def pipeline() -> None:
        step()

    with pytest.raises(SubmissionUncertain):
        pipeline()
    assert creates(sandbox) == 2


@pytest.mark.heavy
def test_a_batch_sends_each_item_once_more(
    prefect_server, sandbox, tmp_path, history_mode, resubmits
):
    """A batch resubmits each item once, however often the batch is retried."""
    sandbox.add_fault("create:reset-after:times=50")
    with pytest.raises(BatchFailed):
        generate_batch.with_options(retries=2)(manifest(tmp_path, rows(2)))
    assert creates(sandbox) == 4


@pytest.mark.heavy
def test_a_refused_resubmission_leaves_the_run_its_leave(
    prefect_server, sandbox, image, ledger_probe, resubmits
):
    """A refused resubmission was not charged, so the next retry may send one."""
    sandbox.add_fault("create:reset-after:times=1")
    sandbox.add_fault("create:429:times=1,value=0")
    image_to_video(image, idempotency_key="sku-17")
    assert (creates(sandbox), len(sandbox.accepted)) == (3, 2)
    assert ledger_probe["sku-17"].charges == 2


def test_without_a_run_that_lasts_nothing_is_sent_again(
    prefect_server, sandbox, image, ledger_probe, resubmits
):
    """Without a flow or task run, nothing is resubmitted, as nothing counts the submissions."""
    sandbox.add_fault("create:reset-after:times=1")
    for _ in range(2):
        with pytest.raises(SubmissionUncertain):
            ledger_probe.buy("sku-17")
    assert creates(sandbox) == 1


def retried(made: Any, run: Any, **parameters: Any) -> Any:
    """Retry a flow run as ``prefect flow-run retry`` and the button in the UI do."""
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(run, Scheduled(message="Retried"), force=True)
        flow_run = client.read_flow_run(run)
    return run_flow(made, flow_run=flow_run, parameters=parameters, return_type="state")


@pytest.mark.parametrize(
    ("fault", "error"),
    [("create:failed", "GenerationFailed"), ("create:reset-after", "SubmissionUncertain")],
)
def test_a_retry_after_the_users_decision_submits_again(
    prefect_server, sandbox, image, ledger_probe, fault, error
):
    """`ledger resubmit` and a retry of the same run submit again, as the error advises."""
    sandbox.add_fault(f"{fault}:times=1")
    failed = image_to_video(image, return_state=True)
    assert error in str(failed.message)
    (entry,) = ledger_probe.all()
    ledger_probe.decide(entry.idempotency_key, State.RESUBMIT_ALLOWED)
    state = retried(image_to_video, failed.state_details.flow_run_id, request=image)
    assert state.is_completed()
    assert ledger_probe[entry.idempotency_key].state is State.STORED
    assert len(sandbox.accepted) == 2


@pytest.mark.parametrize("setting", ["flow", "results", "tasks"])
@pytest.mark.heavy
def test_a_flow_that_keeps_its_results_submits_again_too(
    prefect_server, sandbox, image, ledger_probe, setting
):
    """No result of a paid step is kept, so a flow that persists results can submit again."""
    sandbox.add_fault("create:failed:times=1")

    @flow(persist_result=True if setting == "flow" else None)
    def pipeline(request: dict[str, Any]) -> str:
        submission = submit_generation(request)
        finished = poll_generation(submission)
        videos = fetch_output(submission, finished)
        return persist_output(submission, finished, videos)[0].uri

    changed: dict[Any, Any] = {
        PREFECT_RESULTS_PERSIST_BY_DEFAULT: setting == "results",
        PREFECT_TASKS_DEFAULT_PERSIST_RESULT: True if setting == "tasks" else None,
    }
    with temporary_settings(changed):
        failed = pipeline(image, return_state=True)
        (entry,) = ledger_probe.all()
        ledger_probe.decide(entry.idempotency_key, State.RESUBMIT_ALLOWED)
        state = retried(pipeline, failed.state_details.flow_run_id, request=image)
    assert state.is_completed()
    assert ledger_probe[entry.idempotency_key].state is State.STORED
    assert len(sandbox.accepted) == 2
