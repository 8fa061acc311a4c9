# SPDX-License-Identifier: Apache-2.0
"""Files that are not published yet lie where nobody else can reach them."""

import getpass
import os
import tempfile

import pytest

from prefect_cometapi.runway import StorageError
from prefect_cometapi.runway.storage import FsspecStorage


@pytest.fixture
def shared_place(tmp_path, monkeypatch):
    """A folder for temporary files that everybody can write to."""
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))
    return tmp_path / f"prefect-cometapi-{getpass.getuser()}"


def test_staged_files_lie_where_nobody_else_can_write(shared_place):
    """Neither at the first time nor at the second."""
    for _ in range(2):
        folder = FsspecStorage("memory://videos").staging()
        assert folder.parent == shared_place
        assert {each.stat().st_mode & 0o777 for each in (folder, shared_place)} == {0o700}


@pytest.mark.parametrize("trap", ["everybody's", "a link", "a file", "another's"])
def test_a_place_that_somebody_else_prepared_is_not_used(shared_place, trap, monkeypatch, tmp_path):
    """Who could write there could read clips, exchange them, or lead our files elsewhere."""
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
    with pytest.raises(StorageError, match="is not this user's alone; remove it, or set TMPDIR"):
        FsspecStorage("memory://videos").staging()


def test_a_temporary_folder_that_cannot_be_made_is_told(tmp_path, monkeypatch):
    """With its name."""
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path / "gone"))
    with pytest.raises(StorageError, match="cannot be made"):
        FsspecStorage("memory://videos").staging()
