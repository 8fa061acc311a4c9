# SPDX-License-Identifier: Apache-2.0
"""Submit now, collect later: the collector finishes every purchase that nobody works on."""

import asyncio
import inspect
import json
from pathlib import Path

import pytest
from prefect.client.schemas.objects import State as RunState
from pydantic import SecretStr

from prefect_cometapi.blocks import CometAPICredentials
from prefect_cometapi.flows import CollectResult, acollect, collect, finish_generation
from prefect_cometapi.flows import aimage_to_video as amake
from prefect_cometapi.flows import image_to_video as make
from prefect_cometapi.flows.runtime.sync import run_sync
from prefect_cometapi.runway import (
    GenerationFailed,
    LedgerCorrupted,
    State,
    Status,
    SubmissionUncertain,
)

from ..runway.factories import set_columns

pytestmark = pytest.mark.server

OTHER_KEY = "sk-canary-of-another-account"


def asked(sandbox, route: str) -> int:
    """Count the requests of a route."""
    return len([request for request in sandbox.requests if request.route == route])


def test_a_run_that_does_not_wait_ends_with_the_submission(
    prefect_server, sandbox, image, ledger_probe
):
    """`wait=False` returns the id without a video, sends nothing more, and keeps no lease."""
    result = make(image, idempotency_key="later", wait=False)
    assert (result.status, result.videos) == (Status.PENDING, ())
    assert [job.task_id for job in sandbox.accepted] == [result.task_id]
    assert [request.route for request in sandbox.requests] == ["create"]
    assert (ledger_probe["later"].state, ledger_probe["later"].owner) == (State.SUBMITTED, None)


def test_not_waiting_twice_buys_once(prefect_server, sandbox, image):
    """Two runs of a key with `wait=False` are the same generation, with one POST."""
    first, second = (make(image, idempotency_key="later", wait=False) for _ in range(2))
    assert first == second
    assert asked(sandbox, "create") == 1


def test_what_is_stored_is_given_also_without_waiting(prefect_server, sandbox, image):
    """`wait=False` with the key of a stored clip returns its videos at once."""
    first = make(image, idempotency_key="stored")
    before = len(sandbox.requests)
    assert make(image, idempotency_key="stored", wait=False) == first
    assert len(sandbox.requests) == before


@pytest.mark.heavy
def test_each_is_kept_where_it_was_wanted(prefect_server, sandbox, ledger_probe, tmp_path):
    """A collector stores each generation in the storage that its own run named."""
    places = {"a": tmp_path / "first", "b": tmp_path / "second"}
    for key, place in places.items():
        ledger_probe.buy(key, storage=str(place))
    ledger_probe.buy("c")
    result = collect()
    kept = {item.idempotency_key: Path(*item.uris) for item in result.generations}
    assert {key: path.parent for key, path in kept.items()} == {
        **places,
        "c": tmp_path / "videos",
    }
    assert all(path.exists() for path in kept.values())
    assert (result.stored, result.failed, result.unfinished, result.uncertain) == (3, 0, 0, 0)
    assert [entry.state for entry in ledger_probe.all()] == [State.STORED] * 3
    assert len(sandbox.accepted) == asked(sandbox, "create") == 3


@pytest.mark.heavy
def test_a_collector_may_keep_all_in_one_place(
    prefect_server, sandbox, image, ledger_probe, tmp_path
):
    """A collector's own storage overrides that of each run."""
    for key in "ab":
        ledger_probe.buy(key, storage=str(tmp_path / key))
    result = collect(storage=str(tmp_path / "all"))
    assert {Path(*item.uris).parent for item in result.generations} == {tmp_path / "all"}
    assert not (tmp_path / "a").exists()


def test_the_history_shows_what_a_collector_did(prefect_server, sandbox, history, ledger_probe):
    """Poll, fetch and persist are task runs of a collector, and a table lists its results."""
    bought = ledger_probe.buy("shown")
    state: RunState[CollectResult] = collect(return_state=True)
    run = state.state_details.flow_run_id
    steps = history.task_runs(run)
    assert set(steps) == {"poll", "fetch", "persist"}
    assert {step["state_name"] for step in steps.values()} == {"Completed"}
    artifact = history.artifacts(run)["Collected"]
    (row,) = json.loads(artifact["data"])
    assert (row["state"], row["idempotency key"], row["id"]) == ("stored", "shown", bought.task_id)
    assert Path(row["stored at"].strip("`")).exists()


def test_nothing_to_collect_is_no_trouble(prefect_server, sandbox, history):
    """A collector with an empty ledger succeeds without a request to the service or an artifact."""
    state: RunState[CollectResult] = collect(return_state=True)
    nothing = CollectResult(stored=0, failed=0, unfinished=0, uncertain=0, generations=())
    assert state.result() == nothing
    assert sandbox.requests == []
    assert history.artifacts(state.state_details.flow_run_id) == {}


@pytest.mark.heavy
def test_what_is_stored_is_not_collected_again(prefect_server, sandbox, ledger_probe):
    """A second collector after the first one finds no work and sends no request."""
    ledger_probe.buy("once")
    collect()
    before = len(sandbox.requests)
    assert collect().generations == ()
    assert len(sandbox.requests) == before


