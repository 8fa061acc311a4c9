# SPDX-License-Identifier: Apache-2.0
"""Data URIs, with which a request can contain a local file."""

import base64
import mimetypes
from pathlib import Path

from ..runway.errors import InvalidRequest


def as_source(location: str) -> str:
    """Return a URL unchanged, and a local file as a data URI.

    Raises:
        InvalidRequest: The text is neither a URL nor a readable file.
    """
    if "://" in location or location[:5].lower() == "data:":
        return location
    try:
        path = Path(location).expanduser()
        content = path.read_bytes()
    except (OSError, RuntimeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InvalidRequest(
            f"{location!r} is neither an https:// URL nor a readable file: {reason}"
        ) from error
    media_type = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"
