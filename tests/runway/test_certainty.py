# SPDX-License-Identifier: Apache-2.0
"""An error that says "nothing was bought" is told only where that is certain.

The rules stand here a second time, in other words than the product's: ``certain`` for replies,
``BEFORE_THE_FIRST_BYTE`` for broken connections. ``OPEN`` lists where the product still claims
more than it can know; an entry goes when its cause does, and the rest of the file then covers it.
"""

import asyncio
import json
import re
import socket
import struct
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from prefect_cometapi.runway import (
    CometAPIError,
    ImageToVideoRequest,
    RunwayClient,
    ServiceUnavailable,
    SubmissionUncertain,
    UnexpectedResponse,
)
from prefect_cometapi.runway import client as wire

DOCUMENTED = json.loads(Path(__file__).with_name("documented.json").read_text(encoding="utf-8"))
REQUEST = ImageToVideoRequest(prompt_image="https://example.com/a.png", duration=5)

_REFUSING = """invalid_request model_not_found reference_images_empty callback_url_empty
    convert_request_failed invalid_api_platform model_price_error api_not_implemented
    permission_denied invalid_api_key quota_not_enough insufficient_quota
    insufficient_user_quota get_user_quota_failed pre_consume_quota_failed"""
REFUSING_CODES = set(_REFUSING.split())
OTHER_CODES = ["task_not_exist", "fail_to_fetch_task", "do_request_failed", "odd", "500"]
NO_ERROR = {"", "success", "200", "0", "ok", "none"}


def told(content: bytes) -> tuple[str, str, bool]:
    """The code and the words of the service's own error, and whether a generation is named."""
    try:
        reply = json.loads(content)
    except (ValueError, RecursionError):
        return "", "", False
    if not isinstance(reply, dict):
        return "", "", False
    error, data = reply.get("error"), reply.get("data")
    inner = data if isinstance(data, dict) else {}
    named = any(layer.get(name) for layer in (reply, inner) for name in ("id", "task_id"))
    named = bool(named or (isinstance(data, str) and data.strip()))
    if isinstance(error, dict):
        words = error.get("message") or error.get("msg") or error.get("type")
        return str(error.get("code")).lower(), str(words).lower(), named
    if isinstance(error, str) and error.strip():
        return str(reply.get("code")).lower(), error.lower(), named
    code = str(reply.get("code")).lower()
    if code in NO_ERROR or inner:
        return "", "", named
    return code, str(reply.get("message") or reply.get("msg")).lower(), named


def certain(status: int, headers: dict[str, str], content: bytes) -> bool:
    """Whether such a reply proves that nothing was bought."""
    code, words, names_a_generation = told(content)
    own_refusal = code in REFUSING_CODES or "no available channel" in words
    if names_a_generation and (status in {425, 429} or not 400 <= status < 500):
        return False  # a receipt, whatever stands around it
    page = "html" in headers.get("content-type", "") and content.lstrip().startswith(b"<")
    return (
        own_refusal
        or (400 <= status <= 451 and status != 408)
        or status == 501
        or (status == 503 and bool(code or words))  # a proxy's 503 may follow a lost answer
        or (300 <= status < 400 and status != 303)  # 303 shows the result of what was done
        or (200 <= status < 300 and page)
    )


HTML, JSON = {"content-type": "text/html"}, {"content-type": "application/json"}
PAGE = b"<!DOCTYPE html><title>Guru Meditation</title>"
RECEIPT = b'{"id": "3d957031", "status": "THROTTLED"}'
SLUG = b'{"code": "task_not_exist", "message": "", "data": null}'
OPEN: dict[str, Any] = {
    "Varnish and its kin send 503 with Retry-After when the backend does not answer in time": (
        lambda s, h, c: s == 503 and "retry-after" in h,
        [(503, {**HTML, "retry-after": "5"}, PAGE), (503, {"retry-after": "5"}, b"")],
    ),
    "503 in JSON that is no error of CometAPI's is a proxy's": (
        lambda s, h, c: s == 503 and c.lstrip()[:1] == b"{",
        [
            (503, JSON, b'{"message": "Service Unavailable"}'),
            (503, JSON, b'{"type": "about:blank", "title": "Unavailable", "status": 503}'),
            (503, JSON, b"{}"),
        ],
    ),
    "a success labelled HTML that is no page may be a cut off receipt": (
        lambda s, h, c: 200 <= s < 300 and "html" in h.get("content-type", ""),
        [(200, HTML, b'{"id": "3d95'), (200, HTML, b""), (201, HTML, b"accepted")],
    ),
    "101 is no refusal, whatever its type": (
        lambda s, h, c: s < 200 and "html" in h.get("content-type", ""),
        [(101, HTML, PAGE)],
    ),
    "303 leads to the result of a POST that was carried out": (
        lambda s, h, c: s == 303,
        [(303, {"location": "/runwayml/v1/tasks/3d957031"}, b"")],
    ),
    "408 and 452 to 499 stay open, also with the word task_not_exist": (
        lambda s, h, c: (s == 408 or 452 <= s < 500) and b"not_exist" in c,
        [(408, JSON, SLUG), (499, JSON, SLUG)],
    ),
    "a reply that names a generation does not say that there is none": (
        lambda s, h, c: told(c)[2],
        [
            (429, JSON, RECEIPT),
            (503, JSON, RECEIPT),
            (302, JSON, b'{"id": "3d957031"}'),
            (200, JSON, b'{"id": "3d957031", "error": {"code": "invalid_request"}}'),
        ],
    ),
}


