# SPDX-License-Identifier: Apache-2.0
"""Links of a gallery: their possible targets, and the forbidden ones."""

import re
from urllib.parse import unquote, urljoin, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_cometapi.flows.batch.urls import address, origins, without_login

PAGE = "https://gallery.example/batch/"

anything = st.one_of(
    st.text(),
    st.lists(
        st.sampled_from(
            [
                *("/", "//", "..", ".", ":", "@", "?", "#", "\\", "%2e", " ", "\t", "\n", "\0"),
                *("javascript:", "data:text/html,", "file://", "https://", "s3://", "HTTP://"),
                *("a", "host", "C:\\", "v.mp4", '"', "'", "<", "é", "\ud800", "\udc80"),
            ]
        )
    ).map("".join),
)


@pytest.mark.parametrize(
    ("place", "base", "wanted"),
    [
        ("/out/clip.mp4", "/out", "clip.mp4"),
        ("/out/clip.mp4", "/out/", "clip.mp4"),
        ("/out/videos/clip 1#a?b.mp4", "/out", "videos/clip%201%23a%3Fb.mp4"),
        ("/out/javascript:x.mp4", "/out", "javascript%3Ax.mp4"),
        ("/out/../videos/clip.mp4", "/out", "file:///videos/clip.mp4"),
        ("/videos/clip 1.mp4", "/out", "file:///videos/clip%201.mp4"),
        ("//videos/clip.mp4", "/out", "file:///videos/clip.mp4"),
        ("/output/clip.mp4", "/out", "file:///output/clip.mp4"),
        ("/out/\udcff.mp4", "/out", "%FF.mp4"),
        ("file:///out/clip%201.mp4", "/out", "clip%201.mp4"),
        ("/out/clip.mp4", "file:///out", "clip.mp4"),
        ("videos/clip.mp4", "videos", "clip.mp4"),
        ("C:\\out\\videos\\clip.mp4", "C:\\out", "videos/clip.mp4"),
        ("D:\\videos\\clip 1.mp4", "C:\\out", "file:///D:/videos/clip%201.mp4"),
        ("file:///C:/videos/clip.mp4", "/out", "file:///C:/videos/clip.mp4"),
        ("s3://bucket/out/a/clip 1.mp4", "s3://bucket/out", "a/clip%201.mp4"),
        ("https://cdn.example/a%20b.mp4?t=1", "/out", "https://cdn.example/a%20b.mp4?t=1"),
        ("http://127.0.0.1:8080/clip.mp4", "/out", "http://127.0.0.1:8080/clip.mp4"),
        ('https://cdn.example/"<a>.mp4', "/out", "https://cdn.example/%22%3Ca%3E.mp4"),
    ],
)
def test_what_a_browser_can_open_is_addressed(place, base, wanted):
    """A file below the page has a relative link, so that the folder can move with it."""
    assert address(place, base) == wanted


@pytest.mark.parametrize(
    "place",
    [
        "s3://bucket/clip.mp4",
        "s3://bucket/out/../clip.mp4",
        "gs://bucket/clip.mp4",
        "memory://videos/clip.mp4",
        "videos/clip.mp4",
        "../out/clip.mp4",
        "javascript:alert(1)",
        "data:text/html,<script>alert(1)</script>",
        "blob:https://cdn.example/1",
        "https:cdn.example",
        "https://",
        "https://user@name@cdn.example\\@evil.example/",
        "",
    ],
)
def test_what_no_browser_can_open_has_no_address(place):
    """An object store, a missing path and a script are shown as text without a link."""
    assert address(place, "s3://bucket/out") is None


@given(anything, anything)
def test_an_address_leads_to_a_file_the_web_or_below_the_page(place, base):
    """A link leads to no other scheme and no other folder, whatever its location contains."""
    found = address(place, base)
    if found is None:
        return
    assert re.fullmatch(r"[\w%/?#\[\]@!$&()*+,;=:.~-]+", found, re.ASCII)
    target = urljoin(PAGE, found)
    if re.match(r"https?://", found):
        assert re.fullmatch(r"[a-z0-9.:\[\]-]+", urlsplit(target).netloc)
    elif not found.startswith("file:///"):
        assert target == PAGE + found
        assert not {"", ".", ".."} & set(unquote(urlsplit(found).path).split("/"))


@given(
    st.lists(
        st.text(
            st.characters(exclude_characters="/\\", exclude_categories=["Cs"]), min_size=1
        ).filter(lambda name: name not in {".", ".."}),
        min_size=1,
    ),
    st.sampled_from(["/out", "/out/a b", "s3://bucket/out"]),
)
def test_every_name_beside_the_page_is_found_again(names, base):
    """A relative link decodes to the same file name, whatever its characters."""
    assert unquote(address("/".join([base, *names]), base) or "") == "/".join(names)


def test_a_url_shows_no_login():
    """A password in a storage's URL is in neither a link nor a text."""
    assert without_login("sftp://me:s3cret@host/a@b.mp4") == "sftp://host/a@b.mp4"
    assert without_login("/videos/me@home.mp4") == "/videos/me@home.mp4"
    assert address("https://me:s3cret@cdn.example/a.mp4", "/out") == "https://cdn.example/a.mp4"


def test_only_what_is_needed_may_load():
    """The policy names each needed host, and this folder, once and nothing else."""
    addresses = ["a.mp4", "b.mp4", "https://cdn.example:8443/c.mp4?d", "data:image/png;base64,AA"]
    assert origins(addresses) == ["'self'", "data:", "file:", "https://cdn.example:8443"]
    assert origins(["file:///a.mp4"]) == ["file:"]
    assert origins([]) == []
