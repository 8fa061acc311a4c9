# SPDX-License-Identifier: Apache-2.0
"""A file appears under its final name only when it is complete, in every kind of storage."""

import errno
import hashlib
import shutil
import traceback
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from prefect_cometapi.runway import StagedFileMissing, StorageError
from prefect_cometapi.runway.storage import folder as module
from prefect_cometapi.runway.storage.base import _PROBE_TEXT, PROBE, probe
from prefect_cometapi.runway.storage.factory import open_storage
from prefect_cometapi.runway.storage.folder import FolderStorage
from prefect_cometapi.runway.storage.fsspec import FsspecStorage
from prefect_cometapi.runway.storage.staging import INCOMING

from .conftest import NEW, OLD


class NoCredentials(Exception):
    """An error like botocore's, which is not an OSError."""


class Watched(LocalFileSystem):
    """A file system, not an object store, that records its calls."""

    protocol = "watched"
    cachable = False
    calls: list[tuple[str, str]] = []  # noqa: RUF012
    trouble: Exception | None = None
    lost = 0

    def put_file(self, lpath: str, rpath: str, *args: Any, **kwargs: Any) -> None:
        self.calls.append(("put", rpath))
        if self.trouble:
            raise self.trouble
        shutil.copyfile(lpath, rpath)

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        found = super().info(path, **kwargs)
        return {**found, "size": found["size"] - self.lost}

    def mv(self, path1: str, path2: str, *args: Any, **kwargs: Any) -> None:
        self.calls.append(("mv", path2))
        super().mv(path1, path2, *args, **kwargs)


@pytest.fixture(autouse=True)
def fresh_file_systems(monkeypatch):
    fsspec.register_implementation("watched", Watched, clobber=True)
    monkeypatch.setattr(Watched, "calls", [])
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]


@pytest.fixture(params=["folder", "file", "memory", "local", "watched"])
def place(request, tmp_path):
    """Return a storage of each kind."""
    folder = tmp_path / "videos"
    return open_storage(
        {
            "folder": str(folder),
            "file": f"file://{folder}",
            "memory": "memory://videos",
            "local": f"local://{folder}",
            "watched": f"watched://{folder}/",
        }[request.param]
    )


def content_of(uri: str) -> bytes:
    with fsspec.open(uri, "rb") as file:
        return file.read()  # pyright: ignore[reportAttributeAccessIssue]


def test_a_published_file_is_whole(place, staged):
    """A published file is complete and is at its URI, which is known in advance."""
    uri = place.publish(staged(), "a.mp4")
    assert uri == place.uri("a.mp4")
    assert content_of(uri) == NEW


def test_a_name_is_replaced_by_what_is_published_under_it(place, staged):
    """A repeated step replaces its own file, because a name belongs to one generation."""
    place.publish(staged(OLD), "a.mp4")
    assert content_of(place.publish(staged(NEW), "a.mp4")) == NEW


def test_what_is_published_can_be_recognized(place, staged):
    """An interrupted step finds its published file by its hash, and no other file."""
    assert place.sha256("a.mp4") is None
    place.publish(staged(OLD), "a.mp4")
    assert place.sha256("a.mp4") == hashlib.sha256(OLD).hexdigest()
    assert place.sha256("b.mp4") is None


@pytest.mark.parametrize("published", [False, True])
def test_a_staged_file_that_is_gone_is_told_as_such(place, staged, tmp_path, published):
    """The error says that the file must be fetched again and does not blame the storage."""
    if published:
        place.publish(staged(), "a.mp4")
    with pytest.raises(StagedFileMissing, match=r"gone\.mp4 no longer exists on this machine"):
        place.publish(tmp_path / "gone.mp4", "a.mp4")


def test_a_file_that_vanishes_during_its_upload_is_told_as_such(tmp_path, staged, monkeypatch):
    """The error is the same for every file system."""
    file = staged()

    def vanish(*_args: Any, **_kwargs: Any) -> None:
        file.unlink()
        raise FileNotFoundError(2, "No such file")

    monkeypatch.setattr(Watched, "put_file", vanish)
    with pytest.raises(StagedFileMissing):
        open_storage(f"watched://{tmp_path}/videos").publish(file, "a.mp4")


