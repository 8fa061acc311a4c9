# SPDX-License-Identifier: Apache-2.0
"""A reply that is not understood is described, so that a paid video is found."""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest

from prefect_cometapi.flows import image_to_video
from prefect_cometapi.runway import CometAPIError, GenerationTimeout, InvalidOutput

ID = "3d957031-9a2a-45e2-9dc7-bc8513059c50"
IMAGE: Any = {"promptImage": "https://example.com/cat.jpg", "promptText": "slow zoom"}


@pytest.fixture
def service() -> Iterator[Callable[[Any], str]]:
    """Return a function that starts a service, which answers each poll with the same JSON."""
    with ExitStack() as stack:

        def start(state: Any) -> str:
            class Service(BaseHTTPRequestHandler):
                def do_POST(self) -> None:
                    self.rfile.read(int(self.headers["content-length"]))
                    self.answer(state if self.path.endswith("feed") else {"id": ID})

                def do_GET(self) -> None:
                    self.answer(state)

                def answer(self, body: Any) -> None:
                    content = json.dumps(body).encode()
                    self.send_response(200)
                    self.send_header("content-type", "application/json")
                    self.send_header("content-length", str(len(content)))
                    self.end_headers()
                    self.wfile.write(content)

                def log_message(self, format: str, *args: object) -> None: ...  # noqa: A002

            web = ThreadingHTTPServer(("127.0.0.1", 0), Service)
            stack.callback(web.server_close)
            stack.callback(web.shutdown)
            Thread(target=web.serve_forever, daemon=True).start()
            return f"http://127.0.0.1:{web.server_port}"

        yield start


@pytest.mark.server
@pytest.mark.parametrize(
    ("state", "error", "words"),
    [
        (
            {"id": ID, "status": "SUCCEEDED", "result": {"link": "https://h/v.mp4?sig=canary"}},
            InvalidOutput,
            "returned no output for 0 s; the reply has a web address in result.link",
        ),
        (
            {"id": ID, "status": "RENDERED", "output": ["https://h/v.mp4?sig=canary"]},
            GenerationTimeout,
            "calls 'RENDERED', a word that is not known here; the reply has a web address in out",
        ),
        (
            {"id": "another-1", "status": "SUCCEEDED", "output": ["https://h/v.mp4?sig=canary"]},
            GenerationTimeout,
            "returned no state: the reply is about the generation another-1",
        ),
        ({"id": ID, "phase": "done"}, GenerationTimeout, "has the fields id, phase"),
    ],
    ids=["unknown field", "unknown word", "another id", "unknown shape"],
)
def test_what_was_not_understood_is_named(
    prefect_server, sandbox, service, monkeypatch, state, error, words
):
    """A paid video did not arrive; the error names the field, the word or the id in the reply."""
    monkeypatch.setenv("COMETAPI_BASE_URL", service(state))
    monkeypatch.setenv("COMETAPI_GENERATION_TIMEOUT", "1.5")
    monkeypatch.setenv("COMETAPI_NOT_FOUND_GRACE", "0.1")
    with pytest.raises(CometAPIError) as told:
        image_to_video(IMAGE)
    assert isinstance(told.value, error)
    assert words in str(told.value)
    assert "canary" not in str(told.value)
    assert f"prefect-cometapi finish {ID}" in str(told.value)
