# SPDX-License-Identifier: Apache-2.0
"""A local manifest is checked before a batch, as far as that is quick and has no effect."""

import os
from pathlib import Path

import pytest

from prefect_cometapi.runway import InvalidManifest
from prefect_cometapi.runway.batch.manifest import check_manifest, read_rows
from prefect_cometapi.runway.batch.table_files import FileFormat


@pytest.mark.parametrize(
    ("name", "content"), [("none.jsonl", None), ("rows.xyz", b""), ("rows.jsonl.gz", b"{}")]
)
def test_a_file_that_cannot_be_read_is_refused_in_the_words_of_the_batch(name, content):
    """The check and the reading of the rows give the same reason."""
    if content is not None:
        Path(name).write_bytes(content)
    with pytest.raises(InvalidManifest) as checked:
        check_manifest(name)
    with pytest.raises(InvalidManifest) as read:
        read_rows(name)
    assert str(checked.value) == str(read.value)


@pytest.mark.parametrize("named", [None, FileFormat.CSV])
def test_a_readable_file_passes(named):
    """A file with a known format passes, also with a home folder in its path."""
    name = "rows" if named else "rows.csv"
    Path(name).write_text("prompt_image\nhttps://example.com/a.jpg\n")
    check_manifest(name, named)
    check_manifest(Path(name).absolute().as_uri(), named)


def test_what_takes_long_or_can_be_read_once_is_left_to_the_batch(tmp_path):
    """A web address, a folder and a pipe are not opened."""
    os.mkfifo(tmp_path / "pipe")  # to open it would wait for a writer
    for location in ("https://127.0.0.1:9/rows.csv", str(tmp_path), str(tmp_path / "pipe")):
        check_manifest(location)