def spelled(code: str) -> list[Any]:
    """A code in every envelope in which it may come."""
    flat = {"code": code, "message": f"{code} (request id: 7)", "data": None}
    error = {"message": "it says no", "type": "comet_api_error", "param": "", "code": code}
    shouted = {"error": {**error, "code": code.upper()}}
    inside = [{"code": "success", "message": "", "data": flat}, {"data": {"error": error}}]
    return [flat, {"code": code, "msg": code}, {"error": error}, {"error": code}, shouted, *inside]


OF_CODES = [body for code in sorted(REFUSING_CODES) + OTHER_CODES for body in spelled(code)]
OF_DOCS = [body for _, body, _ in DOCUMENTED["errors"].values()]
OF_DOCS += [body for body, _ in DOCUMENTED["created"].values()]
OF_DOCS += [case["body"] for case in DOCUMENTED["tasks"].values()]
BY_BYTES = [b"", b" ", b"ok", PAGE, b"<html", b'{"id": "3d95', b"[]", b"null", b"NaN", b"\xff\xfe"]
BY_BYTES += [b'"3d957031"', b"[" * 100_000, b'{"id": ' + b"9" * 5000 + b"}", RECEIPT, b'{"id": 0}']
BODIES = [json.dumps(body).encode() for body in [*OF_CODES, *OF_DOCS, {}, {"id": ""}]] + BY_BYTES
HEADERS: list[dict[str, str]] = [
    {},
    JSON,
    HTML,
    {"retry-after": "7", **JSON},
    {"retry-after": "soon", **HTML},
    {"retry-after": "", "content-type": "text/plain"},
    {"location": "https://other.example/login"},
    {"location": "/login", **HTML},
    {"location": "\x00", "content-encoding": "gzip"},
]
TELLING = [100, 101, 200, 201, 202, 204, 299, 300, 301, 302, 303, 307, 308, 400, 401, 402, 403]
TELLING += [404, 405, 408, 409, 422, 424, 425, 429, 451, 452, 460, 499, 500, 501, 502, 503, 504]
TELLING += [505, 511, 520, 524, 529, 530, 599, 600, 999]


class Scripted(httpx.AsyncBaseTransport):
    """Answers as it is told, or fails before, after or amid the request's way."""

    reply: tuple[int, dict[str, str], bytes] = (200, {}, b"")
    error: BaseException | None = None
    moment = ""
    sent = 0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        await self._at("before")
        async for _ in request.stream:  # type: ignore[union-attr]
            self.sent += 1
        await self._at("after")
        status, headers, content = self.reply
        return httpx.Response(status, headers=headers, stream=_Content(self, content))

    async def _at(self, moment: str) -> None:
        if self.moment == moment:
            if self.error is None:
                await asyncio.Event().wait()
            else:
                raise self.error


class _Content(httpx.AsyncByteStream):
    def __init__(self, transport: Scripted, content: bytes) -> None:
        self.transport, self.content = transport, content

    async def __aiter__(self):
        half = len(self.content) // 2
        yield self.content[:half]
        await self.transport._at("amid")
        yield self.content[half:]


def client_of(target: Any) -> RunwayClient:
    key = SecretStr("sk-test-0123456789abcdef")
    if isinstance(target, str):
        return RunwayClient(key, base_url=target)
    return RunwayClient(key, transport=target)


async def outcome_of(client: RunwayClient) -> str | Exception:
    try:
        return await client.create(REQUEST)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is judged
        return error


async def judge(replies: Any) -> int:
    """Give each reply to a create call; returns how many were refusals that claim certainty."""
    transport, refusals = Scripted(), 0
    async with client_of(transport) as client:
        for number, reply in enumerate(replies, 1):
            transport.reply = reply
            outcome = await outcome_of(client)
            assert transport.sent == number, f"sent more than once: {reply}"
            refusals += _judged(outcome, reply)
    return refusals


