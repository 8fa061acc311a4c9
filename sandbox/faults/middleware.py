# SPDX-License-Identifier: Apache-2.0
"""ASGI middleware that records the requests and applies the faults."""

import re
import time
from typing import get_args

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..messages.errors import REQUEST_ID, new_request_id
from ..messages.model_table import ROUTES as CREATES
from ..request_log import RecordedRequest, RequestLog
from . import sockets
from .plan import Fault, FaultPlan, FaultRoute
from .responses import error_page, instead

FAULT = "prefect_cometapi.sandbox.fault"
"""Name in the ASGI scope under which a route finds the fault that it has to apply itself."""

_ROUTES = (
    ("POST", re.compile(rf"/runwayml/v1/({'|'.join(CREATES)})"), "create"),
    ("GET", re.compile(r"/runwayml/v1/tasks/[^/]+"), "task"),
    ("POST", re.compile(r"/runway/feed"), "feed"),
    ("GET", re.compile(r"/assets/.+"), "asset"),
    ("HEAD", re.compile(r"/assets/.+"), "asset"),
    ("GET", re.compile(r"/api/models"), "models"),
    ("GET", re.compile(r"/api/task/self"), "tasks"),
    ("GET", re.compile(r"/api/log/self"), "log"),
    ("GET", re.compile(r"/v1/dashboard/billing/(subscription|usage)"), "billing"),
)


def route_of(method: str, path: str) -> str:
    """Return the route of a plan to which a request belongs, or ``other``."""
    for its_method, pattern, route in _ROUTES:
        if its_method == method and pattern.fullmatch(path):
            return route
    return "other"


class FaultMiddleware:
    """Middleware around the routes that applies the faults of a plan.

    Args:
        app: Application with the routes.
        log: Log that records the requests.
        plan: Plan of the faults. It may be replaced at any time.
    """

    def __init__(self, app: ASGIApp, log: RequestLog, plan: FaultPlan) -> None:
        self._app = app
        self._log = log
        self.plan = plan

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, and apply its fault if it has one."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = _record(scope)
        REQUEST_ID.set(record.request_id)
        number = self._log.add(record)
        fault = self._fault(record.route, number)
        if fault is None:
            await self._app(scope, receive, _noting(record, send))
            return
        record.fault = fault.kind
        if fault.kind in _FROM_PROXIES:
            record.request_id = ""
        scope[FAULT] = fault
        await self._go_wrong(fault, record, scope, receive, send)

    def _fault(self, route: str, number: int) -> Fault | None:
        for known in get_args(FaultRoute):
            if known == route:
                return self.plan.decide(known, number)
        return None

    async def _go_wrong(
        self, fault: Fault, record: RecordedRequest, scope: Scope, receive: Receive, send: Send
    ) -> None:
        noted = _noting(record, send)
        if answer := instead(fault):
            await sockets.drain(receive)
            await answer(scope, receive, noted)
        elif fault.kind == "reset-before":
            await sockets.drain(receive)
            await sockets.reset(receive, send)
        elif fault.kind in _AFTERWARDS:
            await self._after_the_answer(fault, record, scope, receive, send)
        else:
            await self._app(scope, receive, noted)

    async def _after_the_answer(
        self, fault: Fault, record: RecordedRequest, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Let the routes do their work, and spoil only the answer, unless it is an error."""
        noted = _noting(record, send)
        answer = await sockets.answer_of(self._app, scope, receive)
        if answer[0]["status"] >= 400:
            await sockets.replay(answer, noted)
        elif fault.kind == "reset-after":
            await sockets.reset(receive, send)
        elif fault.kind == "silent-after":
            await sockets.fall_silent(receive, send, fault.number(30))
        elif fault.kind == "error-after":
            await error_page(int(fault.number(504)))(scope, receive, noted)
        elif fault.kind == "no-id":
            await JSONResponse({})(scope, receive, noted)
        elif fault.kind == "slow":
            await sockets.trickle(answer, noted, fault.number(5))
        else:
            record.status = answer[0]["status"]
            await sockets.cut_in_half(answer, receive, send)


_AFTERWARDS = {"reset-after", "silent-after", "error-after", "no-id", "slow", "truncated"}

_FROM_PROXIES = {"502", "504", "524", "error-after", "html", "cloudflare", "firewall", "redirect"}
"""Faults whose answers come from a proxy, so they do not have the gateway's request id."""

_WITH_REQUEST_ID = {"create", "task", "feed"}


def _record(scope: Scope) -> RecordedRequest:
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
    route = route_of(scope["method"], scope["path"])
    return RecordedRequest(
        method=scope["method"],
        path=scope["path"],
        route=route,
        headers=headers,
        at=time.monotonic(),
        request_id=new_request_id() if route in _WITH_REQUEST_ID else "",
    )


def _noting(record: RecordedRequest, send: Send) -> Send:
    """Return a `send` that records the status and adds the request id of the gateway."""

    async def noted(message: Message) -> None:
        if message["type"] == "http.response.start":
            record.status = message["status"]
            if record.request_id:
                header = (b"x-cometapi-request-id", record.request_id.encode())
                message = {**message, "headers": [*message.get("headers", []), header]}
        await send(message)

    return noted
