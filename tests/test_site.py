# SPDX-License-Identifier: Apache-2.0
"""The site of docs/, built and opened in a browser."""

import re
import runpy
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import urldefrag, urljoin

import pytest
from hypothesis import given
from hypothesis import strategies as st
from playwright.sync_api import Browser, Page, expect, sync_playwright

ROOT = Path(__file__).parents[1]
SITE = runpy.run_path(str(ROOT / "docs" / "site.py"))
CONFIGURATION = tomllib.loads((ROOT / "zensical.toml").read_text(encoding="utf-8"))["project"]
FILES: dict[str, str] = SITE["published"]()
REPOSITORY: str = SITE["REPOSITORY"]


def listed(entry: Any) -> list[str]:
    """Return the pages of a part of the navigation."""
    if isinstance(entry, str):
        return [entry]
    parts = entry.values() if isinstance(entry, dict) else entry
    return [page for part in parts for page in listed(part)]


def test_the_navigation_has_every_page_once():
    """Each page of docs/ is in zensical.toml, and each entry there is a page."""
    pages = [name for name in FILES.values() if name.endswith(".md")]
    assert sorted(listed(CONFIGURATION["nav"])) == sorted(pages)


@pytest.mark.parametrize(
    ("page", "target", "link"),
    [
        ("docs/batches.md", "sources.md#what-is-sent", "sources.md#what-is-sent"),
        ("docs/batches.md", "#results", "#results"),
        ("docs/settings.md", "../README.md#models", "index.md#models"),
        ("docs/promises.md", "../SECURITY.md", "security.md"),
        ("README.md", f"{REPOSITORY}/blob/main/docs/cli.md#x", "cli.md#x"),
        ("README.md", f"{REPOSITORY}/raw/main/docs/images/run.png", "images/run.png"),
        ("CONTRIBUTING.md", "justfile", f"{REPOSITORY}/blob/main/justfile"),
        ("docs/x.md", "../deployments/a.yaml", f"{REPOSITORY}/blob/main/deployments/a.yaml"),
        ("docs/x.md", "https://example.com/README.md", "https://example.com/README.md"),
    ],
)
def test_a_link_is_adapted_to_the_site(page, target, link):
    """A link leads to the page of the site, or else to the file in the repository."""
    assert SITE["site_link"](page, target, {**FILES, "docs/x.md": "x.md"}) == link


@given(code=st.text(alphabet="ab [](x.md)\n", max_size=40))
def test_code_is_not_changed(code):
    """A code block looks on the site as in the repository."""
    block = f"```python\n{code}\n```\n"
    assert SITE["with_links"]("docs/batches.md", block, FILES) == block


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Build the site as `just site` does, and serve it."""
    done = subprocess.run(
        [sys.executable, ROOT / "docs" / "site.py"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    handler = partial(QuietHandler, directory=ROOT / CONFIGURATION["site_dir"])
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


class QuietHandler(SimpleHTTPRequestHandler):
    """Server of files that logs nothing."""

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 -- the name of the base
        """Log nothing."""


@pytest.fixture(scope="module")
def browser(chromium) -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    with browser.new_page() as page:
        yield page


@pytest.mark.heavy
def test_every_page_opens_with_its_pictures_and_no_broken_link(address, page):
    """Each page has its title and pictures; links lead somewhere; no other server is asked."""
    requested: list[str] = []
    failed: list[str] = []
    page.on("request", lambda request: requested.append(request.url))
    page.on("response", lambda reply: failed.append(reply.url) if reply.status >= 400 else None)
    anchors: dict[str, set[str]] = {}
    links: dict[str, list[str]] = {}
    left = [address]
    while left:
        place = left.pop()
        page.goto(place)
        anchors[place] = set(page.eval_on_selector_all("[id]", "all => all.map(e => e.id)"))
        hrefs = page.eval_on_selector_all("article a[href]", "all => all.map(e => e.href)")
        links[place] = [href for href in hrefs if href.startswith(address)]
        broken = page.eval_on_selector_all(
            "article img", "all => all.filter(e => !e.complete || !e.naturalWidth).map(e => e.src)"
        )
        assert broken == [], place
        expect(page.locator("article h1")).to_have_count(1)
        everywhere = page.eval_on_selector_all("a[href]", "all => all.map(e => e.href)")
        found = {urldefrag(href)[0] for href in everywhere if href.startswith(address)}
        left += [
            href
            for href in found - anchors.keys() - set(left)
            if not re.search(r"\.(py|json|xml)$", href)
        ]
    assert len(anchors) == sum(name.endswith(".md") for name in FILES.values())
    assert failed == []
    assert [url for url in requested if not url.startswith((address, "data:", "blob:"))] == []
    for place, hrefs in links.items():
        for href in hrefs:
            target, anchor = urldefrag(urljoin(place, href))
            if target in anchors:
                assert not anchor or anchor in anchors[target], f"{place}: {href}"
            else:
                assert page.request.get(target).ok, f"{place}: {href}"


@pytest.mark.heavy
def test_the_search_finds_a_page(address, page):
    """The search box finds the page of a word, and leads there."""
    page.goto(address)
    page.locator(".md-search__button").first.click()
    page.keyboard.type("SubmissionUncertain")
    result = page.get_by_role("link", name=re.compile("Troubleshooting")).last
    expect(result).to_be_visible()
