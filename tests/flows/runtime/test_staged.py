# SPDX-License-Identifier: Apache-2.0
"""A staged file that is lost or changed is fetched again, for every kind of storage."""

import hashlib
import json
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from prefect import flow
from prefect.blocks.core import Block

from prefect_cometapi.flows import (
    collect,
    fetch_output,
    finish_generation,
    generate_batch,
    image_to_video,
    persist_output,
    poll_generation,
    submit_generation,
)
from prefect_cometapi.flows.runtime.block_storage import (
    BlockStorage,
    block_storage,
    resolve_storage,
)
from prefect_cometapi.flows.runtime.sync import run_sync
from prefect_cometapi.runway import StagedFileMissing, StorageError
from prefect_cometapi.runway.storage.base import Storage
from prefect_cometapi.runway.storage.folder import FolderStorage
from prefect_cometapi.runway.storage.fsspec import FsspecStorage

heavy = partial(pytest.param, marks=pytest.mark.heavy)


class Bucket(Block):
    """Object store that takes files from the disk, and refuses those that a test names."""

    _block_type_slug = "test-refusing-bucket"
    refused: ClassVar[list[str]] = []
    folder: str

    def upload_from_path(self, from_path: str, to_path: str) -> None:
        content = Path(from_path).read_bytes()
        if self.refused and to_path.endswith(self.refused[0]):
            self.refused.pop(0)
            raise ConnectionError("503 SlowDown")
        (Path(self.folder) / to_path).write_bytes(content)

    def read_path(self, path: str) -> bytes:
        return (Path(self.folder) / path).read_bytes()


@pytest.fixture(params=["folder", heavy("memory"), heavy("block")])
def location(request, tmp_path, monkeypatch) -> str:
    """Return a storage of each kind, with a folder of its own for temporary files."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "bucket").mkdir()
    monkeypatch.setattr(Bucket, "refused", [])
    if request.param == "block":
        request.getfixturevalue("prefect_server")
        Bucket(folder=str(tmp_path / "bucket")).save("mine", overwrite=True)
    return {
        "folder": str(tmp_path / "videos"),
        "memory": f"memory:/{tmp_path}",
        "block": "test-refusing-bucket/mine",
    }[request.param]


@pytest.fixture
def refuse(monkeypatch) -> Callable[..., None]:
    """Make the storage refuse the next files with these suffixes."""

    def refuse(*suffixes: str) -> None:
        left = list(suffixes)
        for kind in (FolderStorage, FsspecStorage, BlockStorage):
            original = kind.publish

            def publish(
                storage: Storage,
                staged: Path,
                name: str,
                *,
                original: Any = original,
                **options: Any,
            ) -> str:
                if left and name.endswith(left[0]):
                    left.pop(0)
                    raise StorageError("the storage is away")
                return original(storage, staged, name, **options)

            monkeypatch.setattr(kind, "publish", publish)

    return refuse


def content(location: str, uri: str | None, tmp_path: Path) -> bytes:
    assert uri
    if location.startswith("test-"):
        return (tmp_path / "bucket" / uri.removeprefix(f"{location}/")).read_bytes()
    files, path = fsspec.core.url_to_fs(uri)
    return files.cat_file(path)


def staged(location: str) -> list[Path]:
    """Return the staged files, without folders."""
    folder = run_sync(resolve_storage(location)).staging()
    return sorted(path for path in folder.iterdir() if path.is_file())


def check_whole(location: str, video: Any, tmp_path: Path) -> None:
    """Check that video, poster and sidecar are there, and that the video is the checked one."""
    assert hashlib.sha256(content(location, video.uri, tmp_path)).hexdigest() == video.sha256
    assert content(location, video.poster, tmp_path).startswith(b"\xff\xd8")
    assert json.loads(content(location, video.sidecar, tmp_path))["video"]["uri"] == video.uri


@pytest.mark.server
@pytest.mark.parametrize("location", ["block"], indirect=True)
@pytest.mark.parametrize("suffix", [".mp4", heavy(".jpg"), heavy(".json")])
@pytest.mark.heavy
def test_one_passing_error_of_a_block_strands_no_video(
    prefect_server, sandbox, image, tmp_path, location, suffix
):
    """A run stores all three files even if any one of them is refused once."""
    Bucket.refused = [suffix]
    (video,) = image_to_video(image, storage=location).videos
    check_whole(location, video, tmp_path)
    assert sum(request.route == "asset" for request in sandbox.requests) == 1
    assert staged(location) == []


@pytest.mark.server
@pytest.mark.parametrize(
    ("suffix", "cleared"),
    [heavy(".jpg", True), (".mp4", True), heavy(".json", True), (".mp4", False)],
)
@pytest.mark.heavy
def test_a_storage_that_is_away_for_long_strands_no_video(
    prefect_server, sandbox, image, tmp_path, location, refuse, suffix, cleared
):
    """A collector finishes a delivery that stopped between two files, even without staged files."""
    refuse(*[suffix] * 4)
    with pytest.raises(StorageError):
        image_to_video(image, storage=location, idempotency_key="away")
    if cleared:
        for file in staged(location):
            file.unlink()
    assert collect().stored == 1
    (video,) = image_to_video(image, storage=location, idempotency_key="away").videos
    check_whole(location, video, tmp_path)
    assert len(sandbox.accepted) == 1
    assert staged(location) == []


@pytest.mark.server
@pytest.mark.parametrize("lost", ["the video", heavy("the poster"), heavy("the folder")])
def test_a_retried_flow_of_ones_own_fetches_what_was_lost(
    prefect_server, sandbox, image, tmp_path, location, lost
):
    """A retry of a user's own flow of single steps fetches lost files instead of a stale result."""
    attempts: list[Any] = []

    @flow(retries=1)
    def own() -> Any:
        submission = submit_generation(image, storage=location, idempotency_key="own")
        finished = poll_generation(submission)
        videos = fetch_output(submission, finished, storage=location)
        attempts.append(videos)
        if len(attempts) == 1:
            for file in staged(location):
                if lost == "the folder" or str(file) == (
                    videos[0].path if lost == "the video" else videos[0].poster
                ):
                    file.unlink()
            if lost == "the folder":
                Path(videos[0].path).parent.rmdir()
        return persist_output(submission, finished, videos, storage=location)

    (video,) = own()
    assert len(attempts) == 2
    check_whole(location, video, tmp_path)
    assert staged(location) == []


