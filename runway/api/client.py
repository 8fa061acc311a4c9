# SPDX-License-Identifier: Apache-2.0
"""Client for CometAPI's Runway routes; each call returns a value or raises one typed error."""

import asyncio
import json
import re
import zlib
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import replace
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import httpx
from pydantic import SecretStr

from ..errors import (
    AuthenticationError,
    CometAPIError,
    GenerationNotFound,
    InvalidRequest,
    InvalidSource,
    QuotaExceeded,
    ServiceUnavailable,
    SubmissionUncertain,
    UnexpectedResponse,
)
from ..http_clients import NetworkTransport, streaming, tls_context
from ..models.generation import Generation, Status
from ..models.keys import is_task_id
from ..models.requests import GenerationRequest
from ..models.sources import stored_sources
from ..redact import redact_url, scrub
from ..settings import API_KEY_PATTERN, DEFAULT_BASE_URL, DEFAULT_RUNWAY_VERSION
from .error_mapping import (
    ApiFailure,
    FailureKind,
    Reply,
    failure_of_create_reply,
    failure_of_exception,
    failure_of_reply,
    read_request_id,
)
from .reply_parser import error_of, read_generation, read_task_id, why_unread

MAX_REPLY_BYTES = 4 * 1024 * 1024
"""Maximum bytes of a reply. It holds an id or a state; a larger one is not read to its end."""

TIMEOUT = httpx.Timeout(60.0, connect=10.0, pool=30.0)
"""Timeouts in seconds without network activity. A create call without an answer by then is
uncertain."""

TOTAL_TIMEOUT = 120.0
"""Timeout of one whole call in seconds, so that a slowly dripping reply cannot hold it forever."""

MAX_CONCURRENT_CALLS = 32
"""Maximum number of concurrent free calls, each on its own connection."""

UNKNOWN_TASK_ID = "00000000-0000-4000-8000-000000000000"
"""Task id that no generation has."""

_GZIP_OR_ZLIB = 32 + zlib.MAX_WBITS

_FAILURES = (
    httpx.HTTPError,
    httpx.InvalidURL,
    httpx.StreamError,
    TimeoutError,
    ValueError,  # httpx parses a Location even if it does not follow it, and may fail on it
)

_TEMPORARY = {FailureKind.BUSY, FailureKind.UNREACHABLE, FailureKind.UNKNOWN_OUTCOME}

_ERRORS: dict[FailureKind, type[CometAPIError]] = {
    FailureKind.BUSY: ServiceUnavailable,
    FailureKind.UNREACHABLE: ServiceUnavailable,
    FailureKind.INVALID: InvalidRequest,
    FailureKind.UNAUTHENTICATED: AuthenticationError,
    FailureKind.NO_BALANCE: QuotaExceeded,
    FailureKind.MISADDRESSED: UnexpectedResponse,
}


MIN_SECRET_LENGTH = 12
"""Minimum length in characters of an API key that is redacted. A shorter one (of the sandbox) is
not secret, and may be part of any word."""


