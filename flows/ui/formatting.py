# SPDX-License-Identifier: Apache-2.0
"""Human-readable values, and escaping of text that Prefect's UI renders as Markdown."""

import base64
import re

_AUTOLINK = re.compile(
    r"(?<=http)(?=://)|(?<=https)(?=://)|(?<=ftp)(?=://)|(?<=www)(?=\.)|(?<=[\w.+-])(?=@[\w-])",
    re.IGNORECASE,
)
"""Places at which a backslash keeps a bare URL or e-mail address from becoming a link."""


def escape_markdown(text: str) -> str:
    """Return untrusted text with its Markdown escaped, for artifact descriptions and table cells.

    Prefect's UI renders both as Markdown. Without escaping, a message of the service or the id of a
    row could load an image from another host in the user's browser, or show a link to that host.
    The UI also makes links of bare URLs and e-mail addresses, as GitHub does.
    """
    escaped = re.sub(r"([\\\[<])", r"\\\1", text)
    return _AUTOLINK.sub(r"\\", escaped)


def shown_size(size: int) -> str:
    """Return a size in bytes as kB, MB or GB."""
    if size >= 1_000_000_000:
        return f"{size / 1_000_000_000:.1f} GB"
    return f"{size / 1_000_000:.1f} MB" if size >= 100_000 else f"{size / 1000:.1f} kB"


def titled(title: str, text: str = "") -> str:
    """Return the description of an artifact; its first line is the title of its card in the UI."""
    return "\n\n".join(filter(None, [f"### {escape_markdown(' '.join(title.split()))}", text]))


def as_code(text: str) -> str:
    """Return untrusted text as code, which the UI shows as it is, so that it can be copied."""
    line = " ".join(text.split())
    fence = _longer_fence(line)
    space = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{space}{line}{space}{fence}" if line else ""


def as_code_block(text: str) -> str:
    """Return untrusted text as a block of code."""
    fence = max(_longer_fence(text), "```", key=len)
    return f"{fence}text\n{text}\n{fence}"


def as_picture(jpeg: bytes) -> str:
    """Return a JPEG as Markdown that contains it.

    A browser may not be able to reach the storage. Prefect's artifact for images would show the
    address of the picture, too, which is its content here.
    """
    return f"![](data:image/jpeg;base64,{base64.b64encode(jpeg).decode()})"


def _longer_fence(text: str) -> str:
    """Return a run of backticks that the text does not contain."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    return "`" * (longest + 1)


def is_web_address(uri: str) -> bool:
    """Return whether a link to a stored file works in a browser that shows Prefect's UI.

    A browser follows no link from a page to a local file, and knows no scheme of an object store.
    """
    return re.match(r"https?://", uri, re.IGNORECASE) is not None
