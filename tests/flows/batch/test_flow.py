# SPDX-License-Identifier: Apache-2.0
"""A batch pays once for each video, and a failed item does not stop the others."""

import asyncio
import json
from collections import Counter
from itertools import accumulate
from pathlib import Path

import pytest
from prefect import flow

from prefect_cometapi.flows import agenerate_batch, generate_batch
from prefect_cometapi.runway import (
    BatchFailed,
    ImageToVideoRequest,
    InvalidManifest,
    StorageUnavailable,
    VideoToVideoRequest,
)
from prefect_cometapi.runway.batch.models import BatchResult, Outcome
from prefect_cometapi.sandbox import Fault

from ... import waiting
from ...written_results import read_results
from .catalogue import creates, manifest, rows

pytestmark = pytest.mark.server


def test_a_manifest_becomes_videos(prefect_server, sandbox, tmp_path, history_mode):
    """Each row has its video, its line in the output manifest and its card in the gallery."""
    result = generate_batch(manifest(tmp_path, rows(4)), max_in_flight=4)
    assert isinstance(result, BatchResult)
    assert (result.succeeded, result.failed, result.uncertain) == (4, 0, 0)
    assert [item.id for item in result.results] == ["sku-0", "sku-1", "sku-2", "sku-3"]
    assert all(Path(item.uri or "").exists() for item in result.results)
    assert {item.task_id for item in result.results} == {job.task_id for job in sandbox.accepted}
    assert result.output
    assert read_results(result.output) == list(result.results)
    page = Path(result.gallery or "").read_text(encoding="utf-8")
    assert all(f"sku-{n}" in page for n in range(4))


@pytest.mark.heavy
def test_a_second_run_of_a_manifest_buys_only_what_is_missing(prefect_server, sandbox, tmp_path):
    """A second run buys only the rows that were added to the manifest."""
    generate_batch(manifest(tmp_path, rows(2)))
    before = len(sandbox.requests)
    again = generate_batch(manifest(tmp_path, rows(2)))
    assert again.succeeded == 2
    assert len(sandbox.requests) == before
    more = generate_batch(manifest(tmp_path, rows(3)))
    assert more.succeeded == 3
    assert len(sandbox.accepted) == 3


@pytest.mark.heavy
def test_a_video_that_was_deleted_is_delivered_again(prefect_server, sandbox, tmp_path):
    """A deleted video is downloaded again and not bought again."""
    first = generate_batch(manifest(tmp_path, rows(2)))
    Path(first.results[0].uri or "").unlink()
    again = generate_batch(manifest(tmp_path, rows(2)))
    assert again.succeeded == 2
    assert Path(first.results[0].uri or "").exists()
    assert creates(sandbox) == 2


@pytest.mark.heavy
def test_a_list_may_mix_both_kinds(prefect_server, sandbox):
    """A list may mix both kinds, as models or dicts, and its position names an item without id."""
    result = generate_batch(
        [
            ImageToVideoRequest(prompt_image="https://example.com/cat.jpg"),
            {"videoUri": "https://example.com/a.mp4", "promptText": "cinematic"},
            VideoToVideoRequest(video_uri="https://example.com/a.mp4", prompt_text="warm"),
        ]
    )
    assert [item.route for item in result.results] == [
        "image_to_video",
        "video_to_video",
        "video_to_video",
    ]
    assert [item.id for item in result.results] == ["1", "2", "3"]
    assert result.succeeded == len(sandbox.accepted) == 3


@pytest.mark.heavy
def test_equal_requests_of_a_list_are_each_bought(prefect_server, sandbox, image):
    """Two equal requests in a list without ids are two purchases."""
    result = generate_batch([image, image])
    assert result.succeeded == len(sandbox.accepted) == 2


def test_one_failure_does_not_stop_the_others(prefect_server, sandbox, tmp_path, history_mode):
    """A run with a failed item completes, and its state and output report the missing one."""
    sandbox.add_fault(Fault.parse("create:invalid-request:after=1,times=1"))
    state = generate_batch(manifest(tmp_path, rows(4)), max_in_flight=1, return_state=True)
    result = state.result()
    assert (state.type.value, state.name) == ("COMPLETED", "PartlyStored")
    assert state.message == "3 stored, 1 failed" == result.sentence()
    assert [item.outcome for item in result.results].count(Outcome.STORED) == 3
    failed = result.results[1]
    assert (failed.outcome, failed.error) == (Outcome.FAILED, "InvalidRequest")
    assert failed.message


