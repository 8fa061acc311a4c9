# SPDX-License-Identifier: Apache-2.0
"""Commands ``ledger resubmit`` and ``adopt``: neither pays twice nor records a mistyped id."""

from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest

from prefect_cometapi.blocks import CometAPICredentials
from prefect_cometapi.flows.runtime.sync import run_sync
from prefect_cometapi.runway import ImageToVideoRequest, State

from .test_ledger import entry, known, wide

pytestmark = pytest.mark.filterwarnings("ignore:Cyclopts application invoked without tokens")
_ = wide  # a fixture of this module too
REQUEST = ImageToVideoRequest.model_validate({"promptImage": "https://example.com/cat.jpg"})


def ago(**span: float) -> datetime:
    return datetime.now(UTC) - timedelta(**span)


@pytest.fixture
def found(sandbox) -> str:
    """Return the id of a generation that was bought elsewhere."""

    async def buy() -> str:
        async with CometAPICredentials.from_settings().get_client() as client:
            return await client.create(REQUEST)

    return run_sync(buy())


# resubmit


@pytest.mark.parametrize("state", [State.UNCERTAIN, State.WRITTEN_OFF])
@pytest.mark.parametrize("sent", [{"minutes": 1}, {"minutes": 14}, {"days": -2}])
def test_a_submission_that_may_still_arrive_is_not_sent_again(command, capsys, state, sent):
    """Within 15 minutes, it is refused with the time of the attempt and the commands to type."""
    entry("sku 17", state, claimed_at=ago(**sent))
    assert command("ledger", "resubmit", "sku 17") == 1
    told = capsys.readouterr().err
    assert f"it was sent at {datetime.now(UTC):%Y-}" in told
    assert "may still be accepted until" in told
    assert (
        "Money: possibly charged once; with a resubmission before that time, possibly twice."
        in told
    )
    assert "If it is still not there: prefect-cometapi ledger resubmit 'sku 17'\n" in told
    assert "prefect-cometapi ledger resubmit 'sku 17' --now" in told
    assert known("sku 17").state is state


@pytest.mark.parametrize("state", [State.UNCERTAIN, State.WRITTEN_OFF])
def test_the_user_may_insist_and_is_warned(command, capsys, state):
    """`--now` releases the key at once, and warns that both submissions may be charged."""
    entry("sku-17", state, claimed_at=ago(minutes=1))
    assert command("ledger", "resubmit", "sku-17", "--now") == 0
    told = capsys.readouterr()
    assert "both are charged" in told.err
    assert "sku-17 may be submitted once more." in told.out
    assert known("sku-17").state is State.RESUBMIT_ALLOWED


def test_an_old_submission_may_be_sent_again_and_its_time_is_printed(command, capsys):
    """After 15 minutes, a submission is released without `--now`, and its time is printed."""
    sent = ago(hours=3)
    entry("sku-17", claimed_at=sent)
    assert command("ledger", "resubmit", "sku-17") == 0
    told = capsys.readouterr()
    assert f"sku-17 was last submitted at {sent:%Y-%m-%d %H:%M:%S} UTC." in told.out
    assert told.err == ""
    assert known("sku-17").state is State.RESUBMIT_ALLOWED


@pytest.mark.parametrize("state", [State.FAILED, State.CANCELLED])
def test_what_ended_upstream_is_released_at_once(command, state):
    """A key whose generation failed is released at once, as nothing more can arrive."""
    entry("sku-17", state, task_id="id-1", claimed_at=ago(seconds=1))
    assert command("ledger", "resubmit", "sku-17") == 0
    assert known("sku-17").state is State.RESUBMIT_ALLOWED


def test_the_list_says_from_when_on_it_may_be_sent_again(command, capsys):
    """The advice for an uncertain entry has typable commands and the time of the release."""
    entry("sku-17", claimed_at=ago(minutes=1))
    assert command("ledger", "list") == 0
    told = capsys.readouterr().out
    (line,) = [line for line in told.splitlines() if "ledger resubmit sku-17" in line]
    assert "it is still not there at 20" in line
    assert command("ledger", "write-off", "sku-17") == 0
    assert "15 minutes after the submission" in capsys.readouterr().out


# adopt


def test_an_id_that_the_service_knows_is_recorded_and_confirmed(command, capsys, sandbox, found):
    """One free request confirms an id, and another id is refused afterwards."""
    entry("sku-17", base_url=sandbox.url)
    assert command("ledger", "adopt", "sku-17", f" {found} ") == 0
    assert "prefect-cometapi collect" in capsys.readouterr().out
    assert [request.route for request in sandbox.requests] == ["create", "task"]
    adopted = known("sku-17")
    assert (adopted.state, adopted.task_id, adopted.task_id_checked) == ("submitted", found, True)
    assert command("ledger", "adopt", "sku-17", str(uuid4())) == 1
    assert "IdempotencyKeyConflict: " in capsys.readouterr().err
    assert known("sku-17") == adopted


