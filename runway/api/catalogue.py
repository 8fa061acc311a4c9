# SPDX-License-Identifier: Apache-2.0
"""Client for CometAPI's public catalogue of models. It sends no secret, and nothing needs it."""

import asyncio
import time
from types import TracebackType
from typing import Self

import httpx

from ..models.catalogue import CatalogueReply, read_catalogue
from ..settings import DEFAULT_BASE_URL
from .account import fetch, read_only_client

KEEP_SECONDS = 3600.0
"""Seconds for which a catalogue is kept."""

KEEP_FAILURE_SECONDS = 60.0
"""Seconds for which a failure is kept, so that a missing catalogue does not delay each run."""


class CatalogueClient:
    """Client for the catalogue, which keeps it for an hour; use it as an async context manager.

    Args:
        base_url: Root URL of the service.
        transport: httpx transport to send through, for tests and proxies.
    """

    def __init__(
        self,
        base_url: str = DEFAULT_BASE_URL,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._http = read_only_client(base_url, transport)
        self._kept: CatalogueReply | None = None
        self._kept_until = 0.0
        self._lock = asyncio.Lock()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._http.aclose()

    async def models(self) -> CatalogueReply:
        """Return the catalogue; concurrent callers share one request."""
        async with self._lock:
            if self._kept is None or time.monotonic() >= self._kept_until:
                self._kept = await self._ask()
                seconds = KEEP_SECONDS if self._kept.models else KEEP_FAILURE_SECONDS
                self._kept_until = time.monotonic() + seconds
            return self._kept

    async def _ask(self) -> CatalogueReply:
        answer = await fetch(self._http, "/api/models", {})
        if answer.problem:
            return CatalogueReply(problem=answer.problem)
        return read_catalogue(answer.body)