def test_a_batch_of_which_nothing_is_stored_fails(prefect_server, sandbox, tmp_path):
    """A batch that stored nothing fails, and the error has the results."""
    sandbox.add_fault(Fault.parse("create:invalid-request:times=99"))
    with pytest.raises(BatchFailed, match="2 failed") as caught:
        generate_batch(manifest(tmp_path, rows(2)))
    assert caught.value.result
    assert [item.error for item in caught.value.result.results] == ["InvalidRequest"] * 2
    assert Path(caught.value.result.output or "").exists()


@pytest.mark.heavy
def test_an_uncertain_item_is_never_sent_again(prefect_server, sandbox, tmp_path, history_mode):
    """An uncertain item is not sent again, neither by a retry nor by the next run of the batch."""
    sandbox.add_fault(Fault.parse("create:reset-after:after=1,times=1"))
    path = manifest(tmp_path, rows(3))
    for _ in range(2):
        result = generate_batch(path, max_in_flight=1)
        assert (result.succeeded, result.failed, result.uncertain) == (2, 0, 1)
        assert result.results[1].error == "SubmissionUncertain"
    assert creates(sandbox) == len(sandbox.accepted) == 3


@pytest.mark.heavy
@pytest.mark.parametrize(("most", "name", "task_runs"), [(300, "submit", 4), (0, "sku-0", 1)])
def test_a_busy_service_is_a_retry_in_the_history(
    prefect_server, sandbox, tmp_path, history, monkeypatch, most, name, task_runs
):
    """Prefect retries a busy service visibly, also if an item is one task run, and it buys once."""
    monkeypatch.setenv("COMETAPI_MAX_ITEMS_WITH_STEP_TASKS", str(most))
    sandbox.add_fault(Fault.parse("create:429:times=1"))
    state = generate_batch(manifest(tmp_path, rows(1)), return_state=True)
    assert state.result().succeeded == len(sandbox.accepted) == 1
    runs = history.task_runs(state.state_details.flow_run_id)
    assert "AwaitingRetry" in history.states(runs[name]["id"])
    assert len(runs) == task_runs


@pytest.mark.heavy
def test_items_that_share_a_task_run_are_retried_one_by_one(
    prefect_server, sandbox, tmp_path, history, monkeypatch
):
    """Two items of one task run have each their retries and their line, and are bought once."""
    monkeypatch.setenv("COMETAPI_MAX_ITEMS_WITH_STEP_TASKS", "0")
    monkeypatch.setenv("COMETAPI_ITEMS_PER_TASK_RUN", "2")
    sandbox.add_fault(Fault.parse("create:429:times=1"))
    sandbox.add_fault(Fault.parse("create:invalid-request:after=3,times=1"))
    state = generate_batch(manifest(tmp_path, rows(5)), max_in_flight=1, return_state=True)
    result = state.result()
    assert (result.succeeded, result.failed) == (4, 1)
    assert len(sandbox.accepted) == 4
    run = state.state_details.flow_run_id
    runs = history.task_runs(run)
    assert {one["name"] for one in runs.values()} == {"sku-0 … sku-1", "sku-2 … sku-3", "sku-4"}
    for one in runs.values():
        assert set(history.states(one["id"])) <= {"Pending", "Running", "Completed"}
    assert any("the next attempt is in" in line for line in history.logs(run, until="sku-"))

    def four_stored() -> bool:
        return len(history.events(run, "cometapi.generation.stored")) == 4

    waiting.until(four_stored, "an event of each stored item")


@pytest.mark.heavy
def test_the_history_names_the_items(prefect_server, sandbox, tmp_path, history):
    """The name of each step of a small batch says which item it is for."""
    odd = [dict(rows(1)[0], id="a {b} %s")]
    state = generate_batch(manifest(tmp_path, odd), return_state=True)
    names = {run["name"] for run in history.task_runs(state.state_details.flow_run_id).values()}
    assert names == {f"{step} a {{b}} %s" for step in ("submit", "poll", "fetch", "persist")}


def test_bad_rows_are_all_told_before_anything_is_bought(prefect_server, sandbox, tmp_path):
    """With strict, nothing is bought, and the error names every bad row and field."""
    bad = [*rows(2), {"id": "long", "promptImage": "https://example.com/a.jpg", "duration": 7}]
    bad.append({"id": "sku-0", "promptImage": "http://example.com/a.jpg"})
    with pytest.raises(InvalidManifest) as caught:
        generate_batch(manifest(tmp_path, bad), strict=True)
    assert {(row.row, row.field) for row in caught.value.rows} >= {(3, "duration"), (4, "id")}
    assert not sandbox.requests


