# SPDX-License-Identifier: Apache-2.0
"""The wire: three calls to CometAPI, each answered by a value or by one typed error."""

import asyncio
import json
import re
import zlib
from collections.abc import Callable
from contextlib import nullcontext
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import httpx
from pydantic import SecretStr

from ..errors import (
    AuthenticationError,
    CometAPIError,
    GenerationNotVisible,
    InvalidRequest,
    QuotaExceeded,
    ServiceUnavailable,
    SubmissionUncertain,
    UnexpectedResponse,
)
from ..http_clients import SINGLE, Connections, tls_context
from ..models.generation import Generation, Status
from ..models.keys import is_task_id
from ..models.requests import GenerationRequest
from ..redact import scrub, shown_url
from ..settings import API_KEY_PATTERN, DEFAULT_BASE_URL, DEFAULT_RUNWAY_VERSION
from .error_mapping import (
    Meaning,
    Refusal,
    Reply,
    refusal_of_exception,
    refusal_of_purchase,
    refusal_of_reply,
)
from .reply_parser import read_generation, read_task_id

MAX_REPLY_BYTES = 4 * 1024 * 1024
"""A reply holds an id or a state; a larger one is not read to its end."""

TIMEOUT = httpx.Timeout(60.0, connect=10.0, pool=30.0)
"""Seconds without a sign of life. A create call that is not answered by then ends uncertain."""

TOTAL_TIMEOUT = 120.0
"""Seconds for one call as a whole, so that a reply that drips does not hold it for ever."""

CALLS_AT_ONCE = 32
"""Calls that cost nothing, each over a connection of its own."""

UNKNOWN_TASK_ID = "00000000-0000-4000-8000-000000000000"
"""An id that no generation has."""

_GZIP_OR_ZLIB = 32 + zlib.MAX_WBITS

_FAILURES = (
    httpx.HTTPError,
    httpx.InvalidURL,
    httpx.StreamError,
    TimeoutError,
    ValueError,  # httpx reads a Location that it does not follow, and may stumble over it
)

_FOR_NOW = {Meaning.BUSY, Meaning.UNREACHABLE, Meaning.UNKNOWN_OUTCOME}

_ERRORS: dict[Meaning, type[CometAPIError]] = {
    Meaning.BUSY: ServiceUnavailable,
    Meaning.UNREACHABLE: ServiceUnavailable,
    Meaning.INVALID: InvalidRequest,
    Meaning.UNAUTHENTICATED: AuthenticationError,
    Meaning.NO_BALANCE: QuotaExceeded,
    Meaning.MISADDRESSED: UnexpectedResponse,
}


SHORTEST_SECRET = 12
"""Characters; a shorter key (of the sandbox) is no secret, and may be part of any word."""


