# SPDX-License-Identifier: Apache-2.0
"""File systems that lack an operation, or fail at one, neither lose nor refuse a paid video."""

import errno
import os
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from prefect_cometapi.runway import StorageError
from prefect_cometapi.runway.storage.base import PROBE, probe, publish_written
from prefect_cometapi.runway.storage.factory import open_storage
from prefect_cometapi.runway.storage.folder import FolderStorage
from prefect_cometapi.runway.storage.fsspec import FsspecStorage
from prefect_cometapi.runway.storage.staging import INCOMING

from .conftest import NEW, OLD


@pytest.fixture(autouse=True)
def fresh_memory():
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]


def _full(*_args: object) -> None:
    raise OSError(28, "No space left on device")


def lacking(number: int) -> Any:
    def refuse(*_args: object, **_options: object) -> None:
        raise OSError(number, os.strerror(number))

    return refuse


LACKING = [errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EPERM, errno.EXDEV]


@pytest.mark.parametrize("number", LACKING)
def test_without_a_rename_a_file_is_copied(tmp_path, staged, monkeypatch, number):
    """The copy is complete under its final name, and nothing else is left."""
    monkeypatch.setattr("os.replace", lacking(number if number != errno.EXDEV else errno.ENOSYS))
    monkeypatch.setattr("os.rename", lacking(number))
    storage = FolderStorage(tmp_path / "videos")
    storage.check()
    storage.publish(staged(OLD), "a.mp4")
    assert Path(storage.publish(staged(NEW), "a.mp4")).read_bytes() == NEW
    assert {path.name for path in (tmp_path / "videos").iterdir()} - {INCOMING} == {"a.mp4"}


def test_a_rename_across_disks_is_a_copy_and_a_rename(tmp_path, staged, monkeypatch):
    """Two folders of one disk may be mounted apart."""
    replace, refused = os.replace, []

    def refuse_once(source: Any, target: Any) -> None:
        if not refused:
            refused.append(source)
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        replace(source, target)

    monkeypatch.setattr("os.replace", refuse_once)
    storage = FolderStorage(tmp_path / "videos")
    assert Path(storage.publish(staged(NEW), "a.mp4")).read_bytes() == NEW


def test_a_copy_that_loses_bytes_is_refused(tmp_path, staged, monkeypatch):
    """Without a rename, the size shows whether the copy is complete, and half a file is removed."""
    monkeypatch.setattr("os.replace", lacking(errno.ENOSYS))
    monkeypatch.setattr("shutil.copyfileobj", lambda _from, to, _size: to.write(b"half"))
    with pytest.raises(StorageError, match="4 of 6,000 bytes were written"):
        FolderStorage(tmp_path / "videos").publish(staged(NEW), "a.mp4")
    assert list((tmp_path / "videos").iterdir()) == []


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EINVAL])
def test_without_a_flush_a_file_is_published(tmp_path, staged, monkeypatch, number):
    """A file system that cannot flush writes at once."""
    monkeypatch.setattr("os.fsync", lacking(number))
    storage = FolderStorage(tmp_path / "videos")
    storage.check()
    assert Path(storage.publish(staged(NEW), "a.mp4")).read_bytes() == NEW


@pytest.mark.parametrize(("number", "passes"), [(errno.EACCES, True), (errno.EIO, False)])
def test_a_folder_that_cannot_be_opened_is_not_flushed(
    tmp_path, staged, monkeypatch, number, passes
):
    """Windows cannot open folders; a broken disk is another matter."""
    opened = os.open

    def open_files(path: Any, *args: Any, **options: Any) -> int:
        if Path(path).is_dir():
            raise OSError(number, os.strerror(number))
        return opened(path, *args, **options)

    monkeypatch.setattr("os.open", open_files)
    storage = FolderStorage(tmp_path / "videos")
    if passes:
        assert Path(storage.publish(staged(NEW), "a.mp4")).read_bytes() == NEW
        return
    with pytest.raises(StorageError, match="Input/output error"):
        storage.publish(staged(NEW), "a.mp4")


def test_a_folder_that_deletes_nothing_passes_its_check(tmp_path, monkeypatch):
    """Some mounted object stores never delete; `doctor` says so."""
    storage = FolderStorage(tmp_path)

    def refuse(_storage: object, name: str) -> None:
        raise StorageError(f"{name} cannot be deleted")

    monkeypatch.setattr(FolderStorage, "delete", refuse)
    storage.check()
    with pytest.raises(StorageError, match="cannot be deleted"):
        probe(storage)


def test_a_file_that_another_check_deletes_is_no_problem(monkeypatch):
    """Two runs may check one storage at the same time."""
    storage = FsspecStorage("memory://checked")
    publish, names = FsspecStorage.publish, []

    def publish_and_lose(self: FsspecStorage, staged: Path, name: str) -> str:
        names.append(name)
        uri = publish(self, staged, name)
        if name == PROBE:
            self.delete(name)
        return uri

    monkeypatch.setattr(FsspecStorage, "publish", publish_and_lose)
    storage.check()
    assert len(names) == 2
    assert names[1].startswith(f"{PROBE}-")


def test_a_storage_that_loses_every_file_fails_its_check(monkeypatch):
    """A file that cannot be read back may be lost."""
    publish = FsspecStorage.publish

    def publish_and_lose(self: FsspecStorage, staged: Path, name: str) -> str:
        uri = publish(self, staged, name)
        self.delete(name)
        return uri

    monkeypatch.setattr(FsspecStorage, "publish", publish_and_lose)
    with pytest.raises(StorageError, match="a test file cannot be read from memory://checked"):
        FsspecStorage("memory://checked").check()


def test_the_first_cause_is_told_when_the_clean_up_fails_too(tmp_path, monkeypatch):
    """A disk that fails while a file is written often refuses to delete it."""
    monkeypatch.setattr("os.fsync", _full)
    monkeypatch.setattr("os.unlink", lacking(errno.EROFS))
    with pytest.raises(StorageError, match="No space left on device"):
        FolderStorage(tmp_path / "videos").check()
    with pytest.raises(StorageError, match="No space left on device"):
        publish_written(FolderStorage(tmp_path / "videos"), "a.json", lambda path: path.touch())


class NoRename(LocalFileSystem):
    """File system of fsspec that only uploads, and knows no sizes."""

    protocol = "norename"
    cachable = False
    missing: Exception = NotImplementedError()

    def mv(self, path1: str, path2: str, *args: Any, **kwargs: Any) -> None:
        raise self.missing

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        super().makedirs(path, exist_ok=exist_ok)
        raise NotImplementedError

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        return {**super().info(path, **kwargs), "size": None}


@pytest.mark.parametrize("missing", [NotImplementedError(), OSError(errno.ENOSYS, "no rename")])
def test_a_file_system_without_a_rename_gets_the_upload_under_its_name(
    tmp_path, staged, monkeypatch, missing
):
    """The temporary upload is removed."""
    fsspec.register_implementation("norename", NoRename, clobber=True)
    monkeypatch.setattr(NoRename, "missing", missing)
    storage = open_storage(f"norename://{tmp_path}/videos")
    storage.check()
    storage.publish(staged(NEW), "a.mp4")
    (left,) = (tmp_path / "videos").iterdir()
    assert (left.name, left.read_bytes()) == ("a.mp4", NEW)