def test_nothing_else_is_left_in_the_storage(place, staged, tmp_path):
    """No partial or temporary file remains beside the video."""
    place.publish(staged(), "a.mp4")
    if isinstance(place, FolderStorage) or not place.url.startswith("memory"):
        names = sorted(path.name for path in (tmp_path / "videos").rglob("*") if path.is_file())
    else:
        names = [path.rpartition("/")[2] for path in fsspec.filesystem("memory").find("/videos")]
    assert names == ["a.mp4"]


def test_a_staging_folder_is_there_and_is_its_own(place, tmp_path):
    """A staging folder exists as soon as it is requested, and two storages do not share it."""
    assert place.staging().is_dir()
    assert place.staging() == place.staging()
    assert place.staging() != open_storage("memory://elsewhere").staging()


def test_in_a_folder_the_old_file_stands_until_the_new_one_is_on_the_disk(
    tmp_path, staged, monkeypatch
):
    """Readers see the complete old or new file, even after a power failure."""
    place = FolderStorage(tmp_path / "videos")
    place.publish(staged(OLD), "a.mp4")
    seen: list[tuple[str, bytes]] = []
    flush = module._flush

    def watched_flush(path: Path) -> None:
        seen.append((path.name, (tmp_path / "videos" / "a.mp4").read_bytes()))
        flush(path)

    monkeypatch.setattr(module, "_flush", watched_flush)
    place.publish(staged(NEW), "a.mp4")
    assert seen == [("staged.mp4", OLD), ("videos", NEW)]


def test_the_files_of_a_clip_share_the_flush_of_their_folder(tmp_path, staged, monkeypatch):
    """The last of several files makes all of them permanent, and each is on the disk before."""
    flushed: list[str] = []
    monkeypatch.setattr(module, "_flush", lambda path: flushed.append(path.name))
    place = FolderStorage(tmp_path / "videos")
    place.publish(staged(NEW), "a.mp4", more=True)
    place.publish(staged(NEW), "a.json")
    assert flushed == ["staged.mp4", "staged.mp4", "videos"]


def test_a_file_that_is_on_the_disk_is_not_flushed_again(tmp_path, staged, monkeypatch):
    """The flush of its folder makes its new name permanent."""
    flushed: list[str] = []
    monkeypatch.setattr(module, "_flush", lambda path: flushed.append(path.name))
    place = FolderStorage(tmp_path / "videos")
    place.publish(staged(NEW), "a.mp4", more=True, flushed=True)
    place.publish(staged(NEW), "b.mp4", flushed=True)
    assert flushed == ["videos"]
    assert (tmp_path / "videos" / "a.mp4").read_bytes() == NEW


def test_a_staged_file_on_another_disk_is_copied_before_it_is_renamed(tmp_path):
    """A rename cannot cross disks, and a copy to the final name would be visible too early."""

    class Elsewhere(type(Path())):
        def replace(self, target: Any) -> Any:
            raise OSError(errno.EXDEV, "Invalid cross-device link")

    file = Elsewhere(tmp_path / "staged.mp4")
    file.write_bytes(NEW)
    place = FolderStorage(tmp_path / "videos")
    uri = place.publish(file, "a.mp4")
    assert Path(uri).read_bytes() == NEW
    assert [path.name for path in (tmp_path / "videos").iterdir()] == ["a.mp4"]
    assert Path(str(file)).exists()


def test_a_copy_that_breaks_off_leaves_nothing(tmp_path, monkeypatch):
    """No file remains under the final or the hidden name."""
    monkeypatch.setattr("os.fsync", _full)
    (tmp_path / "staged.mp4").write_bytes(NEW)
    (tmp_path / "videos").mkdir()
    with pytest.raises(OSError, match="No space left"):
        module._copy_and_rename(tmp_path / "staged.mp4", tmp_path / "videos" / "a.mp4")
    assert list((tmp_path / "videos").iterdir()) == []


def _full(*_args: object) -> None:
    raise OSError(28, "No space left on device")