def _judged(outcome: str | Exception, reply: tuple[int, dict[str, str], bytes]) -> bool:
    status, _, content = reply
    shown = f"{reply!r:.300} ended as {outcome!r:.200}"
    if isinstance(outcome, str):
        assert 200 <= status < 300, shown
        assert told(content)[2], shown
        return False
    assert isinstance(outcome, CometAPIError), shown
    if isinstance(outcome, SubmissionUncertain):
        assert "perhaps charged, once" in str(outcome), shown
        return False
    assert "nothing was charged" in str(outcome), shown
    assert certain(*reply) or any(is_open(*reply) for is_open, _ in OPEN.values()), shown
    return True


async def test_no_status_claims_that_nothing_was_bought_unless_it_is_certain():
    """Every status from 100 to 599, under all sorts of bodies and headers, is on the safe side."""
    errors = spelled("invalid_request")[:3] + spelled("odd")[:3]
    bodies = [b"", PAGE, b"ok", b"{}", b'{"id": "a"}', b'{"id": "a', SLUG, RECEIPT]
    bodies += [json.dumps(body).encode() for body in errors]
    replies = [
        (status, HEADERS[(status + number) % len(HEADERS)], body)
        for status in range(100, 600)
        for number, body in enumerate(bodies)
    ]
    assert await judge(replies) > 500


async def test_no_documented_body_is_taken_for_more_than_it_says():
    """Every code in every spelling, every documented reply, under each status that tells."""
    replies = [
        (status, HEADERS[number % len(HEADERS)], body)
        for status in TELLING
        for number, body in enumerate(BODIES, status)
    ]
    assert await judge(replies) > 500


async def test_a_body_beyond_all_bounds_is_no_refusal_by_itself():
    """Megabytes are not read to their end, and what was not read proves nothing."""
    padding = b" " * (wire.MAX_REPLY_BYTES + 1)
    heads = [b'{"error": "' + padding, RECEIPT[:-1] + padding, PAGE + padding, padding]
    assert await judge((status, HTML, head) for status in TELLING[::6] for head in heads) > 4


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["id", "task_id", "data", "code", "error", "message", "msg", "status"])
            | st.text(max_size=4),
            inner | st.sampled_from([*sorted(REFUSING_CODES), *OTHER_CODES, "SUCCEEDED", "0"]),
            max_size=5,
        )
    ),
    max_leaves=12,
)
contents = st.binary(max_size=60) | anything.map(lambda value: json.dumps(value).encode())
contents |= st.sampled_from(BODIES)
cut = st.builds(lambda content, end: content[: -end or None], contents, st.integers(0, 9))
some_headers = st.fixed_dictionaries(
    {},
    optional={
        "content-type": st.sampled_from(["text/html", "application/json", "text/plain", "x"]),
        "retry-after": st.sampled_from(["3", "", "-1", "1e9", "Sat, 21 Nov 2026 09:30:07 GMT"]),
        "location": st.sampled_from(["/", "https://other.example", "", "//", "?a", "http://["]),
        "content-encoding": st.sampled_from(["gzip", "deflate", "identity", "odd"]),
        "set-cookie": st.sampled_from(["a=b; max-age=1e9", "=;"]),
    },
)


@given(content=cut, headers=some_headers, status=st.integers(100, 999))
def test_no_random_reply_claims_that_nothing_was_bought(content, headers, status):
    """Whatever JSON, bytes or headers come back, certainty is claimed only where there is one."""
    asyncio.run(judge((each, headers, content) for each in [status, *TELLING[::4]]))


@pytest.mark.parametrize(
    "reply",
    [
        pytest.param(reply, marks=pytest.mark.xfail(strict=True, reason=reason))
        for reason, (_, replies) in OPEN.items()
        for reply in replies
    ],
    ids=repr,
)
async def test_a_reply_that_leaves_it_open_is_uncertain(reply):
    """These look like refusals, and may come after the generation was bought."""
    assert not certain(*reply)
    transport = Scripted()
    transport.reply = reply
    async with client_of(transport) as client:
        assert isinstance(await outcome_of(client), SubmissionUncertain)


@pytest.mark.xfail(strict=True, reason="httpx reads Location even if it does not follow it")
@pytest.mark.parametrize("location", ["http:there", "mailto:a@b.example", "http://xn--/"])
async def test_a_redirect_to_nowhere_is_no_connection_that_never_came_about(location):
    """The request was sent, so an error about the reply's address is no reason to send it again."""
    transport = Scripted()
    transport.reply = (307, {"location": location}, b"")
    async with client_of(transport) as client:
        assert isinstance(await outcome_of(client), SubmissionUncertain | UnexpectedResponse)


_EARLY = "ConnectError ConnectTimeout PoolTimeout ProxyError UnsupportedProtocol InvalidURL"
BEFORE_THE_FIRST_BYTE = set(_EARLY.split())


