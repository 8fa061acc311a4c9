# SPDX-License-Identifier: Apache-2.0
"""Storages for videos: folders, fsspec URLs and Prefect blocks."""

import traceback
from pathlib import Path

import pytest
from prefect.blocks.core import Block
from prefect.filesystems import LocalFileSystem, RemoteFileSystem
from pydantic import SecretStr

from prefect_cometapi.flows import image_to_video
from prefect_cometapi.flows.runtime.block_storage import (
    block_storage,
    canonical_location,
    resolve_storage,
)
from prefect_cometapi.runway import StorageError
from prefect_cometapi.runway.storage.folder import FolderStorage
from prefect_cometapi.runway.storage.fsspec import FsspecStorage


class Bucket(Block):
    """Object store that takes files from the disk, as S3Bucket does."""

    _block_type_slug = "test-bucket"
    folder: str

    def upload_from_path(self, from_path: str, to_path: str) -> None:
        target = Path(self.folder) / to_path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(Path(from_path).read_bytes())


class Shelf(Block):
    """File system that takes whole files only."""

    _block_type_slug = "test-shelf"
    folder: str

    def write_path(self, path: str, content: bytes) -> None:
        (Path(self.folder) / path).write_bytes(content)


class AsyncShelf(Shelf):
    """File system that takes whole files only, with an async method."""

    _block_type_slug = "test-async-shelf"

    async def write_path(self, path: str, content: bytes) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        (Path(self.folder) / path).write_bytes(content)


class Nowhere(Block):
    """Block that stores nothing."""

    _block_type_slug = "test-nowhere"


@pytest.mark.server
@pytest.mark.parametrize("kind", ["folder", "file", "memory", "local-block", "remote-block"])
@pytest.mark.heavy
def test_a_video_lands_in_each_kind_of_storage(prefect_server, sandbox, image, tmp_path, kind):
    """Each kind of storage has the whole video, poster and sidecar, and the URI leads to them."""
    LocalFileSystem(basepath=str(tmp_path / "block")).save("test-local", overwrite=True)
    RemoteFileSystem(basepath="memory://remote").save("test-remote", overwrite=True)
    place = {
        "folder": str(tmp_path / "plain"),
        "file": f"file://{tmp_path}/by-url",
        "memory": "memory://videos",
        "local-block": "local-file-system/test-local",
        "remote-block": "remote-file-system/test-remote",
    }[kind]
    video = image_to_video(image, storage=place).videos[0]
    for uri in (video.uri, video.poster, video.sidecar):
        assert uri
        assert _size(uri) > 0
    assert _size(video.uri) == video.size


def _size(uri: str) -> int:
    import fsspec

    files, path = fsspec.core.url_to_fs(uri)
    return files.info(path)["size"]


@pytest.mark.parametrize("kind", [Bucket, Shelf, AsyncShelf])
def test_a_block_that_takes_files_is_a_storage(tmp_path, kind):
    """A block with either of Prefect's two upload methods is a storage."""
    storage = block_storage(kind(folder=str(tmp_path)), "some-block/mine")
    storage.check()
    staged = storage.staging() / "a.mp4"
    staged.write_bytes(b"video")
    assert storage.publish(staged, "a.mp4") == "some-block/mine/a.mp4"
    assert (tmp_path / "a.mp4").read_bytes() == b"video"


def test_a_block_that_refuses_a_file_is_a_storage_error(tmp_path):
    """A file that a block refuses is a storage error with the block, the file and the reason."""
    storage = block_storage(Shelf(folder=str(tmp_path / "missing")), "test-shelf/mine")
    staged = storage.staging() / "a.mp4"
    staged.write_bytes(b"video")
    with pytest.raises(
        StorageError, match=r"test-shelf/mine could not store a\.mp4: .*No such file"
    ):
        storage.publish(staged, "a.mp4")


def test_no_trace_tells_what_a_block_says_of_its_credentials(tmp_path):
    """The error of a block may repeat its credentials, so the trace names only block and file."""

    class Leaky(Shelf):
        _block_type_slug = "test-leaky"

        def write_path(self, path: str, content: bytes) -> None:
            raise RuntimeError("403 for https://h/a?sig=canary")

    storage = block_storage(Leaky(folder="/"), "test-leaky/mine")
    (tmp_path / "a.mp4").write_bytes(b"video")
    with pytest.raises(StorageError, match=r"test-leaky/mine could not store a\.mp4") as raised:
        storage.publish(tmp_path / "a.mp4", "a.mp4")
    assert "canary" not in "".join(traceback.format_exception(raised.value))


@pytest.mark.server
async def test_no_trace_tells_what_stands_in_a_block_that_is_not_valid_any_more(prefect_server):
    """A saved block that no longer validates is reported without its decrypted fields."""

    class Vault(Block):
        _block_type_slug = "test-vault"
        token: SecretStr

    await Vault(token=SecretStr("canary")).asave("old")

    class Newer(Block):
        _block_type_slug = "test-vault"
        token: SecretStr
        region: str

    assert Newer
    with pytest.raises(StorageError, match="test-vault/old cannot be loaded") as raised:
        await resolve_storage("test-vault/old")
    assert "canary" not in "".join(traceback.format_exception(raised.value))


def test_a_block_that_stores_nothing_is_refused():
    """A block that cannot store files, such as credentials, is refused."""
    with pytest.raises(StorageError, match="test-nowhere/x cannot store files"):
        block_storage(Nowhere(), "test-nowhere/x")


@pytest.mark.server
async def test_a_missing_block_is_told_with_the_way_to_write_a_folder(prefect_server):
    """The error for a missing block explains the notation of a folder with such a name."""
    with pytest.raises(StorageError, match=r"block s3-bucket/nope .* write \./s3-bucket/nope"):
        await resolve_storage("s3-bucket/nope")


@pytest.mark.parametrize(
    ("place", "kind"),
    [("./videos/today", FolderStorage), ("videos", FolderStorage), ("s3://b/v", FsspecStorage)],
)
async def test_paths_and_urls_need_no_block(place, kind):
    """A path or URL is used without a request to Prefect."""
    assert isinstance(await resolve_storage(place), kind)


@pytest.mark.parametrize("place", ["s3://bucket/v", "memory://v", "s3-bucket/prod"])
def test_a_place_elsewhere_has_one_name_in_every_folder(monkeypatch, tmp_path, place):
    """A remote location has the same canonical name in every working folder."""
    monkeypatch.chdir(tmp_path)
    assert canonical_location(place) == place
    assert canonical_location("./videos") == str(tmp_path / "videos")
