# SPDX-License-Identifier: Apache-2.0
"""An error says "nothing was bought" only where that is certain.

The rules are written here a second time: ``certain`` for replies, ``BEFORE_THE_FIRST_BYTE`` for
broken connections. The tables for users are in docs/never-twice.md (``test_proof_of_refusal.py``).
"""

import asyncio
import json
import socket
import struct
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from prefect_cometapi.runway import ImageToVideoRequest, RunwayClient
from prefect_cometapi.runway.api import client as wire
from prefect_cometapi.runway.errors import CometAPIError, ServiceUnavailable, SubmissionUncertain

DOCUMENTED = json.loads((Path(__file__).parents[1] / "documented.json").read_text(encoding="utf-8"))
REQUEST = ImageToVideoRequest(prompt_image="https://example.com/a.png", duration=5)

_REFUSING = """invalid_request model_not_found reference_images_empty callback_url_empty
    convert_request_failed invalid_api_platform model_price_error api_not_implemented
    permission_denied invalid_api_key quota_not_enough insufficient_quota
    insufficient_user_quota get_user_quota_failed pre_consume_quota_failed"""
REFUSING_CODES = set(_REFUSING.split())
OTHER_CODES = ["task_not_exist", "fail_to_fetch_task", "do_request_failed", "odd", "500"]
BEFORE_WORK = {"invalid_request", "convert_request_failed"}
BEFORE_WORK |= {"get_user_quota_failed", "pre_consume_quota_failed"}
NO_ERROR = {"", "success", "200", "0", "ok", "none"}


def is_id(value: Any) -> bool:
    return bool(isinstance(value, str) and value.strip()) or (type(value) is int and value > 0)


def names_a_generation(layer: Any) -> bool:
    if not isinstance(layer, dict):
        return isinstance(layer, str) and bool(layer.strip())
    return any(is_id(layer.get(name)) for name in ("id", "task_id")) or names_a_generation(
        layer.get("data")
    )


def told(content: bytes) -> tuple[str, str, str, bool]:
    """Return shape, code and words of CometAPI's own error, and whether it names a generation."""
    reply: Any = None
    with suppress(ValueError, RecursionError):
        reply = json.loads(content)
    if not isinstance(reply, dict):
        return "", "", "", False
    named = names_a_generation(reply)
    state = [reply.get("status"), reply.get("state")]
    if any(type(word) is int and word in range(4) for word in state) or any(
        isinstance(word, str) and word.strip() for word in state
    ):
        return "", "", "", named
    error, code, words = reply.get("error"), reply.get("code"), reply.get("message")
    if isinstance(error, dict):
        code, words, kind = (error.get(name) for name in ("code", "message", "type"))
        own = kind == "comet_api_error" or (
            kind == "invalid_request_error" and str(words).lower().startswith("invalid url (")
        )
        own = own and isinstance(words, str) and words.strip() and isinstance(code, str | None)
        return "general" if own else "", str(code or "").lower(), str(words).lower(), named
    issues = reply.get("issues")
    if isinstance(error, str) and issues and isinstance(issues, list):
        own = all(isinstance(it, dict) and {"path", "message"} <= set(it) for it in issues)
        return "runway's" if own and error.strip() else "", "", "", named
    own = isinstance(code, str) and isinstance(words, str) and "error" not in reply
    own = own and "data" in reply and reply["data"] is None and code not in NO_ERROR
    slug = str(code)
    own = own and slug.replace("_", "").isalnum() and slug == slug.lower()
    return "flat" if own else "", slug, str(words).lower(), named


_LOST = """bad_response bad_response_body do_request_failed empty_response insert_task_failed
    invalid_response read_response_body_failed task_insert_failed unmarshal_response_body_failed
    unmarshal_response_failed"""


def certain(status: int, content: bytes) -> bool:
    """Return whether such a reply proves that nothing was bought."""
    shape, code, words, named = told(content)
    if not shape or named or code in _LOST.split():
        return False
    if shape == "runway's":
        return status == 400
    if code in {"fail_to_fetch_task", "bad_response_status_code"}:
        return status in {400, 413, 422, 429}
    no_channel = code == "model_not_found" or "no available channel" in words
    return (
        status in {400, 401, 402, 403, 404, 405, 413, 415, 422, 429}
        or (status == 500 and code in BEFORE_WORK)
        or (status == 501 and code == "api_not_implemented")
        or (status == 503 and (no_channel or (shape == "general" and not code)))
    )