@pytest.mark.server
@pytest.mark.parametrize("changed", [".mp4", ".jpg"])
@pytest.mark.heavy
def test_a_changed_file_is_not_published(
    prefect_server, sandbox, image, tmp_path, location, refuse, changed
):
    """Video and poster are published as they were checked, or are fetched again."""
    refuse(*[changed] * 4)
    with pytest.raises(StorageError):
        image_to_video(image, storage=location, idempotency_key="changed")
    (file,) = [path for path in staged(location) if path.suffix == changed]
    size = file.stat().st_size
    file.write_bytes(b"\xff\xd8" + b"x" * (size - 2))
    (video,) = image_to_video(image, storage=location, idempotency_key="changed").videos
    check_whole(location, video, tmp_path)
    assert b"xxxxxxxx" * 10 not in content(location, video.poster, tmp_path)


@pytest.mark.server
@pytest.mark.heavy
def test_what_a_broken_run_fetched_is_not_fetched_again(
    prefect_server, sandbox, image, tmp_path, location, refuse
):
    """Another run with the key publishes the intact staged files of a broken run."""
    refuse(*[".jpg"] * 4)
    with pytest.raises(StorageError):
        image_to_video(image, storage=location, idempotency_key="kept")
    (video,) = image_to_video(image, storage=location, idempotency_key="kept").videos
    check_whole(location, video, tmp_path)
    assert sum(request.route == "asset" for request in sandbox.requests) == 1


@pytest.mark.server
@pytest.mark.heavy
def test_what_is_in_the_storage_needs_no_address_that_still_works(
    prefect_server, sandbox, image, tmp_path, location, refuse
):
    """A published video without its poster is completed even after its address has expired."""
    refuse(*[".json"] * 4)
    with pytest.raises(StorageError):
        image_to_video(image, storage=location, idempotency_key="expired")
    for file in staged(location):
        if file.suffix in {".mp4", ".jpg"}:
            file.unlink()
    sandbox.add_fault("asset:expired:rate=1")
    (video,) = image_to_video(image, storage=location, idempotency_key="expired").videos
    check_whole(location, video, tmp_path)


@pytest.mark.server
@pytest.mark.heavy
def test_a_batch_ends_what_a_passing_error_broke_off(
    prefect_server, sandbox, image, tmp_path, location, refuse, history_mode
):
    """A small and a large batch finish a delivery that a transient error stopped."""
    refuse(".jpg", ".json")
    result = generate_batch([dict(image, id="one")], storage=location, idempotency_key="batch")
    assert [str(item.outcome) for item in result.results] == ["stored"]
    assert [path.name for path in staged(location)] == []


@pytest.mark.server
@pytest.mark.heavy
def test_finish_delivers_what_was_lost_there(
    prefect_server, sandbox, image, tmp_path, location, refuse
):
    """The advice of every delivery error also works if the staged files are lost."""
    refuse(*[".jpg"] * 4)
    with pytest.raises(StorageError) as raised:
        image_to_video(image, storage=location, idempotency_key="lost")
    for file in staged(location):
        file.unlink()
    (video,) = finish_generation(str(raised.value.task_id), storage=location).videos
    check_whole(location, video, tmp_path)


def test_a_block_reports_a_lost_file_as_such(tmp_path):
    """A missing staged file is reported as such, and not as an error of the storage."""
    storage = block_storage(Bucket(folder=str(tmp_path)), "test-refusing-bucket/mine")
    with pytest.raises(StagedFileMissing, match=r"gone\.mp4 no longer exists on this machine"):
        storage.publish(tmp_path / "gone.mp4", "a.mp4")
