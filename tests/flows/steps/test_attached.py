# SPDX-License-Identifier: Apache-2.0
"""Adopted task ids, second variations, and a second submission that the user allowed."""

from pathlib import Path

import pytest
from prefect import flow
from prefect.exceptions import ParameterTypeError

from prefect_cometapi.blocks import CometAPICredentials
from prefect_cometapi.flows import (
    asubmit_generation,
    collect,
    finish_generation,
    image_to_video,
    submit_generation,
)
from prefect_cometapi.flows.runtime.sync import run_sync
from prefect_cometapi.flows.steps.adoption import ATTACHED_GRACE
from prefect_cometapi.runway import (
    Generation,
    GenerationCancelled,
    GenerationFailed,
    GenerationNotFound,
    IdempotencyKeyConflict,
    ImageToVideoRequest,
    RunwayClient,
    State,
    Status,
    SubmissionUncertain,
    UnknownTaskId,
)

pytestmark = pytest.mark.server


def posts(sandbox) -> int:
    return len([request for request in sandbox.requests if request.route == "create"])


@pytest.fixture
def elsewhere(sandbox, image):
    """Return the id of a generation that was bought without this package's ledger."""

    async def buy() -> str:
        async with CometAPICredentials.from_settings().get_client() as client:
            return await client.create(ImageToVideoRequest.model_validate(image))

    return run_sync(buy())


# task_id=


def test_an_id_that_was_bought_elsewhere_is_attached(
    prefect_server, sandbox, image, ledger_probe, elsewhere
):
    """`task_id=` finishes a generation of the console or of a lost run, under a key of choice."""
    result = image_to_video(image, idempotency_key="sku-17", task_id=elsewhere)
    assert result.task_id == elsewhere
    assert Path(result.videos[0].uri).exists()
    assert (ledger_probe["sku-17"].state, ledger_probe["sku-17"].attempts) == (State.STORED, 0)
    assert posts(sandbox) == 1


def test_an_attached_id_is_that_runs_generation(prefect_server, sandbox, image, elsewhere):
    """Without a key, a retried run keeps the id that it was given, even if called without it."""
    request = ImageToVideoRequest.model_validate(image)
    ids: list[str] = []

    @flow(retries=1)
    def pipeline() -> None:
        ids.append(submit_generation(request, task_id=None if ids else elsewhere).task_id)
        if len(ids) == 1:
            raise RuntimeError("after it was attached")

    pipeline()
    assert ids == [elsewhere, elsewhere]
    assert posts(sandbox) == 1


@pytest.mark.heavy
def test_an_id_need_not_be_waited_for(prefect_server, sandbox, image, ledger_probe, elsewhere):
    """`task_id=` with `wait=False` only checks and records the id, for the collector."""
    result = image_to_video(image, idempotency_key="noted", task_id=f" {elsewhere} ", wait=False)
    assert result.task_id == elsewhere
    assert [request.route for request in sandbox.requests] == ["create", "task"]
    assert collect().stored == 1


@pytest.mark.heavy
def test_an_id_settles_an_uncertain_key(prefect_server, sandbox, image, ledger_probe):
    """The id from the console settles an uncertain key, and nothing is submitted again."""
    sandbox.add_fault("create:reset-after")
    with pytest.raises(SubmissionUncertain):
        image_to_video(image, idempotency_key="in-doubt")
    (job,) = sandbox.accepted
    result = image_to_video(image, idempotency_key="in-doubt", task_id=job.task_id)
    assert Path(result.videos[0].uri).exists()
    assert ledger_probe["in-doubt"].state is State.STORED
    assert image_to_video(image, idempotency_key="in-doubt") == result
    assert posts(sandbox) == 1


@pytest.mark.heavy
def test_a_key_has_one_id(prefect_server, sandbox, image, elsewhere):
    """Another id under a used key is refused with both ids named, and nothing is sent."""
    bought = image_to_video(image, idempotency_key="sku-17").task_id
    before = len(sandbox.requests)
    with pytest.raises(IdempotencyKeyConflict, match=f"task id was '{bought}', is '{elsewhere}'"):
        image_to_video(image, idempotency_key="sku-17", task_id=elsewhere)
    assert len(sandbox.requests) == before


@pytest.mark.parametrize("wait", [True, False])
@pytest.mark.heavy
def test_an_id_that_is_unknown_is_reported_and_uses_up_nothing(
    prefect_server, sandbox, image, ledger_probe, wait
):
    """A mistyped id is reported as unknown, nothing is sent, and the key stays free."""
    with pytest.raises(UnknownTaskId, match="does not know the generation") as refused:
        image_to_video(image, idempotency_key="typo", task_id="no-such-id", wait=wait)
    assert "nothing is recorded as bought" in str(refused.value)
    assert (posts(sandbox), ledger_probe.all()) == (0, [])
    assert Path(image_to_video(image, idempotency_key="typo").videos[0].uri).exists()