HTML, JSON = {"content-type": "text/html"}, {"content-type": "application/json"}
PAGE = b"<!DOCTYPE html><title>Guru Meditation</title>"
RECEIPT = b'{"id": "3d957031", "status": "THROTTLED"}'
SLUG = b'{"code": "task_not_exist", "message": "", "data": null}'


def spelled(code: str) -> list[Any]:
    """Return a code in every envelope in which it may arrive."""
    flat = {"code": code, "message": f"{code} (request id: 7)", "data": None}
    error = {"message": "it says no", "type": "comet_api_error", "param": "", "code": code}
    shouted = {"error": {**error, "code": code.upper()}}
    inside = [{"code": "success", "message": "", "data": flat}, {"data": {"error": error}}]
    return [flat, {"code": code, "msg": code}, {"error": error}, {"error": code}, shouted, *inside]


OBJECTS = [body for code in sorted(REFUSING_CODES) + OTHER_CODES for body in spelled(code)]
OBJECTS += [body for _, body, _ in DOCUMENTED["errors"].values()]
OBJECTS += [body for body, _ in DOCUMENTED["created"].values()]
BODIES = [json.dumps(body).encode() for body in OBJECTS]
BODIES += [b"", b" ", b"ok", PAGE, b"<html", b'{"id": "3d95', b"[]", b"null", b"NaN", b"\xff\xfe"]
BODIES += [b'"3d95"', b"[" * 100_000, b'{"id": ' + b"9" * 5000 + b"}", RECEIPT, b"{}", b'{"id":0}']
BODIES += [head + b" " * wire.MAX_REPLY_BYTES for head in (b'{"error": "', RECEIPT[:-1])]
HEADERS: list[Any] = [{}, JSON, HTML, {"retry-after": "7", **JSON}, {"retry-after": "7", **HTML}]
HEADERS += [{"retry-after": ""}, {"location": "/a", **HTML}, {"content-encoding": "gzip"}]
TELLING = [100, 101, 200, 201, 202, 204, 299, *range(300, 309), *range(400, 411), 422, 424, 425]
TELLING += [429, 451, 452, 460, 499, *range(500, 506), 511, 520, 524, 529, 530, 599, 600, 999]


class Scripted(httpx.AsyncBaseTransport):
    """A connection that follows a script: it answers, fails or stops at a given point."""

    def __init__(self, reply: Any = None, moment: str = "", error: Any = None) -> None:
        self.reply, self.moment, self.error, self.sent = reply, moment, error, 0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        await self._reach("before")
        self.sent += len(await request.aread()) > 0
        await self._reach("after")
        return httpx.Response(self.reply[0], headers=self.reply[1], content=self._content())

    async def _content(self):
        content = self.reply[2]
        yield content[: len(content) // 2]
        await self._reach("amid")
        yield content[len(content) // 2 :]

    async def _reach(self, moment: str) -> None:
        if self.moment == moment:
            await asyncio.sleep(0 if self.error else 60)
            raise self.error or TimeoutError


def client_of(target: Any) -> RunwayClient:
    where: Any = {"base_url" if isinstance(target, str) else "transport": target}
    return RunwayClient(SecretStr("sk-test-0123456789abcdef"), **where)


async def outcome_of(client: RunwayClient) -> str | Exception:
    try:
        return await client.create(REQUEST)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is judged
        return error


async def create(target: Any, times: int = 1, pause: float = 0.0) -> list[str | Exception]:
    outcomes = []
    async with client_of(target) as client:
        for _ in range(times):
            outcomes.append(await outcome_of(client))
            await asyncio.sleep(pause)
    return outcomes


async def judge(replies: Any) -> int:
    """Give each reply to one create call; return how many ended in a claim of certainty."""
    transport, claims = Scripted(), 0
    async with client_of(transport) as client:
        for number, reply in enumerate(replies, 1):
            transport.reply = reply
            outcome = await outcome_of(client)
            shown = f"{reply!r:.300} ended as {outcome!r:.200}"
            assert transport.sent == number, shown
            if isinstance(outcome, str):
                assert 200 <= reply[0] < 300, shown
                assert told(reply[2])[-1], shown
                continue
            assert isinstance(outcome, CometAPIError), shown
            uncertain = isinstance(outcome, SubmissionUncertain)
            claim = "possibly charged, once" if uncertain else "nothing was charged"
            assert claim in str(outcome), shown
            assert uncertain or certain(reply[0], reply[2]), shown
            claims += not uncertain
    return claims


every = pytest.mark.parametrize("step", [4, pytest.param(1, marks=pytest.mark.heavy)])
"""Take each fourth reply; in the heavy tests, take all."""


@every
@pytest.mark.heavy
async def test_no_status_claims_that_nothing_was_bought_unless_it_is_certain(step):
    """Every status from 100 to 599, with all sorts of bodies and headers, is on the safe side."""
    bodies = [b"", PAGE, b"ok", b"{}", b'{"id": "a"}', b'{"id": "a', SLUG, RECEIPT]
    bodies += [json.dumps(body).encode() for body in spelled("invalid_request") + spelled("odd")]
    walk = [(s, HEADERS[(s + i) % 8], b) for s in range(100, 600) for i, b in enumerate(bodies)]
    assert await judge(walk[::step]) > 50 / step


@every
async def test_no_documented_body_is_taken_for_more_than_it_says(step):
    """No documented reply, in any spelling and under any status, is read as more than it says."""
    walk = [(s, HEADERS[(s + i) % 8], b) for s in TELLING for i, b in enumerate(BODIES)]
    assert await judge(walk[::step]) > 500 / step


names = st.sampled_from(["id", "task_id", "data", "code", "error", "message", "msg", "status"])
words = st.sampled_from([*sorted(REFUSING_CODES), *OTHER_CODES, "SUCCEEDED", "0"])
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=5),
    max_leaves=12,
)
contents = st.binary(max_size=60) | anything.map(json.dumps).map(str.encode)
cut = st.builds(lambda content, end: content[: -end or None], contents, st.integers(0, 9))
header_names = ["content-type", "retry-after", "location", "content-encoding", "set-cookie"]
header_values = ["text/html", "application/json", "3", "", "1e9", "/", "//", "?a", "gzip", "="]
some_headers = st.dictionaries(st.sampled_from(header_names), st.sampled_from(header_values))


