# SPDX-License-Identifier: Apache-2.0
"""Retried and permanent errors, and the Prefect retries that a user sees."""

import asyncio
import hashlib
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prefect import flow
from prefect.exceptions import ParameterTypeError

from prefect_cometapi.flows import aimage_to_video, finish_generation, image_to_video
from prefect_cometapi.flows.runtime.log import wait_listener
from prefect_cometapi.flows.steps.retries import delay_before_retry
from prefect_cometapi.runway import (
    AuthenticationError,
    CometAPIError,
    GenerationCancelled,
    GenerationFailed,
    GenerationNotFound,
    GenerationTimeout,
    IdempotencyKeyConflict,
    InvalidOutput,
    InvalidRequest,
    QuotaExceeded,
    ServiceUnavailable,
    StorageError,
    StorageUnavailable,
    SubmissionUncertain,
)
from prefect_cometapi.runway.storage.base import PROBE
from prefect_cometapi.runway.storage.folder import FolderStorage

server = pytest.mark.server
RETRIED = ["AwaitingRetry", "Retrying"]


@server
@pytest.mark.parametrize("fault", ["create:429:value=1", "create:503", "create:429:value=date:1"])
def test_a_submission_that_was_not_taken_is_a_visible_retry(
    prefect_server, sandbox, history, image, fault
):
    """A 429 or 503 shows as Prefect's AwaitingRetry and Retrying, and is bought once."""
    sandbox.add_fault(fault)
    state = image_to_video(image, return_state=True)
    submit = history.task_runs(state.state_details.flow_run_id)["submit"]
    assert state.is_completed()
    assert history.states(submit["id"])[-3:] == [*RETRIED, "Completed"]
    assert submit["run_count"] == 2
    assert len(sandbox.accepted) == 1


@server
@pytest.mark.heavy
def test_retry_after_is_honoured(prefect_server, sandbox, history, image):
    """Prefect waits as long as Retry-After asks for, and the UI shows the end of the wait."""
    sandbox.add_fault("create:429:value=2")
    state = image_to_video(image, return_state=True)
    refused, taken = [request.at for request in sandbox.requests if request.route == "create"]
    assert taken - refused >= 2.0
    submit = history.task_runs(state.state_details.flow_run_id)["submit"]
    answer = history._http.get("/task_run_states/", params={"task_run_id": submit["id"]}).json()
    (waiting,) = [item for item in answer if item["name"] == "AwaitingRetry"]
    until = datetime.fromisoformat(waiting["state_details"]["scheduled_time"])
    assert (until - datetime.fromisoformat(waiting["timestamp"])).total_seconds() >= 1.9


@server
def test_a_refused_connection_is_a_visible_retry(
    prefect_server, sandbox, history, image, monkeypatch
):
    """Prefect retries a refused connection, and then fails with a clear error."""
    monkeypatch.setenv("COMETAPI_BASE_URL", "http://127.0.0.1:9")
    waits: list[str] = []
    token = wait_listener.set(waits.append)
    state = image_to_video(image, return_state=True)
    wait_listener.reset(token)
    assert [wait.partition(" in ")[0] for wait in waits] == [f"attempt {n}" for n in range(2, 7)]
    assert "CometAPI at http://127.0.0.1:9 is unavailable" in waits[0]
    submit = history.task_runs(state.state_details.flow_run_id)["submit"]
    assert state.is_failed()
    assert history.states(submit["id"]).count("Retrying") == 5
    assert "nothing was charged" in str(state.message)
    assert sandbox.requests == []


@server
@pytest.mark.parametrize(
    "fault", ["task:503", "task:reset-before", "task:429:value=0", "task:html"]
)
def test_a_poll_without_an_answer_is_a_visible_retry(
    prefect_server, sandbox, history, image, fault
):
    """Prefect retries a failed poll, with one submission and one progress artifact."""
    sandbox.add_fault(fault)
    state = image_to_video(image, return_state=True)
    flow_run_id = state.state_details.flow_run_id
    poll = history.task_runs(flow_run_id)["poll"]
    assert history.states(poll["id"])[-3:] == [*RETRIED, "Completed"]
    assert len(sandbox.accepted) == 1
    assert history.artifacts(flow_run_id)["Rendering"]["data"] == 100


@server
@pytest.mark.parametrize(
    "fault", ["create:reset-after", "create:no-id", "create:error-after:value=504"]
)
@pytest.mark.heavy
def test_a_submission_without_an_answer_is_never_sent_again(
    prefect_server, sandbox, history, image, fault
):
    """After a lost reply to an accepted submission, one job exists, and the run reports it."""
    sandbox.add_fault(fault)
    state = image_to_video(image, return_state=True)
    assert len(sandbox.accepted) == 1
    assert len([request for request in sandbox.requests if request.route == "create"]) == 1
    assert state.is_failed()
    assert "SubmissionUncertain" in str(state.message)
    assert "possibly charged" in str(state.message)
    submit = history.task_runs(state.state_details.flow_run_id)["submit"]
    assert submit["run_count"] == 1


