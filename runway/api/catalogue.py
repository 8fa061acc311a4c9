# SPDX-License-Identifier: Apache-2.0
"""Client for CometAPI's public catalogue of models. It sends no secret, and nothing needs it."""

import time

import httpx

from ..models.catalogue import CatalogueReply, read_catalogue
from ..settings import DEFAULT_BASE_URL
from .account import fetch, read_only_client

KEEP_SECONDS = 3600.0
"""Seconds for which a catalogue is kept."""

KEEP_FAILURE_SECONDS = 60.0
"""Seconds for which a failure is kept, so that a missing catalogue does not delay each run."""


class Catalogue:
    """CometAPI's catalogue, which is read when it is needed and kept for an hour.

    It keeps no connection, so steps in several event loops can share it.

    Args:
        base_url: Root URL of the service.
        transport: httpx transport to send through, for tests and proxies.
    """

    def __init__(
        self,
        base_url: str = DEFAULT_BASE_URL,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.base_url = base_url
        self._transport = transport
        self._kept: CatalogueReply | None = None
        self._kept_until = 0.0

    async def models(self) -> CatalogueReply:
        """Return the catalogue, or the reason why it is unknown."""
        if self._kept is None or time.monotonic() >= self._kept_until:
            self._kept = await self._ask()
            seconds = KEEP_SECONDS if self._kept.models else KEEP_FAILURE_SECONDS
            self._kept_until = time.monotonic() + seconds
        return self._kept

    async def _ask(self) -> CatalogueReply:
        async with read_only_client(self.base_url, self._transport) as http:
            answer = await fetch(http, "/api/models", {})
        if answer.problem:
            return CatalogueReply(problem=answer.problem)
        return read_catalogue(answer.body)