def test_a_folder_that_takes_nothing_is_named(tmp_path, staged):
    """The error contains the reason of the operating system."""
    (tmp_path / "videos" / "a.mp4").mkdir(parents=True)
    file = staged()
    with pytest.raises(StorageError, match=r"a\.mp4 could not be written to .*videos: .*directory"):
        FolderStorage(tmp_path / "videos").publish(file, "a.mp4")
    assert file.exists()


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    """The error is raised by the first use in a step, before anything is bought."""
    (tmp_path / "videos").write_text("a file")
    with pytest.raises(StorageError, match=r"videos/\.incoming cannot be created: .*directory"):
        FolderStorage(tmp_path / "videos").staging()


def test_a_place_without_uploads_at_once_gets_a_rename(tmp_path, staged):
    """An incomplete upload has a temporary name, which a rename replaces."""
    place = open_storage(f"watched://{tmp_path}/videos")
    place.publish(staged(), "a.mp4")
    target = str(tmp_path / "videos" / "a.mp4")
    (put, upload), move = Watched.calls
    assert (put, move) == ("put", ("mv", target))
    assert upload.startswith(f"{target}.")
    assert upload.endswith(".part")


def test_two_uploads_of_one_name_do_not_share_a_temporary_name(tmp_path, staged):
    """One process does not publish the incomplete upload of another."""
    place = open_storage(f"watched://{tmp_path}/videos")
    for _ in range(2):
        place.publish(staged(), "a.mp4")
    assert len({path for call, path in Watched.calls if call == "put"}) == 2


@pytest.mark.parametrize("broken", ["put_file", "mv"])
def test_an_upload_that_fails_leaves_no_temporary_file(tmp_path, staged, monkeypatch, broken):
    """The temporary file is deleted whether the upload or the rename fails."""

    def half(_files: object, source: str, target: str, **_options: object) -> None:
        if broken == "put_file":
            Path(target).write_bytes(Path(source).read_bytes()[:10])
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Watched, broken, half)
    with pytest.raises(StorageError, match="Input/output error"):
        open_storage(f"watched://{tmp_path}/videos").publish(staged(), "a.mp4")
    assert list((tmp_path / "videos").iterdir()) == []


def test_a_temporary_file_that_stays_does_not_hide_the_reason(tmp_path, staged, monkeypatch):
    """The error of the upload is raised, not that of the deletion."""

    def refuse(*_arguments: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Watched, "mv", _full)
    monkeypatch.setattr(Watched, "rm_file", refuse)
    with pytest.raises(StorageError, match="No space left on device"):
        open_storage(f"watched://{tmp_path}/videos").publish(staged(), "a.mp4")


def test_an_object_store_gets_one_upload(staged, monkeypatch):
    """An object is visible only when it is complete, and a rename would be a second copy."""
    moved: list[str] = []
    monkeypatch.setattr(MemoryFileSystem, "mv", lambda *args, **kwargs: moved.append("mv"))
    open_storage("memory://videos").publish(staged(), "a.mp4")
    assert content_of("memory://videos/a.mp4") == NEW
    assert moved == []


def test_an_upload_that_lost_bytes_is_taken_back(tmp_path, staged, monkeypatch):
    """The uploaded size is compared with the sent size, and a short upload is deleted."""
    monkeypatch.setattr(Watched, "lost", 1)
    file = staged()
    with pytest.raises(
        StorageError, match=r"a\.mp4 has 5999 bytes in the storage, but 6000 on this machine"
    ):
        open_storage(f"watched://{tmp_path}/videos").publish(file, "a.mp4")
    assert list((tmp_path / "videos").iterdir()) == []
    assert file.exists()


@pytest.mark.parametrize(
    ("trouble", "reason"),
    [
        (PermissionError(13, "Permission denied"), "Permission denied"),
        (NoCredentials("Unable to locate credentials"), "Unable to locate credentials"),
        (RuntimeError("Bearer abcdefgh was refused"), "Bearer <hidden> was refused"),
        (ValueError(), "ValueError"),
    ],
)
def test_whatever_a_file_system_raises_names_the_place(
    tmp_path, staged, monkeypatch, trouble, reason
):
    """Every exception of a file system becomes an error with the location and the next step."""
    monkeypatch.setattr(Watched, "trouble", trouble)
    place = open_storage(f"watched://{tmp_path}/videos")
    with pytest.raises(StorageError) as caught:
        place.publish(staged(), "a.mp4")
    assert (
        caught.value.message
        == f"a.mp4 could not be written to watched://{tmp_path}/videos: {reason}"
    )
    assert "abcdefgh" not in "".join(traceback.format_exception(caught.value))
    assert not (tmp_path / "videos" / "a.mp4").exists()