class RunwayClient:
    """Calls CometAPI's Runway routes; use it as an async context manager.

    Args:
        key: API key of CometAPI. It is sent to ``base_url`` and to nothing else.
        base_url: Root of the service.
        runway_version: Value of the header X-Runway-Version. CometAPI's docs require it on some
            calls and allow it on all, so it goes with every call.
        transport: What httpx sends through; tests and proxies plug in here.

    Raises:
        AuthenticationError: The key is empty or cannot be one.
        UnexpectedResponse: The base URL is not a valid URL.
    """

    def __init__(
        self,
        key: SecretStr,
        *,
        base_url: str = DEFAULT_BASE_URL,
        runway_version: str = DEFAULT_RUNWAY_VERSION,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        text = key.get_secret_value().strip()
        if not re.fullmatch(API_KEY_PATTERN, text):
            raise AuthenticationError("the key is empty or has characters that no key has")
        self.base_url = base_url
        self._key = text
        options: dict[str, Any] = {
            "base_url": base_url,
            "headers": {
                "Authorization": f"Bearer {text}",
                "X-Runway-Version": runway_version.strip(),
                "Accept": "application/json",
                "Accept-Encoding": "identity",  # what is unpacked may be any size
                "User-Agent": "prefect-cometapi",
            },
            "timeout": TIMEOUT,
            "transport": transport,
            "verify": tls_context(),
            # without TLS a proxy would read the key, and this machine is reached without one
            "trust_env": not base_url.lower().startswith("http:"),
            "follow_redirects": False,
        }
        self._connections = Connections(
            lambda: httpx.AsyncClient(**options, limits=SINGLE), CALLS_AT_ONCE
        )
        # A paid call has a connection of its own: what an earlier reply left in a kept one would
        # be read as the answer to it.
        try:
            self._http_once = httpx.AsyncClient(
                **options, limits=httpx.Limits(max_keepalive_connections=0)
            )
        except (httpx.InvalidURL, ValueError) as error:
            what = f"{shown_url(base_url)} is not a valid URL: {scrub(str(error))}"
            raise UnexpectedResponse(what) from None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._connections.aclose()
        await self._http_once.aclose()

    async def create(
        self,
        request: GenerationRequest,
        *,
        before_sending: Callable[[], None] = lambda: None,
    ) -> str:
        """Buy a generation, with one POST, and return its task id.

        Args:
            request: What is wanted.
            before_sending: Called as soon as a connection stands (to a proxy, then through it),
                right before anything is sent over it; the request is not sent if it raises.

        Raises:
            InvalidRequest: The service refuses the request.
            AuthenticationError: The key is missing, wrong or not permitted.
            QuotaExceeded: The account has no balance.
            ServiceUnavailable: It was certainly not accepted and may be sent again.
            UnexpectedResponse: CometAPI knows no such route, so the base URL is wrong.
            SubmissionUncertain: It was perhaps accepted; it must not be sent again.
        """
        path = f"/runwayml/v1/{request.route}"
        outcome = await self._send("POST", path, request.to_wire(), before_paying=before_sending)
        if isinstance(outcome, Refusal):
            refused = outcome.meaning is Meaning.NOT_VISIBLE  # as of a source task
            raise self._error(outcome, otherwise=InvalidRequest if refused else SubmissionUncertain)
        task_id = read_task_id(outcome.body)
        if not task_id or not is_task_id(task_id):
            named = f"the odd id {scrub(task_id, limit=80)!r}" if task_id else "no id"
            raise SubmissionUncertain(
                f"CometAPI answered the submission with a success that names {named}",
                http_status=outcome.http_status,
            )
        return task_id

    async def get(self, task_id: str) -> Generation:
        """The state of a generation (CometAPI docs, Get a Runway task).

        An id that the service does not know (yet) is a state too, ``Status.NOT_VISIBLE``.

        Raises:
            AuthenticationError: The key is missing, wrong or not permitted.
            UnexpectedResponse: The base URL does not lead to CometAPI.
            GenerationNotVisible: The service refuses to tell the state.
            ServiceUnavailable: No answer for now; asking again is free.
        """
        outcome = await self._send("GET", f"/runwayml/v1/tasks/{quote(task_id, safe='')}")
        return self._state(task_id, outcome)

    async def check_key(self) -> None:
        """Have the service say in its own words that it does not know a generation; this is free.

        It says so only to a key that it accepts.

        Raises:
            AuthenticationError: The key is missing, wrong or not permitted.
            UnexpectedResponse: What answers is not CometAPI.
            ServiceUnavailable: No answer for now, or one that says nothing about the key.
        """
        outcome = await self._send("GET", f"/runwayml/v1/tasks/{UNKNOWN_TASK_ID}")
        if isinstance(outcome, Refusal):
            if outcome.is_own and outcome.meaning is Meaning.NOT_VISIBLE:
                return
            if not outcome.is_foreign or outcome.meaning in _FOR_NOW:
                raise self._error(outcome, otherwise=ServiceUnavailable)
        said = outcome.message if isinstance(outcome, Refusal) else outcome.excerpt
        foreign = Refusal(Meaning.MISADDRESSED, said, http_status=outcome.http_status)
        raise self._error(foreign, otherwise=UnexpectedResponse)

    async def feed(self, task_id: str) -> Generation:
        """The state of a generation from the compatibility route (CometAPI docs, Get task feed).

        It may answer where ``get`` does not, and raises what ``get`` raises.
        """
        outcome = await self._send("POST", "/runway/feed", {"task_id": task_id})
        return self._state(task_id, outcome)

    def _state(self, task_id: str, outcome: Reply | Refusal) -> Generation:
        if isinstance(outcome, Refusal):
            if outcome.meaning is Meaning.NOT_VISIBLE:
                return Generation(task_id=task_id, status=Status.NOT_VISIBLE, word=outcome.code)
            if outcome.meaning in {Meaning.INVALID, Meaning.NO_BALANCE}:
                raise GenerationNotVisible(  # it is bought, so it is no InvalidRequest
                    f"CometAPI does not tell the generation's state: {outcome.message}",
                    code=outcome.code,
                    http_status=outcome.http_status,
                ).about(task_id=task_id)
            raise self._error(outcome, otherwise=ServiceUnavailable).about(task_id=task_id)
        generation = read_generation(outcome.body, task_id)
        if generation is None:
            raise ServiceUnavailable(
                "CometAPI answered with a success that tells no state",
                http_status=outcome.http_status,
            ).about(task_id=task_id)
        return generation

    async def _send(
        self,
        method: str,
        path: str,
        payload: dict[str, Any] | None = None,
        *,
        before_paying: Callable[[], None] | None = None,
    ) -> Reply | Refusal:
        # a paid call is claimed already, so it waits for no turn
        paid, extensions = before_paying is not None, _trace(before_paying)
        client = nullcontext(self._http_once) if paid else self._connections.one()
        try:
            async with (
                client as http,
                asyncio.timeout(TOTAL_TIMEOUT),
                http.stream(method, path, json=payload, extensions=extensions) as response,
            ):
                reply = await _read(response, self._key)
        except _FAILURES as error:
            return refusal_of_exception(error)
        return (refusal_of_purchase(reply) if paid else refusal_of_reply(reply)) or reply

    def _error(self, refusal: Refusal, otherwise: type[CometAPIError]) -> CometAPIError:
        error_type = _ERRORS.get(refusal.meaning, otherwise)
        message = refusal.message
        if error_type is SubmissionUncertain and refusal.is_foreign:
            message = _FOREIGN.format(message=message, base_url=self.base_url)
        return error_type(
            _SENTENCES.get(error_type, "{message}").format(message=message, base_url=self.base_url),
            code=refusal.code,
            http_status=refusal.http_status,
            retry_after=refusal.retry_after,
        )


def _trace(before_sending: Callable[[], None] | None) -> dict[str, Any] | None:
    """What httpx is to call as it sends a request."""
    if before_sending is None:
        return None

    async def trace(event: str, _info: dict[str, Any]) -> None:
        if event.endswith("send_request_headers.started"):
            before_sending()

    return {"trace": trace}


_SENTENCES: dict[type[CometAPIError], str] = {
    InvalidRequest: "CometAPI does not accept the request: {message}",
    AuthenticationError: "CometAPI does not accept the key: {message}",
    QuotaExceeded: "the account's balance does not suffice: {message}",
    ServiceUnavailable: "CometAPI cannot take the call now: {message}",
    UnexpectedResponse: "{base_url} does not answer as CometAPI does: {message}",
    SubmissionUncertain: "no answer says whether the submission was accepted: {message}",
}


_FOREIGN = (
    "{base_url} does not answer as CometAPI does ({message}), so check COMETAPI_BASE_URL and what "
    "proxy is on the way"
)


async def _read(response: httpx.Response, key: str) -> Reply:
    if response.is_stream_consumed:  # by a transport that a user plugged in
        content = bytearray(response.content)
    else:
        content = _unpacked(await _received(response), response.headers.get("content-encoding", ""))
    is_page = _is_page(response, bytes(content[:400]))  # before the key is hidden, which adds a "<"
    is_secret = len(key) >= SHORTEST_SECRET
    if is_secret:  # some services repeat it in their refusal
        content = content.replace(key.encode(), b"<hidden key>")
    excerpt = _excerpt(response, bytes(content[:400]))
    try:
        body, is_json = json.loads(content), True
    except (ValueError, RecursionError):
        body, is_json = None, False
    return Reply(
        http_status=response.status_code,
        headers={name.lower(): value for name, value in response.headers.items()},
        body=body,
        is_json=is_json and isinstance(body, dict),
        excerpt=excerpt.replace(key, "<hidden key>") if is_secret else excerpt,
        is_page=is_page,
    )


async def _received(response: httpx.Response) -> bytearray:
    content = bytearray()
    async for chunk in response.aiter_raw():
        content += chunk
        if len(content) > MAX_REPLY_BYTES:
            break
    return content


def _unpacked(content: bytearray, encoding: str) -> bytearray:
    """What a body is that came packed though that was not asked for; never more than is read.

    Raises:
        httpx.DecodingError: It cannot be told, so it is no answer.
    """
    encoding = encoding.strip().lower()
    if encoding in {"", "identity"}:
        return content
    if encoding not in {"gzip", "x-gzip", "deflate"}:
        raise httpx.DecodingError(f"the reply is packed as {scrub(encoding, limit=40)}")
    try:
        unpacked = zlib.decompressobj(_GZIP_OR_ZLIB).decompress(content, MAX_REPLY_BYTES + 1)
    except zlib.error as error:
        raise httpx.DecodingError(str(error)) from None
    return bytearray(unpacked)


def _is_page(response: httpx.Response, content: bytes) -> bool:
    """Whether a person's browser was meant; any other success may be a garbled receipt."""
    labelled = "html" in response.headers.get("content-type", "").lower()
    return labelled and content.lstrip().startswith(b"<")


def _excerpt(response: httpx.Response, content: bytes) -> str:
    """What a person needs to recognise a reply that is not the service's JSON."""
    if location := response.headers.get("location"):
        return f"it redirects to {scrub(location, limit=120)}"
    content_type = response.headers.get("content-type", "no content type").partition(";")[0]
    content_type = scrub(content_type, limit=60)
    text = scrub(content.decode("utf-8", "replace"), limit=120)
    return f"{content_type}, {text!r}" if text else f"{content_type}, empty"