@pytest.mark.heavy
def test_a_failure_does_not_stop_the_others(prefect_server, sandbox, image, ledger_probe):
    """A collector reports a failed generation, stores the rest, and does not poll it again."""
    sandbox.add_fault("create:failed:value=SAFETY.INPUT.TEXT")
    ledger_probe.buy("doomed")
    ledger_probe.buy("fine")
    result = collect()
    found = {item.idempotency_key: item for item in result.generations}
    assert (result.stored, result.failed) == (1, 1)
    assert found["fine"].state is State.STORED
    assert found["doomed"].state is State.FAILED
    assert "content moderation" in found["doomed"].note
    before = len(sandbox.requests)
    for wait in (True, False):
        with pytest.raises(GenerationFailed, match=r"SAFETY\.INPUT\.TEXT"):
            make(image, idempotency_key="doomed", wait=wait)
    assert len(sandbox.requests) == before


def test_an_uncertain_submission_is_listed_and_left_alone(prefect_server, sandbox, ledger_probe):
    """A collector shows the commands for an uncertain submission, and does not change it."""
    sandbox.add_fault("create:reset-after")
    with pytest.raises(SubmissionUncertain):
        ledger_probe.buy("a or b")
    entry, before = ledger_probe["a or b"], len(sandbox.requests)
    result = collect()
    (told,) = result.generations
    assert (result.uncertain, result.stored) == (1, 0)
    assert (told.state, told.task_id) == (State.UNCERTAIN, None)
    assert "prefect-cometapi ledger adopt 'a or b' TASK_ID" in told.note
    assert "prefect-cometapi ledger resubmit 'a or b'" in told.note
    assert ledger_probe["a or b"] == entry
    assert len(sandbox.requests) == before


def test_what_is_abandoned_is_left_alone_until_its_key_is_run(
    prefect_server, sandbox, image, ledger_probe
):
    """A collector skips an abandoned generation, and a run with its key finishes it."""
    bought = ledger_probe.buy("dropped")
    ledger_probe.decide("dropped", State.ABANDONED)
    before = len(sandbox.requests)
    assert collect().generations == ()
    assert len(sandbox.requests) == before
    result = make(image, idempotency_key="dropped")
    assert result.task_id == bought.task_id
    assert Path(result.videos[0].uri).exists()
    assert ledger_probe["dropped"].state is State.STORED
    assert len(sandbox.accepted) == 1


@pytest.mark.heavy
def test_another_service_is_not_asked(prefect_server, sandbox, ledger_probe, monkeypatch):
    """An id is sent only to the base URL that issued it, and the collector names that URL."""
    ledger_probe.buy("theirs")
    before = len(sandbox.requests)
    monkeypatch.setenv("COMETAPI_BASE_URL", "http://127.0.0.1:9")
    result = collect()
    (told,) = result.generations
    assert result.unfinished == 1
    assert told.note.startswith(f"it was bought at {sandbox.url}")
    assert len(sandbox.requests) == before
    monkeypatch.setenv("COMETAPI_BASE_URL", sandbox.url)
    assert collect().stored == 1


@pytest.fixture
def account(prefect_server, sandbox):
    """Save a credentials block of another account that the test may delete."""
    block = CometAPICredentials(api_key=SecretStr(OTHER_KEY), base_url=sandbox.url)
    block.save("second-account", overwrite=True)
    return CometAPICredentials.load("second-account")


def keys_used(sandbox, route: str) -> set[str]:
    used = [request.headers for request in sandbox.requests if request.route == route]
    return {headers["authorization"].removeprefix("Bearer ") for headers in used}


@pytest.mark.heavy
def test_each_is_asked_for_with_the_account_that_bought_it(
    prefect_server, sandbox, image, ledger_probe, account
):
    """A collector uses the recorded credentials block of each generation."""
    make(image, idempotency_key="second", credentials=account, wait=False)
    assert ledger_probe["second"].credentials == "cometapi-credentials/second-account"
    assert collect().stored == 1
    assert keys_used(sandbox, "create") == keys_used(sandbox, "task") == {OTHER_KEY}


@pytest.mark.heavy
def test_given_credentials_overrule_the_recorded_ones(
    prefect_server, sandbox, ledger_probe, account
):
    """Explicit credentials of a collector override the recorded blocks."""
    ledger_probe.buy("second", credentials=account)
    assert collect(credentials=CometAPICredentials.from_settings()).stored == 1
    assert OTHER_KEY not in keys_used(sandbox, "task")


@pytest.mark.heavy
def test_a_missing_block_is_told_and_the_others_are_finished(
    prefect_server, sandbox, ledger_probe, account
):
    """A collector names a deleted block, and finishes the other generations."""
    ledger_probe.buy("second", credentials=account)
    ledger_probe.buy("first")
    CometAPICredentials.delete("second-account")
    result = collect()
    found = {item.idempotency_key: item for item in result.generations}
    assert (result.stored, result.unfinished) == (1, 1)
    assert found["second"].state is State.SUBMITTED
    assert "cometapi-credentials/second-account cannot be loaded" in found["second"].note