@pytest.mark.parametrize("task_id", ["notanid", "d1931c01-6ac5-40cd-b005-9f07b078bbcd"])
def test_an_id_that_the_service_does_not_know_is_not_recorded(command, capsys, sandbox, task_id):
    """An id that the service does not know is not recorded, and the key stays uncertain."""
    entry("sku-17", base_url=sandbox.url)
    before = known("sku-17")
    assert command("ledger", "adopt", "sku-17", task_id) == 1
    told = capsys.readouterr().err
    assert f"UnknownTaskId: task id {task_id} was not recorded: CometAPI does not know the " in told
    assert "Money: nothing was charged for this call, and nothing is recorded as bought." in told
    assert known("sku-17") == before


def no_key(monkeypatch, sandbox):
    monkeypatch.delenv("COMETAPI_KEY")


def wrong_key(monkeypatch, sandbox):
    monkeypatch.setenv("COMETAPI_KEY", "wrong-key")


def nobody_there(monkeypatch, sandbox):
    sandbox.add_fault("task:503")


def another_service(monkeypatch, sandbox):
    monkeypatch.setenv("COMETAPI_BASE_URL", "https://other.example.com")


AWAY = [no_key, wrong_key, nobody_there, another_service]


@pytest.mark.parametrize("away", AWAY)
def test_without_the_service_an_id_is_recorded_unchecked_and_can_be_replaced(
    command, capsys, sandbox, found, monkeypatch, away
):
    """During an outage, an id is recorded as unchecked, and the right one can replace it later."""
    entry("sku-17", base_url=sandbox.url)
    mistyped = str(uuid4())
    with monkeypatch.context() as without:
        away(without, sandbox)
        assert command("ledger", "adopt", "sku-17", mistyped) == 0
    told = capsys.readouterr().err
    assert f"Note: task id {mistyped} was recorded without a check: " in told
    assert (known("sku-17").task_id, known("sku-17").task_id_checked) == (mistyped, False)
    assert command("ledger", "show", "sku-17") == 0
    assert "not confirmed by CometAPI" in capsys.readouterr().out
    assert command("ledger", "adopt", "sku-17", found) == 0
    assert (known("sku-17").task_id, known("sku-17").task_id_checked) == (found, True)
    assert known("sku-17").state is State.SUBMITTED


@pytest.mark.parametrize("away", AWAY)
def test_without_the_service_only_an_id_of_a_documented_form_is_recorded(
    command, capsys, sandbox, monkeypatch, away
):
    """During an outage, an id that does not have a documented form is refused."""
    entry("sku-17", base_url=sandbox.url)
    away(monkeypatch, sandbox)
    assert command("ledger", "adopt", "sku-17", "notanid") == 1
    assert "does not have the form of a CometAPI id" in capsys.readouterr().err
    assert known("sku-17").state is State.UNCERTAIN


def test_an_unchecked_id_is_confirmed_by_adopting_it_again(command, sandbox, found, monkeypatch):
    """A second adoption of the same id confirms it once the service answers."""
    entry("sku-17", base_url=sandbox.url)
    with monkeypatch.context() as without:
        no_key(without, sandbox)
        assert command("ledger", "adopt", "sku-17", found) == 0
    claim = known("sku-17").claim
    assert command("ledger", "adopt", "sku-17", found) == 0
    assert (known("sku-17").claim, known("sku-17").task_id_checked) == (claim, True)


@pytest.mark.parametrize(
    ("words", "after"), [(["write-off"], "written_off"), (["resubmit"], "resubmit_allowed")]
)
def test_an_unchecked_id_can_be_withdrawn(command, sandbox, monkeypatch, words, after):
    """A key with an unchecked id allows the same decisions as one without an id."""
    entry("sku-17", base_url=sandbox.url, claimed_at=ago(hours=1), attempts=1)
    with monkeypatch.context() as without:
        no_key(without, sandbox)
        assert command("ledger", "adopt", "sku-17", str(uuid4())) == 0
    assert command("ledger", *words, "sku-17") == 0
    assert (known("sku-17").state, known("sku-17").task_id) == (after, None)


def test_an_unchecked_id_does_not_shorten_the_wait(command, sandbox, monkeypatch):
    """An unchecked id does not shorten the wait, as the original submission may still arrive."""
    entry("sku-17", base_url=sandbox.url, claimed_at=ago(minutes=1))
    with monkeypatch.context() as without:
        no_key(without, sandbox)
        assert command("ledger", "adopt", "sku-17", str(uuid4())) == 0
    before = known("sku-17")
    assert command("ledger", "resubmit", "sku-17") == 1
    assert known("sku-17") == before


def test_an_id_of_another_key_is_refused(command, capsys, sandbox, found):
    """An id of one key is refused under another key."""
    entry("first", State.STORED, base_url=sandbox.url, task_id=found)
    entry("second", base_url=sandbox.url)
    assert command("ledger", "adopt", "second", found) == 1
    assert "belongs to the idempotency key 'first'" in capsys.readouterr().err
    assert (known("second").state, known("second").task_id) == (State.UNCERTAIN, None)
