# SPDX-License-Identifier: Apache-2.0
"""Read-only client for an account at CometAPI: its tasks, its charges and its balance.

CometAPI does not document these routes with its API, so no failure here is an error: each answer
says what is unknown, and why. Nothing here can cost money.
"""

import asyncio
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from math import ceil
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx
from pydantic import SecretStr, ValidationError

from ..http_clients import tls_context
from ..models.account import (
    PLATFORMS,
    UNLIMITED_USD,
    AccountBalance,
    AccountCharge,
    AccountCharges,
    AccountTask,
    AccountTasks,
    ChargeRow,
    TaskRow,
    TokenCheck,
    distinct_tasks,
    read_number,
    within,
)
from ..redact import redact_url, scrub
from ..settings import API_KEY_PATTERN, DEFAULT_BASE_URL
from .certainty import own_error
from .client import MIN_SECRET_LENGTH, read_reply

TIMEOUT = httpx.Timeout(30.0, connect=10.0)
"""Timeouts in seconds without network activity."""

TOTAL_TIMEOUT = 60.0
"""Timeout of one whole request in seconds."""

PAGE_SIZE = 100
"""Number of rows to ask for; the service may send fewer in each page."""

MAX_PAGES = 100
"""Maximum number of pages of one list; a longer list is reported as incomplete."""

_FAILURES = (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, TimeoutError, ValueError)

_REJECTED = {401, 403}

Row = TypeVar("Row")


@dataclass(frozen=True)
class Answer:
    """JSON object that a route returned, or the reason why there is none.

    Attributes:
        body: JSON object, empty if there is none.
        problem: Reason why there is none, or None.
        http_status: HTTP status of the reply, or None if there was no reply.
        is_rejected: True if CometAPI says in its own JSON that it does not accept the secret.
    """

    body: dict[str, Any] = field(default_factory=dict[str, Any])
    problem: str | None = None
    http_status: int | None = None
    is_rejected: bool = False


def read_only_client(
    base_url: str, transport: httpx.AsyncBaseTransport | None
) -> httpx.AsyncClient:
    """Return an HTTP client without any secret, which follows no redirects.

    Raises:
        httpx.InvalidURL: The base URL is not valid.
    """
    return httpx.AsyncClient(
        base_url=base_url,
        headers={
            "Accept": "application/json",
            "Accept-Encoding": "identity",
            "User-Agent": "prefect-cometapi",
        },
        timeout=TIMEOUT,
        transport=transport,
        verify=tls_context(),
        trust_env=not base_url.lower().startswith("http:"),
        follow_redirects=False,
    )


async def fetch(
    http: httpx.AsyncClient, path: str, params: dict[str, str | int], secret: str = ""
) -> Answer:
    """Return the JSON object of a GET request, or the reason why there is none.

    Args:
        http: Client of `read_only_client`.
        path: Path on the base URL.
        params: Query of the request.
        secret: Secret to send as the bearer token; it is removed from the answer.
    """
    headers = {"Authorization": f"Bearer {secret}"} if secret else {}
    try:
        async with (
            asyncio.timeout(TOTAL_TIMEOUT),
            http.stream("GET", path, params=params, headers=headers) as response,
        ):
            reply = await read_reply(response, secret)
    except _FAILURES as error:
        return Answer(
            problem=f"no answer: {scrub(_hide(str(error), secret)) or type(error).__name__}"
        )
    status = reply.http_status
    if not reply.is_json:
        return Answer(problem=f"HTTP {status} without JSON: {reply.excerpt}", http_status=status)
    body = _without(reply.body, secret)
    if status != httpx.codes.OK or body.get("success") is False or body.get("error"):
        is_own = body.get("success") is False or own_error(body) is not None
        return Answer(
            problem=f"HTTP {status}: {_message(body)}",
            http_status=status,
            is_rejected=is_own and status in _REJECTED,
        )
    return Answer(body, http_status=status)


def _hide(text: str, secret: str) -> str:
    return text.replace(secret, "<hidden key>") if secret else text