@pytest.mark.parametrize("trouble", ["another service", "no block"])
@pytest.mark.heavy
def test_a_collector_holds_nothing_when_it_ends(
    prefect_server, sandbox, ledger_probe, account, monkeypatch, trouble
):
    """A collector releases every lease when it ends."""
    ledger_probe.buy("waiting", credentials=account if trouble == "no block" else None)
    CometAPICredentials.delete("second-account")
    monkeypatch.setenv("COMETAPI_BASE_URL", "http://127.0.0.1:9")
    assert collect().unfinished == 1
    assert ledger_probe["waiting"].owner is None


@pytest.mark.heavy
def test_a_delivery_that_fails_is_left_to_the_next_collector(prefect_server, sandbox, ledger_probe):
    """A collector reports an output that it cannot download, and a later one stores it."""
    sandbox.add_fault("asset:gone:times=18")  # These faults strike all attempts of one collector.
    ledger_probe.buy("gone-for-now")
    result = collect()
    (told,) = result.generations
    assert (result.unfinished, told.state) == (1, State.SUCCEEDED)
    assert "no longer valid" in told.note
    assert ledger_probe["gone-for-now"].owner is None
    assert collect().stored == 1
    assert len(sandbox.accepted) == 1


@pytest.mark.heavy
async def test_the_async_twin_collects_too(prefect_server, sandbox, ledger_probe):
    """An async flow awaits `acollect`, with the same result."""
    for key in "ab":
        ledger_probe.buy(key)
    result = await acollect()
    assert {item.idempotency_key for item in result.generations} == {"a", "b"}
    assert result.stored == 2


@pytest.mark.heavy
def test_a_collected_clip_is_the_result_of_a_later_run(
    prefect_server, sandbox, image, ledger_probe
):
    """After a collection, both the key and the task id lead to the stored clip."""
    bought = ledger_probe.buy("sku-17")
    (item,) = collect().generations
    before = len(sandbox.requests)
    assert [video.uri for video in make(image, idempotency_key="sku-17").videos] == list(item.uris)
    assert len(sandbox.requests) == before
    assert finish_generation(bought.task_id).idempotency_key == "sku-17"
    assert len(sandbox.accepted) == 1


@pytest.mark.parametrize("waits", [False, True], ids=["not waiting", "timed out"])
@pytest.mark.heavy
def test_a_run_takes_an_abandoned_generation_up_for_good(
    prefect_server, sandbox, image, ledger_probe, finish_rendering, waits
):
    """After a run with its key, an abandoned generation is collected, however that run ended."""
    ledger_probe.buy("dropped")
    ledger_probe.decide("dropped", State.ABANDONED)
    brief = make.with_options(timeout_seconds=1.5)
    brief(image, idempotency_key="dropped", wait=waits, return_state=True)
    finish_rendering()
    assert collect().stored == 1


@pytest.mark.parametrize("run", [make, amake], ids=["sync", "async"])
def test_a_run_that_times_out_is_collected(
    prefect_server, sandbox, image, ledger_probe, finish_rendering, run
):
    """A flow that times out releases its purchase, and a collector finishes it."""
    brief = run.with_options(timeout_seconds=1.5)
    state = brief(image, idempotency_key="brief", return_state=True)
    state = asyncio.run(state) if inspect.isawaitable(state) else state
    assert state.name == "TimedOut"
    assert ledger_probe["brief"].owner is None
    assert "continues at the service" in ledger_probe["brief"].note
    finish_rendering()
    assert collect().stored == 1
    assert len(sandbox.accepted) == 1


@pytest.mark.heavy
def test_a_missing_storage_is_told_and_the_others_are_finished(
    prefect_server, sandbox, ledger_probe
):
    """A collector names a deleted storage block, and finishes its clip in another storage."""
    ledger_probe.buy("homeless", storage="s3-bucket/deleted")
    ledger_probe.buy("fine")
    result = collect()
    found = {item.idempotency_key: item for item in result.generations}
    assert (result.stored, result.unfinished) == (1, 1)
    assert "the block s3-bucket/deleted cannot be loaded" in found["homeless"].note
    assert ledger_probe["homeless"].owner is None
    assert collect(storage="./elsewhere").stored == 1


@pytest.mark.parametrize("column", ["outputs", "state"])
@pytest.mark.heavy
def test_a_corrupted_row_fails_the_run_once_the_others_are_finished(
    prefect_server, sandbox, ledger_probe, caplog, column
):
    """A corrupted row fails the collector, after the other generations are finished."""
    ledger_probe.buy("corrupted")
    ledger_probe.buy("fine")
    right = [] if column == "outputs" else State.SUBMITTED
    run_sync(set_columns(ledger_probe.ledger, "corrupted", **{column: "nonsense"}))
    with pytest.raises(LedgerCorrupted, match=f"the row of key 'corrupted' is corrupted: {column}"):
        collect()
    assert [record.module for record in caplog.records].count("collector") == 1
    assert ledger_probe["fine"].state is State.STORED
    run_sync(set_columns(ledger_probe.ledger, "corrupted", **{column: right}))
    assert collect().stored == 1
