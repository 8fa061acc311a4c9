# SPDX-License-Identifier: Apache-2.0
"""Mounts and machines that lack something: refused before the purchase, or worked around."""

import errno
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from prefect_cometapi.flows import aimage_to_video
from prefect_cometapi.flows.runtime.run_context import RunContext
from prefect_cometapi.flows.steps.delivery import check_storage
from prefect_cometapi.runway import ImageToVideoRequest, StorageUnavailable

REQUEST = ImageToVideoRequest(prompt_image="https://example.com/cat.jpg", duration=5)


@pytest.fixture
def refuse_renames(tmp_path, monkeypatch):
    """Make each rename below the storage fail, as on a mounted object store."""
    for name in ("rename", "replace"):
        real = getattr(os, name)

        def refuse(source: Any, target: Any, *, real: Any = real, **options: Any) -> None:
            if str(tmp_path / "mount") in f"{source} {target}":
                raise OSError(errno.ENOSYS, "Function not implemented")
            real(source, target, **options)

        monkeypatch.setattr(os, name, refuse)


@pytest.mark.server
async def test_a_mount_without_a_rename_receives_the_video(
    prefect_server, sandbox, tmp_path, refuse_renames
):
    """A person stored on a mounted bucket; the video used to be paid for and then refused."""
    (video,) = (await aimage_to_video(REQUEST, storage=str(tmp_path / "mount"))).videos
    assert Path(video.uri).stat().st_size == video.size
    assert not list((tmp_path / "mount").glob("*.part"))


async def refused(storage: str) -> str:
    """Return the reason why a storage is refused before anything is bought."""
    with pytest.raises(StorageUnavailable) as caught:
        await check_storage(RunContext(given_storage=storage))
    assert "nothing was charged" in str(caught.value)
    return caught.value.message


async def test_a_mount_without_space_is_refused_before_the_purchase(small_disk):
    """A person bought a video for a disk that was full."""
    disk = small_disk(100).folder
    assert "is full" in await refused(str(disk / "videos"))


async def test_a_name_that_is_too_long_is_refused_before_the_purchase(tmp_path, monkeypatch):
    """A person stored on an encrypted folder, whose names have at most 100 characters."""
    opened = os.open

    def refuse(path: Any, *args: Any, **options: Any) -> int:
        if len(Path(path).name) > 100:
            raise OSError(errno.ENAMETOOLONG, "File name too long")
        return opened(path, *args, **options)

    def refuse_open(path: Path, *args: Any, **options: Any) -> Any:
        os.close(refuse(path, os.O_CREAT | os.O_RDWR))
        return open_path(path, *args, **options)

    open_path = Path.open
    monkeypatch.setattr(Path, "open", refuse_open)
    assert "File name too long" in await refused(str(tmp_path / "videos"))


async def test_a_read_only_folder_is_refused_before_the_purchase():
    """A person named a folder of the system."""
    assert "/proc/videos" in await refused("/proc/videos")


async def test_a_mount_that_gives_other_bytes_back_is_refused(tmp_path, monkeypatch):
    """A mount that converts files would change the video."""
    monkeypatch.setattr(Path, "read_bytes", lambda _path: b"other")
    assert "differs" in await refused(str(tmp_path / "videos"))


NOBODY = 54_321
CHECK = """
import asyncio, os
from prefect_cometapi.flows.runtime.run_context import RunContext
from prefect_cometapi.flows.steps.delivery import check_storage
def check(storage):
    asyncio.run(check_storage(RunContext(given_storage=storage)))
check("memory://videos")  # imports what root alone may read
os.setgroups([]); os.setgid({nobody}); os.setuid({nobody})
check("memory://videos"); check("{folder}")
print("checked")
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become a user without a name")
def test_a_container_with_a_user_that_no_list_knows_can_store():
    """A cluster gave the container a random user number, without a name or a home."""
    hidden = {"HOME", "USER", "LOGNAME", "LNAME", "USERNAME"}
    env = {name: text for name, text in os.environ.items() if name not in hidden}
    with TemporaryDirectory() as folder:  # unlike tmp_path, below folders that all users may enter
        Path(folder).chmod(0o777)
        ran = subprocess.run(
            [sys.executable, "-c", CHECK.format(nobody=NOBODY, folder=f"{folder}/videos")],
            env={**env, "PREFECT_HOME": f"{folder}/prefect", "TMPDIR": folder},
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
    assert ran.stdout == "checked\n", ran.stderr


def test_a_machine_without_temporary_folders_can_import_the_flows(tmp_path):
    """A container had a read-only root; the import used to fail."""
    script = (
        "import tempfile; tempfile._candidate_tempdir_list = lambda: ['/nowhere']\n"
        "import prefect_cometapi.flows.batch.flow; print('imported')"
    )
    command = [sys.executable, "-c", script]
    env = {**os.environ, "PREFECT_HOME": str(tmp_path)}
    ran = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert ran.stdout == "imported\n", ran.stderr


async def test_a_machine_like_windows_can_store(tmp_path, monkeypatch):
    """Windows has no user numbers and opens no folders."""
    opened = os.open

    def refuse(path: Any, *args: Any, **options: Any) -> int:
        if Path(path).is_dir():
            raise PermissionError(errno.EACCES, "Permission denied")
        return opened(path, *args, **options)

    monkeypatch.setattr(os, "open", refuse)
    for name in ("getuid", "O_DIRECTORY", "O_NOFOLLOW"):
        monkeypatch.delattr(os, name)
    for storage in (str(tmp_path / "videos"), "memory://videos"):
        await check_storage(RunContext(given_storage=storage))