def all_of_httpx() -> list[type[Exception]]:
    """Every exception of the installed httpx, also of one that does not exist yet."""
    waiting: list[Any] = [thing for thing in vars(httpx).values() if isinstance(thing, type)]
    found: set[Any] = set()
    while waiting:
        cls = waiting.pop()
        if issubclass(cls, Exception) and cls not in found and "httpx" in cls.__module__:
            found.add(cls)
            waiting += cls.__subclasses__()
    return sorted(found, key=lambda cls: cls.__name__)


FOREIGN: list[type[Exception]] = [OSError, RuntimeError, ValueError, EOFError, httpx.CookieConflict]


@pytest.mark.parametrize("moment", ["before", "after", "amid"])
@pytest.mark.parametrize("cls", [*all_of_httpx(), TimeoutError, *FOREIGN[:-1]])
async def test_a_broken_call_is_certain_only_before_the_first_byte(cls, moment):
    """Of all that can be raised on the way, only a connection that was never made proves it."""
    if cls.__name__ in BEFORE_THE_FIRST_BYTE and moment != "before":
        pytest.skip("raised only while a connection is made")
    transport = Scripted()
    transport.reply = (429, JSON, b'{"error": "busy"}')
    transport.error, transport.moment = cls.__new__(cls), moment
    Exception.__init__(transport.error, "it broke")
    async with client_of(transport) as client:
        outcome = await outcome_of(client)
    assert transport.sent == (moment != "before")
    if cls in FOREIGN:  # passed on as it is: it says nothing about money, and is kept as unknown
        assert outcome is transport.error
    else:
        known = cls.__name__ in BEFORE_THE_FIRST_BYTE
        assert type(outcome) is (ServiceUnavailable if known else SubmissionUncertain)


@pytest.mark.parametrize("moment", ["before", "after", "amid"])
async def test_a_cancelled_call_ends_as_cancelled(moment):
    """Cancelling is no failure of the service, wherever the call stands."""
    transport = Scripted()
    transport.moment, transport.reply = moment, (200, JSON, b'{"id": "a"}')
    async with client_of(transport) as client:
        call = asyncio.create_task(client.create(REQUEST))
        await asyncio.sleep(0.02)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        transport.error = asyncio.CancelledError()
        with pytest.raises(asyncio.CancelledError):
            await client.create(REQUEST)


class Service:
    """A TCP server that counts what reaches it, and treats each connection as a test says."""

    def __init__(self, act: Any) -> None:
        self.act, self.connections, self.requests = act, 0, 0

    async def __aenter__(self) -> "Service":
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self.server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self.server.close()
        await self.server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            await self.act(self, reader, writer)
        writer.close()

    async def take(self, reader: asyncio.StreamReader) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head.lower())
        await reader.readexactly(int(length[1]) if length else 0)
        self.requests += 1


def reset(writer: asyncio.StreamWriter) -> None:
    linger = struct.pack("ii", 1, 0)
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    writer.transport.abort()


def reply_of(task_id: str, status: bytes = b"200 OK") -> bytes:
    body = json.dumps({"id": task_id} if task_id else {"error": "busy"}).encode()
    return b"HTTP/1.1 %b\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body)


async def create(url: str, times: int = 1, pause: float = 0.0) -> list[str | Exception]:
    async with client_of(url) as client:
        outcomes = [await outcome_of(client)]
        for _ in range(times - 1):
            await asyncio.sleep(pause)
            outcomes.append(await outcome_of(client))
        return outcomes


BUSY = reply_of("", b"429 Too Many Requests")
ANSWERS = [b"", b"HTTP/1.1 42", BUSY[:40], BUSY[:-3], reply_of("a")[:-3]]
ANSWERS += [b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Early Hints\r\nLink: <a>\r\n\r\n"]


@pytest.mark.parametrize("end", ["closed", "reset", "silent"])
@pytest.mark.parametrize("read", ["nothing", "headers", "everything"])
@pytest.mark.parametrize("answer", ANSWERS, ids=repr)
async def test_a_line_that_breaks_is_uncertain_and_nothing_is_sent_again(
    answer, read, end, monkeypatch
):
    """However much the service read and said before the line broke, it may have bought."""
    monkeypatch.setattr(wire, "TIMEOUT", httpx.Timeout(0.05, connect=5))

    async def act(service, reader, writer):
        if read == "headers":
            await reader.readuntil(b"\r\n\r\n")
        elif read == "everything":
            await service.take(reader)
        writer.write(answer)
        if end == "silent":
            await asyncio.sleep(0.1)
        elif end == "reset":
            reset(writer)

    async with Service(act) as service:
        [outcome] = await create(service.url)
    assert isinstance(outcome, SubmissionUncertain)
    assert (service.connections, service.requests) == (1, read == "everything")