@pytest.mark.heavy
def test_good_rows_run_beside_bad_ones(prefect_server, sandbox, tmp_path):
    """Without strict, good rows run, and the results explain the bad ones."""
    bad = {"id": "long", "promptImage": "https://example.com/a.jpg", "duration": 7}
    result = generate_batch(manifest(tmp_path, [*rows(1), bad]))
    assert [item.outcome for item in result.results] == [Outcome.STORED, Outcome.INVALID]
    assert "duration" in (result.results[1].message or "")
    assert result.failed == 1


@pytest.mark.parametrize("wrong", ["missing.jsonl", "wanted.txt"])
def test_a_manifest_that_cannot_be_read_is_told(prefect_server, sandbox, tmp_path, wrong):
    """An unreadable manifest is reported without a stack trace of the file system."""
    with pytest.raises(InvalidManifest):
        generate_batch(str(tmp_path / wrong))
    assert not sandbox.requests


@pytest.mark.heavy
def test_another_request_under_the_id_of_a_bought_one_is_a_conflict(
    prefect_server, sandbox, tmp_path
):
    """A changed row is not bought again under a used id, and the message shows the difference."""
    generate_batch(manifest(tmp_path, rows(2)))
    changed = rows(2)
    changed[1]["promptText"] = "another"
    result = generate_batch(manifest(tmp_path, changed))
    assert [item.outcome for item in result.results] == [Outcome.STORED, Outcome.FAILED]
    assert result.results[1].error == "IdempotencyKeyConflict"
    assert "'1', is 'another'" in (result.results[1].message or "")
    assert len(sandbox.accepted) == 2


@pytest.mark.parametrize(
    ("options", "bought"), [({"fail_fast": True}, 1), ({"max_failures": 1}, 2)]
)
@pytest.mark.heavy
def test_too_many_failures_stop_the_buying(prefect_server, sandbox, tmp_path, options, bought):
    """After too many failures, items in flight are finished, and the run fails with the results."""
    sandbox.add_fault(Fault.parse("create:invalid-request:times=99"))
    with pytest.raises(BatchFailed, match="items failed, but at most") as caught:
        generate_batch(manifest(tmp_path, rows(5)), max_in_flight=1, **options)
    assert caught.value.result
    assert caught.value.result.not_bought == 5 - bought
    assert creates(sandbox) == bought


@pytest.mark.heavy
def test_an_account_that_refuses_all_is_not_asked_for_each(prefect_server, sandbox, tmp_path):
    """An empty balance stops a batch instead of being asked about each item."""
    sandbox.add_fault(Fault.parse("create:quota:times=99"))
    with pytest.raises(BatchFailed, match="the account cannot buy more") as caught:
        generate_batch(manifest(tmp_path, rows(6)), max_in_flight=1)
    assert caught.value.result
    assert (caught.value.result.failed, caught.value.result.not_bought) == (1, 5)
    assert creates(sandbox) == 1


@pytest.mark.heavy
def test_the_number_of_upstream_assets_is_limited(prefect_server, sandbox, tmp_path, history_mode):
    """The in-flight limit counts each generation from its submission until its end is seen."""
    generate_batch(manifest(tmp_path, rows(6)), max_in_flight=2)
    moments: list[tuple[float, int]] = []
    for job in sandbox.accepted:
        asked = [each for each in sandbox.requests if each.route == "task"]  # no downloads
        polls = [request.at for request in asked if job.task_id in request.path]
        moments += [(job.accepted_at, 1), (max(polls), -1)]
    upstream = list(accumulate(change for _, change in sorted(moments)))
    assert len(sandbox.accepted) == 6
    assert max(upstream) == 2


def test_videos_that_cannot_be_stored_are_not_bought(prefect_server, sandbox, tmp_path):
    """Nothing is bought if the videos or the results cannot be written to their location."""
    path = manifest(tmp_path, rows(1))
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageUnavailable):
        generate_batch(path, storage=str(tmp_path / "file"))
    with pytest.raises(StorageUnavailable):
        generate_batch(path, output=str(tmp_path / "file" / "results.jsonl"))
    with pytest.raises(StorageUnavailable, match="csv"):
        generate_batch(path, output=str(tmp_path / "results.csv"))
    assert not sandbox.requests