@given(content=contents | cut, headers=some_headers, status=st.integers(100, 999))
def test_no_random_reply_claims_that_nothing_was_bought(content, headers, status):
    """Random JSON, bytes and headers prove nothing unless the rules say so."""
    asyncio.run(judge((each, headers, content) for each in [status, *TELLING[::4]]))


_EARLY = "ConnectError ConnectTimeout PoolTimeout ProxyError UnsupportedProtocol"
BEFORE_THE_FIRST_BYTE = set(_EARLY.split())
FOREIGN: list[Any] = [OSError, RuntimeError, EOFError, httpx.CookieConflict]


def tree(cls: type[Exception]) -> set[Any]:
    return {cls}.union(*map(tree, cls.__subclasses__()))


ROOTS = [it for it in vars(httpx).values() if isinstance(it, type) and issubclass(it, Exception)]
ALL = sorted(set(FOREIGN).union({TimeoutError, ValueError}, *map(tree, ROOTS)), key=str)
LATE = [cls for cls in ALL if cls.__name__ not in BEFORE_THE_FIRST_BYTE]
CASES = [(cls, "before") for cls in ALL] + [(c, when) for c in LATE for when in ("after", "amid")]


@pytest.mark.parametrize(("cls", "moment"), CASES)
async def test_a_broken_call_is_certain_only_before_the_first_byte(cls, moment):
    """Of all possible exceptions, only a failed connection proves that nothing was bought."""
    transport = Scripted((429, JSON, b'{"error": "busy"}'), moment, cls.__new__(cls))
    [outcome] = await create(transport)
    assert transport.sent == (moment != "before")
    if cls in FOREIGN:  # passed on without a claim; the ledger keeps it uncertain
        assert outcome is transport.error
    else:
        early = cls.__name__ in BEFORE_THE_FIRST_BYTE
        assert type(outcome) is (ServiceUnavailable if early else SubmissionUncertain)


@pytest.mark.parametrize("moment", ["before", "after", "amid"])
async def test_a_cancelled_call_ends_as_cancelled(moment):
    """A cancellation is not a failure of the service, at any point of the call."""
    transport = Scripted((200, JSON, b'{"id": "a"}'), moment)
    async with client_of(transport) as client:
        call = asyncio.create_task(client.create(REQUEST))
        await asyncio.sleep(0.02)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert transport.sent == (moment != "before")


@asynccontextmanager
async def service(act: Any):
    """Serve each connection as a test says, and record what arrives."""
    seen = SimpleNamespace(connections=0, requests=0)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.connections += 1
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            await act(seen, reader, writer)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        seen.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        yield seen


async def take(seen: Any, reader: asyncio.StreamReader) -> None:
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    await reader.readexactly(int(head.split(b"content-length: ")[1].split(b"\r\n")[0]))
    seen.requests += 1