def _without(body: dict[str, Any], secret: str) -> dict[str, Any]:
    """Return a JSON object without a secret that the reply contained in escaped form."""
    text = json.dumps(body, ensure_ascii=False)
    if len(secret) < MIN_SECRET_LENGTH or secret not in text:
        return body
    return json.loads(_hide(text, secret))


def _message(body: dict[str, Any]) -> str:
    error = body.get("error")
    said = error.get("message") if isinstance(error, dict) else body.get("message") or error
    return scrub(str(said or "no reason given"), limit=200)


@dataclass(frozen=True)
class Page:
    """One page of a list: its rows, and the number of rows of all pages if the service tells."""

    rows: tuple[dict[str, Any], ...]
    total: int | None


def read_page(body: dict[str, Any]) -> Page | None:
    """Return the page in a reply, as ``data`` or ``data.items``, or None if there is none; pure."""
    data, total = body.get("data"), body.get("total")
    if isinstance(data, dict):
        total = data.get("total", total)
        data = data.get("items", data.get("data"))
    if data is None and total == 0:  # an empty list of a Go program is null
        data = []
    if not isinstance(data, list) or not all(isinstance(row, dict) for row in data):
        return None
    is_number = isinstance(total, int) and not isinstance(total, bool) and total >= 0
    return Page(tuple(data), total if is_number else None)


@dataclass
class Listing:
    """Rows of a list as its pages arrive, and the decision whether more pages are needed."""

    rows: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])
    total: int | None = None
    pages: int = 0
    problem: str | None = None
    is_done: bool = False

    def add(self, page: Page) -> None:
        """Add the next page."""
        new = {_identity(row): row for row in page.rows}
        repeated = len(new) < len(page.rows) or bool(new.keys() & self.rows.keys())
        self.pages += 1
        if self.pages == 1:
            self.total = page.total
        self.rows |= new
        if page.total != self.total:
            self._stop(f"the total changed from {self.total} to {page.total} between two pages")
        elif repeated:
            self._stop(f"page {self.pages} repeats a row")
        elif self.total is None:
            self.is_done = not page.rows
        elif len(self.rows) > self.total:
            self._stop(f"the list has more rows than its total of {self.total}")
        elif len(self.rows) == self.total:
            self.is_done = True
        elif not page.rows:
            self._stop(f"{self.total - len(self.rows)} of {self.total} rows are missing")
        if self.pages >= MAX_PAGES and not self.is_done:
            self._stop(f"the list has more than {MAX_PAGES} pages")

    def _stop(self, problem: str) -> None:
        self.problem, self.is_done = problem, True


