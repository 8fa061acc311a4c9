# SPDX-License-Identifier: Apache-2.0
"""Choice of the storage class for a location."""

from .base import Storage
from .folder import FolderStorage
from .fsspec import FsspecStorage
from .paths import local_path


def open_storage(location: str) -> Storage:
    """Return the storage at a path or an fsspec URL."""
    path = local_path(location)
    return FsspecStorage(location) if path is None else FolderStorage(path)
