# SPDX-License-Identifier: Apache-2.0
"""Data URIs, so that a request can carry a file of this machine."""

import base64
import mimetypes
from pathlib import Path

from ..runway.errors import InvalidRequest


def as_source(place: str) -> str:
    """Return a URL unchanged, and a file on this machine as a data URI.

    Raises:
        InvalidRequest: The text is neither a URL nor a file that can be read.
    """
    if "://" in place or place[:5].lower() == "data:":
        return place
    try:
        path = Path(place).expanduser()
        content = path.read_bytes()
    except (OSError, RuntimeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InvalidRequest(
            f"{place!r} is neither a https:// URL nor a file that can be read here: {reason}"
        ) from error
    media_type = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"
