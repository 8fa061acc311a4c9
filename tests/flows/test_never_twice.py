# SPDX-License-Identifier: Apache-2.0
"""One submission for one key, whatever happens to the attempt that makes it."""

import asyncio
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from prefect import flow
from prefect.results import ResultStore
from prefect.settings import (
    PREFECT_LOCAL_STORAGE_PATH,
    PREFECT_TASKS_REFRESH_CACHE,
    temporary_settings,
)
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
    ServiceUnavailable,
    StorageError,
    StorageUnavailable,
    SubmissionUncertain,
)
from prefect_cometapi.runway.names import step_key

pytestmark = pytest.mark.server


def creates(sandbox) -> int:
    return len([request for request in sandbox.requests if request.route == "create"])


def test_a_timeout_during_the_submission_is_not_submitted_again(prefect_server, sandbox, image):
    """A flow with a timeout and retries, cut off while the service is silent, buys once."""
    sandbox.add_fault("create:silent-after:value=30")
    impatient = image_to_video.with_options(timeout_seconds=1.5, retries=1)
    with pytest.raises(SubmissionUncertain, match="an earlier attempt sent the request"):
        impatient(image)
    assert len(sandbox.accepted) == creates(sandbox) == 1


def test_a_process_killed_during_the_submission_costs_nobody_twice(
    prefect_server, sandbox, image, wait_until
):
    """SIGKILL after the service took the job, before its answer: the next run stops and says so."""
    sandbox.add_fault("create:silent-after:value=60")
    script = (
        "from prefect_cometapi.flows import image_to_video\n"
        f"image_to_video({image!r}, key='killed')"
    )
    environment = os.environ | {
        "PREFECT_API_URL": prefect_server,
        "PREFECT_LOCAL_STORAGE_PATH": str(PREFECT_LOCAL_STORAGE_PATH.value()),
    }
    process = subprocess.Popen([sys.executable, "-c", script], env=environment)
    try:
        wait_until(lambda: sandbox.accepted or None, seconds=60)
    finally:
        process.kill()
        process.wait()
    with pytest.raises(SubmissionUncertain, match="look in CometAPI's console"):
        image_to_video(image, key="killed")
    assert len(sandbox.accepted) == creates(sandbox) == 1


