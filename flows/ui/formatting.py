# SPDX-License-Identifier: Apache-2.0
"""Human-readable values, and escaping of text that Prefect's UI renders as Markdown."""

import re
from urllib.parse import quote


def escape_markdown(text: str) -> str:
    """Return untrusted text with its Markdown escaped, for artifact descriptions and table cells.

    Prefect's UI renders both as Markdown. Without escaping, a message of the service or the id of a
    row could load an image from another host in the user's browser, or show a link to that host.
    """
    return re.sub(r"([\\\[<])", r"\\\1", text)


def shown_size(size: int) -> str:
    """Return a size in bytes as kB, MB or GB."""
    if size >= 1_000_000_000:
        return f"{size / 1_000_000_000:.1f} GB"
    return f"{size / 1_000_000:.1f} MB" if size >= 100_000 else f"{size / 1000:.1f} kB"


def as_link(uri: str) -> str:
    """Return a URL of a stored file that a browser accepts."""
    return uri if "://" in uri else f"file://{quote(uri)}"