class RunwayClient:
    """Client for CometAPI's Runway routes; use it as an async context manager.

    Args:
        api_key: API key of CometAPI. The client sends it to ``base_url`` only.
        base_url: Root URL of the service.
        runway_version: Value of the header X-Runway-Version. CometAPI's docs require it on some
            calls and allow it on all, so every call sends it.
        transport: httpx transport to send through, for tests and proxies.

    Raises:
        AuthenticationError: The API key is empty or not valid.
        UnexpectedResponse: The base URL is not a valid URL.
    """

    def __init__(
        self,
        api_key: SecretStr,
        *,
        base_url: str = DEFAULT_BASE_URL,
        runway_version: str = DEFAULT_RUNWAY_VERSION,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        text = api_key.get_secret_value().strip()
        if not re.fullmatch(API_KEY_PATTERN, text):
            raise AuthenticationError("the API key is empty or contains invalid characters")
        self.base_url = base_url
        self._key = text
        self._headers = httpx.Headers(
            {
                "Authorization": f"Bearer {text}",
                "X-Runway-Version": runway_version.strip(),
                "Accept": "application/json",
                "Accept-Encoding": "identity",  # a compressed reply could expand to any size
                "User-Agent": "prefect-cometapi",
            }
        )
        # Without TLS a proxy could read the API key, and this machine needs no proxy.
        use_proxies = not base_url.lower().startswith("http:")
        # A paid call uses a new connection: bytes that an earlier reply left in a kept connection
        # would be read as its answer.
        try:
            self._http_once = httpx.AsyncClient(
                base_url=base_url,
                headers=self._headers,
                timeout=TIMEOUT,
                transport=transport,
                verify=tls_context(),
                trust_env=use_proxies,
                follow_redirects=False,
                limits=httpx.Limits(max_keepalive_connections=0),
            )
        except (httpx.InvalidURL, ValueError) as error:
            what = f"{redact_url(base_url)} is not a valid URL: {scrub(str(error))}"
            raise UnexpectedResponse(what) from None
        self._root = str(self._http_once.base_url).rstrip("/")
        self._free_calls = transport or NetworkTransport(use_proxies=use_proxies)
        self._call_slots = asyncio.Semaphore(MAX_CONCURRENT_CALLS)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._free_calls.aclose()
        await self._http_once.aclose()

    async def create(
        self,
        request: GenerationRequest,
        *,
        body: dict[str, Any] | None = None,
        before_sending: Callable[[], None] = lambda: None,
        on_request_id: Callable[[str], None] = lambda _request_id: None,
    ) -> str:
        """Buy a generation with one POST, and return its task id.

        Args:
            request: Generation to buy.
            body: Body to send, if sources of the request had to be read first. By default, the
                request is sent as it is.
            before_sending: Called once the connection is established (through the proxy, if there
                is one), right before anything is sent over it. If it raises, the request is not
                sent.
            on_request_id: Called with CometAPI's id of the call, if the reply has one.

        Raises:
            InvalidRequest: The service refuses the request.
            InvalidSource: A source is a file or an address that only this package can read.
            AuthenticationError: The API key is missing, wrong or not permitted.
            QuotaExceeded: The account has no balance.
            ServiceUnavailable: The request was certainly not accepted and may be sent again.
            UnexpectedResponse: CometAPI has no such route, so the base URL is wrong.
            SubmissionUncertain: The request may have been accepted and must not be sent again.
        """
        path = f"/runwayml/v1/{request.route}"
        payload = request.to_wire() if body is None else body
        if unread := dict(stored_sources(payload)):
            raise InvalidSource(
                f"{', '.join(unread)} must be read before the request is sent; a client sends URLs "
                "and data URIs only. submit_generation and the flows read it"
            )
        outcome = await self._send("POST", path, payload, before_paying=before_sending)
        if outcome.request_id:
            on_request_id(outcome.request_id)
        if isinstance(outcome, ApiFailure):
            refused = outcome.kind is FailureKind.NOT_FOUND  # an unknown source task, for example
            raise self._error(outcome, otherwise=InvalidRequest if refused else SubmissionUncertain)
        task_id = read_task_id(outcome.body)
        if not task_id or not is_task_id(task_id):
            named = f"the invalid task id {scrub(task_id, limit=80)!r}" if task_id else "no task id"
            raise SubmissionUncertain(
                f"CometAPI reported success but returned {named}",
                http_status=outcome.http_status,
            ).with_context(request_id=outcome.request_id)
        return task_id

    async def get(self, task_id: str) -> Generation:
        """Return the state of a generation (CometAPI docs, Get a Runway task).

        An id that the service does not know (yet) has a state too, ``Status.NOT_FOUND``.

        Raises:
            AuthenticationError: CometAPI says that the API key is wrong or not permitted.
            UnexpectedResponse: CometAPI says that the base URL has a path that it does not know.
            GenerationNotFound: CometAPI refuses to return the state.
            ServiceUnavailable: There is no answer of CometAPI at the moment, or something else
                answers in its place; another request is free.
        """
        outcome = await self._send("GET", f"/runwayml/v1/tasks/{quote(task_id, safe='')}")
        return self._state(task_id, outcome)

    async def check_key(self) -> None:
        """Check the API key with a free request for a generation that does not exist.

        CometAPI reports in its own words that it does not know the id only to an API key that it
        accepts.

        Raises:
            AuthenticationError: The API key is missing, wrong or not permitted.
            UnexpectedResponse: The answer is not from CometAPI.
            ServiceUnavailable: There is no answer at the moment, or it says nothing about the API
                key.
        """
        outcome = await self._send("GET", f"/runwayml/v1/tasks/{UNKNOWN_TASK_ID}")
        if isinstance(outcome, ApiFailure):
            if outcome.is_own and outcome.kind is FailureKind.NOT_FOUND:
                return
            if not outcome.is_foreign or outcome.kind in _TEMPORARY:
                raise self._error(outcome, otherwise=ServiceUnavailable)
        is_failure = isinstance(outcome, ApiFailure)
        said = outcome.message if is_failure else "a success for a generation that does not exist"
        foreign = ApiFailure(
            FailureKind.MISADDRESSED,
            said,
            http_status=outcome.http_status,
            request_id=outcome.request_id,
        )
        raise self._error(foreign, otherwise=UnexpectedResponse)

    async def feed(self, task_id: str) -> Generation:
        """Return the state of a generation from the compatibility route.

        The route is documented by CometAPI as "Get task feed". It may answer when ``get`` does not,
        and raises the same errors as ``get``.
        """
        outcome = await self._send("POST", "/runway/feed", {"task_id": task_id})
        return self._state(task_id, outcome)

    def _state(self, task_id: str, outcome: Reply | ApiFailure) -> Generation:
        if isinstance(outcome, ApiFailure):
            if outcome.kind is FailureKind.NOT_FOUND:
                return Generation(task_id=task_id, status=Status.NOT_FOUND, raw_status=outcome.code)
            if outcome.kind in {FailureKind.INVALID, FailureKind.NO_BALANCE}:
                raise GenerationNotFound(  # already bought, so not an InvalidRequest
                    f"CometAPI did not return the generation's state: {outcome.message}",
                    code=outcome.code,
                    http_status=outcome.http_status,
                ).with_context(task_id=task_id, request_id=outcome.request_id)
            raise self._error(
                _unreachable(outcome, self.base_url), otherwise=ServiceUnavailable
            ).with_context(task_id=task_id)
        generation = read_generation(outcome.body, task_id)
        if generation is None:
            why = why_unread(outcome.body, task_id)
            raise ServiceUnavailable(
                f"CometAPI reported success but returned no state: {why}",
                http_status=outcome.http_status,
            ).with_context(task_id=task_id, request_id=outcome.request_id)
        return generation

    async def _send(
        self,
        method: str,
        path: str,
        payload: dict[str, Any] | None = None,
        *,
        before_paying: Callable[[], None] | None = None,
    ) -> Reply | ApiFailure:
        # A paid call already has its claim, so it does not wait for a turn.
        paid, request_id = before_paying is not None, None
        try:
            async with (
                nullcontext() if paid else self._call_slots,
                asyncio.timeout(TOTAL_TIMEOUT),
                self._call(method, path, payload, before_paying) as response,
            ):
                request_id = read_request_id(response.headers)
                reply = await read_reply(response, self._key)
        except _FAILURES as error:  # a reply that broke off may have had its request id
            return replace(failure_of_exception(error), request_id=request_id)
        return (failure_of_create_reply(reply) if paid else failure_of_reply(reply)) or reply

    def _call(
        self,
        method: str,
        path: str,
        payload: dict[str, Any] | None,
        before_paying: Callable[[], None] | None,
    ) -> AbstractAsyncContextManager[httpx.Response]:
        if before_paying:
            extensions = _trace(before_paying)
            return self._http_once.stream(method, path, json=payload, extensions=extensions)
        # A client's own method to build a request parses the URL three times instead of once.
        request = httpx.Request(
            method,
            f"{self._root}{path}",
            headers=self._headers,
            json=payload,
            extensions={"timeout": TIMEOUT.as_dict()},
        )
        return streaming(self._free_calls, request)

    def _error(self, failure: ApiFailure, otherwise: type[CometAPIError]) -> CometAPIError:
        error_type = _ERRORS.get(failure.kind, otherwise)
        message = failure.message
        if error_type is SubmissionUncertain and failure.is_foreign:
            message = _FOREIGN.format(message=message, base_url=self.base_url)
        return error_type(
            _SENTENCES.get(error_type, "{message}").format(message=message, base_url=self.base_url),
            code=failure.code,
            http_status=failure.http_status,
            retry_after=failure.retry_after,
        ).with_context(request_id=failure.request_id)


def _unreachable(failure: ApiFailure, base_url: str) -> ApiFailure:
    """Return a failure whose reply is not CometAPI's as one of a service that is not reached."""
    if failure.kind is not FailureKind.MISADDRESSED or failure.is_own:
        return failure
    message = _FOREIGN.format(message=failure.message, base_url=base_url)
    return replace(failure, kind=FailureKind.UNREACHABLE, message=message)


def _trace(before_sending: Callable[[], None]) -> dict[str, Any]:
    """Return httpx extensions that call a function right before a request is sent."""

    async def trace(event: str, _info: dict[str, Any]) -> None:
        if event.endswith("send_request_headers.started"):
            before_sending()

    return {"trace": trace}


_SENTENCES: dict[type[CometAPIError], str] = {
    InvalidRequest: "CometAPI rejected the request: {message}",
    AuthenticationError: "CometAPI rejected the API key: {message}",
    QuotaExceeded: "the account balance is too low: {message}",
    ServiceUnavailable: "CometAPI at {base_url} is unavailable: {message}",
    UnexpectedResponse: "{base_url} does not respond like CometAPI: {message}",
    SubmissionUncertain: "no reply confirms whether the submission was accepted: {message}",
}


_FOREIGN = (
    "{base_url} does not respond like CometAPI ({message}); check COMETAPI_BASE_URL and any proxy "
    "in between"
)


async def read_reply(response: httpx.Response, key: str) -> Reply:
    """Read a reply up to ``MAX_REPLY_BYTES``, without the secret that the request carried."""
    if response.is_stream_consumed:  # by a custom transport
        content = bytearray(response.content)
    else:
        content = _unpacked(await _received(response), response.headers.get("content-encoding", ""))
    is_page = _is_page(response, bytes(content[:400]))  # before redaction, which adds a "<"
    is_secret = len(key) >= MIN_SECRET_LENGTH
    if is_secret:  # some services repeat the API key in their errors
        content = content.replace(key.encode(), b"<hidden key>")
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        body = None
    is_json = isinstance(body, dict)
    excerpt = ""  # needed only for a reply that may be a failure; it takes as long as the parser
    if not (is_json and response.is_success and error_of(body) is None):
        excerpt = _excerpt(response, bytes(content[:400]))
    return Reply(
        http_status=response.status_code,
        headers=response.headers,
        body=body,
        is_json=is_json,
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
    """Decompress a body that came compressed although the request accepts no encoding.

    The result is at most one byte longer than ``MAX_REPLY_BYTES``.

    Raises:
        httpx.DecodingError: The body cannot be decompressed, so it is not an answer.
    """
    encoding = encoding.strip().lower()
    if encoding in {"", "identity"}:
        return content
    if encoding not in {"gzip", "x-gzip", "deflate"}:
        raise httpx.DecodingError(
            f"the reply has the unsupported encoding {scrub(encoding, limit=40)}"
        )
    try:
        unpacked = zlib.decompressobj(_GZIP_OR_ZLIB).decompress(content, MAX_REPLY_BYTES + 1)
    except zlib.error as error:
        raise httpx.DecodingError(str(error)) from None
    return bytearray(unpacked)


def _is_page(response: httpx.Response, content: bytes) -> bool:
    """Return True for a page meant for a browser; any other success may be a garbled receipt."""
    labelled = "html" in response.headers.get("content-type", "").lower()
    return labelled and content.lstrip().startswith(b"<")


def _excerpt(response: httpx.Response, content: bytes) -> str:
    """Describe a reply that is not the service's JSON, so that a person can recognise it."""
    if location := response.headers.get("location"):
        return f"a redirect to {scrub(location, limit=120)}"
    content_type = response.headers.get("content-type", "no content type").partition(";")[0]
    content_type = scrub(content_type, limit=60)
    text = scrub(content.decode("utf-8", "replace"), limit=120)
    return f"{content_type}, {text!r}" if text else f"{content_type}, empty"
