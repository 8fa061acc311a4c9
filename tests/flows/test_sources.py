# SPDX-License-Identifier: Apache-2.0
"""Pictures are read from where they lie, and never make a video be paid for twice or lost."""

import base64
import json
from pathlib import Path
from typing import Any

import fsspec
import pytest
from prefect.filesystems import LocalFileSystem, RemoteFileSystem

from prefect_cometapi.blocks import CometAPICredentials
from prefect_cometapi.flows import generate_batch, image_to_video, video_to_video
from prefect_cometapi.flows.batch.plan import dry_run
from prefect_cometapi.flows.runtime.sync import run_sync
from prefect_cometapi.flows.steps.retries import LONGEST_DELAY
from prefect_cometapi.flows.steps.submit import SUBMIT
from prefect_cometapi.runway import (
    CometAPISettings,
    GenerationResult,
    IdempotencyKeyConflict,
    ImageToVideoRequest,
    InvalidSource,
    Outcome,
    SourceUnavailable,
    State,
    SubmissionUncertain,
)
from prefect_cometapi.runway.api.client import TOTAL_TIMEOUT
from prefect_cometapi.runway.sources.preparation import SUBMISSION_SECONDS

from ..pictures import animation, noise, picture
from ..runway.sources.stores import signing_store

pytestmark = pytest.mark.server

ADDRESS = "memory://pics/cat.png"


def pictured(source: str) -> Any:
    """Return a request as a dict, which a flow takes too."""
    return {"promptImage": source}


def restyled(result: GenerationResult) -> Any:
    """Return a request whose source is the video of a result."""
    return {"videoUri": result.videos[0].uri, "promptText": "snow"}


def put(address: str, content: bytes) -> str:
    """Write a file of a file system of fsspec."""
    files, path = fsspec.url_to_fs(address)
    files.pipe_file(path, content)
    return address


@pytest.fixture
def cat() -> str:
    return put(ADDRESS, picture("JPEG"))


@pytest.fixture
def store(monkeypatch):
    return signing_store(monkeypatch)


def test_a_stored_picture_is_sent_and_only_its_address_is_kept(
    prefect_server, sandbox, cat, ledger_probe, history
):
    """The service gets the bytes; the ledger, Prefect and the sidecar have address and hash."""
    state = image_to_video(pictured(cat), idempotency_key="sku", return_state=True)
    (video,) = state.result().videos
    data = base64.b64encode(picture("JPEG")).decode()
    assert sandbox.accepted[0].body["promptImage"] == f"data:image/jpeg;base64,{data}"
    (run,) = history.filter(
        "flow_runs", flow_runs={"id": {"any_": [str(state.state_details.flow_run_id)]}}
    )
    assert run["parameters"]["request"]["promptImage"] == cat
    kept = [ledger_probe["sku"].request, json.loads(Path(video.sidecar).read_text())["request"]]
    for request in kept:
        assert request["promptImage"] == cat
        assert request["sources"]["promptImage"].startswith("sha256:")
    assert data not in json.dumps([kept, run])


def test_the_same_content_is_the_same_purchase_and_another_is_not(
    prefect_server, sandbox, cat, ledger_probe
):
    """A changed picture under the same key is a conflict, and the message has both versions."""
    first = image_to_video(pictured(cat), idempotency_key="sku")
    put(cat, picture("JPEG"))
    assert image_to_video(pictured(cat), idempotency_key="sku").task_id == first.task_id
    put(cat, picture("PNG"))
    with pytest.raises(IdempotencyKeyConflict, match=r"sources was .*sha256:.*, is .*sha256:"):
        image_to_video(pictured(cat), idempotency_key="sku")
    assert len(sandbox.accepted) == 1


@pytest.mark.heavy
def test_a_video_is_found_again_when_its_picture_is_gone(
    prefect_server, sandbox, tmp_path, ledger_probe
):
    """A purchase no longer needs its picture; a run that is started again gets its video."""
    (tmp_path / "cat.png").write_bytes(picture())
    request = pictured(str(tmp_path / "cat.png"))
    first = image_to_video(request, idempotency_key="sku")
    (tmp_path / "cat.png").unlink()
    assert image_to_video(request, idempotency_key="sku") == first
    assert len(sandbox.accepted) == 1
    with pytest.raises(SourceUnavailable):
        image_to_video(request, idempotency_key="another")