def test_no_trace_tells_what_a_file_system_says_of_its_credentials(tmp_path, monkeypatch):
    """Tracebacks show no tokens, although some file systems repeat their address in errors."""

    def asked(*_arguments: object, **_options: object) -> None:
        raise RuntimeError("403 for url: http://h/webhdfs/v1/a?delegation=canary&op=OPEN")

    for name in ("cat_file", "rm_file", "__init__"):
        monkeypatch.setattr(Watched, name, asked)
    place = open_storage(f"watched://{tmp_path}/videos")
    for act in (place.check, partial(place.read, "a"), partial(place.delete, "a")):
        with pytest.raises(StorageError) as caught:
            act()
        assert "canary" not in "".join(traceback.format_exception(caught.value))


def test_a_protocol_that_is_not_installed_is_told_with_its_name(staged):
    """The error names the protocol, and the staged file is kept."""
    file = staged()
    with pytest.raises(
        StorageError, match=r"a\.mp4 could not be written to nosuch://bucket: Protocol not known"
    ):
        open_storage("nosuch://bucket").publish(file, "a.mp4")
    assert file.exists()


def test_a_password_in_the_storages_url_is_not_repeated(staged):
    """The error shows the location without its password."""
    with pytest.raises(StorageError) as caught:
        open_storage("nosuch://me:s3cr3t@host/videos").publish(staged(), "a.mp4")
    assert "nosuch://host/videos" in str(caught.value)
    assert "s3cr3t" not in str(caught.value)


def test_options_reach_the_file_system(staged, tmp_path):
    """Storage options are passed to fsspec."""
    place = FsspecStorage(f"local://{tmp_path}/new/videos", auto_mkdir=True)
    assert content_of(place.publish(staged(), "a.mp4")) == NEW


def test_a_path_is_a_folder_whatever_way_it_is_written(tmp_path, monkeypatch):
    """A path may be relative, start with a home folder or be a file URL."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert open_storage("./videos").uri("a") == str(tmp_path / "videos" / "a")
    assert open_storage("~/videos").uri("a") == str(tmp_path / "home" / "videos" / "a")
    assert open_storage("file:///data/my%20videos").uri("a") == "/data/my videos/a"
    assert open_storage("file://localhost/data/videos").uri("a") == "/data/videos/a"
    assert open_storage("s3://bucket/videos/").uri("a") == "s3://bucket/videos/a"


def test_a_file_url_is_a_folder_whatever_its_name(tmp_path):
    """A folder's name may contain characters that have a meaning in other URLs."""
    storage = open_storage(f"file://{tmp_path}/a%20b#c?d")
    assert storage.uri("x.mp4") == f"{tmp_path}/a b#c?d/x.mp4"


def test_a_storage_is_checked_without_leaving_anything(tmp_path):
    """The check runs before anything is bought and leaves no files."""
    FolderStorage(tmp_path / "videos").check()
    FsspecStorage("memory://checked").check()
    assert [path.name for path in (tmp_path / "videos").iterdir()] == [INCOMING]
    assert list((tmp_path / "videos" / INCOMING).iterdir()) == []


def test_a_folder_that_takes_no_files_fails_its_check(tmp_path, monkeypatch):
    """An existing folder may be read-only or full."""
    monkeypatch.setattr("os.fsync", _full)
    with pytest.raises(
        StorageError, match=r"a test file could not be written to .*videos: No space left on device"
    ):
        FolderStorage(tmp_path / "videos").check()
    assert list((tmp_path / "videos" / INCOMING).iterdir()) == []