class AccountClient:
    """Read-only client for an account; use it as an async context manager.

    Args:
        api_key: API key. It is sent to ``/v1/dashboard/billing`` only.
        access_token: Access token of the account. It is sent to ``/api`` only.
        base_url: Root URL of the service. No other origin is ever contacted.
        transport: httpx transport to send through, for tests and proxies.
    """

    def __init__(
        self,
        *,
        api_key: SecretStr | None = None,
        access_token: SecretStr | None = None,
        base_url: str = DEFAULT_BASE_URL,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.base_url = base_url
        self._key = _plain(api_key)
        self._token = _plain(access_token)
        self._http = read_only_client(base_url, transport)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._http.aclose()

    def __repr__(self) -> str:
        return f"AccountClient({redact_url(self.base_url)!r})"

    @property
    def has_access_token(self) -> bool:
        """True if there is an access token, without which tasks and charges are unknown."""
        return bool(self._token)

    async def tasks(
        self, start: datetime, end: datetime, platforms: Iterable[str] = PLATFORMS
    ) -> AccountTasks:
        """Return the account's tasks that were submitted in a period.

        Args:
            start: Start of the period, rounded down to a second.
            end: End of the period, rounded up to a second.
            platforms: Platforms to list. A row that names another platform is left out.
        """
        asked_at, names = datetime.now(UTC), tuple(platforms)
        found: list[AccountTask] = []
        problem = None
        for platform in names:
            query = _period(start, end) | {"platform": platform}
            rows, problem = await self._list("/api/task/self", query, _read_task)
            found += rows
            if problem:
                break
        tasks = [
            task
            for task in distinct_tasks(found)
            if task.platform in {"", *names} and within(task.submitted_at, start, _up(end))
        ]
        return AccountTasks(
            tasks=tuple(tasks), is_complete=problem is None, asked_at=asked_at, problem=problem
        )

    async def charges(self, start: datetime, end: datetime) -> AccountCharges:
        """Return the account's charges and refunds in a period, rounded to whole seconds."""
        asked_at = datetime.now(UTC)
        found: list[AccountCharge] = []
        problem = None
        for kind in (2, 6):  # consume, refund
            query = _period(start, end) | {"type": kind}
            rows, problem = await self._list("/api/log/self", query, _read_charge)
            found += [row for row in rows if row and (row.kind == "refund") == (kind == 6)]
            if problem:
                break
        kept = [charge for charge in found if within(charge.created_at, start, _up(end))]
        return AccountCharges(
            charges=tuple(kept), is_complete=problem is None, asked_at=asked_at, problem=problem
        )

    async def balance(self) -> AccountBalance:
        """Return the balance of the API key."""
        if not self._key:
            return AccountBalance(problem="there is no API key")
        amounts: list[float] = []
        for route, name in (("subscription", "hard_limit_usd"), ("usage", "total_usage")):
            path = f"/v1/dashboard/billing/{route}"
            answer = await fetch(self._http, path, {}, self._key)
            if answer.problem:
                return AccountBalance(problem=f"{path}: {answer.problem}")
            amount = read_number(answer.body.get(name))
            if amount is None:
                return AccountBalance(problem=f"{path}: the reply has no number {name}")
            amounts.append(amount)
        limit, used_cents = amounts
        if limit >= UNLIMITED_USD:
            return AccountBalance(is_unlimited=True)
        return AccountBalance(usd=limit - used_cents / 100)

    async def check_token(self) -> TokenCheck:
        """Check the access token with one free request."""
        if not self._token:
            return TokenCheck(is_accepted=None, problem="there is no access token")
        answer = await fetch(self._http, "/api/task/self", {"p": 1, "page_size": 1}, self._token)
        if answer.problem is None:
            answered = read_page(answer.body) is not None
            return TokenCheck(
                is_accepted=answered or None,
                problem=None if answered else "/api/task/self: the reply has no list",
            )
        return TokenCheck(is_accepted=False if answer.is_rejected else None, problem=answer.problem)

    async def _list(
        self, path: str, query: dict[str, str | int], read: Callable[[dict[str, Any]], Row]
    ) -> tuple[list[Row], str | None]:
        """Return the rows of all pages, and the reason why they are incomplete if they are."""
        if not self._token:
            return [], "there is no access token (COMETAPI_ACCESS_TOKEN)"
        listing, problem = Listing(), None
        while not listing.is_done:
            params = query | {"p": listing.pages + 1, "page_size": PAGE_SIZE}
            answer = await fetch(self._http, path, params, self._token)
            page = None if answer.problem else read_page(answer.body)
            if page is None:
                problem = answer.problem or "the reply has no list"
                break
            listing.add(page)
        rows: list[Row] = []
        for row in listing.rows.values():
            try:
                rows.append(read(row))
            except ValidationError:
                problem = problem or "a row cannot be read"
        problem = problem or listing.problem
        return rows, f"{path}: {problem}" if problem else None


def _identity(row: dict[str, Any]) -> str:
    """Return the task id of a row, which stays when its progress changes, or its whole content."""
    return json.dumps(row.get("task_id") or row, sort_keys=True)


def _read_task(row: dict[str, Any]) -> AccountTask:
    return TaskRow.model_validate(row).task()


def _read_charge(row: dict[str, Any]) -> AccountCharge | None:
    return ChargeRow.model_validate(row).charge()


def _period(start: datetime, end: datetime) -> dict[str, str | int]:
    return {"start_timestamp": int(start.timestamp()), "end_timestamp": ceil(end.timestamp())}


def _up(end: datetime) -> datetime:
    return datetime.fromtimestamp(ceil(end.timestamp()), UTC)


def _plain(secret: SecretStr | None) -> str:
    """Return the text of a secret that a header can carry, or an empty string."""
    text = secret.get_secret_value().strip() if secret else ""
    return text if re.fullmatch(API_KEY_PATTERN, text) else ""