@pytest.mark.parametrize(
    ("content", "error", "why"),
    [
        (None, SourceUnavailable, "No such file or directory"),
        (b"text", InvalidSource, "its content is not a JPEG, PNG or WebP"),
        (animation("GIF"), InvalidSource, "it is image/gif"),
        (noise(5_200_000), InvalidSource, "is too large"),
    ],
)
def test_a_picture_that_cannot_be_used_costs_nothing(
    prefect_server, sandbox, tmp_path, ledger_probe, content, error, why
):
    """The key is not even claimed, and the message says what to do."""
    if content is not None:
        (tmp_path / "cat.png").write_bytes(content)
    with pytest.raises(error, match=why) as caught:
        image_to_video(pictured("./cat.png"), idempotency_key="sku")
    assert "Money: nothing was charged." in str(caught.value)
    assert "Next: " in str(caught.value)
    assert [request.route for request in sandbox.requests] == []
    assert ledger_probe.all() == []


@pytest.mark.heavy
def test_a_picture_lies_in_a_block(prefect_server, sandbox, tmp_path):
    """A block has its own folder and credentials; a path may not lead out of it."""
    (tmp_path / "pics").mkdir()
    (tmp_path / "pics/cat.png").write_bytes(picture())
    put(ADDRESS, picture())
    LocalFileSystem(basepath=str(tmp_path / "pics")).save("of-pics", overwrite=True)
    RemoteFileSystem(basepath="memory://pics").save("of-pics", overwrite=True)
    for block in ("local-file-system", "remote-file-system"):
        image_to_video(pictured(f"{block}/of-pics/cat.png"))
    bodies = {job.body["promptImage"] for job in sandbox.accepted}
    assert bodies == {f"data:image/png;base64,{base64.b64encode(picture()).decode()}"}
    with pytest.raises(SourceUnavailable, match=r"must not lead out of the block"):
        image_to_video(pictured("local-file-system/of-pics/../secret.png"))
    with pytest.raises(SourceUnavailable, match=r"write \./assets/in/cat\.png"):
        image_to_video(pictured("assets/in/cat.png"))


@pytest.mark.heavy
def test_the_video_of_one_flow_is_the_source_of_the_next(prefect_server, sandbox, image):
    """The location of a stored video can be passed on as it is."""
    first = image_to_video(image, storage="memory://chain")
    video_to_video(restyled(first))
    assert sandbox.accepted[1].body["videoUri"].startswith("data:video/mp4;base64,")


def test_a_large_picture_is_sent_as_a_signed_url_that_is_kept_nowhere(
    prefect_server, sandbox, store, ledger_probe, history
):
    """Each attempt signs again, for longer than it may wait, and the key stays the same."""
    address = put("gs://bucket/cat.png", noise(5_200_000))
    sandbox.add_fault("create:429:times=1")
    state = image_to_video(pictured(address), idempotency_key="sku", return_state=True)
    (video,) = state.result().videos
    assert [one["expiration"] for one in store.signed] == [3600, 3600]
    assert sandbox.accepted[0].body["promptImage"].endswith("?X-Goog-Signature=canary-2")
    assert ledger_probe["sku"].source_versions["promptImage"].startswith("etag:")
    again = image_to_video(pictured(address), idempotency_key="sku")
    assert again.task_id == state.result().task_id
    logs = history.logs(state.state_details.flow_run_id, until="Source promptImage")
    texts = [ledger_probe["sku"].model_dump_json(), Path(video.sidecar).read_text(), *logs]
    assert not [text for text in texts if "canary" in text]


def test_a_signature_is_valid_for_longer_than_a_submission_with_its_retries():
    """All attempts together, and the delays between them, fit into the assumed time."""
    interval = CometAPISettings().poll_interval
    attempts = TOTAL_TIMEOUT * (SUBMIT["retries"] + 1)
    assert attempts + SUBMIT["retries"] * LONGEST_DELAY * interval <= SUBMISSION_SECONDS