@server
@pytest.mark.heavy
def test_a_retried_flow_does_not_send_an_uncertain_submission_again(prefect_server, sandbox, image):
    """Retries of a flow stop at an uncertain submission, with one POST and one job."""
    sandbox.add_fault("create:reset-after")

    @flow(retries=2)
    def pipeline() -> None:
        image_to_video(image)

    with pytest.raises(SubmissionUncertain, match="an earlier attempt is uncertain"):
        pipeline()
    assert len(sandbox.accepted) == 1
    assert len([request for request in sandbox.requests if request.route == "create"]) == 1


@server
@pytest.mark.heavy
def test_a_retried_flow_run_does_not_repeat_finished_steps(prefect_server, sandbox, image):
    """A retried flow takes the purchase and the wait from the record."""
    sandbox.add_fault("asset:gone:times=18")  # These faults strike all attempts of the first run.
    tries: list[int] = []

    @flow(retries=1)
    async def pipeline() -> str:
        tries.append(len(sandbox.accepted))
        return (await aimage_to_video(image)).videos[0].uri

    assert Path(asyncio.run(pipeline())).exists()
    assert tries == [0, 1]
    assert len(sandbox.accepted) == 1


@server
def test_a_storage_that_cannot_be_used_is_told_before_anything_is_bought(
    prefect_server, sandbox, image, tmp_path
):
    """A folder that cannot be created or a missing block is reported before anything is bought."""
    (tmp_path / "blocked").write_text("a file where the folder should be")
    for place in (str(tmp_path / "blocked"), "s3-bucket/missing"):
        with pytest.raises(StorageUnavailable, match=Path(place).name) as told:
            image_to_video(image, storage=place)
        assert "nothing was charged" in str(told.value)
    assert sandbox.requests == []


@server
def test_an_attached_id_that_is_unknown_is_told_soon(prefect_server, sandbox, monkeypatch):
    """A wait for an unknown adopted id ends sooner than one for a new generation."""
    monkeypatch.setenv("COMETAPI_NOT_FOUND_GRACE", "3600")
    with pytest.raises(GenerationNotFound, match="does not know the generation"):
        finish_generation("no-such-id")


@server
@pytest.mark.heavy
def test_a_finished_subflow_is_not_run_again(prefect_server, sandbox, image):
    """A retried parent that failed after a finished subflow sends no request to the service."""
    tries: list[int] = []

    @flow(retries=1)
    def pipeline() -> str:
        uri = image_to_video(image).videos[0].uri
        tries.append(len(sandbox.requests))
        if len(tries) == 1:
            raise RuntimeError("after the video")
        return uri

    assert Path(pipeline()).exists()
    assert tries[0] == tries[1]


@server
@pytest.mark.heavy
def test_each_scheduled_run_makes_its_own_video(prefect_server, sandbox, image):
    """The same request in two runs is two generations."""
    first, second = image_to_video(image), image_to_video(image)
    assert first.idempotency_key != second.idempotency_key
    assert len(sandbox.accepted) == 2


@server
@pytest.mark.heavy
def test_a_key_of_your_own_holds_across_runs(prefect_server, sandbox, image):
    """A key of a stored result returns it in later runs without a request."""
    first = image_to_video(image, idempotency_key="holds/across")
    before = len(sandbox.requests)
    second = image_to_video(image, idempotency_key="holds/across")
    assert second == first
    assert len(sandbox.requests) == before


@server
@pytest.mark.heavy
def test_a_key_belongs_to_one_request(prefect_server, sandbox, image):
    """Another request under a used key is refused with the field that differs."""
    image_to_video(image, idempotency_key="belongs")
    with pytest.raises(IdempotencyKeyConflict, match="promptText was 'slow zoom', is 'fast zoom'"):
        image_to_video(image | {"promptText": "fast zoom"}, idempotency_key="belongs")
    assert len(sandbox.accepted) == 1


@server
@pytest.mark.parametrize("key", ["", "  ", "a\nb", "x" * 513])
def test_a_key_that_is_none_is_refused_before_anything_is_sent(prefect_server, sandbox, image, key):
    """An empty, overlong or unprintable key is refused before any request."""
    with pytest.raises(ParameterTypeError, match="key"):
        image_to_video(image, idempotency_key=key)
    assert sandbox.requests == []


@server
@pytest.mark.heavy
def test_a_key_belongs_to_one_task_id(prefect_server, sandbox, image):
    """Another task id under a used key is refused with the key's own id."""
    ids = [image_to_video(image, idempotency_key="first").task_id, image_to_video(image).task_id]
    assert finish_generation(ids[0], idempotency_key="first").task_id == ids[0]
    with pytest.raises(
        IdempotencyKeyConflict,
        match=f"{ids[1]} was not recorded: it already belongs to the idempotency key 'run-",
    ):
        finish_generation(ids[1], idempotency_key="first")


