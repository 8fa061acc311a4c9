# SPDX-License-Identifier: Apache-2.0
"""Sources as they are written on the command line."""

import mimetypes
from pathlib import Path
from urllib.parse import urlsplit

from ..runway.models.media_types import HEAD_BYTES, media_type_of
from ..runway.models.sources import is_stored, split_block_path
from ..runway.sources.files import LocalFile
from ..runway.storage.paths import local_path


def is_video(source: str) -> bool:
    """Return True for a video, by the content of a local file, or else by its name or label."""
    if source[:5].lower() == "data:":
        return source[5:].lower().startswith("video/")
    stored = is_stored(source)
    path = local_path(source) if stored and not split_block_path(source) else None
    found = media_type_of(LocalFile(path, source).read(HEAD_BYTES)) if path else None
    named = mimetypes.guess_type(source if stored else urlsplit(source).path)[0]
    return (found or named or "").startswith("video/")


def as_source(location: str) -> str:
    """Return a source as a request takes it, once a local file was found to be readable.

    A file of the working directory wins over a storage block of the same name: shells complete the
    names of files, and without a leading ``./``.

    Raises:
        SourceUnavailable: It is a path, and there is no such file.
    """
    path = local_path(location) if is_stored(location) else None
    if path is None or location[:5].lower() == "data:":
        return location
    if split_block_path(location):
        return f"./{location}" if Path(location).is_file() else location
    LocalFile(path, location)
    return location
