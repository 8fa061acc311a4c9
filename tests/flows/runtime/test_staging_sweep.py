# SPDX-License-Identifier: Apache-2.0
"""Files that killed runs left in staging folders are removed, unless a run may still use them."""

import os
import tempfile
from pathlib import Path

import pytest

from prefect_cometapi.flows import image_to_video
from prefect_cometapi.flows.runtime import staging_sweep
from prefect_cometapi.flows.runtime.block_storage import resolve_storage
from prefect_cometapi.flows.runtime.run_context import RunContext
from prefect_cometapi.flows.runtime.sync import run_sync
from prefect_cometapi.runway import StorageError
from prefect_cometapi.runway.processes import this_process
from prefect_cometapi.runway.storage.base import PROBE
from prefect_cometapi.runway.storage.folder import FolderStorage
from prefect_cometapi.runway.storage.fsspec import FsspecStorage
from prefect_cometapi.runway.storage.staging import StagedFile, staged_path

from ...runway.factories import dead_owner
from ...runway.storage.test_staging import left_by

pytestmark = pytest.mark.server


@pytest.fixture(autouse=True)
def own_temporary_files(tmp_path, monkeypatch):
    """Use temporary files of the test alone, which no sweep has touched."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.setattr(staging_sweep, "_swept", {})


@pytest.mark.parametrize("location", ["./videos", "memory://swept"])
@pytest.mark.heavy
def test_a_run_removes_what_a_killed_one_left(prefect_server, sandbox, image, location):
    """A run removes the leftovers of a killed run in its staging folder and in other storages'."""
    staging = run_sync(resolve_storage(location)).staging()
    elsewhere = FsspecStorage("memory://elsewhere").staging()
    left = [left_by(dead_owner(), folder) for folder in (staging, elsewhere)]
    living = staged_path(staging, "living", ".mp4")
    living.write_bytes(b"")
    os.utime(living, (0, 0))
    image_to_video(image, storage=location)
    assert [path for path in left if path.exists()] == []
    assert list(staging.iterdir()) == [living]


@pytest.mark.heavy
def test_what_is_not_stored_yet_stays_however_old_it_is(
    prefect_server, sandbox, image, monkeypatch, tmp_path
):
    """An unstored video stays staged at any age, as its address may have expired."""
    publish = FolderStorage.publish

    def refuse(storage: FolderStorage, staged: Path, name: str, **_options: bool) -> str:
        if name.startswith(PROBE):  # the storage is checked before the purchase
            return publish(storage, staged, name)
        raise StorageError("the storage is away")

    with monkeypatch.context() as away:
        away.setattr(FolderStorage, "publish", refuse)
        with pytest.raises(StorageError):
            image_to_video(image, idempotency_key="old")
    staging = tmp_path / "videos" / ".incoming"
    me, gone = this_process(), dead_owner().partition("|")[0].split(":")
    mine, dead = f"{me.space}-{me.pid}-{me.started}", f"{gone[2]}-{gone[1]}-{gone[3]}"
    for path in list(staging.iterdir()):
        if path.suffix == ".json":
            path.write_text(path.read_text().replace(mine, dead))
        moved = path.rename(path.with_name(path.name.replace(mine, dead)))
        os.utime(moved, (0, 0))
    before = sorted(staging.iterdir())
    monkeypatch.setattr(staging_sweep, "_swept", {})
    image_to_video(image, idempotency_key="other")
    assert sorted(staging.iterdir()) == before
    sandbox.add_fault("asset:expired:rate=1")
    assert image_to_video(image, idempotency_key="old").videos
    assert list(staging.iterdir()) == []


def test_a_sweep_that_fails_costs_no_video(prefect_server, sandbox, image, monkeypatch):
    """A failing sweep costs no video, whatever the reason."""
    left = left_by(dead_owner(), FolderStorage(Path("videos")).staging())

    def refuse(*_args: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(staging_sweep, "remove", refuse)
    assert image_to_video(image).videos
    assert left.exists()


async def test_no_folder_is_listed_while_no_sweep_is_due(tmp_path, monkeypatch):
    """The sweep costs a fetch nothing until its time has come."""
    listed: list[Path] = []

    def listing(folder: Path, _is_needed: object) -> list[StagedFile]:
        listed.append(folder)
        return []

    monkeypatch.setattr(staging_sweep, "abandoned_files", listing)
    storage = FolderStorage(tmp_path / "videos")
    for _ in range(3):
        await staging_sweep.sweep_staged_files(RunContext(), storage, storage.staging())
    assert listed == [storage.staging()]


@pytest.mark.heavy
def test_a_folder_is_swept_once_in_a_while(prefect_server, sandbox, image):
    """A folder is swept at an interval, and not at each fetch."""
    image_to_video(image, idempotency_key="one")
    left = left_by(dead_owner(), FolderStorage(Path("videos")).staging())
    image_to_video(image, idempotency_key="two")
    assert left.exists()
