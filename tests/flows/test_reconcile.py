# SPDX-License-Identifier: Apache-2.0
"""With ``COMETAPI_ON_UNCERTAIN=reconcile``, runs and the collector ask the account themselves."""

import logging
from datetime import timedelta
from pathlib import Path

import pytest
from prefect.settings import (
    PREFECT_LOCAL_STORAGE_PATH,
    PREFECT_LOGGING_LEVEL,
    get_current_settings,
    temporary_settings,
)

from prefect_cometapi.flows import collect, generate_batch, image_to_video, submit_generation
from prefect_cometapi.flows.steps import submit
from prefect_cometapi.runway import State, Status, SubmissionUncertain
from prefect_cometapi.runway.ledger import resubmission
from prefect_cometapi.sandbox import Sandbox

from ..conftest import KEY, point_to
from .batch.catalogue import creates, manifest, rows

pytestmark = pytest.mark.server

TOKEN = "sandbox-access-token"
CANARY = "at-canary0123456789abcdef"


@pytest.fixture
def token(sandbox, monkeypatch) -> None:
    """Give the runs the access token of the sandbox's account, on the same clock."""
    monkeypatch.setenv("COMETAPI_ACCESS_TOKEN", TOKEN)
    monkeypatch.setenv("COMETAPI_ACCOUNT_DELAY", "0.2")
    monkeypatch.setenv("COMETAPI_CLOCK_SLACK", "0")


@pytest.fixture
def reconciles(token, monkeypatch) -> None:
    """Let runs act on the verdicts."""
    monkeypatch.setenv("COMETAPI_ON_UNCERTAIN", "reconcile")


@pytest.fixture
def nothing_is_late(monkeypatch) -> None:
    """Let no submission arrive after its attempt."""
    monkeypatch.setattr(resubmission, "ARRIVAL_WINDOW", timedelta(0))


def test_a_lost_reply_costs_the_run_nothing(
    prefect_server, sandbox, image, ledger_probe, reconciles
):
    """The run finds its generation in the account, and stores the video; one POST is sent."""
    sandbox.add_fault("create:reset-after")
    result = image_to_video(image, idempotency_key="sku-17")
    assert result.status is Status.SUCCEEDED
    assert creates(sandbox) == 1
    entry = ledger_probe["sku-17"]
    assert (entry.state, entry.charges, entry.attempts) == (State.STORED, 1, 1)
    assert entry.evidence.startswith("probably this")
    assert (result.cost, result.currency, result.cost_source) == (0.256, "USD", "billed")


def test_a_list_that_is_late_is_asked_again(
    prefect_server, sandbox, image, ledger_probe, reconciles
):
    """A task that is not listed yet is found by a retry of the submission."""
    sandbox.add_fault("create:reset-after")
    sandbox.add_fault("tasks:late-rows:times=2,value=60")
    submit_generation(image, idempotency_key="sku-17")
    assert creates(sandbox) == 1
    assert ledger_probe["sku-17"].task_id == sandbox.accepted[0].task_id


def test_a_list_that_never_answers_leaves_it_to_a_person(
    prefect_server, sandbox, image, ledger_probe, reconciles, monkeypatch
):
    """Nothing is sent again, the looks at the account end, and one event is emitted."""
    announced = []

    async def announce(key: str, _error: SubmissionUncertain) -> None:
        announced.append(key)

    monkeypatch.setattr(f"{submit.__name__}.events.announce_uncertain", announce)
    sandbox.add_fault("create:reset-after")
    sandbox.add_fault("tasks:html:times=1000")
    with pytest.raises(SubmissionUncertain):
        submit_generation(image, idempotency_key="sku-17")
    assert creates(sandbox) == 1
    assert ledger_probe["sku-17"].state is State.UNCERTAIN
    looks = [request for request in sandbox.requests if request.route == "tasks"]
    assert submit.LOOKS_WITHIN_DELAY < len(looks) <= 2 * submit.LOOKS_WITHIN_DELAY
    assert announced == ["sku-17"]


@pytest.mark.heavy
def test_a_request_that_was_lost_on_its_way_is_sent_again(
    prefect_server, sandbox, image, ledger_probe, reconciles, nothing_is_late
):
    """After the verdict "not accepted", the same run buys the generation."""
    image_to_video(image, idempotency_key="known")
    sandbox.add_fault("create:504")
    result = image_to_video(image, idempotency_key="sku-17")
    assert result.status is Status.SUCCEEDED
    assert creates(sandbox) == 3
    assert len(sandbox.accepted) == 2
    assert (ledger_probe["sku-17"].charges, ledger_probe["sku-17"].attempts) == (2, 2)


def test_without_the_setting_a_run_asks_nobody(prefect_server, sandbox, image, ledger_probe, token):
    """By default, an uncertain submission stays uncertain, and the account is not asked."""
    sandbox.add_fault("create:reset-after")
    with pytest.raises(SubmissionUncertain):
        image_to_video(image, idempotency_key="sku-17")
    assert ledger_probe["sku-17"].state is State.UNCERTAIN
    assert "tasks" not in {request.route for request in sandbox.requests}


def test_the_collector_shows_the_verdict(prefect_server, sandbox, image, ledger_probe, token):
    """By default, `collect` names the task and the commands, and changes nothing."""
    sandbox.add_fault("create:reset-after")
    with pytest.raises(SubmissionUncertain):
        image_to_video(image, idempotency_key="sku-17")
    result = collect()
    (shown,) = result.generations
    assert (shown.state, result.uncertain) == (State.UNCERTAIN, 1)
    assert "probably this" in shown.note
    assert sandbox.accepted[0].task_id in shown.note
    assert "prefect-cometapi ledger adopt sku-17 TASK_ID" in shown.note
    assert ledger_probe["sku-17"].state is State.UNCERTAIN


