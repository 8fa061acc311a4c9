# SPDX-License-Identifier: Apache-2.0
"""Crash points: wrappers around product functions that crash a process exactly at a boundary.

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

from .plan import Boundary, CrashKind

FLOW_TIMEOUT = 611.0
"""Timeout in seconds by which the flow's own timeout is recognized; a crash lets it expire."""

Test = Callable[..., bool]


class Interrupted(Exception):
    """Error of a type that the product does not know."""


class Crash:
    """Crash that happens once, at its first call.

    Args:
        kind: Kind of the crash.
        marker: File that is written before the crash.
        storage: Location of the videos.
        suffix: Suffix of the file whose rename or upload is meant.
    """

    def __init__(self, kind: CrashKind, marker: Path, storage: str, suffix: str) -> None:
        self._kind = kind
        self._marker = marker
        self.storage = storage
        self.suffix = suffix
        self._scope: AsyncCancelScope | None = None
        if kind is CrashKind.TIMEOUT:
            self._remember_timeout_scope()

    def __call__(self) -> None:
        """Kill this process, raise an error, or let the flow's timeout expire."""
        if self._marker.exists():
            return
        self._marker.touch()
        if self._kind is CrashKind.KILL:
            os.kill(os.getpid(), signal.SIGKILL)
        if self._kind is CrashKind.ERROR:
            raise Interrupted("crashed")
        self._expire()

    def _remember_timeout_scope(self) -> None:
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


def before(crash: Crash, owner: Any, name: str, when: Test = _always) -> None:
    """Crash before a method runs, if its arguments match."""

    @around(owner, name)
    def _(original: Callable[..., Any], *args: Any, **values: Any) -> Any:
        if when(*args, **values):
            crash()
        return original(*args, **values)


def after(crash: Crash, owner: Any, name: str, when: Test = _always) -> None:
    """Crash after a coroutine method returned, if its arguments matched."""

    @around(owner, name)
    async def _(original: Callable[..., Awaitable[Any]], *args: Any, **values: Any) -> Any:
        result = await original(*args, **values)
        if when(*args, **values):
            crash()
        return result


def _on_transport_event(crash: Crash, event_name: str) -> None:
    """Crash when httpcore reaches this event of the paid POST."""

    async def trace(event: str, _info: Any) -> None:
        if event == event_name:
            crash()

    @around(httpx.AsyncHTTPTransport, "handle_async_request")
    async def _(original: Callable[..., Any], transport: Any, request: httpx.Request) -> Any:
        if request.url.path.endswith("_to_video"):
            request.extensions = {**request.extensions, "trace": trace}
        return await original(transport, request)


def _on_reply(crash: Crash, *statuses: Status) -> None:
    @around(RunwayClient, "get")
    async def _(original: Callable[..., Any], client: RunwayClient, task_id: str) -> Any:
        reply = await original(client, task_id)
        if reply.status in statuses:
            crash()
        return reply


def _on_chunk(crash: Crash) -> None:
    @around(DownloadWriter, "append")
    async def _(
        original: Callable[..., Awaitable[None]], writer: DownloadWriter, chunk: bytes
    ) -> None:
        await original(writer, chunk)
        if writer.received < (writer.total or 0):  # Otherwise the file is complete.
            crash()


def _on_rename(crash: Crash, boundary: Boundary) -> None:
    @around(Path, "replace")
    def _(original: Callable[..., Path], source: Path, target: Path) -> Path:
        matches = target.suffix == crash.suffix and str(target.parent) == crash.storage
        if matches and boundary is Boundary.BEFORE_RENAME:
            crash()
        result = original(source, target)
        if matches and boundary is Boundary.RENAMED:
            crash()
        return result


def _on_upload(crash: Crash, boundary: Boundary) -> None:
    for kind in (FsspecStorage, BlockStorage):

        @around(kind, "publish")
        def _(
            original: Callable[..., str], storage: Any, staged: Path, name: str, **options: Any
        ) -> str:
            matches = name.endswith(crash.suffix)
            if matches and boundary is Boundary.BEFORE_RENAME:
                crash()
            result = original(storage, staged, name, **options)
            if matches and boundary is Boundary.RENAMED:
                crash()
            return result


def _on_publication(boundary: Boundary) -> Callable[[Crash], None]:
    """Crash at a rename in a folder, and at an upload in any other storage."""

    def install(crash: Crash) -> None:
        _on_rename(crash, boundary)
        _on_upload(crash, boundary)

    return install


def _on_success(crash: Crash) -> None:
    before(crash, AsyncFlowRunEngine, "handle_success")
    before(crash, FlowRunEngine, "handle_success")


INSTALL: dict[Boundary, Callable[[Crash], None]] = {
    Boundary.BEFORE_CLAIM: lambda crash: before(crash, Ledger, "insert_claim"),
    Boundary.CLAIMED: lambda crash: after(crash, Ledger, "insert_claim"),
    Boundary.POST_BEGUN: lambda crash: _on_transport_event(
        crash, "http11.send_request_headers.complete"
    ),
    Boundary.POST_SENT: lambda crash: _on_transport_event(
        crash, "http11.send_request_body.complete"
    ),
    Boundary.UNREAD: lambda crash: _on_transport_event(
        crash, "http11.receive_response_headers.complete"
    ),
    Boundary.ID_READ: lambda crash: before(crash, Ledger, "mark_submitted"),
    Boundary.ID_COMMITTED: lambda crash: after(crash, Ledger, "mark_submitted"),
    Boundary.POLLING: lambda crash: _on_reply(crash, Status.PENDING, Status.RUNNING),
    Boundary.SUCCESS_READ: lambda crash: _on_reply(crash, Status.SUCCEEDED),
    Boundary.SUCCESS_RECORDED: lambda crash: after(crash, Ledger, "mark_succeeded"),
    Boundary.DOWNLOADING: _on_chunk,
    Boundary.BEFORE_RENAME: _on_publication(Boundary.BEFORE_RENAME),
    Boundary.RENAMED: _on_publication(Boundary.RENAMED),
    Boundary.BEFORE_STORED: lambda crash: before(crash, Ledger, "mark_stored"),
    Boundary.STORED: lambda crash: after(crash, Ledger, "mark_stored"),
    Boundary.RETURNING: _on_success,
}
"""Installer of the crash at each boundary."""
