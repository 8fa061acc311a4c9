# SPDX-License-Identifier: Apache-2.0
"""One POST buys one generation, and a request with a lost answer is never sent again."""

import asyncio
import json
from typing import get_args

import httpx
import pytest
from pydantic import SecretStr

from prefect_cometapi.runway import (
    AuthenticationError,
    GenerationNotFound,
    ImageToVideoRequest,
    InvalidRequest,
    InvalidSource,
    QuotaExceeded,
    RunwayClient,
    ServiceUnavailable,
    Status,
    SubmissionUncertain,
    UnexpectedResponse,
    VideoToVideoRequest,
)
from prefect_cometapi.runway.api import client as wire
from prefect_cometapi.sandbox import ReplyShape

SHAPES = sorted(set(get_args(ReplyShape)) - {"late_output"})


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(wire, "TIMEOUT", httpx.Timeout(0.2))


async def test_an_accepted_request_gives_its_id(sandbox, client_of, request_):
    """The request that CometAPI receives, once, is the one that was sent."""
    service = sandbox()
    client = await client_of(service.url)
    task_id = await client.create(request_)
    assert [job.task_id for job in service.accepted] == [task_id]
    assert service.accepted[0].body == request_.to_wire()
    assert service.accepted[0].route == "image_to_video"


async def test_a_source_that_was_not_read_is_never_sent(sandbox, client_of):
    """A client sends URLs and data URIs; a path would be useless to the service."""
    service = sandbox()
    client = await client_of(service.url)
    request = ImageToVideoRequest(prompt_image="s3://bucket/cat.png")
    with pytest.raises(InvalidSource, match="promptImage must be read before"):
        await client.create(request)
    assert service.requests == []
    body = {**request.to_wire(), "promptImage": "https://example.com/cat.png"}
    await client.create(request, body=body)
    assert service.accepted[0].body == body


async def test_nothing_is_sent_where_the_last_moment_says_no(sandbox, client_of, request_):
    """The last check runs after the connection is made, and its refusal sends nothing."""
    service, asked = sandbox(), []
    client = await client_of(service.url)

    def no():
        asked.append(len(service.requests))
        raise ServiceUnavailable("too late")

    with pytest.raises(ServiceUnavailable, match="too late"):
        await client.create(request_, before_sending=no)
    assert asked == [0]
    assert service.requests == []
    await client.create(request_, before_sending=lambda: asked.append(0))
    assert len(asked) == 2
    assert len(service.accepted) == 1


async def test_a_video_goes_to_its_own_route(answers, client_of):
    """Each kind of request is posted to the documented route."""
    script = answers({"id": "v-1"})
    client = await client_of(script)
    request = VideoToVideoRequest(video_uri="https://example.com/a.mp4", prompt_text="rain")
    assert await client.create(request) == "v-1"
    sent = script.requests[0]
    assert (sent.method, str(sent.url)) == (
        "POST",
        "https://api.cometapi.com/runwayml/v1/video_to_video",
    )
    assert json.loads(sent.content) == request.to_wire()


async def test_every_call_carries_the_key_and_the_version(sandbox, client_of, request_, api_key):
    """The docs of CometAPI require the version on some calls and allow it on all."""
    service = sandbox()
    client = await client_of(service.url)
    task_id = await client.create(request_)
    await client.get(task_id)
    await client.feed(task_id)
    assert [request.route for request in service.requests] == ["create", "task", "feed"]
    for request in service.requests:
        assert request.headers["authorization"] == f"Bearer {api_key}"
        assert request.headers["x-runway-version"] == "2024-11-06"
        assert request.headers["accept"] == "application/json"


@pytest.mark.parametrize(
    "fault",
    ["reset-after", "no-id"] + [f"error-after:value={status}" for status in (500, 502, 504, 524)],
)
async def test_a_lost_receipt_is_uncertain_and_paid_once(sandbox, client_of, request_, fault):
    """A job that was accepted without a readable id is not sent again, and the user is informed."""
    service = sandbox(f"create:{fault}")
    client = await client_of(service.url)
    with pytest.raises(SubmissionUncertain) as caught:
        await client.create(request_)
    assert "possibly charged, once" in str(caught.value)
    assert len(service.accepted) == 1
    assert len(service.requests) == 1