def reset(writer: asyncio.StreamWriter) -> None:
    linger = struct.pack("ii", 1, 0)
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    writer.transport.abort()


RECEIPT_OF = b'HTTP/1.1 200 OK\r\nContent-Length: 14\r\n\r\n{"id": "id-%d"}'
FIRST = RECEIPT_OF % 1
BUSY = b'{"error": {"message": "busy", "type": "comet_api_error", "code": null}}'
BUSY = b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: %d\r\n\r\n%s" % (len(BUSY), BUSY)
ANSWERS = [b"", BUSY[:11], BUSY[:40], BUSY[:-3], FIRST[:-3], b"HTTP/1.1 100 Continue\r\n\r\n"]
ANSWERS += [b"HTTP/1.1 103 Early Hints\r\nLink: <a>\r\n\r\n"]


@pytest.mark.parametrize("end", ["closed", "reset", "silent", "endless"])
@pytest.mark.parametrize("read", ["nothing", "headers", "everything"])
@pytest.mark.parametrize("answer", ANSWERS, ids=repr)
async def test_a_line_that_breaks_leaves_it_open(answer, read, end, monkeypatch):
    """A connection that breaks after the first byte leaves the outcome open; nothing is resent."""
    if end == "endless":
        monkeypatch.setattr(wire, "TOTAL_TIMEOUT", 0.05)
    elif end == "silent":
        monkeypatch.setattr(wire, "TIMEOUT", httpx.Timeout(0.05, connect=5))

    async def act(seen, reader, writer):
        if read == "headers":
            await reader.readuntil(b"\r\n\r\n")
        elif read == "everything":
            await take(seen, reader)
        writer.write(answer)
        if end == "reset":
            reset(writer)
        elif end != "closed":
            await asyncio.sleep(0.1)

    async with service(act) as seen:
        [outcome] = await create(seen.url)
    assert isinstance(outcome, SubmissionUncertain)
    assert max(seen.connections, seen.requests) <= 1


@pytest.mark.parametrize("way", ["refused", "no TLS", "ftp", "proxy refuses", "proxy breaks"])
async def test_a_connection_that_never_came_about_may_be_tried_again(way, monkeypatch, closed_port):
    """The request did not leave this machine, or got no further than its proxy."""
    heard = []
    said = {"proxy refuses": b"HTTP/1.1 502 No\r\n\r\n", "proxy breaks": b"HTTP/1.1 200 OK\r\n\r\n"}

    async def act(seen, reader, writer):
        heard.append((await reader.read(65536))[:4])
        writer.write(said.get(way, b""))

    async with service(act) as seen:
        if way in said:
            monkeypatch.setenv("https_proxy", seen.url)
            monkeypatch.setenv("no_proxy", "")
        urls = {"refused": closed_port, "ftp": "ftp://a", "no TLS": f"https{seen.url[4:]}"}
        [outcome] = await create(urls.get(way, "https://api.cometapi.com"))
    assert type(outcome) is ServiceUnavailable
    assert b"POST" not in heard
    assert (b"CONN" in heard) == (way in said)


ENDS = ["closed while idle", "closed at once", "closed when asked", "reset when asked", "late"]
ENDS += ["and a stray 429", "and a stray receipt"]


@pytest.mark.parametrize("end", ENDS)
async def test_a_second_call_is_sent_once_and_gets_no_other_calls_answer(end, monkeypatch):
    """A kept connection that closes, lags or sends too much costs no second purchase and no id."""
    if end == "late":
        monkeypatch.setattr(wire, "TIMEOUT", httpx.Timeout(0.05, connect=5))
    strays = {"and a stray 429": FIRST + BUSY, "and a stray receipt": BUSY + FIRST}

    async def act(seen, reader, writer):
        await take(seen, reader)
        number = seen.requests
        await asyncio.sleep(0.1 if (end, number) == ("late", 1) else 0)
        writer.write(strays.get(end, FIRST) if number == 1 else RECEIPT_OF % number)
        if end == "reset when asked":
            await reader.readexactly(1)
            reset(writer)
        elif not end.startswith("closed"):
            await act(seen, reader, writer)
        elif end == "closed when asked":
            await take(seen, reader)

    async with service(act) as seen:
        first, second = await create(seen.url, 2, 0.1 * (end in {"late", "closed while idle"}))
    assert first == "id-1" or end in {"late", "and a stray receipt"}
    assert seen.requests <= 2
    if isinstance(second, SubmissionUncertain):
        assert end not in {"late", "closed while idle"}
        assert seen.connections == 1
    else:
        assert (second, seen.requests) == ("id-2", 2)