@pytest.mark.parametrize("place", ["", "memory://videos"])
def test_a_disk_that_is_nearly_full_fails_the_check(tmp_path, monkeypatch, place):
    """A small test file would still fit where a video does not."""
    usage = SimpleNamespace(total=10**9, free=2_000_000)
    monkeypatch.setattr("shutil.disk_usage", lambda _folder: usage)
    with pytest.raises(
        StorageError, match=r"is full: 2\.0 MB are free, and a video may need 17 MB"
    ):
        open_storage(f"{place}{tmp_path}").check()


def test_a_disk_without_a_size_is_not_called_full(tmp_path, monkeypatch):
    """Some mounted file systems report zero bytes, and others report nothing."""
    monkeypatch.setattr("shutil.disk_usage", lambda _folder: SimpleNamespace(total=0, free=0))
    FolderStorage(tmp_path).check()

    def unknown(_folder: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("shutil.disk_usage", unknown)
    FolderStorage(tmp_path).check()


def test_a_url_without_a_file_system_fails_its_check():
    """A wrong protocol is reported with the location."""
    with pytest.raises(
        StorageError, match=r"nosuch://videos cannot be used as a storage: .*nosuch"
    ):
        FsspecStorage("nosuch://videos").check()


@pytest.mark.parametrize("place", ["", "memory://videos", "watched://"])
def test_a_good_place_is_probed_without_a_trace(tmp_path, place):
    """A probe writes a file, reads it back and deletes it."""
    storage = open_storage(f"{place}{tmp_path}/videos")
    probe(storage)
    with pytest.raises(StorageError, match="cannot be read from"):
        storage.read(PROBE)


def test_what_is_not_given_back_is_no_storage(tmp_path, monkeypatch):
    """A location that loses or changes files is detected."""
    storage = FolderStorage(tmp_path)
    monkeypatch.setattr(FolderStorage, "read", lambda *_args: b"something else")
    with pytest.raises(StorageError, match="the content that was read back differs"):
        probe(storage)


@pytest.mark.parametrize("place", ["", "memory://"])
def test_a_file_that_stays_is_told(tmp_path, place):
    """The error names the file that cannot be deleted, with the reason."""
    storage = open_storage(f"{place}{tmp_path}")
    if not place:
        (tmp_path / "o.mp4").mkdir()
    with pytest.raises(StorageError, match=r"o\.mp4 cannot be deleted from"):
        storage.delete("o.mp4")


def test_a_probe_that_cannot_be_staged_is_told(tmp_path, monkeypatch):
    """The disk of temporary files may be full as well."""
    storage = FolderStorage(tmp_path)
    monkeypatch.setattr(FolderStorage, "staging", lambda _self: tmp_path / "gone")
    with pytest.raises(StorageError, match="gone is not writable"):
        probe(storage)


@pytest.mark.parametrize(
    "denial",
    [PermissionError("Forbidden"), NoCredentials("An error occurred (AccessDenied)")],
    ids=["fsspec", "boto"],
)
def test_who_may_write_need_not_be_allowed_to_look(monkeypatch, denial):
    """Credentials of an object store that may only write pass the check; `doctor` says so."""

    class WriteOnly:
        def put_file(self, *_args: object, **_options: object) -> None:
            pass

        def info(self, _path: str) -> dict[str, object]:
            return {"size": len(_PROBE_TEXT)}

        def cat_file(self, _path: str) -> None:
            raise denial

        rm_file = cat_file

    monkeypatch.setattr(FsspecStorage, "_opened", lambda _self, name="": (WriteOnly(), name))
    FsspecStorage("s3://videos/clips").check()
    with pytest.raises(StorageError, match="a test file cannot be read from s3://videos/clips"):
        probe(FsspecStorage("s3://videos/clips"))


@pytest.mark.parametrize(
    "place", ["ftp://bob:hunter2@files.example/videos", "simplecache::sftp://b:hunter2@h/v"]
)
def test_a_place_that_holds_a_password_is_refused(place):
    """The location appears in the ledger and the UI; the error says how to avoid the password."""
    with pytest.raises(StorageError, match="remote-file-system block") as raised:
        open_storage(place)
    assert "hunter2" not in str(raised.value)
    assert (
        open_storage("sftp://bob@files.example/videos").uri("a")
        == "sftp://bob@files.example/videos/a"
    )
