# SPDX-License-Identifier: Apache-2.0
"""Values as people read them, and text that Prefect's UI takes for Markdown."""

import re
from urllib.parse import quote


def plain(text: str) -> str:
    """Somebody's words, as they are to be read, for descriptions and cells of tables.

    Prefect's UI takes both for Markdown: a message of the service's, or a row's id, would load a
    picture from elsewhere in the browser of whoever looks, or show a link that leads there.
    """
    return re.sub(r"([\\\[<])", r"\\\1", text)


def shown_size(size: int) -> str:
    """Bytes as people read them."""
    if size >= 1_000_000_000:
        return f"{size / 1_000_000_000:.1f} GB"
    return f"{size / 1_000_000:.1f} MB" if size >= 100_000 else f"{size / 1000:.1f} kB"


def as_link(uri: str) -> str:
    """Return the address of a stored file as a browser takes it."""
    return uri if "://" in uri else f"file://{quote(uri)}"
