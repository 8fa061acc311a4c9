# SPDX-License-Identifier: Apache-2.0
"""Text in Markdown tables and descriptions of the Prefect UI stays inert."""

import asyncio
import json
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from prefect_cometapi.flows import collect, generate_batch
from prefect_cometapi.flows.ui.formatting import as_code, as_code_block, escape_markdown, titled

from ...runway.static_server import static_server

ACTIVE = {"image", "link_open", "html_inline", "html_block"}
PICTURE = "![x](http://evil.example/pixel.png)"
HTML = "<img src=http://evil.example/pixel.png>"
LINK = "[your key has expired, renew it](https://evil.example/login)"


def active(text: str) -> set[str]:
    """Return the active elements of the rendered text."""
    blocks = MarkdownIt("commonmark").parse(text)
    return {token.type for block in blocks for token in block.children or [block]} & ACTIVE


@given(st.text(st.sampled_from("![]()<>\\`:/a .&#;\n\"'*_-")))
@example(PICTURE)
@example(HTML)
@example(f"\\{LINK}")
@example("[a]\n\n[a]: https://evil.example")
@example("<https://evil.example>")
def test_no_text_is_more_than_text(text):
    """Untrusted text is never active Markdown, however it is written."""
    assert active(escape_markdown(text)) == set()


AUTOLINK = re.compile(r"(?:https?|ftp)://|www\.|[\w.+-]+@[\w-]+(?:\.[\w-]*\w)+", re.IGNORECASE)
"""Text of which marked, the library of Prefect's UI, makes a link without any markup."""

PARTS = ("http", "https", "HTTPS", "ftp", "://", "www", "WWW.", ".", "@", "evil.example", "\\", " ")


@given(st.lists(st.sampled_from(PARTS)).map("".join))
@example("renew it: https://evil.example/login")
@example("Www.evil.example")
@example("write to help+you@evil.example")
@example("\\https://evil.example")
def test_no_bare_address_becomes_a_link(text):
    """Addresses of a text are inert without markup, too, and are shown as they are."""
    escaped = escape_markdown(text)
    assert not AUTOLINK.search(escaped)
    assert active(escaped) == set()
    shown = MarkdownIt("commonmark").parseInline(escaped)[0].children or []
    assert "".join(token.content for token in shown).strip() == text.strip()


@given(st.text(st.sampled_from("![]()<>\\`:/a .&#;\n\"'*_~-")))
@example("``` \n</pre>")
@example("`a`")
@example("~~~\n![x](http://evil.example/pixel.png)")
def test_text_in_code_is_shown_as_it_is(text):
    """Untrusted text in code is one block or span of code with that text, however it is written."""
    (block,) = MarkdownIt("commonmark").parse(as_code_block(text))
    assert block.type == "fence"
    assert block.content.removesuffix("\n") == text
    words = " ".join(text.split())
    spans = [
        token
        for block in MarkdownIt("commonmark").parse(as_code(text))
        for token in block.children or []
    ]
    assert [(token.type, token.content) for token in spans] == (
        [("code_inline", words)] if words else []
    )


@given(st.text(st.sampled_from("![]()<>\\`:/a .&#;\n\"'*_-")), st.text(max_size=9))
def test_a_title_is_one_heading(title, text):
    """The title of an artifact is one line, of which no part is active."""
    first, *_rest = titled(title, text).split("\n")
    blocks = MarkdownIt("commonmark").parse(first)
    assert blocks[0].type == "heading_open"
    assert active(first) == set()


USUAL = ["sku-17/november", "InvalidRequest: no cats (HTTP 400)", "50 %", "2 @ 9", "s3://bucket/a"]


@pytest.mark.parametrize("text", USUAL)
def test_usual_words_are_left_as_they_are(text):
    """Ordinary words stay unchanged, as they are also read outside the UI."""
    assert escape_markdown(text) == text


@pytest.mark.server
async def test_no_table_shows_an_untrusted_picture_or_link(
    prefect_server, sandbox, history, monkeypatch
):
    """Refusals of the service and ids of a manifest show no picture or link in a table."""
    told = json.dumps({"error": {"code": "x", "message": f"bad {PICTURE} {HTML} {LINK}"}}).encode()
    head = f"HTTP/1.1 500 No\r\ncontent-type: application/json\r\ncontent-length: {len(told)}"
    row = {"id": PICTURE, "promptImage": "https://example.com/cat.jpg"}
    async with static_server(f"{head}\r\n\r\n".encode() + told) as (port, _):
        monkeypatch.setenv("COMETAPI_BASE_URL", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("COMETAPI_GENERATION_TIMEOUT", "1")  # the batch waits that long for it
        batch = await asyncio.to_thread(generate_batch, [row], return_state=True)
        collected = await asyncio.to_thread(collect, return_state=True)
    for state, key in ((batch, "Results"), (collected, "Collected")):
        shown = history.artifacts(state.state_details.flow_run_id)[key]
        (cells,) = json.loads(shown["data"])
        assert "evil.example" in str(cells)
        for text in (*cells.values(), shown["description"]):
            assert not AUTOLINK.search(text)
            assert active(text) == set()
