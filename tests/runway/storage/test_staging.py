# SPDX-License-Identifier: Apache-2.0
"""Unpublished files are in folders that no other user can reach."""

import getpass
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_cometapi.runway import StorageError
from prefect_cometapi.runway.storage import staging
from prefect_cometapi.runway.storage.fetched import abandoned_files, remove
from prefect_cometapi.runway.storage.folder import FolderStorage
from prefect_cometapi.runway.storage.fsspec import FsspecStorage
from prefect_cometapi.runway.storage.staging import (
    INCOMING,
    RETENTION,
    StagedFile,
    is_abandoned,
    rename_staged,
    staged_files,
    staged_path,
    temporary_stagings,
)

from ..factories import dead_owner

DAYS = st.floats(0, 1000 * 24 * 3600.0)


@pytest.fixture
def shared_place(tmp_path, monkeypatch):
    """Make a temporary folder that everybody can write to."""
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))
    return tmp_path / f"prefect-cometapi-{getpass.getuser()}"


def test_staged_files_lie_where_nobody_else_can_write(shared_place):
    """The staging folder is private at its first use and at later ones."""
    for _ in range(2):
        folder = FsspecStorage("memory://videos").staging()
        assert folder.parent == shared_place
        assert {each.stat().st_mode & 0o777 for each in (folder, shared_place)} == {0o700}


@pytest.mark.parametrize("trap", ["everybody's", "a link", "a file", "another's"])
def test_a_place_that_somebody_else_prepared_is_not_used(shared_place, trap, monkeypatch, tmp_path):
    """Another user's folder is refused, because that user could read, replace or redirect files."""
    if trap == "a link":
        (tmp_path / "elsewhere").mkdir()
        shared_place.symlink_to(tmp_path / "elsewhere")
    elif trap == "a file":
        shared_place.write_text("")
    else:
        shared_place.mkdir()
        shared_place.chmod(0o777 if trap == "everybody's" else 0o700)
    if trap == "another's":
        monkeypatch.setattr(getpass, "getuser", lambda: shared_place.name[17:])
        monkeypatch.setattr(os, "getuid", lambda: -1)
    with pytest.raises(
        StorageError, match="is owned or writable by another user; remove it, or set TMPDIR"
    ):
        FsspecStorage("memory://videos").staging()


def test_a_temporary_folder_that_cannot_be_made_is_told(tmp_path, monkeypatch):
    """The error names the folder."""
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path / "gone"))
    with pytest.raises(StorageError, match="cannot be created"):
        FsspecStorage("memory://videos").staging()


@pytest.fixture
def videos(shared_place, tmp_path) -> Path:
    """Return a storage folder."""
    (tmp_path / "videos").mkdir()
    return tmp_path / "videos"


OWN = f"{INCOMING}-{os.getuid()}"


@pytest.mark.parametrize("trap", ["everybody's", "a group's", "a link", "a file", "another's"])
def test_a_staging_folder_that_somebody_else_prepared_is_avoided(
    videos, trap, monkeypatch, tmp_path
):
    """A staging folder is not used if another user made it in a shared storage folder."""
    prepared = videos / INCOMING
    if trap == "a link":
        (tmp_path / "elsewhere").mkdir()
        prepared.symlink_to(tmp_path / "elsewhere")
    elif trap == "a file":
        prepared.write_text("")
    else:
        prepared.mkdir()
        prepared.chmod({"everybody's": 0o777, "a group's": 0o775}.get(trap, 0o755))
    if trap == "another's":
        is_own = staging.is_own
        monkeypatch.setattr(staging, "is_own", lambda path: path != prepared and is_own(path))
    place = FolderStorage(videos)
    place.check()
    assert place.staging() == videos / OWN
    assert (videos / OWN).stat().st_mode & 0o777 == 0o700
    staged = staged_path(place.staging(), "a", ".mp4")
    staged.write_bytes(b"video")
    assert place.publish(staged, "a.mp4") == str(videos / "a.mp4")


def test_a_storage_folder_of_a_group_has_a_staging_folder_of_its_user(videos):
    """Workers of one user share the staging folder, and group members cannot write to it."""
    videos.chmod(0o2775)
    old = os.umask(0o002)
    try:
        folder = FolderStorage(videos).staging()
    finally:
        os.umask(old)
    assert folder == videos / INCOMING == FolderStorage(videos).staging()
    assert folder.stat().st_mode & 0o777 == 0o700


def test_a_storage_folder_may_be_a_link(videos, tmp_path):
    """A storage folder may be a symbolic link."""
    (tmp_path / "linked").symlink_to(videos)
    assert FolderStorage(tmp_path / "linked").staging() == tmp_path / "linked" / INCOMING


