# SPDX-License-Identifier: Apache-2.0
"""A picture that is too large is refused at once, and neither it nor a signature is recorded."""

import base64
import logging
import random
import time
from typing import Any

import httpx
import pytest
from prefect.exceptions import ParameterTypeError
from prefect.filesystems import RemoteFileSystem

from prefect_cometapi.flows import (
    generate_batch,
    image_to_video,
    submit_generation,
    video_to_video,
)
from prefect_cometapi.runway import StorageUnavailable
from prefect_cometapi.runway.redact import LONGEST_SEARCHED, redact_payload

PNG = b"\x89PNG\r\n\x1a\n" + random.Random(7).randbytes(12_000_000)
DATA = base64.b64encode(PNG).decode()
FORMS = {
    "data URI": f"data:image/png;base64,{DATA}",
    "base64": DATA,
    "bytes": PNG,
    "bytearray": bytearray(PNG),
    "pair": (PNG, "image/png"),
}


def is_shown(text: str) -> bool:
    """Return whether a text has the beginning or the end of the picture, in either form."""
    parts = (DATA[20:40], DATA[-40:-20], repr(PNG[20:40])[2:-1], "PNG\\r")
    return any(part in text for part in parts)


@pytest.mark.parametrize("form", FORMS)
def test_a_picture_that_is_too_large_is_refused_at_once(form, caplog):
    """The refusal takes no time for the log, which has the size and no byte of the picture."""
    begun = time.process_time()
    with pytest.raises(ParameterTypeError, match="at most 5,000,000 bytes of image") as caught:
        image_to_video.validate_parameters({"request": {"promptImage": FORMS[form]}})
    assert time.process_time() - begun < 3
    assert "Parameter validation failed" in caplog.text
    assert len(caplog.text) < 5000
    assert not is_shown(caplog.text + str(caught.value))
    stored = image_to_video.serialize_parameters({"request": {"promptImage": FORMS[form]}})
    assert len(str(stored)) < 200
    assert not is_shown(str(stored))


def test_bytes_of_other_parameters_are_not_logged_either(caplog):
    """A list of a batch, a nested field, and the content of a storage block stay out of the log."""
    listed = [{"promptImage": PNG, "references": [{"uri": DATA}]}] * 500
    begun = time.process_time()
    with pytest.raises(ParameterTypeError):
        generate_batch.validate_parameters({"requests": listed, "max_in_flight": 0})
    assert time.process_time() - begun < 3
    nested = {"videoUri": "cat.mp4", "references": [{"uri": PNG}, (PNG, "image/png")], "seed": "x"}
    with pytest.raises(ParameterTypeError):
        video_to_video.validate_parameters({"request": nested})
    secret = RemoteFileSystem(basepath="memory://a", settings={"password": "canary-4711"})
    with pytest.raises(StorageUnavailable):
        image_to_video.validate_parameters({"request": {}, "storage": secret})
    assert not is_shown(caplog.text)
    assert "canary" not in caplog.text
    assert "max_in_flight" in caplog.text


def test_a_long_record_of_a_library_is_cut_before_it_is_searched(caplog):
    """A search for secrets in ten megabytes would take minutes."""
    begun = time.process_time()
    logging.getLogger("prefect.flows").error("given: %s %s", "x" * 9, FORMS["data URI"])
    assert time.process_time() - begun < 3
    assert not is_shown(caplog.text)
    assert caplog.text.strip().endswith(f"({len(FORMS['data URI']) + 17:,} characters)")


def test_a_long_text_in_a_further_field_is_recorded_by_its_hash():
    """A field that this package does not know may hold a picture in a form of its own."""
    begun = time.process_time()
    shown = redact_payload({"lastFrame": DATA, "note": "x" * LONGEST_SEARCHED})
    assert time.process_time() - begun < 3
    assert shown["lastFrame"].startswith("<sha256:")
    assert shown["note"] == "x" * LONGEST_SEARCHED


@pytest.mark.server
def test_a_task_refuses_it_without_a_word_of_it(prefect_server, sandbox, caplog):
    """A task's parameters are not validated by Prefect; its log has none of them, too."""
    request: Any = {"promptImage": FORMS["bytes"]}
    with pytest.raises(ValueError, match="at most 5,000,000 bytes") as caught:
        submit_generation.with_options(retries=0)(request, idempotency_key="sku-17")
    assert not is_shown(caplog.text + str(caught.value) + repr(caught.value))
    assert sandbox.accepted == []


@pytest.fixture
def spans(monkeypatch) -> list[str]:
    """Record the URL of each request, as OpenTelemetry's instrumentations of clients do."""
    from opentelemetry import context

    from prefect_cometapi.runway import http_clients
    from prefect_cometapi.runway.aiohttp_transport import AiohttpTransport

    recorded: list[str] = []
    key: Any = context._SUPPRESS_HTTP_INSTRUMENTATION_KEY

    class Suppressed:
        def __enter__(self) -> None:
            self.token = context.attach(context.set_value(key, True))

        def __exit__(self, *_error: object) -> None:
            context.detach(self.token)

    def instrument(transport_type: type[httpx.AsyncBaseTransport]) -> None:
        send = transport_type.handle_async_request

        async def traced(transport: Any, request: httpx.Request) -> httpx.Response:
            if not context.get_value(key):
                recorded.append(str(request.url))
            return await send(transport, request)

        monkeypatch.setattr(transport_type, "handle_async_request", traced)

    instrument(httpx.AsyncHTTPTransport)
    instrument(AiohttpTransport)
    monkeypatch.setattr(http_clients, "_suppressor", lambda: Suppressed)
    return recorded


@pytest.mark.server
def test_the_signature_of_an_output_reaches_no_span(prefect_server, sandbox, spans):
    """Calls to the service are traced; downloads, whose addresses are signed, are not."""
    request: Any = {"promptImage": "https://example.com/cat.jpg"}
    result = image_to_video(request)
    assert result.videos
    assert any("/runwayml/v1/image_to_video" in url for url in spans)
    assert any("/runwayml/v1/tasks/" in url for url in spans)
    assert not [url for url in spans if url.startswith(sandbox.url) and "?" in url]
