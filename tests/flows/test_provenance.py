# SPDX-License-Identifier: Apache-2.0
"""The provenance of a file is recorded wherever the file is, and can be required."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from prefect_cometapi.flows import collect, finish_generation, generate_batch, image_to_video
from prefect_cometapi.runway import BatchFailed, Outcome, ProvenanceMissing, State
from prefect_cometapi.runway.models.disclosure import DIGITAL_SOURCE_TYPE
from prefect_cometapi.sandbox import Sandbox
from prefect_cometapi.sandbox.clips.content_credentials import SIGNER

from ..conftest import point_to

pytestmark = pytest.mark.server


@pytest.fixture
def signing_sandbox(own_settings, monkeypatch, tmp_path) -> Iterator[Sandbox]:
    """Start a sandbox whose outputs have a signed manifest."""
    with Sandbox(c2pa=True) as sandbox:
        point_to(sandbox, monkeypatch, tmp_path)
        yield sandbox


def test_a_signed_video_is_recorded_as_such_everywhere(
    prefect_server, signing_sandbox, history, image, monkeypatch
):
    """Result, sidecar, events and artifact name the signer; the file is the signed one."""
    monkeypatch.setenv("COMETAPI_REQUIRE_PROVENANCE", "true")
    state = image_to_video(image, return_state=True)
    (video,) = state.result().videos
    assert video.provenance
    assert (video.provenance.found, video.provenance.signer) == (True, SIGNER)
    task_id = signing_sandbox.accepted[0].task_id
    assert Path(video.uri).read_bytes() == signing_sandbox._app.jobs.finished_clip(task_id)
    sidecar = json.loads(Path(video.sidecar).read_bytes())
    assert sidecar["video"]["provenance"]["signer"] == SIGNER
    about = sidecar["disclosure"]
    assert about["digitalSourceType"] == DIGITAL_SOURCE_TYPE
    assert about["creator"]["name"] == "gen3a_turbo"
    assert about["isBasedOn"] == [image["promptImage"]]
    assert about["sha256"] == video.sha256
    run = state.state_details.flow_run_id
    events = {
        event["event"]: event["payload"]
        for event in history.events(run, until="prefect.asset.materialization.succeeded")
    }
    for payload in (
        events["cometapi.generation.stored"],
        events["prefect.asset.materialization.succeeded"],
    ):
        assert (payload["c2pa"], payload["c2pa_signer"]) == (True, SIGNER)
        assert payload["c2pa_digital_source_type"] == DIGITAL_SOURCE_TYPE
        assert payload["digitalSourceType"] == DIGITAL_SOURCE_TYPE
        assert payload["provider"] == ["Runway", "CometAPI"]
    table = json.loads(history.artifacts(run)["Facts"]["data"])
    facts = {row["what"]: row["value"] for row in table}
    assert facts["C2PA manifest"].startswith("signed by Sandbox of prefect")


def test_a_video_without_provenance_is_withheld_and_not_lost(
    prefect_server, sandbox, ledger_probe, image, monkeypatch
):
    """The paid file stays staged, the ledger has the reason, and one setting publishes it."""
    monkeypatch.setenv("COMETAPI_REQUIRE_PROVENANCE", "true")
    with pytest.raises(ProvenanceMissing) as withheld:
        image_to_video(image, idempotency_key="sku-17")
    message = str(withheld.value)
    task_id = sandbox.accepted[0].task_id
    assert "the generation is paid for" in message
    assert f"COMETAPI_REQUIRE_PROVENANCE=false prefect-cometapi finish {task_id}" in message
    staged = Path(message.split("It is kept at ")[1].split(" on the machine", maxsplit=1)[0])
    content = staged.read_bytes()
    assert not [*Path("videos").glob("*.mp4"), *Path("videos").glob("*.json")]
    entry = ledger_probe["sku-17"]
    assert (entry.state, entry.note) == (State.SUCCEEDED, withheld.value.message)
    assert entry.owner is None

    seen = collect()
    assert (seen.stored, seen.unfinished) == (0, 1)
    assert "no C2PA manifest" in seen.generations[0].note

    downloads = len([one for one in sandbox.requests if one.route == "asset"])
    monkeypatch.setenv("COMETAPI_REQUIRE_PROVENANCE", "false")
    (video,) = finish_generation(task_id).videos
    assert Path(video.uri).read_bytes() == content
    assert video.provenance
    assert not video.provenance.found
    assert not staged.exists()
    assert (ledger_probe["sku-17"].state, ledger_probe["sku-17"].note) == (State.STORED, "")
    assert len([one for one in sandbox.requests if one.route == "asset"]) == downloads
    assert len(sandbox.accepted) == 1


def test_a_batch_names_the_items_that_it_withholds(prefect_server, sandbox, image, monkeypatch):
    """The items fail with the reason, and the next run publishes them and buys nothing."""
    monkeypatch.setenv("COMETAPI_REQUIRE_PROVENANCE", "true")
    requests = [{**image, "id": f"sku-{n}", "seed": n} for n in (1, 2)]
    with pytest.raises(BatchFailed, match="2 withheld without provenance") as failed:
        generate_batch(requests, idempotency_key="withheld")
    assert failed.value.result
    assert [item.error for item in failed.value.result.results] == ["ProvenanceMissing"] * 2
    monkeypatch.delenv("COMETAPI_REQUIRE_PROVENANCE")
    later = generate_batch(requests, idempotency_key="withheld")
    assert [item.outcome for item in later.results] == [Outcome.STORED] * 2
    assert [(item.c2pa, item.c2pa_signer) for item in later.results] == [(False, None)] * 2
    assert len(sandbox.accepted) == 2