@server
@pytest.mark.heavy
def test_a_video_that_vanished_before_it_was_stored_is_fetched_again(
    prefect_server, sandbox, image, tmp_path, monkeypatch
):
    """A retry on another machine downloads a lost staged file again."""
    publish = FolderStorage.publish

    def full(storage: FolderStorage, staged: Path, name: str, **_options: bool) -> str:
        if name.startswith(PROBE):  # the disk is checked before the purchase, and full later
            return publish(storage, staged, name)
        raise StorageError("No space left on device")

    monkeypatch.setattr(FolderStorage, "publish", full)
    with pytest.raises(StorageError):
        image_to_video(image, idempotency_key="vanished")
    for file in (tmp_path / "videos" / ".incoming").iterdir():
        file.unlink()
    monkeypatch.setattr(FolderStorage, "publish", publish)
    video = image_to_video(image, idempotency_key="vanished").videos[0]
    assert hashlib.sha256(Path(video.uri).read_bytes()).hexdigest() == video.sha256
    assert len(sandbox.accepted) == 1


@server
@pytest.mark.parametrize(
    ("faults", "error", "words"),
    [
        (["create:unauthorized"], AuthenticationError, "nothing was charged"),
        (["create:quota"], QuotaExceeded, "top up"),
        (["create:invalid-request"], InvalidRequest, "nothing was charged"),
        (["create:model-not-found"], InvalidRequest, "model"),
        (["create:html"], SubmissionUncertain, "COMETAPI_BASE_URL"),
        (["create:redirect"], SubmissionUncertain, "a redirect to"),
        (["create:503:times=6"], ServiceUnavailable, "nothing was charged"),
        (["create:failed:value=SAFETY.INPUT.TEXT"], GenerationFailed, "SAFETY.INPUT.TEXT"),
        (["create:cancelled"], GenerationCancelled, "cancelled"),
        (["task:not-visible:rate=1", "feed:not-visible:rate=1"], GenerationNotFound, "finish"),
        (["task:unknown-status:rate=1"], GenerationTimeout, "charged if it succeeds or has"),
        (["asset:truncated-silent:rate=1"], InvalidOutput, "truncated"),
        (["asset:html-asset:rate=1"], InvalidOutput, "not an MP4 or WebM file"),
        (["asset:empty:rate=1"], InvalidOutput, "empty"),
    ],
)
@pytest.mark.heavy
def test_each_failure_says_what_happened_and_what_to_do(
    prefect_server, sandbox, image, monkeypatch, tmp_path, faults, error, words
):
    """Each failure is a typed error with key, charge and next step, and stores nothing."""
    monkeypatch.setenv("COMETAPI_GENERATION_TIMEOUT", "1")
    monkeypatch.setenv("COMETAPI_NOT_FOUND_GRACE", "0.3")
    for fault in faults:
        sandbox.add_fault(fault)
    with pytest.raises(error) as caught:
        image_to_video(image)
    message = str(caught.value)
    assert words in message
    assert "Money: " in message
    assert "Next: " in message
    assert caught.value.idempotency_key in message
    assert len(sandbox.accepted) <= 1
    assert not [path for path in (tmp_path / "videos").rglob("*") if path.is_file()]


@server
@pytest.mark.parametrize("fault", ["asset:truncated", "asset:expired", "asset:gone", "asset:503"])
@pytest.mark.heavy
def test_a_troubled_download_arrives_whole(prefect_server, sandbox, image, fault):
    """A download recovers from a cut connection or an expired address without a purchase."""
    sandbox.add_fault(fault)
    result = image_to_video(image)
    assert Path(result.videos[0].uri).stat().st_size == result.videos[0].size
    assert len(sandbox.accepted) == 1


def test_without_a_key_nothing_is_tried(own_settings, prefect_server, image):
    """A missing API key is reported at once, with the place to get one."""
    with pytest.raises(AuthenticationError, match=r"https://www\.cometapi\.com/console/token"):
        image_to_video(image)


@given(
    failures=st.integers(1, 10_000),
    retry_after=st.none() | st.floats(0, 600),
    unit=st.floats(0.001, 10),
)
def test_delays_grow_to_a_cap_and_never_undercut_the_service(failures, retry_after, unit):
    """Each delay is at least Retry-After, and bounded otherwise."""
    delay = delay_before_retry(failures, retry_after, unit, cap=30)
    assert delay >= (retry_after or 0)
    assert delay <= max(30, retry_after or 0)
    assert delay_before_retry(failures + 1, None, unit, 30) >= delay_before_retry(
        failures, None, unit, 30
    )


def test_all_errors_of_the_tree_survive_another_process():
    """Every error of the package keeps its key, id and advice when Prefect pickles it."""
    import pickle

    for kind in [SubmissionUncertain, GenerationTimeout, ServiceUnavailable]:
        error: CometAPIError = kind("what happened", code="slug", http_status=500, retry_after=2)
        again = pickle.loads(pickle.dumps(error.with_context(idempotency_key="k", task_id="t")))
        assert str(again) == str(error)
        assert again.retry_after == 2
