# SPDX-License-Identifier: Apache-2.0
"""A fetched video is reused only if it is still the file that was checked."""

import hashlib
import os
import shutil
import time
from pathlib import Path

import pytest

from prefect_cometapi.runway import StagedFileMissing
from prefect_cometapi.runway.models.generation import FetchedVideo
from prefect_cometapi.runway.storage import fetched, folder
from prefect_cometapi.runway.storage.fetched import (
    TIME_STEP,
    abandoned_files,
    discard,
    find_fetched,
    publish_checked,
    remember,
    stamp_of,
)
from prefect_cometapi.runway.storage.folder import FolderStorage
from prefect_cometapi.runway.storage.staging import RECORD

from ... import waiting
from .test_staging import left_by

DEAD = "host:17:0123456789ab:5"
"""A process of another machine, for which only the age of its files counts."""


@pytest.fixture
def storage(tmp_path) -> FolderStorage:
    return FolderStorage(tmp_path / "videos")


@pytest.fixture
def video(storage) -> FetchedVideo:
    """Return a complete fetch with its record."""
    path = left_by(DEAD, storage.staging())
    poster = path.with_suffix(".jpg")
    poster.write_bytes(b"poster")
    complete = FetchedVideo(
        path=str(path),
        poster=str(poster),
        poster_sha256=hashlib.sha256(b"poster").hexdigest(),
        sha256=hashlib.sha256(b"half").hexdigest(),
        size=4,
        width=64,
        height=48,
        duration=5.0,
        frames=120,
        codec="h264",
    )
    remember(complete, "stem")
    return complete


def names(storage: FolderStorage) -> set[str]:
    return {path.name for path in storage.staging().iterdir()}


def test_what_was_fetched_is_found_again(storage, video):
    """The video is found with its poster and is marked as used just now."""
    for path in storage.staging().iterdir():
        os.utime(path, (0, 0))
    assert find_fetched(storage, "stem") == video
    assert find_fetched(storage, "other") is None
    assert all(path.stat().st_mtime > 0 for path in storage.staging().iterdir())


def test_a_record_names_files_beside_it_only(storage, video, tmp_path):
    """A record names files in its own folder, even if that was mounted elsewhere before."""
    elsewhere = {"path": f"/nowhere/{Path(video.path).name}", "poster": None}
    record = storage.staging() / f"stem{RECORD}"
    record.write_text(video.model_copy(update=elsewhere).model_dump_json())
    found = find_fetched(storage, "stem")
    assert found
    assert (found.path, found.poster) == (video.path, None)
    record.write_text("no record")
    assert find_fetched(storage, "stem") is None


def test_a_lost_or_changed_poster_is_drawn_again(storage, video):
    """Only the poster is drawn again; the video is not fetched again."""
    Path(video.poster or "").write_bytes(b"other")
    assert find_fetched(storage, "stem") == video.model_copy(update={"poster": None})


@pytest.mark.parametrize("change", [lambda path: path.unlink(), lambda path: path.write_bytes(b"")])
def test_a_lost_or_changed_video_is_fetched_again(storage, video, change):
    """The remaining files of an incomplete fetch are deleted."""
    change(Path(video.path))
    assert find_fetched(storage, "stem") is None
    assert names(storage) == set()


@pytest.mark.parametrize("poster", [True, False])
def test_a_video_in_the_storage_is_there_with_its_poster(storage, video, poster):
    """A stored video counts if its hash and its poster are right; otherwise it is fetched again."""
    publish_checked(storage, Path(video.path), "stem.mp4", video.sha256)
    if poster:
        publish_checked(storage, Path(video.poster or ""), "stem.jpg", video.poster_sha256)
    else:
        Path(video.poster or "").unlink()
    assert find_fetched(storage, "stem") == (video if poster else None)


def test_what_is_published_is_what_was_checked(storage, video):
    """A file that differs from the checked one is neither published nor accepted as published."""
    path = Path(video.path)
    with pytest.raises(StagedFileMissing, match="has changed since it was fetched"):
        publish_checked(storage, path, "a.mp4", "0" * 64)
    assert publish_checked(storage, path, "a.mp4", video.sha256) == storage.uri("a.mp4")
    assert publish_checked(storage, path, "a.mp4", video.sha256) == storage.uri("a.mp4")
    Path(storage.uri("a.mp4")).write_bytes(b"another")
    with pytest.raises(StagedFileMissing, match="no longer exists on this machine"):
        publish_checked(storage, path, "a.mp4", video.sha256)
    with pytest.raises(StagedFileMissing):
        publish_checked(storage, path, "a.mp4", None)


def settled_stamp(path: Path) -> str:
    """Return the stamp of a file once a change has another time, even if a program restores one."""
    stamped = fetched.stamp(path)
    assert stamped
    changed = path.stat().st_ctime_ns
    waiting.until(lambda: time.time_ns() - changed > TIME_STEP, "the next time")
    return stamped