async def test_a_receipt_that_does_not_come_is_uncertain(sandbox, client_of, request_, monkeypatch):
    """A service that accepts the job and does not answer is not asked a second time."""
    service = sandbox("create:silent-after")
    monkeypatch.setattr(wire, "TIMEOUT", httpx.Timeout(2.0))
    client = await client_of(service.url)
    with pytest.raises(SubmissionUncertain, match="ReadTimeout"):
        await client.create(request_)
    assert len(service.accepted) == len(service.requests) == 1


@pytest.mark.parametrize("fault", ["reset-before", "500", "502", "504", "524", "cloudflare"])
async def test_a_lost_request_is_uncertain_too(sandbox, client_of, request_, fault):
    """The job may or may not have been accepted, so nothing is sent again."""
    service = sandbox(f"create:{fault}")
    client = await client_of(service.url)
    with pytest.raises(SubmissionUncertain):
        await client.create(request_)
    assert len(service.requests) == 1


@pytest.mark.parametrize(
    "answer",
    [
        (200, b"", {}),
        (200, b'{"id": "3d95', {"content-type": "application/json"}),
        (201, b"ok", {"content-type": "text/plain"}),
        (200, [{"id": "a"}], {}),
        (200, b"[" * 100_000, {"content-type": "application/json"}),
        (204, b"", {}),
        (200, {"code": 500, "msg": "system error"}, {}),
        (200, {"status": "task_not_exist"}, {}),
        (500, {"code": "task_not_exist", "message": "", "data": None}, {}),
        (200, b'{"id": "a", "x": "' + b"x" * wire.MAX_REPLY_BYTES, {}),
        httpx.ReadError("broken"),
        httpx.WriteError("broken"),
        httpx.ReadTimeout(""),
        httpx.WriteTimeout(""),
        httpx.RemoteProtocolError("closed"),
        httpx.DecodingError("garbled"),
    ],
    ids=repr,
)
async def test_a_garbled_receipt_is_uncertain(answers, client_of, request_, answer):
    """An empty, truncated or unreadable success may belong to a paid job."""
    script = answers(answer)
    client = await client_of(script)
    with pytest.raises(SubmissionUncertain):
        await client.create(request_)
    assert len(script.requests) == 1


@pytest.mark.parametrize(
    ("fault", "retry_after"),
    [("429", None), ("429:value=7", 7.0), ("429:value=date:100", 100.0), ("503", None)],
)
async def test_a_busy_service_may_be_asked_again_when_it_says(
    sandbox, client_of, request_, fault, retry_after
):
    """The job was not accepted, and Retry-After is passed on."""
    service = sandbox(f"create:{fault}")
    client = await client_of(service.url)
    with pytest.raises(ServiceUnavailable) as caught:
        await client.create(request_)
    assert service.accepted == []
    if retry_after is None:
        assert caught.value.retry_after is None
    else:
        assert caught.value.retry_after == pytest.approx(retry_after, abs=3)
    assert await client.create(request_) == service.accepted[0].task_id


async def test_a_refused_connection_may_be_tried_again(closed_port, client_of, request_):
    """A request over a refused connection never left this machine, so it may be retried."""
    client = await client_of(closed_port)
    with pytest.raises(ServiceUnavailable, match="ConnectError"):
        await client.create(request_)


@pytest.mark.parametrize(
    ("fault", "error", "words"),
    [
        ("invalid-request", InvalidRequest, "field promptImage is required"),
        ("model-not-found", InvalidRequest, "No available channel for model gen3a_turbo"),
        ("quota", QuotaExceeded, "user quota is not enough"),
        ("unauthorized", AuthenticationError, "Invalid token"),
    ],
)
@pytest.mark.heavy
async def test_a_refusal_is_told_in_the_services_own_words(
    sandbox, client_of, request_, fault, error, words
):
    """The error has CometAPI's own reason, and nothing was bought."""
    service = sandbox(f"create:{fault}")
    client = await client_of(service.url)
    with pytest.raises(error, match=words):
        await client.create(request_)
    assert service.accepted == []


async def test_an_unknown_origin_of_a_request_is_a_refusal(answers, client_of, request_):
    """A 400 is certain, whatever its slug, so nothing was bought."""
    script = answers((400, {"code": "task_not_exist", "message": "", "data": None}, {}))
    client = await client_of(script)
    with pytest.raises(InvalidRequest):
        await client.create(request_)


