# SPDX-License-Identifier: Apache-2.0
"""Sources of a job, and their failures."""

import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from prefect_cometapi.sandbox.clips import sources
from prefect_cometapi.sandbox.clips.sources import InvalidSourceError, source_bytes


class Web:
    """Web server on loopback that answers as a test configures it."""

    def __init__(self):
        pages = self.pages = {}

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                status, headers, body = pages[self.path]
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format, *args):  # noqa: A002 - the base class calls it so
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def web():
    """Start a web server on loopback."""
    web = Web()
    thread = threading.Thread(target=web.server.serve_forever, args=(0.01,))
    thread.start()
    yield web
    web.server.shutdown()
    thread.join()
    web.server.server_close()


def test_a_source_on_loopback_is_fetched(web):
    """A file on this machine's own web server is used unchanged."""
    web.pages["/cat.jpg"] = (200, {}, b"meow")
    assert source_bytes(f"{web.url}/cat.jpg") == b"meow"


@pytest.mark.parametrize(
    "page", [(404, {}, b"no"), (302, {"Location": "/cat.jpg"}, b""), (200, {}, b"")]
)
def test_a_source_that_is_not_there_is_nothing(web, page):
    """Errors, redirects and empty files count as no source, and redirects are not followed."""
    web.pages |= {"/cat.jpg": (200, {}, b"meow"), "/page": page}
    assert source_bytes(f"{web.url}/page") is None


def test_a_source_without_end_is_given_up(web, monkeypatch):
    """A source that exceeds the size limit counts as no source."""
    monkeypatch.setattr(sources, "MAX_SOURCE_BYTES", 3)
    web.pages["/cat.jpg"] = (200, {}, b"meow")
    assert source_bytes(f"{web.url}/cat.jpg") is None


def test_a_machine_without_a_network_waits_little_and_only_once_per_host(monkeypatch):
    """The timeout of an unreachable host is spent once per host, and not once per file."""
    asked = []
    never = threading.Event()
    monkeypatch.setattr(sources, "FETCH_TIMEOUT", 0.05)
    monkeypatch.setattr(sources, "_fetch", lambda uri, **_: asked.append(uri) or never.wait(5))
    started = time.monotonic()
    assert source_bytes("https://silent.invalid/one.jpg") is None
    assert source_bytes("https://silent.invalid/two.jpg") is None
    assert time.monotonic() - started < 1
    assert asked == ["https://silent.invalid/one.jpg"]
    never.set()


def test_a_source_on_the_web_is_fetched_once(monkeypatch):
    """A file from the web is kept for the next job."""
    monkeypatch.setattr(sources, "_fetch", lambda *_, **__: b"meow")
    assert source_bytes("https://answering.invalid/cat.jpg") == b"meow"
    monkeypatch.setattr(sources, "_fetch", lambda *_, **__: None)
    assert source_bytes("https://answering.invalid/cat.jpg") == b"meow"


@pytest.mark.parametrize(
    "uri", ["https://[", "https://a b/", "http://127.0.0.1:0/", "https://\x00/"]
)
def test_an_address_that_cannot_be_is_nothing(uri):
    """A malformed address counts as an unreachable source."""
    assert source_bytes(uri) is None


def test_a_data_uri_carries_its_bytes():
    """A data URI may be in Base64 or percent-encoded."""
    assert source_bytes("data:image/png;base64,bWVvdw==") == b"meow"
    assert source_bytes("data:image/png,m%65ow") == b"meow"


@pytest.mark.parametrize("uri", ["data:image/png;base64", "data:image/png;base64,§§§"])
def test_a_broken_data_uri_is_refused(uri):
    """An invalid data URI is refused as an error of the request."""
    with pytest.raises(InvalidSourceError):
        source_bytes(uri)