def test_an_unreachable_storage_is_tried_again(
    prefect_server, sandbox, store, ledger_probe, monkeypatch
):
    """An outage of the storage is waited for like one of the service."""
    address = put("gs://bucket/cat.png", picture())
    info = store.info
    failures = [OSError("connection reset")]

    def flaky(self, path: str, **options: Any) -> Any:
        if failures:
            raise failures.pop()
        return info(self, path, **options)

    monkeypatch.setattr(store, "info", flaky)
    assert image_to_video(pictured(address), idempotency_key="sku").videos
    assert len(sandbox.accepted) == 1


def test_an_uncertain_submission_is_not_repeated_without_its_picture(
    prefect_server, sandbox, tmp_path, ledger_probe, monkeypatch
):
    """A submission that may be repeated stays uncertain while its source cannot be read."""
    (tmp_path / "cat.png").write_bytes(picture())
    request = pictured(str(tmp_path / "cat.png"))
    sandbox.add_fault("create:reset-after")
    with pytest.raises(SubmissionUncertain):
        image_to_video(request, idempotency_key="sku")
    (tmp_path / "cat.png").unlink()
    monkeypatch.setenv("COMETAPI_ON_UNCERTAIN", "resubmit")
    with pytest.raises(SubmissionUncertain):
        image_to_video(request, idempotency_key="sku")
    assert ledger_probe["sku"].state is State.UNCERTAIN
    assert len(sandbox.accepted) == 1


@pytest.mark.heavy
def test_an_adopted_generation_needs_no_picture(prefect_server, sandbox, cat, ledger_probe):
    """Nothing is sent, so nothing is read; the key belongs to the request all the same."""

    async def buy_elsewhere() -> str:
        async with CometAPICredentials.from_settings().get_client() as client:
            return await client.create(
                ImageToVideoRequest(prompt_image="https://example.com/a.jpg")
            )

    bought = run_sync(buy_elsewhere())
    gone = pictured("memory://pics/gone.png")
    image_to_video(gone, idempotency_key="sku", task_id=bought)
    assert image_to_video(gone, idempotency_key="sku").task_id == bought
    put(gone["promptImage"], picture())
    assert image_to_video(gone, idempotency_key="sku").task_id == bought
    with pytest.raises(IdempotencyKeyConflict):
        image_to_video(pictured(cat), idempotency_key="sku")
    assert len(sandbox.accepted) == 1


@pytest.mark.heavy
def test_an_item_of_a_batch_without_its_picture_fails_alone(prefect_server, sandbox, cat, tmp_path):
    """Each row is read when it is submitted; a repeated batch buys what failed, and no more."""
    rows = [
        {"id": "cat", "promptImage": cat},
        {"id": "dog", "promptImage": f"{tmp_path}/dog.png"},
        {"id": "text", "promptImage": put("memory://pics/text.png", b"text")},
    ]
    estimate = run_sync(dry_run(rows, "pets", None))
    assert [item.outcome for item in estimate.results] == [
        Outcome.WAITING,
        Outcome.INVALID,
        Outcome.INVALID,
    ]
    assert [item.error for item in estimate.results[1:]] == ["SourceUnavailable", "InvalidSource"]
    assert estimate.spending.seconds == 5.0
    assert sandbox.requests == []
    result = generate_batch(rows, idempotency_key="pets")
    assert [item.outcome for item in result.results] == [
        Outcome.STORED,
        Outcome.FAILED,
        Outcome.FAILED,
    ]
    (tmp_path / "dog.png").write_bytes(picture())
    put(cat, picture("PNG"))  # a stored item is not looked at again
    again = generate_batch(rows, idempotency_key="pets")
    assert [item.outcome for item in again.results][:2] == [Outcome.STORED, Outcome.STORED]
    assert len(sandbox.accepted) == 2
    assert run_sync(dry_run(rows[:2], "pets", None)).succeeded == 2
