# SPDX-License-Identifier: Apache-2.0
"""Routes of the catalogue, the account's lists and the balance.

They are not in the OpenAPI document, because CometAPI does not document them with its API.
"""

import json
import secrets
import time
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.responses import Response

from ..config import SandboxConfig
from ..faults.middleware import FAULT
from ..faults.plan import Fault
from ..jobs import JobStore
from ..messages import account
from ..messages.errors import access_denied
from .auth import require_key

_bearer = HTTPBearer(auto_error=False)


def fault_of(request: Request) -> Fault | None:
    """Return the fault that the route has to apply to this request, if any."""
    return request.scope.get(FAULT)


def account_routes(config: SandboxConfig, jobs: JobStore) -> APIRouter:
    """Return the routes of the account whose jobs these are."""
    router = APIRouter(include_in_schema=False)
    router.include_router(_lists(config, jobs))
    router.include_router(_billing(config, jobs))

    @router.get("/api/models")
    async def models(request: Request) -> Response:
        """List the models for sale."""
        return _answer(request, account.catalogue())

    return router


def _lists(config: SandboxConfig, jobs: JobStore) -> APIRouter:
    def require_token(
        credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
    ) -> None:
        given = credentials.credentials.strip() if credentials else ""
        if not secrets.compare_digest(given.encode(), config.access_token.encode()):
            raise access_denied()

    router = APIRouter(dependencies=[Depends(require_token)])

    @router.get("/api/task/self")
    async def tasks(request: Request, p: int = 1, page_size: int = 20) -> Response:
        """List the account's tasks."""
        listed = [account.task_row(row) for row in _rows(jobs, request)]
        wanted = _wanted(request, "submit_time", ("platform", "task_id", "status", "action"))
        return _page(request, list(filter(wanted, listed)), p, page_size)

    @router.get("/api/log/self")
    async def log(request: Request, p: int = 1, page_size: int = 20) -> Response:
        """List the account's charges and refunds."""
        listed = [line for row in _rows(jobs, request) for line in account.log_rows(row)]
        wanted = _wanted(request, "created_at", ("type", "model_name", "token_name"))
        return _page(request, list(filter(wanted, listed)), p, page_size)

    return router


def _billing(config: SandboxConfig, jobs: JobStore) -> APIRouter:
    router = APIRouter(dependencies=[Depends(require_key)])

    @router.get("/v1/dashboard/billing/subscription")
    async def subscription(request: Request) -> Response:
        """Get the limit of the API key."""
        return _answer(request, account.subscription(config.balance))

    @router.get("/v1/dashboard/billing/usage")
    async def usage(request: Request) -> Response:
        """Get the usage of the API key."""
        return _answer(request, account.usage(account.used_usd(_rows(jobs, request))))

    return router


def _rows(jobs: JobStore, request: Request) -> list[account.AccountRow]:
    """Return the rows of the account, newest first, with the fault of this request."""
    fault = fault_of(request)
    rows = [
        account.account_row(job.body, snapshot, job.request_id)
        for job, snapshot in jobs.snapshots()
    ]
    if fault and fault.kind == "late-rows":
        newest = time.time() - fault.number(120)
        rows = [row for row in rows if row.accepted <= newest]
    if fault and fault.kind == "foreign-rows":
        rows += account.foreign_rows(rows, int(fault.number(3)), time.time())
    return sorted(rows, key=lambda row: row.accepted, reverse=True)


def _wanted(request: Request, moment: str, names: tuple[str, ...]) -> Callable[[Any], bool]:
    """Return the filter that the query of a request describes."""
    query = request.query_params
    start = int(query.get("start_timestamp") or 0)
    end = int(query.get("end_timestamp") or 0)
    given = {name: query[name] for name in names if query.get(name)}

    def is_wanted(row: dict[str, Any]) -> bool:
        is_within = start <= row[moment] and (not end or row[moment] <= end)
        return is_within and all(str(row[name]) == value for name, value in given.items())

    return is_wanted


def _page(request: Request, rows: list[Any], number: int, size: int) -> Response:
    fault = fault_of(request)
    reply = account.page(rows, number, size)
    if fault and fault.kind == "missing-pages" and number > 1:
        reply["data"]["items"] = []
    if fault and fault.kind == "changing-total":
        reply["data"]["total"] += 1
    return _answer(request, reply)


def _answer(request: Request, reply: dict[str, Any]) -> Response:
    fault = fault_of(request)
    if fault and fault.kind == "truncated-silent":
        body = json.dumps(reply).encode()
        return Response(body[: len(body) // 2], media_type="application/json")
    return JSONResponse(reply)
