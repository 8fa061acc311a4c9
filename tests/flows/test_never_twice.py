# SPDX-License-Identifier: Apache-2.0
"""One key is submitted once, whatever happens to the attempt."""

import asyncio
import hashlib
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from prefect import flow
from prefect.settings import PREFECT_TASKS_REFRESH_CACHE, temporary_settings
from prefect.transactions import transaction

from prefect_cometapi.flows import (
    aimage_to_video,
    asubmit_generation,
    finish_generation,
    image_to_video,
    submit_generation,
)
from prefect_cometapi.runway import (
    ImageToVideoRequest,
    LedgerUnavailable,
    ServiceUnavailable,
    StorageError,
    StorageUnavailable,
    SubmissionUncertain,
)
from prefect_cometapi.runway.ledger.store import Ledger, get_ledger

pytestmark = pytest.mark.server


def creates(sandbox) -> int:
    return len([request for request in sandbox.requests if request.route == "create"])


def test_a_timeout_during_the_submission_is_not_submitted_again(prefect_server, sandbox, image):
    """A flow that times out during the submission and is retried buys once."""
    sandbox.add_fault("create:silent-after:value=8")
    impatient = image_to_video.with_options(timeout_seconds=4, retries=1)
    with pytest.raises(SubmissionUncertain, match="an earlier attempt is uncertain"):
        impatient(image)
    assert len(sandbox.accepted) == creates(sandbox) == 1


def test_a_process_killed_during_the_submission_costs_nobody_twice(
    prefect_server, sandbox, image, wait_until
):
    """After a SIGKILL between acceptance and reply, the next run stops and says so."""
    sandbox.add_fault("create:silent-after:value=60")
    script = (
        "from prefect_cometapi.flows import image_to_video\n"
        f"image_to_video({image!r}, idempotency_key='killed')"
    )
    environment = os.environ | {"PREFECT_API_URL": prefect_server}
    process = subprocess.Popen([sys.executable, "-c", script], env=environment)
    try:
        wait_until(lambda: sandbox.accepted or None, seconds=60)
    finally:
        process.kill()
        process.wait()
    with pytest.raises(SubmissionUncertain, match="look in CometAPI's console"):
        image_to_video(image, idempotency_key="killed")
    assert len(sandbox.accepted) == creates(sandbox) == 1


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("sqlite:///{folder}/file/ledger.db", "cannot be used"),
        ("sqlite:///ledger.db", "absolute path"),
        ("mysql://localhost/ledger", "SQLite or PostgreSQL"),
        ("generation-ledger/missing", "the block generation-ledger/missing cannot be loaded"),
    ],
)
@pytest.mark.heavy
def test_a_submission_that_cannot_be_recorded_is_not_made(
    prefect_server, sandbox, image, monkeypatch, tmp_path, url, words
):
    """If the ledger cannot be written, nothing is sent and nothing is charged."""
    (tmp_path / "file").write_text("where a folder should be")
    monkeypatch.setenv("COMETAPI_LEDGER_URL", url.format(folder=tmp_path))
    with pytest.raises(LedgerUnavailable, match=words) as told:
        image_to_video(image)
    assert "nothing was charged" in str(told.value)
    assert sandbox.requests == []


@pytest.mark.heavy
def test_an_id_that_cannot_be_recorded_at_once_is_recorded_later(
    prefect_server, sandbox, image, monkeypatch, caplog, ledger_probe
):
    """A run whose id cannot be recorded continues with a warning, and records the clip later."""

    async def full(*_arguments: object):
        raise LedgerUnavailable("No space left on device")

    monkeypatch.setattr(Ledger, "mark_submitted", full)
    ledger_probe.ledger.database.retry_timeout = 0.3
    first = image_to_video(image, idempotency_key="unrecorded")
    assert Path(first.videos[0].uri).exists()
    assert f"this run continues with its purchase, id {first.task_id}" in caplog.text
    assert image_to_video(image, idempotency_key="unrecorded") == first
    assert len(sandbox.accepted) == 1


@pytest.mark.heavy
def test_a_corrupted_ledger_is_not_taken_for_an_empty_one(prefect_server, sandbox, image, tmp_path):
    """An unreadable ledger never causes a second purchase."""
    image_to_video(image, idempotency_key="corrupted")
    url = os.environ["COMETAPI_LEDGER_URL"]
    asyncio.run(get_ledger(url).database.close())
    for file in tmp_path.glob("ledger.db*"):
        file.write_bytes(b"no database" * 1000)
    with pytest.raises(LedgerUnavailable, match="cannot be used"):
        image_to_video(image, idempotency_key="corrupted")
    assert len(sandbox.accepted) == 1


@pytest.mark.heavy
def test_a_refreshed_cache_attaches_to_what_was_bought(prefect_server, sandbox, image):
    """`PREFECT_TASKS_REFRESH_CACHE` repeats steps, but not the paid one."""
    with temporary_settings({PREFECT_TASKS_REFRESH_CACHE: True}):
        first = image_to_video(image, idempotency_key="refreshed")
        second = image_to_video(image, idempotency_key="refreshed")
    assert first.task_id == second.task_id
    assert len(sandbox.accepted) == 1


