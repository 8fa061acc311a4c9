# SPDX-License-Identifier: Apache-2.0
"""Locations as users write them: paths of this machine, and URLs of other file systems."""

import os
import re
from pathlib import Path
from urllib.parse import unquote


def local_path(place: str) -> Path | None:
    """The path of a place on this machine, or None where it is elsewhere; pure."""
    if place.startswith("file://"):
        return Path(unquote(re.sub("^file://(localhost(?=/))?", "", place)))
    return None if "://" in place else Path(place)


def is_chained(place: str) -> bool:
    """Whether a URL names one file system behind another, as fsspec would take it; pure.

    None of ours needs that, and some read what lies behind them as instructions: references hold
    addresses of this machine's files, and templates that older versions of fsspec execute.
    """
    return "::" in place


def whole_path(path: Path) -> Path:
    """The path from the root, the same from whichever folder it is written.

    Links are not followed, since they may lead elsewhere tomorrow. Somebody else's home that is not
    known (``~nobody``) is left as it is written.
    """
    written = os.path.expanduser(path)  # noqa: PTH111 -- pathlib's raises
    return Path(re.sub("^/+", "/", os.path.abspath(written)))  # noqa: PTH100 -- pathlib's keeps ..
