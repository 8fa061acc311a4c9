# SPDX-License-Identifier: Apache-2.0
"""Untrusted servers cannot delay a run for ever or pass off other content as a video."""

import asyncio

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prefect_cometapi.runway import DownloadInterrupted, InvalidOutput, OutputExpired
from prefect_cometapi.runway.media import download as module

from .fetching import BODY, URL, digest, download


@pytest.fixture
def target(tmp_path):
    return tmp_path / "o.mp4"


async def test_a_file_that_drips_does_not_hold_its_run_for_ever(target, monkeypatch):
    """Each byte arrives in time, but the whole file never would."""

    class Dripping(httpx.AsyncByteStream):
        async def __aiter__(self):
            while True:
                yield b"x"
                await asyncio.sleep(0)

    drip = httpx.MockTransport(lambda _request: httpx.Response(200, stream=Dripping()))
    monkeypatch.setattr(module, "MAX_SECONDS", 0.2)
    with pytest.raises(DownloadInterrupted, match="took longer than 0 s"):
        await download(URL, target, transport=drip)


LABELS = ["", "video/mp4", "application/octet-stream", "image/png", "text/plain", "text/html"]
LABELS += ["Application/JSON; charset=utf-8", "application/xml", "nonsense"]


@pytest.mark.parametrize("media_type", LABELS)
async def test_the_label_of_a_file_is_not_believed_or_refused(answers, target, media_type):
    """Storages use any label, so the content of the file decides."""
    script = answers((200, BODY, {"content-type": media_type}))
    assert await download(URL, target, transport=script) == digest(BODY)


NONSENSE = ["https://xn--/", "https://h:99999999/", "http://[", "https://\udcff/", "//", "http:a"]
NONSENSE += [
    "mailto:a@b.example",
    "data:text/html,x",
    "javascript:alert(1)",
    "t:*$.a[x.~=",
    "?",
    "#",
]
NONSENSE += ["ftp://h/", "https:///x", f"https://{'a' * 70}.example/", f"https://h/{'x' * 70_000}"]
NONSENSE += ["https://-a.example/", "https://[::1%25eth0]/", "https://a..b/", "https://h:-1/"]


@pytest.mark.parametrize("location", NONSENSE)
async def test_a_redirect_to_nonsense_is_told(answers, target, location):
    """Every exception of httpx becomes an error of this package."""
    script = answers((302, b"", {"location": location.encode("utf-8", "surrogateescape")}))
    with pytest.raises((InvalidOutput, DownloadInterrupted)):
        await download(URL, target, transport=script)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.sampled_from([*"https:/?#[]@!$&'()*+,;=.%-_~x0:é\\ ", "//", "xn--"]), max_size=12)
)
def test_no_redirect_ends_in_an_error_of_httpxs(tmp_path, no_waiting, parts):
    """The error says that the video is paid for and how to continue."""
    location = "".join(parts).encode()
    transport = httpx.MockTransport(
        lambda asked: (
            httpx.Response(302, headers=[(b"location", location)])
            if str(asked.url) == URL
            else httpx.Response(404)
        )
    )
    with pytest.raises((InvalidOutput, DownloadInterrupted, OutputExpired)):
        asyncio.run(download(URL, tmp_path / "video.mp4", transport=transport))


@pytest.mark.parametrize(
    "headers", [{"content-length": "1" * 5000}, {"content-range": f"bytes {'1' * 5000}-2/3"}]
)
async def test_a_number_without_end_is_told(answers, target, headers):
    """Python refuses to parse the number, and the result is still a typed error."""
    status = 206 if "content-range" in headers else 200
    transport = httpx.MockTransport(
        lambda _request: httpx.Response(status, headers=headers, stream=httpx.ByteStream(BODY))
    )
    try:
        assert await download(URL, target, transport=transport) == digest(BODY)
    except (InvalidOutput, DownloadInterrupted):
        assert "content-range" in headers
