# SPDX-License-Identifier: Apache-2.0
"""Wrappers around product functions that strike a process exactly at a boundary.

The product does not know of them. A kill is a real SIGKILL that the process sends to itself.
"""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from functools import wraps
from pathlib import Path
from threading import Event
from typing import Any

import httpx
from prefect._internal.concurrency.cancellation import AsyncCancelScope
from prefect.flow_engine import AsyncFlowRunEngine, FlowRunEngine

from prefect_cometapi.flows.runtime.block_storage import BlockStorage
from prefect_cometapi.runway.api.client import RunwayClient
from prefect_cometapi.runway.ledger.store import Ledger
from prefect_cometapi.runway.media.download_file import DownloadWriter
from prefect_cometapi.runway.models.generation import Status
from prefect_cometapi.runway.storage.fsspec import FsspecStorage

from .plan import Boundary, How

FLOW_TIMEOUT = 611.0
"""Timeout in seconds that tells the flow's own timeout from others; a strike lets it expire."""

Test = Callable[..., bool]


class Interrupted(Exception):
    """Error of a type that the product does not know."""


class Strike:
    """Strike that happens once, at its first call.

    Args:
        how: Kind of strike.
        marker: File that is written before the strike.
        storage: Location of the videos.
        suffix: Suffix of the file whose rename or upload is meant.
    """

    def __init__(self, how: How, marker: Path, storage: str, suffix: str) -> None:
        self._how = how
        self._marker = marker
        self.storage = storage
        self.suffix = suffix
        self._scope: AsyncCancelScope | None = None
        if how is How.TIMEOUT:
            self._find_the_timeout()

    def __call__(self) -> None:
        """Kill this process, raise an error, or let the flow's timeout expire."""
        if self._marker.exists():
            return
        self._marker.touch()
        if self._how is How.KILL:
            os.kill(os.getpid(), signal.SIGKILL)
        if self._how is How.ERROR:
            raise Interrupted("struck")
        self._expire()

    def _find_the_timeout(self) -> None:
        enter = AsyncCancelScope.__enter__

        def remembering(scope: AsyncCancelScope) -> AsyncCancelScope:
            if scope._timeout == FLOW_TIMEOUT:
                self._scope = scope
            return enter(scope)

        AsyncCancelScope.__enter__ = remembering  # pyright: ignore[reportAttributeAccessIssue]

    def _expire(self) -> None:
        """Cancel the flow at its next await, as its timeout does; works from any thread."""
        assert self._scope, "the flow has no timeout"
        expire = self._scope._anyio_scope.cancel
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            expired = Event()
            self._scope.loop.call_soon_threadsafe(lambda: (expire(), expired.set()))
            expired.wait(10)
        else:
            expire()


def _always(*_args: Any, **_values: Any) -> bool:
    return True


def around(owner: Any, name: str) -> Callable[[Callable[..., Any]], None]:
    """Wrap a method in a function that gets the original as its first argument."""
    original = getattr(owner, name)

    def decorate(function: Callable[..., Any]) -> None:
        @wraps(original)
        def patched(*args: Any, **values: Any) -> Any:
            return function(original, *args, **values)

        setattr(owner, name, patched)

    return decorate


def before(strike: Strike, owner: Any, name: str, when: Test = _always) -> None:
    """Strike before a method runs, if its arguments match."""

    @around(owner, name)
    def _(original: Callable[..., Any], *args: Any, **values: Any) -> Any:
        if when(*args, **values):
            strike()
        return original(*args, **values)


def after(strike: Strike, owner: Any, name: str, when: Test = _always) -> None:
    """Strike after a coroutine method returned, if its arguments matched."""

    @around(owner, name)
    async def _(original: Callable[..., Awaitable[Any]], *args: Any, **values: Any) -> Any:
        found = await original(*args, **values)
        if when(*args, **values):
            strike()
        return found