def test_a_submission_that_cannot_be_recorded_is_not_made(
    prefect_server, sandbox, image, monkeypatch
):
    """With a result storage that takes nothing, nothing is sent and nothing is charged."""

    async def full(*_args: object, **_kwargs: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(ResultStore, "awrite", full)
    with pytest.raises(StorageUnavailable, match="so it was not made") as told:
        image_to_video(image)
    assert "nothing was charged" in str(told.value)
    assert sandbox.requests == []


def test_an_outcome_that_cannot_be_recorded_stops_the_next_attempt(
    prefect_server, sandbox, image, monkeypatch, caplog
):
    """The run goes on with what it bought; only another submission under the key is stopped."""
    write = ResultStore.awrite

    async def full_after_the_claim(store: ResultStore, obj: object, *args: object, **kw: object):
        if isinstance(obj, dict) and obj.get("state") == "accepted":
            raise OSError("No space left on device")
        return await write(store, obj, *args, **kw)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(ResultStore, "awrite", full_after_the_claim)
    result = image_to_video(image, key="unrecorded")
    assert Path(result.videos[0].uri).exists()
    assert "The submission's outcome is not recorded (OSError)" in caplog.text
    with (
        temporary_settings({PREFECT_TASKS_REFRESH_CACHE: True}),
        pytest.raises(SubmissionUncertain),
    ):
        image_to_video(image, key="unrecorded")
    assert len(sandbox.accepted) == 1


@pytest.mark.parametrize("left", [100, 0])
def test_a_damaged_record_is_not_taken_for_none(prefect_server, sandbox, image, left):
    """A record cut off by a crash means: perhaps bought. It is never a reason to buy again."""
    key = f"damaged-{left}"
    image_to_video(image, key=key)
    results = Path(str(PREFECT_LOCAL_STORAGE_PATH.value()))
    for name in (step_key("submit", key), step_key("claim", key)):
        record = results / name
        record.write_bytes(record.read_bytes()[:left])
    with pytest.raises(SubmissionUncertain, match="record of an earlier attempt cannot be read"):
        image_to_video(image, key=key)
    assert len(sandbox.accepted) == 1


def test_a_refreshed_cache_attaches_to_what_was_bought(prefect_server, sandbox, image):
    """`PREFECT_TASKS_REFRESH_CACHE` repeats steps, but not the paid one."""
    with temporary_settings({PREFECT_TASKS_REFRESH_CACHE: True}):
        first = image_to_video(image, key="refreshed")
        second = image_to_video(image, key="refreshed")
    assert first.task_id == second.task_id
    assert len(sandbox.accepted) == 1


def test_a_rolled_back_transaction_does_not_forget_a_submission(prefect_server, sandbox):
    """A user's own transaction around the steps may fail; what was bought stays bought."""
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
    """Ten calls of one run that ask for the same at the same moment share one submission."""
    request = ImageToVideoRequest(prompt_image="https://example.com/elk.jpg")

    @flow
    async def pipeline() -> set[str]:
        calls = (asubmit_generation(request) for _ in range(10))
        return {submission.task_id for submission in await asyncio.gather(*calls)}

    assert len(await pipeline()) == 1
    assert len(sandbox.accepted) == creates(sandbox) == 1


def test_after_a_certain_refusal_the_same_key_may_be_submitted(prefect_server, sandbox, image):
    """Retries that were used up leave the key free: nothing was bought under it."""
    sandbox.add_fault("create:503:times=6")
    with pytest.raises(ServiceUnavailable):
        image_to_video(image, key="free-again")
    assert Path(image_to_video(image, key="free-again").videos[0].uri).exists()
    assert len(sandbox.accepted) == 1


def test_a_proxys_own_503_leaves_the_outcome_open(prefect_server, sandbox, image):
    """Only the service's own words make certain that it did not take the job."""
    sandbox.add_fault("create:error-after:value=503")
    with pytest.raises(SubmissionUncertain):
        image_to_video(image)
    assert len(sandbox.accepted) == creates(sandbox) == 1


def test_a_used_key_with_another_storage_delivers_there(prefect_server, sandbox, image, tmp_path):
    """The same generation may be wanted in two places; it is bought once."""
    places = [tmp_path / "a", tmp_path / "b"]
    uris = [
        image_to_video(image, key="two-places", storage=str(place)).videos[0].uri
        for place in places
    ]
    assert [Path(uri).parent for uri in uris] == places
    assert all(Path(uri).exists() for uri in uris)
    assert len(sandbox.accepted) == 1


def test_finishing_again_delivers_again(prefect_server, sandbox, image):
    """The advice of every delivery error works also when the clip was stored and then lost."""
    task_id = image_to_video(image).task_id
    for _ in range(2):
        uri = finish_generation(task_id).videos[0].uri
        assert Path(uri).exists()
        Path(uri).unlink()
    assert len(sandbox.accepted) == 1


async def test_two_runs_that_fetch_one_generation_do_not_mix_their_files(
    prefect_server, sandbox, image
):
    """Run at once under one key, with slow downloads, each result is the whole file."""
    sandbox.add_fault("asset:slow:value=0.4,times=2")
    results = await asyncio.gather(
        *(aimage_to_video(image, key="overlapping") for _ in range(2)), return_exceptions=True
    )
    stored = [result for result in results if not isinstance(result, BaseException)]
    assert stored, results
    for result in stored:
        video = result.videos[0]
        content = Path(video.uri).read_bytes()
        assert hashlib.sha256(content).hexdigest() == video.sha256
    assert len(sandbox.accepted) == 1


def test_a_staged_file_that_changed_is_fetched_again(prefect_server, sandbox, image, monkeypatch):
    """What is published is what was checked, byte for byte."""
    from prefect_cometapi.flows import tasks

    examined = tasks._examined
    cuts: list[Path] = []

    def cut_once(path: Path, sha256: str):
        video = examined(path, sha256)
        if not cuts:
            cuts.append(path)
            path.write_bytes(path.read_bytes()[:1000])
        return video

    monkeypatch.setattr(tasks, "_examined", cut_once)
    video = image_to_video(image).videos[0]
    assert Path(video.uri).stat().st_size == video.size > 1000


@pytest.mark.parametrize("place", ["nosuch://videos", "s3-bucket/missing"])
def test_a_place_that_does_not_exist_costs_nothing(prefect_server, sandbox, image, place):
    """An unknown file system or block is told before the POST."""
    with pytest.raises(StorageUnavailable, match="nothing was charged"):
        image_to_video(image, storage=place)
    assert sandbox.requests == []


class Refused(Exception):
    """An error of a storage's client, with the attributes that clients give theirs."""

    def __init__(self, text: str = "", **attributes: object) -> None:
        super().__init__(text)
        vars(self).update(attributes)


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError("s3://bucket/x"),
        ValueError("Path /home/me/.prefect/storage/x does not exist."),
        Refused("An error occurred", response={"Error": {"Code": "NoSuchKey"}}),
        Refused("An error occurred", response={"Error": {"Code": "404"}}),
        Refused("No such object", code=404),
        Refused("The specified blob is not there", status_code=404),
    ],
)
def test_a_missing_record_is_seen_in_every_storage(error):
    """Where there is no record, a key is free; each kind of storage says so in its own way."""
    assert says_absent(error)


@pytest.mark.parametrize(
    "error",
    [
        PermissionError(13, "Permission denied", "/storage/cometapi-claim-1404ab"),
        OSError(5, "Input/output error", "/data/not found/x"),
        ValueError("1 validation error: input does not exist in the model, 404"),
        Refused("An error occurred", response={"Error": {"Code": "AccessDenied"}}),
        Refused("Service Unavailable", status_code=503),
        Refused("odd", response=object()),
    ],
)
def test_an_unreadable_record_is_never_taken_for_a_missing_one(error):
    """Whatever a path or a message happens to contain, a failed look is no free key."""
    assert not says_absent(error)


@pytest.mark.parametrize("name", ["_origin", "draw_poster"])
def test_a_file_that_this_machine_does_not_keep_is_told_with_the_generation(
    prefect_server, sandbox, image, monkeypatch, name
):
    """A full disk at any moment of the delivery says what is paid for and how to go on."""
    from prefect_cometapi.flows import tasks

    def full(*_args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tasks, name, full)
    with pytest.raises(StorageError, match="did not keep a file: No space left on device") as told:
        image_to_video(image)
    assert f"prefect-cometapi finish {sandbox.accepted[0].task_id}" in str(told.value)