@pytest.mark.heavy
def test_the_collector_acts_with_the_setting(
    prefect_server, sandbox, image, ledger_probe, reconciles, nothing_is_late, monkeypatch
):
    """`collect` adopts and stores what was bought, and frees what was not accepted."""
    image_to_video(image, idempotency_key="known")
    monkeypatch.setenv("COMETAPI_ON_UNCERTAIN", "stop")
    for key, fault in (("lost", "create:reset-after"), ("never", "create:504")):
        sandbox.add_fault(fault)
        with pytest.raises(SubmissionUncertain):
            submit_generation({**image, "seed": len(key)}, idempotency_key=key)
        _move(ledger_probe, key, 100 if key == "never" else 0)
    monkeypatch.setenv("COMETAPI_ON_UNCERTAIN", "reconcile")
    result = collect()
    notes = {one.idempotency_key: one for one in result.generations}
    assert notes["lost"].state is State.STORED
    assert notes["never"].state is State.RESUBMIT_ALLOWED
    assert "run it again with the same idempotency key" in notes["never"].note
    assert ledger_probe["lost"].evidence.startswith("probably this")
    assert ledger_probe["never"].evidence.startswith("not accepted")
    assert result.uncertain == 0


def _move(ledger_probe, key: str, seconds: float) -> None:
    """Move a submission into the past."""
    from prefect_cometapi.flows.runtime.sync import run_sync
    from prefect_cometapi.runway.ledger.conditions import has_key

    entry = ledger_probe[key]
    moved = {
        name: getattr(entry, name) - timedelta(seconds=seconds)
        for name in ("claimed_at", "unresolved_since", "changed_at")
    }
    run_sync(ledger_probe.ledger.table.update([has_key(key)], moved))


def test_a_batch_with_lost_replies_is_stored(
    prefect_server, sandbox, ledger_probe, reconciles, tmp_path
):
    """A batch sends one request at a time, and finds each generation whose reply was lost."""
    sandbox.add_fault("create:reset-after:rate=0.4")
    result = generate_batch(manifest(tmp_path, rows(6)), idempotency_key="b")
    assert result.succeeded == 6
    assert creates(sandbox) == len(sandbox.accepted) == 6
    assert {row.cost_source for row in result.results} == {"billed"}


@pytest.mark.heavy
def test_charges_and_refunds_are_recorded_by_the_collector(
    prefect_server, sandbox, image, ledger_probe, token, monkeypatch
):
    """The charge of a stored video, and the refund of a failed one, replace the estimates."""
    monkeypatch.setenv("COMETAPI_PRICES", '{"gen3a_turbo": 0.5}')
    monkeypatch.delenv("COMETAPI_ACCESS_TOKEN")
    made = image_to_video(image, idempotency_key="stored")
    assert (made.cost, made.cost_source) == (0.5, "estimated")
    sandbox.add_fault("create:failed")
    state = image_to_video(image, idempotency_key="failed", return_state=True)
    assert state.is_failed()
    monkeypatch.setenv("COMETAPI_ACCESS_TOKEN", TOKEN)
    collect()
    stored, failed = ledger_probe["stored"], ledger_probe["failed"]
    assert (stored.cost, stored.currency, stored.cost_source) == (0.256, "USD", "billed")
    assert (failed.cost, failed.cost_source) == (0.0, "billed")
    assert failed.note.endswith("; CometAPI refunded it")


def test_no_secret_of_the_account_is_left_anywhere(
    prefect_server, own_settings, image, monkeypatch, tmp_path, caplog, capfd
):
    """Access token and API key are in no row, log, artifact or file, and go to their own routes."""
    caplog.set_level(logging.DEBUG)
    with Sandbox(access_token=CANARY) as sandbox:
        point_to(sandbox, monkeypatch, tmp_path)
        monkeypatch.setenv("COMETAPI_ACCESS_TOKEN", CANARY)
        monkeypatch.setenv("COMETAPI_ON_UNCERTAIN", "reconcile")
        monkeypatch.setenv("COMETAPI_ACCOUNT_DELAY", "0.2")
        monkeypatch.setenv("COMETAPI_CLOCK_SLACK", "0")
        with temporary_settings({PREFECT_LOGGING_LEVEL: "DEBUG"}):
            sandbox.add_fault("create:reset-after")
            image_to_video(image, idempotency_key="found")
            sandbox.add_fault("create:reset-after")
            for fault in ("unauthorized", "html", "redirect", "truncated"):
                sandbox.add_fault(f"tasks:{fault}:times=3")
            image_to_video(image, idempotency_key="lost", return_state=True)
            collect()
        sent = {(one.route, one.headers.get("authorization", "")) for one in sandbox.requests}
    lists = {"tasks", "log"}
    assert {secret for route, secret in sent if route in lists} == {f"Bearer {CANARY}"}
    assert CANARY not in "".join(secret for route, secret in sent if route not in lists)
    printed = capfd.readouterr()
    written = [printed.out, printed.err, caplog.text]
    database = str(get_current_settings().server.database.connection_url)
    results = Path(str(PREFECT_LOCAL_STORAGE_PATH.value()))
    for place in (tmp_path, results, Path(database.partition("///")[2]).parent):
        written += [
            path.read_bytes().decode("latin-1")
            for path in place.rglob("*")
            if path.is_file() and path.suffix not in {".mp4", ".jpg"}
        ]
    everything = "\n".join(written)
    assert len(everything) > 10_000
    assert CANARY not in everything
    assert KEY not in everything
