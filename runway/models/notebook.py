# SPDX-License-Identifier: Apache-2.0
"""HTML by which a notebook shows a stored video: poster, player and facts.

Every text is escaped, and the query of a URL is redacted. A notebook is often saved and shared, so
nothing but a small poster is embedded in it.
"""

import base64
import html
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

from ..redact import hide_secrets, redact_url

MAX_EMBEDDED = 200_000
"""Maximum bytes of a poster that is embedded."""

_STYLE = ' style="max-width:480px;max-height:480px"'


def table(facts: Mapping[str, str]) -> str:
    """Return a table of facts; pure."""
    rows = (
        f"<tr><th>{html.escape(name)}</th><td>{html.escape(hide_secrets(value))}</td></tr>"
        for name, value in facts.items()
        if value
    )
    return f"<table>{''.join(rows)}</table>"


def player(uri: str, poster: str | None, media_type: str) -> str:
    """Return the element that plays a video, or its poster if no browser can fetch the video."""
    still, address = poster_address(poster), browser_address(uri)
    if not address:
        return _image(still)
    shown = _attribute("poster", still) if still else ""
    source = f"<source{_attribute('src', address)}{_attribute('type', media_type)}>"
    return f'<video controls preload="none"{_STYLE}{shown}>{source}</video>'


def picture(uri: str, poster: str | None) -> str:
    """Return the element that shows a picture, by its scaled copy if there is one."""
    return _image(poster_address(poster) or browser_address(uri))


def poster_address(poster: str | None) -> str | None:
    """Return a small poster on this machine as a data URI, and any other by its address."""
    if not poster:
        return None
    address, path = browser_address(poster), Path(poster)
    if address and "://" not in poster:
        try:
            if path.stat().st_size <= MAX_EMBEDDED:
                return f"data:image/jpeg;base64,{base64.b64encode(path.read_bytes()).decode()}"
        except (OSError, ValueError):
            return None
    return address


def browser_address(location: str) -> str | None:
    """Return the address by which a browser finds a file, or None if it cannot fetch it.

    A file below the working folder has a relative path, since a notebook server serves that folder.
    """
    if "://" in location:
        is_web = location.lower().startswith(("https://", "http://"))
        return redact_url(location) if is_web else None
    path, folder = Path(location), Path.cwd()
    if not path.is_absolute():  # a file in a storage block
        return None
    return quote((path.relative_to(folder) if path.is_relative_to(folder) else path).as_posix())


def _image(address: str | None) -> str:
    return f"<img{_STYLE}{_attribute('src', address)}>" if address else ""


def _attribute(name: str, value: str) -> str:
    return f' {name}="{html.escape(value)}"'
