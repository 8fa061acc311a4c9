# SPDX-License-Identifier: Apache-2.0
"""Locations as users write them: paths on this machine, and URLs of other file systems."""

import os
import re
from pathlib import Path
from urllib.parse import unquote


def local_path(location: str) -> Path | None:
    """Return the path of a location on this machine, or None for any other location; pure."""
    if location.startswith("file://"):
        return Path(unquote(re.sub("^file://(localhost(?=/))?", "", location)))
    return None if "://" in location else Path(location)


def is_chained(location: str) -> bool:
    """Return True if fsspec would read the URL as a chain of file systems; pure.

    No storage of this package needs a chain, and some chains are dangerous. The reference file
    system reads instructions from the file behind it: these may name files of this machine, and
    contain templates that older versions of fsspec execute.
    """
    return "::" in location


def whole_path(path: Path) -> Path:
    """Return the absolute path, which no longer depends on the working directory.

    Symbolic links are not resolved, since their targets may change. The home of an unknown user
    (``~nobody``) is not expanded.
    """
    written = os.path.expanduser(path)  # noqa: PTH111 -- pathlib's raises
    return Path(re.sub("^/+", "/", os.path.abspath(written)))  # noqa: PTH100 -- pathlib's keeps ..