@pytest.mark.parametrize(("fault", "words"), [("html", "text/html"), ("redirect", "a redirect to")])
async def test_another_server_is_named_and_no_redirect_is_followed(
    sandbox, client_of, request_, fault, words
):
    """A web page or a redirect proves nothing about a purchase and never gets the API key."""
    service = sandbox(f"create:{fault}", f"task:{fault}")
    client = await client_of(service.url)
    with pytest.raises(SubmissionUncertain, match=words) as caught:
        await client.create(request_)
    assert f"{service.url} does not respond like CometAPI" in str(caught.value)
    with pytest.raises(ServiceUnavailable, match=words) as told:
        await client.get("task-1")
    assert f"{service.url} does not respond like CometAPI" in str(told.value)
    assert len(service.requests) == 2
    assert service.accepted == []


async def test_what_hides_the_key_makes_no_web_page_of_a_receipt(
    answers, client_of, request_, api_key
):
    """An invalid success that begins with the key is uncertain, like any other invalid success."""
    client = await client_of(
        answers((200, f"{api_key} ok".encode(), {"content-type": "text/html"}))
    )
    with pytest.raises(SubmissionUncertain) as caught:
        await client.create(request_)
    assert api_key not in str(caught.value)


async def test_a_base_url_with_a_path_is_recognised_by_what_it_answers(sandbox, request_):
    """The service's own 404 for an unknown path points to the base URL, not to the request."""
    service = sandbox()
    async with RunwayClient(SecretStr("sk-x"), base_url=f"{service.url}/v1") as client:
        with pytest.raises(UnexpectedResponse, match="COMETAPI_BASE_URL"):
            await client.create(request_)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("route", ["get", "feed"])
@pytest.mark.heavy
async def test_every_shape_of_reply_tells_the_same(sandbox, client_of, request_, shape, route):
    """A success has its output in every shape of reply and on every route."""
    service = sandbox(shapes=(shape,))
    client = await client_of(service.url)
    task_id = await client.create(request_)
    await asyncio.to_thread(service.settle, 20)
    generation = await getattr(client, route)(task_id)
    assert generation.status is Status.SUCCEEDED
    assert generation.task_id == task_id
    assert (generation.outputs[0].reveal() or "").startswith(f"{service.url}/assets/{task_id}")


@pytest.mark.parametrize("fault", ["not-visible", "not-visible-200"])
async def test_an_unknown_id_is_a_state_and_no_error(sandbox, client_of, request_, fault):
    """A new id may be unknown for a while."""
    service = sandbox(f"task:{fault}", f"feed:{fault}")
    client = await client_of(service.url)
    task_id = await client.create(request_)
    assert (await client.get(task_id)).status is Status.NOT_FOUND
    assert (await client.feed(task_id)).status is Status.NOT_FOUND
    assert (await client.get(task_id)).status is not Status.NOT_FOUND


async def test_a_key_that_the_service_takes_is_known_by_its_own_words(sandbox, client_of):
    """An API key is valid if the service itself says that it does not know the generation."""
    service = sandbox("task:not-visible-200")
    client = await client_of(service.url)
    await client.check_key()
    await client.check_key()
    assert service.accepted == []


OWN = {"type": "comet_api_error", "message": "Invalid token", "code": ""}


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ((404, {"detail": "Not Found"}), UnexpectedResponse),
        ((404, {"message": "no route"}), UnexpectedResponse),
        ((404, {"code": "not_found", "message": "no"}), UnexpectedResponse),
        ((404, b"<html>", {"content-type": "text/html"}), UnexpectedResponse),
        ((401, {"error": "who are you?"}), UnexpectedResponse),
        ((403, b"<html>", {"content-type": "text/html"}), UnexpectedResponse),
        ((200, {"status": "ok"}), UnexpectedResponse),
        ({"id": wire.UNKNOWN_TASK_ID, "status": "SUCCEEDED"}, UnexpectedResponse),
        ((301, b"", {"location": "/"}), UnexpectedResponse),
        ((401, {"error": OWN}), AuthenticationError),
        ((404, {"error": {**OWN, "message": "Invalid URL (GET /v1)"}}), UnexpectedResponse),
        ((429, b"slow down"), ServiceUnavailable),
        ((503, b"<html>"), ServiceUnavailable),
        (httpx.ConnectError("refused"), ServiceUnavailable),
    ],
    ids=repr,
)
async def test_another_service_never_counts_as_one_that_takes_the_key(
    answers, client_of, answer, error
):
    """Only CometAPI's own error proves that the key is valid, not any 404 and not any success."""
    client = await client_of(answers(answer))
    with pytest.raises(error):
        await client.check_key()