@pytest.mark.heavy
def test_the_output_goes_where_it_is_wanted(prefect_server, sandbox, tmp_path):
    """The results are Parquet if their name says so, and the gallery is beside them."""
    place = tmp_path / "out" / "results.parquet"
    result = generate_batch(manifest(tmp_path, rows(1)), output=str(place))
    assert result.output == str(place)
    assert read_results(str(place)) == list(result.results)
    assert Path(result.gallery or "").parent == place.parent


@pytest.mark.heavy
def test_the_run_shows_where_the_batch_stands(prefect_server, sandbox, tmp_path, history):
    """A batch shows progress, counts, results and posters, and nothing for single items."""
    state = generate_batch(manifest(tmp_path, rows(3)), return_state=True)
    shown = history.artifacts(state.state_details.flow_run_id)
    assert set(shown) == {"Batch", "Counts", "Posters", "Results"}
    assert shown["Batch"]["data"] == 100
    assert "3 of 3 items done" in shown["Batch"]["description"]
    counts = {row["what"]: row["value"] for row in json.loads(shown["Counts"]["data"])}
    assert (counts["stored"], counts["bought by this run"]) == ("3", "15 s of video")
    assert len(json.loads(shown["Results"]["data"])) == 3


def test_at_most_four_events_of_ours_per_item(prefect_server, sandbox, tmp_path, history):
    """Each item emits four events at most: submitted, stored, the asset and its source."""
    state = generate_batch(manifest(tmp_path, rows(3)), return_state=True)
    found = history.events(
        state.state_details.flow_run_id, "prefect.asset.materialization.succeeded"
    )
    assert set(Counter(event["event"] for event in found)) <= {
        "cometapi.generation.submitted",
        "cometapi.generation.stored",
        "prefect.asset.referenced",
        "prefect.asset.materialization.succeeded",
    }
    assert len(found) <= 12


@pytest.mark.heavy
def test_a_large_batch_tells_only_ends_and_what_went_wrong(
    prefect_server, sandbox, tmp_path, history, monkeypatch
):
    """A large batch emits one event per stored item and no log line, and logs each failure."""
    monkeypatch.setenv("COMETAPI_MAX_ITEMS_WITH_STEP_TASKS", "0")
    sandbox.add_fault(Fault.parse("create:invalid-request:after=1,times=1"))
    state = generate_batch(manifest(tmp_path, rows(3)), max_in_flight=1, return_state=True)
    run = state.state_details.flow_run_id
    told = history.logs(run, until="sku-1: InvalidRequest")
    assert not [line for line in told if "Finished in state Completed" in line]
    assert not [line for line in told if line.startswith("Generation")]
    found = history.events(run, "cometapi.generation.stored")
    assert {event["event"] for event in found} == {"cometapi.generation.stored"}


@pytest.mark.heavy
def test_a_batch_is_part_of_a_larger_flow(prefect_server, sandbox, tmp_path):
    """An async flow gets the result of a batch, and its later tasks are shown as usual."""
    path = manifest(tmp_path, rows(2))

    @flow
    async def nightly() -> int:
        result = await agenerate_batch(path)
        return result.succeeded

    assert asyncio.run(nightly()) == 2


@pytest.mark.heavy
def test_a_list_is_bought_once_however_often_its_run_is_retried(prefect_server, sandbox):
    """The keys of a list's items come from the run, so a retry buys nothing twice."""
    seen = []

    @flow(retries=1)
    def nightly() -> int:
        result = generate_batch(rows(2), idempotency_key=None)
        seen.append(result.idempotency_key)
        if len(seen) == 1:
            raise RuntimeError("later, in the same run")
        return result.succeeded

    assert nightly() == 2
    assert len(sandbox.accepted) == 2


@pytest.mark.heavy
def test_a_list_may_be_longer_than_prefect_stores(prefect_server, sandbox, history):
    """A run gets a long list whole, and its record has the beginning and the number left out."""
    many = [dict(row, _note="x" * 20_000) for row in rows(25)]
    state = generate_batch(many, max_seconds=5, max_in_flight=1, return_state=True)
    assert (state.result().succeeded, state.result().not_bought) == (1, 24)
    which = {"id": {"any_": [str(state.state_details.flow_run_id)]}}
    (run,) = history.filter("flow_runs", flow_runs=which)
    *stored, rest = run["parameters"]["requests"]
    assert [row["id"] for row in stored] == [row["id"] for row in many[: len(stored)]]
    assert 5 <= len(stored) <= 20
    assert rest == f"... and {25 - len(stored)} more, which Prefect does not store"