@pytest.mark.parametrize("key", [None, "sku-17"])
def test_finishing_an_unknown_id_claims_no_purchase(prefect_server, sandbox, ledger_probe, key):
    """A few polls report an unknown id, no row stays, and a new id's grace period is not used."""
    with pytest.raises(UnknownTaskId, match="no-such-id was not recorded"):
        finish_generation("no-such-id", idempotency_key=key)
    assert len(sandbox.requests) == ATTACHED_GRACE
    assert ledger_probe.all() == []


def test_an_id_that_the_service_knows_late_is_finished(
    prefect_server, sandbox, ledger_probe, elsewhere
):
    """An id that the service does not know at first is polled again and finished."""
    sandbox.add_fault("task:not-visible")
    sandbox.add_fault("feed:not-visible")
    assert Path(finish_generation(elsewhere).videos[0].uri).exists()


@pytest.mark.heavy
def test_an_id_is_confirmed_by_the_first_poll_that_knows_it(
    prefect_server, sandbox, image, ledger_probe, elsewhere
):
    """An id that was recorded during an outage is confirmed by the first poll that knows it."""
    sandbox.add_fault("task:503")
    image_to_video(image, idempotency_key="sku-17", task_id=elsewhere, wait=False)
    assert (ledger_probe["sku-17"].task_id, ledger_probe["sku-17"].task_id_checked) == (
        elsewhere,
        False,
    )
    assert collect().stored == 1
    assert (ledger_probe["sku-17"].state, ledger_probe["sku-17"].task_id_checked) == (
        State.STORED,
        True,
    )


def test_an_id_that_was_recorded_unchecked_and_is_unknown_leaves_no_row(
    prefect_server, sandbox, ledger_probe
):
    """An id that was recorded during an outage and is unknown leaves no row."""
    sandbox.add_fault("task:503")
    with pytest.raises(GenerationNotFound):
        finish_generation("d1931c01-6ac5-40cd-b005-9f07b078bbcd")
    assert ledger_probe.all() == []


@pytest.mark.heavy
def test_an_unconfirmed_id_is_replaced_by_the_right_one(
    prefect_server, sandbox, image, ledger_probe, elsewhere
):
    """An unconfirmed id is replaced by one that the service knows."""
    sandbox.add_fault("task:503")
    mistyped = "d1931c01-6ac5-40cd-b005-9f07b078bbcd"
    image_to_video(image, idempotency_key="sku-17", task_id=mistyped, wait=False)
    result = image_to_video(image, idempotency_key="sku-17", task_id=elsewhere)
    assert result.task_id == elsewhere
    assert (ledger_probe["sku-17"].state, ledger_probe["sku-17"].task_id_checked) == (
        State.STORED,
        True,
    )
    assert posts(sandbox) == 1


def test_an_id_of_another_key_is_refused(prefect_server, sandbox, image, ledger_probe):
    """An id of one key is refused under another key."""
    bought = image_to_video(image, idempotency_key="first").task_id
    before = ledger_probe.all()
    for request in (image, image | {"promptText": "another"}):
        with pytest.raises(IdempotencyKeyConflict, match="belongs to the idempotency key 'first'"):
            image_to_video(request, idempotency_key="second", task_id=bought)
    with pytest.raises(IdempotencyKeyConflict, match="belongs to the idempotency key 'first'"):
        image_to_video(image | {"promptText": "another"}, task_id=bought)
    with pytest.raises(IdempotencyKeyConflict, match="belongs to the idempotency key 'first'"):
        finish_generation(bought, idempotency_key="second")
    assert ledger_probe.all() == before
    assert posts(sandbox) == 1


@pytest.mark.heavy
def test_an_id_stays_with_its_key_in_another_run(
    prefect_server, sandbox, image, ledger_probe, elsewhere
):
    """Without a key, a second run with the same id gets the same generation."""
    first = image_to_video(image, task_id=elsewhere)
    second = image_to_video(image, task_id=elsewhere)
    assert (second.idempotency_key, second.videos) == (first.idempotency_key, first.videos)
    assert len(ledger_probe.all()) == 1


@pytest.mark.heavy
def test_an_id_that_was_finished_alone_may_get_its_key(
    prefect_server, sandbox, image, ledger_probe
):
    """An id that was finished alone may get a key later, and both then lead to one video."""
    sandbox.add_fault("create:reset-after")
    with pytest.raises(SubmissionUncertain):
        image_to_video(image, idempotency_key="in-doubt")
    (job,) = sandbox.accepted
    finish_generation(job.task_id)
    assert (
        image_to_video(image, idempotency_key="in-doubt", task_id=job.task_id).idempotency_key
        == "in-doubt"
    )
    assert sum(entry.charges for entry in ledger_probe.all()) == posts(sandbox) == 1