def test_a_file_with_an_unchanged_stamp_is_not_read_again(storage, video, monkeypatch):
    """Publishing right after the fetch costs no second hash of the file."""
    path = Path(video.path)
    stamp = settled_stamp(path)
    monkeypatch.setattr(fetched, "sha256_of", lambda _path: pytest.fail("it was read again"))
    assert publish_checked(storage, path, "a.mp4", video.sha256, stamp) == storage.uri("a.mp4")


def test_a_file_is_flushed_again_if_it_may_have_changed(tmp_path, video, monkeypatch):
    """A file with an unchanged stamp is on the disk since its download."""
    flushed: list[str] = []
    monkeypatch.setattr(folder, "_flush", lambda path: flushed.append(path.name))
    place, path = FolderStorage(tmp_path / "videos"), Path(video.path)
    stamp = settled_stamp(path)
    publish_checked(place, path, "a.mp4", video.sha256, stamp)
    assert flushed == []
    path.write_bytes((tmp_path / "videos" / "a.mp4").read_bytes())
    publish_checked(place, path, "a.mp4", video.sha256, stamp)
    assert flushed == [path.name]


def rewrite(path: Path) -> None:
    """Write other content of the same size, and restore the time of the last write."""
    before = path.stat()
    path.write_bytes(b"HALF")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def replace(path: Path) -> None:
    """Put another file of the same size and time in the place of a file."""
    other = path.with_suffix(".other")
    shutil.copy2(path, other)
    rewrite(other)
    other.replace(path)


@pytest.mark.parametrize("change", [rewrite, replace])
def test_a_change_after_the_hash_is_found_even_with_the_same_size_and_time(storage, video, change):
    """A file that was changed between its hash and its publication is not published."""
    path = Path(video.path)
    stamp = settled_stamp(path)
    change(path)
    assert stamp_of(path) != stamp
    with pytest.raises(StagedFileMissing, match="has changed since it was fetched"):
        publish_checked(storage, path, "a.mp4", video.sha256, stamp)


def test_a_write_right_after_the_stamp_changes_it(video):
    """Two writes may get the same time from the system, but none gets the time of a stamp."""
    path = Path(video.path)
    for _ in range(100):
        path.write_bytes(b"half")
        stamped = fetched.stamp(path)
        assert stamped
        assert stamped == stamp_of(path)
        path.write_bytes(b"HALF")
        assert stamp_of(path) != stamped


def test_a_stamp_is_of_one_process(video, monkeypatch):
    """Another process computes the hash, as after a restart."""
    path = Path(video.path)
    stamped = fetched.stamp(path)
    monkeypatch.setattr(fetched, "this_process", lambda: "another")
    assert stamp_of(path) != stamped


@pytest.mark.parametrize("step", [10_000_000, 2_000_000_000], ids=["exFAT", "FAT"])
def test_a_file_has_no_stamp_where_times_are_rounded(video, monkeypatch, step):
    """A change could hide there, so the hash is compared instead."""
    set_time = os.utime

    def rounding(path: Path, ns: tuple[int, int]) -> None:
        set_time(path, ns=(ns[0] // step * step, ns[1] // step * step))

    monkeypatch.setattr(os, "utime", rounding)
    assert fetched.stamp(Path(video.path)) is None


def test_a_file_that_is_gone_has_no_stamp(video):
    """Neither a new one nor one to compare."""
    Path(video.path).unlink()
    assert fetched.stamp(Path(video.path)) is None
    assert stamp_of(Path(video.path)) is None


def test_a_file_of_unknown_content_is_published_as_it_is(storage, video):
    """A poster without a hash is published without a check."""
    assert publish_checked(storage, Path(video.path), "a.mp4", None) == storage.uri("a.mp4")


def test_nothing_is_left_of_a_fetch_that_is_stored(storage, video):
    """Files and record of a stored fetch are deleted, and missing ones are no error."""
    for _ in range(2):
        discard(video, "stem")
        discard(video.model_copy(update={"poster": None}), "stem")
        assert names(storage) == set()


def test_a_record_that_cannot_be_written_is_no_error(video):
    """A record that cannot be written costs at most another fetch of the video."""
    elsewhere = video.model_copy(update={"path": "/nowhere/at/all.mp4"})
    remember(elsewhere, "stem")


def test_a_complete_fetch_is_kept_while_it_is_needed(storage, video):
    """The address may have expired, so the fetched files may be the only copy of a paid video."""
    for path in storage.staging().iterdir():
        os.utime(path, (0, 0))
    half = left_by(DEAD, storage.staging(), "other", days=8)
    (storage.staging() / f"broken{RECORD}").symlink_to(half)
    needed = abandoned_files(storage.staging(), lambda stem: stem == "stem")
    assert [file.name for file in needed] == [half.name]
    found = abandoned_files(storage.staging(), lambda _stem: False)
    files = {Path(video.path).name, Path(video.poster or "").name, f"stem{RECORD}"}
    assert {file.name for file in found} == {half.name} | files
    assert {file.name for file in found if file.reusable} == files
