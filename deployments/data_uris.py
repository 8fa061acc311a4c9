# SPDX-License-Identifier: Apache-2.0
"""Files on this machine as sources that a request can carry."""

import base64
import mimetypes
from pathlib import Path

from ..runway.errors import InvalidRequest


def as_source(place: str) -> str:
    """A URL as it is, a file on this machine as a data URI.

    Raises:
        InvalidRequest: It is neither.
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
