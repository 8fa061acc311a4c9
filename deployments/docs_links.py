# SPDX-License-Identifier: Apache-2.0
"""Pages of the docs that explain the deployments."""

from importlib.metadata import metadata
from urllib.parse import urljoin

_OF_ROUTES = "production.md#in-the-ui"
_PAGES = {"generate_batch": "batches.md", "collect": "concepts.md"}


def with_page(description: str, flow: str) -> str:
    """Return the description of a deployment with a link to the page that explains it.

    Args:
        description: Description, in Markdown.
        flow: Name of the flow's function, also with its module.
    """
    page = page_of(flow)
    address = urljoin(_documentation(), page)
    return f"{description}\n\n[How it works]({address})"


def page_of(flow: str) -> str:
    """Return the page of the docs that explains a flow, such as ``batches.md``; pure."""
    return _PAGES.get(flow.rpartition(".")[2], _OF_ROUTES)


def _documentation() -> str:
    """Return the address of the docs, which pyproject.toml names for the installed package."""
    urls = metadata("prefect-cometapi").get_all("Project-URL") or []
    named = dict(url.split(", ", 1) for url in urls)
    return named["Documentation"]
