# SPDX-License-Identifier: Apache-2.0
"""Server that runs a sandbox on a real socket, beside a test or as a process of its own."""

import asyncio
import socket
from asyncio import create_task
from collections.abc import Iterable
from threading import Event, Thread
from types import TracebackType
from typing import Self

import uvicorn

from .api.app import SandboxApp, create_app
from .config import ACCESS_TOKEN, SandboxConfig
from .faults.plan import Fault, as_faults
from .jobs import AcceptedJob
from .messages.replies import ReplyShape
from .request_log import RecordedRequest

START_TIMEOUT = 10.0
"""Seconds to wait until the server listens."""


class Sandbox:
    """Stand-in for CometAPI on loopback, for the duration of a ``with`` block.

    ```python
    with Sandbox(faults=["create:reset-after"]) as sandbox:
        ...  # talk to sandbox.url
        assert len(sandbox.accepted) == 1
    ```

    Args:
        port: Port to listen on; 0 picks a free one.
        shapes: Shapes of the replies about jobs. New jobs use them in rotation.
        faults: Faults to inject, as `Fault` objects or short strings such as ``create:429``.
        seed: Seed that decides which requests are hit by the faults with a rate.
        render_seconds: Minimum seconds that a job takes.
        not_visible_polls: Number of polls of a new job that answer ``task_not_exist``.
        asset_ttl: Seconds that an output's URL is valid.
        access_token: Access token that the account's lists require.
        balance: US dollars of the account before the first job; ``None`` for no limit.
        c2pa: Whether outputs have a signed C2PA manifest; needs the extra ``c2pa``.
        host: Address to listen on.
    """

    def __init__(
        self,
        port: int = 0,
        *,
        shapes: Iterable[ReplyShape] = ("bare",),
        faults: Iterable[Fault | str] = (),
        seed: int = 0,
        render_seconds: float = 0.0,
        not_visible_polls: int = 0,
        asset_ttl: float = 3600.0,
        access_token: str = ACCESS_TOKEN,
        balance: float | None = 100.0,
        c2pa: bool = False,
        host: str = "127.0.0.1",
    ) -> None:
        config = SandboxConfig(
            shapes=tuple(shapes),
            faults=as_faults(faults),
            seed=seed,
            render_seconds=render_seconds,
            not_visible_polls=not_visible_polls,
            asset_ttl=asset_ttl,
            access_token=access_token,
            balance=balance,
            c2pa=c2pa,
        )
        self._app = create_app(config)
        self._address = (host, port)
        self._url: str | None = None

    def __enter__(self) -> Self:
        listener = _listen(*self._address)
        self._url = _url(listener)
        self._server = _Server(self._app)
        self._thread = Thread(
            target=self._server.run, args=([listener],), name="sandbox", daemon=True
        )
        self._thread.start()
        if not self._server.listening.wait(START_TIMEOUT):
            raise RuntimeError(f"The sandbox did not start within {START_TIMEOUT:g} s.")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.stop()
        self._thread.join()
        self._app.jobs.close()

    @property
    def url(self) -> str:
        """Base URL of the sandbox, as ``http://127.0.0.1:PORT``.

        Raises:
            RuntimeError: The ``with`` block has not been entered.
        """
        if self._url is None:
            raise RuntimeError("A sandbox has a URL inside its `with` block only.")
        return self._url

    @property
    def accepted(self) -> list[AcceptedJob]:
        """Jobs that the real service would have charged for."""
        return self._app.jobs.accepted

    @property
    def requests(self) -> list[RecordedRequest]:
        """Requests that have arrived; only the latest of very many are kept."""
        return self._app.log.requests

    def add_fault(self, fault: Fault | str) -> None:
        """Add a fault; it counts from the next request of its route."""
        self._app.add_fault(*as_faults([fault]))

    def settle(self, timeout: float | None = None) -> None:
        """Wait until the clip of every accepted job is rendered.

        Raises:
            TimeoutError: A clip took longer than `timeout` seconds.
        """
        self._app.jobs.settle(timeout)

    def clear(self) -> None:
        """Forget jobs, faults and requests."""
        self._app.clear()


class _Server(uvicorn.Server):
    """uvicorn server without logs that signals when it listens and stops without waiting."""

    def __init__(self, app: SandboxApp) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http="h11",
                loop="asyncio",
                lifespan="off",
                log_config=None,
                log_level="critical",
                access_log=False,
                timeout_keep_alive=60,
            )
        )
        self.listening = Event()

    def stop(self) -> None:
        """Stop at once. Any thread may call this once the server listens."""
        self._loop.call_soon_threadsafe(self._stopping.set)

    async def main_loop(self) -> None:
        """Run until `stop` or a signal, which uvicorn's own loop handles, ends the server."""
        self._loop, self._stopping = asyncio.get_running_loop(), asyncio.Event()
        self.listening.set()
        endings = [create_task(super().main_loop()), create_task(self._stopping.wait())]
        await asyncio.wait(endings, return_when=asyncio.FIRST_COMPLETED)
        for ending in endings:
            ending.cancel()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Abort every connection; uvicorn would let them finish, and sleep meanwhile."""
        for server in self.servers:
            server.close()
        for listener in sockets or []:
            listener.close()
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        requests = list(self.server_state.tasks)
        for request in requests:
            request.cancel()
        await asyncio.gather(*requests, return_exceptions=True)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio turns off Nagle's algorithm only on sockets that are declared as TCP. With it on,
    # every answer on a keep-alive connection would wait 40 ms for an acknowledgement.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except OSError:
        listener.close()
        raise
    return listener


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