@pytest.mark.parametrize("body", [{"detail": "Not Found"}, {"message": "no route"}])
async def test_a_404_of_something_else_does_not_end_a_wait(answers, client_of, body):
    """A 404 that is not CometAPI's says nothing about a generation, so it can be asked again."""
    client = await client_of(answers((404, body)))
    with pytest.raises(ServiceUnavailable, match="does not respond like CometAPI"):
        await client.get("task-1")


async def test_an_own_404_is_about_the_generation(answers, client_of):
    """A 404 in CometAPI's own words says that it does not know the id."""
    client = await client_of(answers((404, {"error": {**OWN, "message": "task not found"}})))
    assert (await client.get("task-1")).status is Status.NOT_FOUND


@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 405, 407, 413, 422, 501])
@pytest.mark.parametrize(
    "body",
    [b"<!doctype html><title>Just a moment...</title>", b"", b"denied", {"error": "forbidden"}],
)
async def test_only_cometapis_own_words_are_about_key_balance_or_request(
    answers, client_of, status, body
):
    """A refusal by anything else means that CometAPI was not reached, under any status."""
    client = await client_of(answers((status, body, {"content-type": "text/html"})))
    for ask in (client.get, client.feed):
        with pytest.raises(ServiceUnavailable, match="does not respond like CometAPI"):
            await ask("task-1")
    with pytest.raises(UnexpectedResponse):
        await client.check_key()


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ((500, b"oops"), ServiceUnavailable),
        ((524, b"error code: 524"), ServiceUnavailable),
        ((429, {}, {"retry-after": "9"}), ServiceUnavailable),
        (httpx.ReadTimeout(""), ServiceUnavailable),
        ({"code": "success", "message": "", "data": None}, ServiceUnavailable),
        ({}, ServiceUnavailable),
        ((401, {"error": OWN}), AuthenticationError),
        ((401, {"error": {"message": "Invalid token"}}), ServiceUnavailable),
        ((200, b"<html>", {"content-type": "text/html"}), ServiceUnavailable),
        ((404, {"error": {**OWN, "message": "Invalid URL (GET /v1)"}}), UnexpectedResponse),
        ((400, {"error": {**OWN, "code": "invalid_request"}}), GenerationNotFound),
        ((403, {"code": "quota_not_enough", "message": "", "data": None}), GenerationNotFound),
    ],
    ids=repr,
)
async def test_a_poll_that_fails_says_which_generation_and_that_it_was_bought(
    answers, client_of, answer, error
):
    """Polling is free, but the error of a poll never says that nothing was bought."""
    client = await client_of(answers(answer))
    for ask in (client.get, client.feed):
        with pytest.raises(error) as caught:
            await ask("task-7")
        assert caught.value.task_id == "task-7"
        assert "task id task-7" in str(caught.value)
        assert "nothing was charged." not in str(caught.value)
        assert "run it again." not in str(caught.value) or error is ServiceUnavailable
    if isinstance(answer, tuple) and answer[0] == 429:
        assert caught.value.retry_after == 9.0


async def test_an_id_with_odd_characters_stays_one_part_of_the_path(answers, client_of):
    """An id is opaque and is escaped in the path."""
    script = answers({"id": "a/../b?c#d", "status": "PENDING"})
    client = await client_of(script)
    await client.get("a/../b?c#d")
    assert script.requests[0].url.raw_path == b"/runwayml/v1/tasks/a%2F..%2Fb%3Fc%23d"