def test_a_rolled_back_transaction_does_not_forget_a_submission(prefect_server, sandbox):
    """A purchase is kept if the user's own transaction around the steps is rolled back."""
    request = ImageToVideoRequest(prompt_image="https://example.com/elk.jpg")
    ids: list[str] = []

    @flow(retries=1)
    def pipeline() -> None:
        with transaction():
            ids.append(submit_generation(request).task_id)
            if len(ids) == 1:
                raise RuntimeError("later in the transaction")

    pipeline()
    assert ids[0] == ids[1]
    assert len(sandbox.accepted) == 1


async def test_identical_requests_at_once_are_one_generation(prefect_server, sandbox):
    """Ten identical calls of one run at the same time share one submission."""
    request = ImageToVideoRequest(prompt_image="https://example.com/elk.jpg")

    @flow
    async def pipeline() -> set[str]:
        calls = (asubmit_generation(request) for _ in range(10))
        return {submission.task_id for submission in await asyncio.gather(*calls)}

    assert len(await pipeline()) == 1
    assert len(sandbox.accepted) == creates(sandbox) == 1


@pytest.mark.heavy
def test_after_a_certain_refusal_the_same_key_may_be_submitted(prefect_server, sandbox, image):
    """A key whose submissions were all refused with certainty may be submitted again."""
    sandbox.add_fault("create:503:times=6")
    with pytest.raises(ServiceUnavailable):
        image_to_video(image, idempotency_key="free-again")
    assert Path(image_to_video(image, idempotency_key="free-again").videos[0].uri).exists()
    assert len(sandbox.accepted) == 1


def test_a_proxys_own_503_leaves_the_outcome_open(prefect_server, sandbox, image):
    """Only a reply of the service itself, not a proxy's 503, proves that no job was accepted."""
    sandbox.add_fault("create:error-after:value=503")
    with pytest.raises(SubmissionUncertain):
        image_to_video(image)
    assert len(sandbox.accepted) == creates(sandbox) == 1


@pytest.mark.heavy
def test_a_used_key_with_another_storage_delivers_there(prefect_server, sandbox, image, tmp_path):
    """A key with another storage is delivered there, too, and bought once."""
    places = [tmp_path / "a", tmp_path / "b"]
    uris = [
        image_to_video(image, idempotency_key="two-places", storage=str(place)).videos[0].uri
        for place in places
    ]
    assert [Path(uri).parent for uri in uris] == places
    assert all(Path(uri).exists() for uri in uris)
    assert len(sandbox.accepted) == 1


@pytest.mark.heavy
def test_finishing_again_delivers_again(prefect_server, sandbox, image):
    """A stored clip that was lost is delivered again, as the advice of delivery errors says."""
    task_id = image_to_video(image).task_id
    for _ in range(2):
        uri = finish_generation(task_id).videos[0].uri
        assert Path(uri).exists()
        Path(uri).unlink()
    assert len(sandbox.accepted) == 1


@pytest.mark.heavy
async def test_two_runs_that_fetch_one_generation_do_not_mix_their_files(
    prefect_server, sandbox, image
):
    """Two simultaneous runs of one key with slow downloads both return the whole file."""
    sandbox.add_fault("asset:slow:value=0.4,times=2")
    results = await asyncio.gather(
        *(aimage_to_video(image, idempotency_key="overlapping") for _ in range(2)),
        return_exceptions=True,
    )
    stored = [result for result in results if not isinstance(result, BaseException)]
    assert stored, results
    for result in stored:
        video = result.videos[0]
        content = Path(video.uri).read_bytes()
        assert hashlib.sha256(content).hexdigest() == video.sha256
    assert len(sandbox.accepted) == 1


@pytest.mark.heavy
def test_a_staged_file_that_changed_is_fetched_again(prefect_server, sandbox, image, monkeypatch):
    """The published file is the checked one, byte for byte."""
    from prefect_cometapi.flows.steps import fetch

    examined = fetch._examined
    cuts: list[Path] = []

    def cut_once(path: Path, *arguments):
        video = examined(path, *arguments)
        if not cuts:
            cuts.append(path)
            path.write_bytes(path.read_bytes()[:1000])
        return video

    monkeypatch.setattr(fetch, "_examined", cut_once)
    video = image_to_video(image).videos[0]
    assert Path(video.uri).stat().st_size == video.size > 1000


@pytest.mark.parametrize("place", ["nosuch://videos", "s3-bucket/missing"])
def test_a_place_that_does_not_exist_costs_nothing(prefect_server, sandbox, image, place):
    """An unknown file system or block is reported before the POST."""
    with pytest.raises(StorageUnavailable, match="nothing was charged"):
        image_to_video(image, storage=place)
    assert sandbox.requests == []


@pytest.mark.parametrize(("step", "name"), [("persist", "_origin"), ("fetch", "examine_output")])
@pytest.mark.heavy
def test_a_file_that_this_machine_does_not_keep_is_told_with_the_generation(
    prefect_server, sandbox, image, monkeypatch, step, name
):
    """A full disk during the delivery is reported with the paid generation and the next step."""
    module = import_module(f"prefect_cometapi.flows.steps.{step}")

    def full(*_args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, name, full)
    with pytest.raises(
        StorageError, match="could not keep a file: No space left on device"
    ) as told:
        image_to_video(image)
    assert f"prefect-cometapi finish {sandbox.accepted[0].task_id}" in str(told.value)
