# SPDX-License-Identifier: Apache-2.0
"""A file is read where it lies, and each reason why it cannot be is reported."""

import os
import socket
from pathlib import Path

import fsspec
import pytest

from prefect_cometapi.runway import SourceUnavailable, SourceUnreachable
from prefect_cometapi.runway.sources.files import FsspecFile, open_file


def reason(address: str) -> str:
    with pytest.raises(SourceUnavailable) as caught:
        open_file(address).read(9)
    assert not isinstance(caught.value, SourceUnreachable)
    assert "Money: nothing was charged." in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    return caught.value.message


def test_a_local_file_is_read_up_to_the_limit(tmp_path, monkeypatch):
    """A path may be relative, below the home folder or a URL, and nobody else can fetch it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    Path("a b.png").write_bytes(b"0123456789")
    for address in ("a b.png", "./a b.png", "~/a b.png", f"file://{tmp_path}/a%20b.png"):
        file = open_file(address)
        assert (file.size, file.read(4), file.read(99)) == (10, b"0123", b"0123456789")
        assert file.signer is None


def test_a_missing_local_file_names_the_machine_that_looked(tmp_path):
    """A path means a file of the machine that submits, which may be another one."""
    message = reason(f"{tmp_path}/cat.png")
    assert f"cannot be read on {socket.gethostname()}, which submits the request" in message
    assert "No such file or directory" in message
    assert "s3://, gs://, az:// or a storage block can be read on each" in message


def test_a_folder_or_a_pipe_is_not_read(tmp_path):
    """A pipe would be waited for without an end."""
    os.mkfifo(tmp_path / "pipe.png")
    assert "it is not a file" in reason(str(tmp_path / "pipe.png"))
    assert "it is not a file" in reason(str(tmp_path))


def test_a_file_without_permission_is_reported(tmp_path, monkeypatch):
    """A missing permission is named as such."""
    (tmp_path / "cat.png").write_bytes(b"x")

    def refuse(*_arguments):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    assert "Permission denied" in reason(str(tmp_path / "cat.png"))


def test_a_file_of_another_file_system_is_read_up_to_the_limit():
    """A file system without signatures and ETags can be used too."""
    fsspec.filesystem("memory").pipe_file("/pics/cat.png", b"0123456789")
    file = open_file("memory://pics/cat.png")
    assert (file.size, file.read(4), file.signer) == (10, b"0123", None)


def test_an_object_store_signs_with_the_media_type(store):
    """The response of the URL has the type of the content, not that of the upload."""
    store.store.clear()
    fsspec.filesystem("gs").pipe_file("/bucket/cat.png", b"x")
    file = open_file("gs://bucket/cat.png")
    assert file.signer
    assert file.signer.signed_url(60, "image/png").startswith("https://storage.example.com/bucket/")
    assert store.signed == [{"expiration": 60, "response_type": "image/png"}]
    first = file.signer.version()
    assert first.startswith("etag:")
    assert '"' not in first
    fsspec.filesystem("gs").pipe_file("/bucket/cat.png", b"y")
    again = open_file("gs://bucket/cat.png").signer
    assert again
    assert again.version() != first


def test_a_store_without_etags_has_another_mark_of_a_version(store, monkeypatch):
    """A changed object is noticed in every file system."""
    monkeypatch.setattr(store, "tags", False)
    fsspec.filesystem("gs").pipe_file("/bucket/cat.png", b"x")
    signer = open_file("gs://bucket/cat.png").signer
    assert signer
    assert signer.version().startswith("properties:")


def test_an_unknown_store_signs_without_a_media_type(store):
    """Only the options that a file system is known to take are passed."""
    fsspec.filesystem("gs").pipe_file("/bucket/cat.png", b"x")
    file = FsspecFile("gs://bucket/cat.png", "block/name/cat.png")
    file._scheme = "other"
    assert file.signer
    file.signer.signed_url(60, "image/png")
    assert store.signed == [{"expiration": 60}]


class NoCredentialsError(Exception):
    pass


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (FileNotFoundError("bucket/cat.png"), "it does not exist"),
        (PermissionError("Forbidden"), "the credentials of this machine do not permit it"),
        (
            ImportError("Install gcsfs to access Google Storage"),
            'Install gcsfs to access Google Storage (pip install "prefect-cometapi[gcs]")',
        ),
        (ValueError("no such project"), "no such project"),
        (NoCredentialsError("Unable to locate credentials"), "Unable to locate credentials"),
    ],
)
def test_the_reason_of_a_store_is_reported(store, monkeypatch, error, why):
    """Each reason that a retry cannot change ends the submission at once."""
    monkeypatch.setattr(store, "error", error)
    assert reason("gs://bucket/cat.png") == f"gs://bucket/cat.png cannot be read: {why}"


def test_a_store_that_does_not_answer_can_be_tried_again(store, monkeypatch):
    """An outage is not a missing file, and its text has no secrets."""
    monkeypatch.setattr(
        store, "error", OSError("GET https://s/x?X-Goog-Signature=canary timed out")
    )
    with pytest.raises(SourceUnreachable, match="cannot be read for now") as caught:
        open_file("gs://bucket/cat.png")
    assert "canary" not in str(caught.value)


def test_a_folder_of_a_store_is_not_a_file(store):
    """The beginning of many names is not an object."""
    fsspec.filesystem("gs").pipe_file("/bucket/pics/cat.png", b"x")
    assert "it is a folder" in reason("gs://bucket/pics")