@pytest.mark.parametrize("traps", [2, 1])
def test_where_no_folder_is_ones_own_files_are_staged_elsewhere(
    videos, traps, monkeypatch, shared_place
):
    """Files are staged elsewhere if a mounted file system gives each file to another user."""
    if traps == 2:
        for name in (INCOMING, OWN):
            (videos / name).symlink_to(videos)
    is_own = staging.is_own
    monkeypatch.setattr(staging, "is_own", lambda path: path.parent != videos and is_own(path))
    place = FolderStorage(videos)
    place.check()
    assert place.staging().parent == shared_place
    staged = staged_path(place.staging(), "a", ".mp4")
    staged.write_bytes(b"video")
    place.publish(staged, "a.mp4")
    left = {path.name for path in videos.iterdir()} - {INCOMING, OWN}
    assert left == {"a.mp4"}
    assert traps == 2 or not (videos / INCOMING).exists()


# Removal


@given(age=DAYS, reusable=st.booleans(), needed=st.booleans(), runs=st.sampled_from([True, None]))
def test_nothing_that_may_be_used_is_abandoned(age, reusable, needed, runs):
    """Files of a live process, new files of an unknown one and complete fetches are kept."""
    file = StagedFile("n", "s", age, reusable=reusable, owner_runs=runs)
    if runs or age < RETENTION or (reusable and needed):
        assert not is_abandoned(file, needed=needed)
    else:
        assert is_abandoned(file, needed=needed)


@given(age=DAYS, needed=st.booleans())
def test_half_a_file_of_a_process_that_ended_is_abandoned(age, needed):
    """A partial file of an ended process is abandoned at once, whatever its age."""
    half = StagedFile("n", "s", age, reusable=False, owner_runs=False)
    assert is_abandoned(half, needed=needed)
    whole = StagedFile("n", "s", age, reusable=True, owner_runs=False)
    assert is_abandoned(whole, needed=needed) == (not needed and age >= RETENTION)


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "staging").mkdir()
    return tmp_path / "staging"


def left_by(holder: str, folder: Path, stem: str = "stem", *, days: float = 0) -> Path:
    """Make a file that a process left in the folder."""
    _, pid, space, start = holder.partition("|")[0].split(":")
    path = folder / f"{stem}.{space or 0}-{pid}-{start or 0}.0123abcd.mp4"
    path.write_bytes(b"half")
    then = time.time() - days * 24 * 3600
    os.utime(path, (then, then))
    return path


def sweep(folder: Path) -> int:
    return remove(folder, abandoned_files(folder, lambda _stem: False))


def test_half_a_file_of_a_killed_process_is_removed(folder):
    """Files of live processes and new files of unknown processes are kept."""
    left_by(dead_owner(), folder)
    living = staged_path(folder, "stem", ".mp4")
    living.write_bytes(b"")
    os.utime(living, (0, 0))
    elsewhere = left_by("host:17:0123456789ab:5", folder)
    old = left_by("host:18:0123456789ab:5", folder, days=8)
    assert sweep(folder) == 2
    assert sorted(folder.iterdir()) == sorted([living, elsewhere])
    assert not old.exists()


def test_what_is_not_a_staged_file_is_never_touched(folder, tmp_path):
    """Other programs' files, folders and links stay, and no link is followed."""
    victim = tmp_path / "victim.mp4"
    victim.write_bytes(b"mine")
    name = left_by(dead_owner(), folder, days=100).name
    (folder / name).unlink()
    (folder / name).symlink_to(victim)
    (folder / name.replace("stem", "folder")).mkdir()
    for other in ("holiday.mp4", "a.json", f"X{name}", f"{name}.bak", "stem.fetched.json.bak"):
        (folder / other).write_bytes(b"")
        os.utime(folder / other, (0, 0))
    (folder / "stem.fetched.json").symlink_to(victim)
    before = sorted(folder.iterdir())
    assert sweep(folder) == 0
    assert sorted(folder.iterdir()) == before
    assert victim.read_bytes() == b"mine"


def test_a_folder_that_became_a_link_is_not_swept(folder, tmp_path):
    """Only files in the folder that was checked are removed."""
    left_by(dead_owner(), folder)
    files = abandoned_files(folder, lambda _stem: False)
    folder.rename(tmp_path / "moved")
    folder.symlink_to(tmp_path / "moved")
    with pytest.raises(OSError, match=r"directory|symbolic"):
        remove(folder, files)
    assert len(list((tmp_path / "moved").iterdir())) == 1


def test_files_that_another_run_removes_meanwhile_are_no_error(folder, monkeypatch):
    """Several runs may clean up one folder at the same time."""
    left_by(dead_owner(), folder).unlink()
    gone = StagedFile("gone.mp4", "gone", 0.0)
    assert remove(folder, [gone]) == 0
    left_by(dead_owner(), folder)
    real = os.scandir

    class Vanishing:
        def __init__(self, path: Path) -> None:
            with real(path) as entries:
                self.entries = list(entries)
            for entry in self.entries:
                Path(entry.path).unlink()

        def __enter__(self) -> "list[os.DirEntry[str]]":
            return self.entries

        def __exit__(self, *_error: object) -> None: ...

    monkeypatch.setattr(os, "scandir", Vanishing)
    assert list(staged_files(folder)) == []