def _on_the_wire(strike: Strike, moment: str) -> None:
    """Strike when httpcore reaches this event of the paid POST."""

    async def trace(event: str, _info: Any) -> None:
        if event == moment:
            strike()

    @around(httpx.AsyncHTTPTransport, "handle_async_request")
    async def _(original: Callable[..., Any], transport: Any, request: httpx.Request) -> Any:
        if request.url.path.endswith("_to_video"):
            request.extensions = {**request.extensions, "trace": trace}
        return await original(transport, request)


def _on_a_reply(strike: Strike, *statuses: Status) -> None:
    @around(RunwayClient, "get")
    async def _(original: Callable[..., Any], client: RunwayClient, task_id: str) -> Any:
        reply = await original(client, task_id)
        if reply.status in statuses:
            strike()
        return reply


def _on_a_chunk(strike: Strike) -> None:
    @around(DownloadWriter, "append")
    async def _(
        original: Callable[..., Awaitable[None]], arriving: DownloadWriter, chunk: bytes
    ) -> None:
        await original(arriving, chunk)
        if arriving.received < (arriving.total or 0):  # Otherwise the file is complete.
            strike()


def _on_a_rename(strike: Strike, boundary: Boundary) -> None:
    @around(Path, "replace")
    def _(original: Callable[..., Path], source: Path, target: Path) -> Path:
        it_is = target.suffix == strike.suffix and str(target.parent) == strike.storage
        if it_is and boundary is Boundary.BEFORE_RENAME:
            strike()
        found = original(source, target)
        if it_is and boundary is Boundary.RENAMED:
            strike()
        return found


def _on_an_upload(strike: Strike, boundary: Boundary) -> None:
    for kind in (FsspecStorage, BlockStorage):

        @around(kind, "publish")
        def _(original: Callable[..., str], storage: Any, staged: Path, name: str) -> str:
            it_is = name.endswith(strike.suffix)
            if it_is and boundary is Boundary.BEFORE_RENAME:
                strike()
            found = original(storage, staged, name)
            if it_is and boundary is Boundary.RENAMED:
                strike()
            return found


def _when_it_appears(boundary: Boundary) -> Callable[[Strike], None]:
    """Strike at a rename in a folder, and at an upload in any other storage."""

    def install(strike: Strike) -> None:
        _on_a_rename(strike, boundary)
        _on_an_upload(strike, boundary)

    return install


def _on_success(strike: Strike) -> None:
    before(strike, AsyncFlowRunEngine, "handle_success")
    before(strike, FlowRunEngine, "handle_success")


INSTALL: dict[Boundary, Callable[[Strike], None]] = {
    Boundary.BEFORE_CLAIM: lambda strike: before(strike, Ledger, "insert_claim"),
    Boundary.CLAIMED: lambda strike: after(strike, Ledger, "insert_claim"),
    Boundary.POST_BEGUN: lambda strike: _on_the_wire(
        strike, "http11.send_request_headers.complete"
    ),
    Boundary.POST_SENT: lambda strike: _on_the_wire(strike, "http11.send_request_body.complete"),
    Boundary.UNREAD: lambda strike: _on_the_wire(
        strike, "http11.receive_response_headers.complete"
    ),
    Boundary.ID_READ: lambda strike: before(strike, Ledger, "mark_submitted"),
    Boundary.ID_COMMITTED: lambda strike: after(strike, Ledger, "mark_submitted"),
    Boundary.POLLING: lambda strike: _on_a_reply(strike, Status.PENDING, Status.RUNNING),
    Boundary.SUCCESS_READ: lambda strike: _on_a_reply(strike, Status.SUCCEEDED),
    Boundary.SUCCESS_RECORDED: lambda strike: after(strike, Ledger, "mark_succeeded"),
    Boundary.DOWNLOADING: _on_a_chunk,
    Boundary.BEFORE_RENAME: _when_it_appears(Boundary.BEFORE_RENAME),
    Boundary.RENAMED: _when_it_appears(Boundary.RENAMED),
    Boundary.BEFORE_STORED: lambda strike: before(strike, Ledger, "mark_stored"),
    Boundary.STORED: lambda strike: after(strike, Ledger, "mark_stored"),
    Boundary.RETURNING: _on_success,
}
"""Installer of the strike at each boundary."""