async def test_a_reply_that_drips_is_given_up(monkeypatch, client_of, request_):
    """A reply that arrives too slowly ends the call and leaves its outcome open."""
    monkeypatch.setattr(wire, "TOTAL_TIMEOUT", 0.2)

    async def drip(reader, writer):
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n")
        while not writer.is_closing():
            writer.write(b" ")
            await asyncio.sleep(0.02)

    server = await asyncio.start_server(drip, "127.0.0.1")
    async with server:
        port = server.sockets[0].getsockname()[1]
        client = await client_of(f"http://127.0.0.1:{port}")
        with pytest.raises(SubmissionUncertain, match="TimeoutError"):
            await client.create(request_)


async def test_a_reply_without_an_end_is_not_read_to_its_end(client_of, request_):
    """A reply is read to a limit of a few megabytes, so that memory stays bounded."""
    sent: list[int] = []

    class Endless(httpx.AsyncByteStream):
        async def __aiter__(self):
            while len(sent) < 1000:
                sent.append(1)
                yield bytes(64 * 1024)

    client = await client_of(httpx.MockTransport(lambda _: httpx.Response(200, stream=Endless())))
    with pytest.raises(SubmissionUncertain):
        await client.create(request_)
    assert len(sent) * 64 * 1024 <= wire.MAX_REPLY_BYTES + 2 * 64 * 1024


@pytest.mark.parametrize("key", ["", "  ", "sk-ключ", "sk-a b", "sk-a\nb"])
def test_a_key_that_no_header_can_carry_is_refused_at_once(key):
    """An API key that is not a valid header value would break the call and leave it uncertain."""
    with pytest.raises(AuthenticationError, match="invalid characters"):
        RunwayClient(SecretStr(key))


@pytest.mark.parametrize("url", ["https://h:x", "https://h/\0", "https://\udcff/"])
def test_a_base_url_that_is_not_valid_is_an_error_of_this_package(url, api_key):
    """The error names the setting, and nothing was sent."""
    with pytest.raises(UnexpectedResponse, match="is not a valid URL") as caught:
        RunwayClient(SecretStr(api_key), base_url=url)
    assert "COMETAPI_BASE_URL" in str(caught.value)


@pytest.mark.parametrize(
    "location", ["http:there", "mailto:a@b.example", "//[", "ftp://h/", "?", ""]
)
async def test_a_redirect_of_a_poll_ends_in_an_error_of_this_package(answers, client_of, location):
    """A redirect is not followed, whatever its target, and the error names the generation."""
    client = await client_of(answers((302, b"", {"location": location})))
    for ask in (client.get, client.feed):
        with pytest.raises((UnexpectedResponse, ServiceUnavailable), match="task id task-7"):
            await ask("task-7")


async def test_space_around_a_key_is_no_part_of_it(answers, request_):
    """Keys read from files end in a newline, versions from .env files in a space."""
    script = answers({"id": "a"})
    client = RunwayClient(SecretStr(" sk-abc\n"), runway_version="2024-11-06 ", transport=script)
    async with client:
        await client.create(request_)
    assert script.requests[0].headers["authorization"] == "Bearer sk-abc"
    assert script.requests[0].headers["x-runway-version"] == "2024-11-06"


async def test_no_error_repeats_the_key_or_a_token(answers, client_of, request_, api_key):
    """Secrets are hidden, even if the service quotes the request in its refusal."""

    def quote(request: httpx.Request) -> tuple[int, dict[str, dict[str, str]]]:
        told = f"{request.headers['authorization']} {request_.prompt_image} https://h/x?t=s3cr3t"
        return 400, {"error": {"message": f"{told} {api_key}", "type": "comet_api_error"}}

    client = await client_of(answers(quote))
    with pytest.raises(InvalidRequest) as caught:
        await client.create(request_)
    for secret in (api_key, request_.prompt_image[-20:], "s3cr3t"):
        assert secret not in f"{caught.value} {caught.value!r}"


async def test_a_key_that_the_service_repeats_is_not_shown(answers, request_):
    """The API key is hidden in a refusal that quotes it, whatever the key looks like."""
    key = "canary-key-of.another_form"
    own = {"type": "comet_api_error", "message": f"Invalid token {key}", "code": key}
    refusing = answers((401, {"error": own}))
    async with RunwayClient(SecretStr(key), transport=refusing) as client:
        with pytest.raises(AuthenticationError) as told:
            await client.create(request_)
    assert key not in f"{told.value} {told.value!r} {told.value.code}"
    assert "Invalid token <hidden key>" in str(told.value)