# finish after a failure


@pytest.fixture
def told_once(monkeypatch):
    """Make the next polls return a status that is not the generation's own."""

    def tell(status: Status, times: int = 1) -> list[str]:
        asked: list[str] = []
        get = RunwayClient.get

        async def answer(client: RunwayClient, task_id: str) -> Generation:
            asked.append(task_id)
            if len(asked) > times:
                return await get(client, task_id)
            return Generation(task_id=task_id, status=status, failure_code="INTERNAL")

        monkeypatch.setattr(RunwayClient, "get", answer)
        return asked

    return tell


@pytest.mark.parametrize("status", [Status.FAILED, Status.CANCELLED])
@pytest.mark.heavy
def test_a_failure_that_passed_is_asked_for_again(
    prefect_server, sandbox, image, ledger_probe, told_once, status
):
    """`finish-generation` polls a recorded failure again, and delivers what succeeded."""
    told_once(status)
    with pytest.raises((GenerationFailed, GenerationCancelled)):
        image_to_video(image, idempotency_key="sku-17")
    assert ledger_probe["sku-17"].state == status
    (job,) = sandbox.accepted
    finished = finish_generation(job.task_id)
    assert Path(finished.videos[0].uri).exists()
    stored = ledger_probe["sku-17"]
    assert (stored.state, stored.failure_code, stored.note) == (State.STORED, "", "")
    assert image_to_video(image, idempotency_key="sku-17").videos == finished.videos


def test_a_failure_that_is_repeated_stays_as_it_was_recorded(
    prefect_server, sandbox, image, ledger_probe, told_once
):
    """A repeated failure is polled once more, and its ledger row stays the same."""
    asked = told_once(Status.FAILED, times=2)
    with pytest.raises(GenerationFailed):
        image_to_video(image, idempotency_key="sku-17")
    before = ledger_probe["sku-17"]
    with pytest.raises(GenerationFailed):
        finish_generation(str(before.task_id))
    assert len(asked) == 2
    assert ledger_probe["sku-17"] == before


def test_an_empty_id_is_refused_before_anything_is_sent(prefect_server, sandbox, image):
    """An empty id from the form is refused before any request."""
    with pytest.raises(ParameterTypeError, match="task_id"):
        image_to_video(image, task_id="")
    assert sandbox.requests == []


@pytest.mark.heavy
def test_a_blank_id_is_no_id(prefect_server, sandbox, image, ledger_probe):
    """A blank id is refused and does not use up the key."""
    with pytest.raises((ParameterTypeError, ValueError), match="id"):
        image_to_video(image, idempotency_key="blank", task_id="  ", wait=False)
    assert ledger_probe.all() == []
    assert Path(image_to_video(image, idempotency_key="blank").videos[0].uri).exists()


def test_a_blank_id_buys_nothing(prefect_server, sandbox, image):
    """A blank id never becomes a purchase."""
    image_to_video(image, idempotency_key="blank", task_id="  ", wait=False, return_state=True)
    assert posts(sandbox) == 0


@pytest.mark.heavy
def test_one_id_may_be_reached_by_key_and_by_id(
    prefect_server, sandbox, image, ledger_probe, elsewhere
):
    """`finish-generation` and `task_id=` under the same key lead to the same generation."""
    finished = finish_generation(elsewhere, idempotency_key="sku-17")
    assert (
        image_to_video(image, idempotency_key="sku-17", task_id=elsewhere).videos == finished.videos
    )
    assert [entry.idempotency_key for entry in ledger_probe.all()] == ["sku-17"]
    assert posts(sandbox) == 1


# variation=


@pytest.mark.heavy
def test_a_second_take_is_a_second_video(prefect_server, sandbox, image):
    """In one run, the same request is the same clip, and `variation=2` is another one."""

    @flow
    def pipeline() -> list[str]:
        calls = [image_to_video(image), image_to_video(image, variation=2), image_to_video(image)]
        return [call.videos[0].uri for call in calls]

    first, second, again = pipeline()
    assert first == again != second
    assert Path(first).exists()
    assert Path(second).exists()
    assert len(sandbox.accepted) == posts(sandbox) == 2


