# SPDX-License-Identifier: Apache-2.0
"""Each file of a clip is on the disk before it is named, and its name before the step ends."""

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from prefect_cometapi.flows.steps import fetch, persist
from prefect_cometapi.flows.steps.common import stem_of
from prefect_cometapi.runway.media.download_file import DownloadWriter
from prefect_cometapi.runway.models.generation import Submission
from prefect_cometapi.runway.storage.folder import FolderStorage
from prefect_cometapi.runway.storage.staging import staged_path
from prefect_cometapi.sandbox.clips.render import Recipe, render


@pytest.fixture
def calls(monkeypatch) -> list[tuple[str, int, int]]:
    """Record the flushes, with inode and size of the file, and the renames, with its inode."""
    found: list[tuple[str, int, int]] = []
    fsync, replace = os.fsync, Path.replace

    def watched_fsync(descriptor: int) -> None:
        fsync(descriptor)
        file = os.fstat(descriptor)
        found.append(("flush", file.st_ino, file.st_size))

    def watched_replace(path: Path, target: Any) -> Path:
        found.append(("rename", path.stat().st_ino, 0))
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(Path, "replace", watched_replace)
    return found


@pytest.mark.parametrize("stamped", [True, False], ids=["stamp", "no stamp"])
async def test_files_are_on_the_disk_before_their_names(tmp_path, calls, monkeypatch, stamped):
    """The flush of the download counts, if nothing can have written to the video since."""
    submission = Submission(
        idempotency_key="flushes",
        task_id="task",
        submitted_at=datetime.now(UTC),
        route="image_to_video",
        model="gen4_turbo",
        request={},
    )
    place, stem = FolderStorage(tmp_path / "videos"), stem_of(submission, 0)
    path = staged_path(place.staging(), stem, ".mp4")
    content = render(Recipe("image_to_video", "https://example.com/a", "a", 1, 64, 64, 1), None)
    with path.open("wb") as file:
        writer = DownloadWriter(file)
        await writer.append(content)
        sha256 = await writer.finish()
    if not stamped:
        monkeypatch.setattr(fetch, "stamp", lambda _path: None)
    video = fetch._examined(path, sha256, "video", stem)
    calls[:] = [call for call in calls if call[0] == "flush"]  # the record is renamed unflushed
    stored = persist._persist(submission, {}, video, 0, place)

    for location in (stored.poster, stored.uri, stored.sidecar):
        file = Path(str(location)).stat()
        flushed = ("flush", file.st_ino, file.st_size)
        assert calls.index(flushed) < calls.index(("rename", file.st_ino, 0))
        assert calls.count(flushed) == (2 if location == stored.uri and not stamped else 1)
    assert calls[-1][:2] == ("flush", (tmp_path / "videos").stat().st_ino)