def test_every_temporary_staging_folder_is_found(shared_place):
    """Staging folders of unused storages are found too, and those of other users are ignored."""
    assert temporary_stagings() == []
    folders = {FsspecStorage(f"memory://{name}").staging() for name in "ab"}
    (shared_place / "everybodys").mkdir()
    (shared_place / "everybodys").chmod(0o777)
    assert set(temporary_stagings()) == folders
    shared_place.chmod(0o777)
    assert temporary_stagings() == []


# Machines without what Linux has


@pytest.mark.parametrize("error", [KeyError("uid not found"), OSError(), ImportError("pwd")])
def test_a_user_without_a_name_has_a_temporary_folder(tmp_path, monkeypatch, error):
    """Many containers run under a number that no list of users knows."""

    def unknown() -> str:
        raise error

    monkeypatch.setattr(getpass, "getuser", unknown)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder = FsspecStorage("memory://videos").staging()
    assert folder.parent.name == f"prefect-cometapi-{os.getuid()}"


def test_a_name_of_a_user_is_no_path(tmp_path, monkeypatch):
    """A user of a domain has a name with a separator."""
    monkeypatch.setattr(getpass, "getuser", lambda: "OFFICE\\me/../x")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder = FsspecStorage("memory://videos").staging()
    assert folder.parent == tmp_path / "prefect-cometapi-OFFICE_me_.._x"


def test_a_machine_without_temporary_folders_says_so(tmp_path, monkeypatch):
    """A folder needs none; an object store is refused with the variable to set."""

    def none() -> str:
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr(tempfile, "gettempdir", none)
    FolderStorage(tmp_path / "videos").check()
    with pytest.raises(StorageError, match="no writable folder for temporary files; set TMPDIR"):
        FsspecStorage("memory://videos").check()


def test_a_machine_without_user_numbers_stores_in_folders(tmp_path, monkeypatch):
    """Windows has no numbers of users."""
    monkeypatch.delattr(os, "getuid")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(getpass, "getuser", lambda: "me")
    place = FolderStorage(tmp_path / "videos")
    place.check()
    assert place.staging() == tmp_path / "videos" / INCOMING
    assert FsspecStorage("memory://videos").staging().is_dir()
    (tmp_path / "videos" / INCOMING).rmdir()
    (tmp_path / "videos" / INCOMING).write_text("")
    assert place.staging() == tmp_path / "videos" / f"{INCOMING}-user"


@pytest.mark.parametrize("name", ["O_DIRECTORY", "supports_dir_fd"])
def test_a_machine_that_cannot_open_folders_removes_staged_files(folder, monkeypatch, name):
    """Windows deletes files by their paths."""
    if name == "supports_dir_fd":
        monkeypatch.setattr(os, name, set())
    else:
        monkeypatch.delattr(os, name)
    (folder / "a").write_text("")
    assert remove(folder, [StagedFile("a", "a", 0), StagedFile("gone", "a", 0)]) == 1
    assert list(folder.iterdir()) == []


def test_where_nothing_can_be_renamed_files_are_staged_elsewhere(videos, monkeypatch, shared_place):
    """A download is renamed while it is staged, which a mounted object store may refuse."""
    rename = os.rename

    def refuse(source: Any, target: Any) -> None:
        if str(source).startswith(str(videos)):
            raise OSError(38, "Function not implemented")
        rename(source, target)

    monkeypatch.setattr(os, "rename", refuse)
    monkeypatch.setattr(os, "replace", refuse)
    assert FolderStorage(videos).staging().parent == shared_place
    assert list(videos.iterdir()) == []


@pytest.mark.parametrize("deletes", [True, False])
def test_a_staged_file_that_cannot_be_renamed_is_copied(tmp_path, monkeypatch, deletes):
    """The new name has the content; the old one may stay where nothing can be deleted."""

    def refuse(*_args: object) -> None:
        raise OSError(38, "Function not implemented")

    (tmp_path / "a.mp4").write_bytes(b"video")
    assert rename_staged(tmp_path / "a.mp4", tmp_path / "a.mp4") == tmp_path / "a.mp4"
    monkeypatch.setattr(os, "rename", refuse)
    if not deletes:
        monkeypatch.setattr(os, "unlink", refuse)
    assert rename_staged(tmp_path / "a.mp4", tmp_path / "a.webm").read_bytes() == b"video"
    assert (tmp_path / "a.mp4").exists() is not deletes