async def test_takes_are_kept_when_the_run_is_retried(prefect_server, sandbox, image):
    """A retried flow gets each of its earlier variations in its place."""
    request = ImageToVideoRequest.model_validate(image)
    tries: list[list[str]] = []

    @flow(retries=1)
    async def pipeline() -> None:
        made = [await asubmit_generation(request, variation=variation) for variation in (1, 2, 3)]
        tries.append([one.task_id for one in made])
        if len(tries) == 1:
            raise RuntimeError("after the submissions")

    await pipeline()
    assert tries[0] == tries[1] == [job.task_id for job in sandbox.accepted]
    assert len(set(tries[0])) == posts(sandbox) == 3


def test_a_key_and_a_variation_exclude_each_other(prefect_server, sandbox, image):
    """A key names one video, so a variation beside it is refused before any request."""
    with pytest.raises(ValueError, match="a key of your own or a variation, not both"):
        image_to_video(image, idempotency_key="sku-17", variation=2)
    request = ImageToVideoRequest.model_validate(image)
    with pytest.raises(ValueError, match="a key of your own or a variation, not both"):
        submit_generation(request, idempotency_key="sku-17", variation=2)
    assert sandbox.requests == []


@pytest.mark.parametrize("variation", [0, -1, "two"])
def test_a_variation_below_one_is_refused(prefect_server, sandbox, image, variation):
    """A variation below one is refused."""
    with pytest.raises(ParameterTypeError, match="variation"):
        image_to_video(image, variation=variation)
    assert sandbox.requests == []


# COMETAPI_ON_UNCERTAIN


def test_a_user_may_allow_a_second_submission(
    prefect_server, sandbox, image, history, ledger_probe, monkeypatch
):
    """With `resubmit`, a lost answer is a visible Prefect retry, and the ledger counts both."""
    monkeypatch.setenv("COMETAPI_ON_UNCERTAIN", "resubmit")
    sandbox.add_fault("create:reset-after")
    state = image_to_video(image, idempotency_key="risked", return_state=True)
    assert state.is_completed()
    submit = history.task_runs(state.state_details.flow_run_id)["submit"]
    assert history.states(submit["id"])[-3:] == ["AwaitingRetry", "Retrying", "Completed"]
    assert (ledger_probe["risked"].state, ledger_probe["risked"].attempts) == (State.STORED, 2)
    assert len(sandbox.accepted) == posts(sandbox) == 2


@pytest.mark.heavy
def test_a_submission_of_an_earlier_run_may_be_repeated_too(
    prefect_server, sandbox, image, ledger_probe, monkeypatch
):
    """`resubmit` also allows a second submission of a key that an earlier run left uncertain."""
    sandbox.add_fault("create:reset-after")
    with pytest.raises(SubmissionUncertain):
        image_to_video(image, idempotency_key="risked")
    monkeypatch.setenv("COMETAPI_ON_UNCERTAIN", "resubmit")
    assert Path(image_to_video(image, idempotency_key="risked").videos[0].uri).exists()
    assert ledger_probe["risked"].attempts == posts(sandbox) == 2


@pytest.mark.parametrize("setting", [None, "stop"])
@pytest.mark.heavy
def test_without_leave_nothing_is_sent_twice(
    prefect_server, sandbox, image, ledger_probe, monkeypatch, setting
):
    """By default, and with `stop`, an uncertain submission is never repeated."""
    if setting:
        monkeypatch.setenv("COMETAPI_ON_UNCERTAIN", setting)
    sandbox.add_fault("create:reset-after")
    for _ in range(2):
        with pytest.raises(SubmissionUncertain):
            image_to_video(image, idempotency_key="stopped")
    assert (ledger_probe["stopped"].state, ledger_probe["stopped"].attempts) == (State.UNCERTAIN, 1)
    assert posts(sandbox) == 1


def test_the_command_lines_leave_holds_for_one_submission(
    prefect_server, sandbox, image, ledger_probe
):
    """A submission that was allowed on the command line is sent once more, and no further."""
    sandbox.add_fault("create:reset-after:times=2")
    with pytest.raises(SubmissionUncertain):
        image_to_video(image, idempotency_key="released")
    ledger_probe.decide("released", State.RESUBMIT_ALLOWED)
    for _ in range(2):
        with pytest.raises(SubmissionUncertain):
            image_to_video(image, idempotency_key="released")
    assert ledger_probe["released"].attempts == posts(sandbox) == 2


def test_leave_for_a_second_charge_is_none_for_a_third(prefect_server, sandbox, image, monkeypatch):
    """`resubmit` allows one more charge, and not one for each retry."""
    monkeypatch.setenv("COMETAPI_ON_UNCERTAIN", "resubmit")
    sandbox.add_fault("create:reset-after:times=10")
    with pytest.raises(SubmissionUncertain):
        image_to_video(image, idempotency_key="unlucky")
    assert len(sandbox.accepted) == 2
