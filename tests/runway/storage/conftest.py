# SPDX-License-Identifier: Apache-2.0
"""Staged files for tests of storages."""

from pathlib import Path

import pytest

OLD, NEW = b"old" * 1000, b"new" * 2000


@pytest.fixture
def staged(tmp_path):
    """Return a function that makes a staged file."""

    def make(content: bytes = NEW) -> Path:
        file = tmp_path / "staged.mp4"
        file.write_bytes(content)
        return file

    return make
