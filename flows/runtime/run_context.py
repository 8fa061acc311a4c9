# SPDX-License-Identifier: Apache-2.0
"""What the steps of one run share: the settings, the ledger, and a client.

A step that runs by itself, as a task of a user's own flow, reads and opens its own. A flow reads
and opens them once for all its steps, so that thousands of generations share a few connections.
"""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...blocks.credentials import CometAPICredentials
from ...runway.api.client import RunwayClient
from ...runway.ledger.budget import Budget
from ...runway.ledger.figures import Tally
from ...runway.media.download import AssetClients
from ...runway.settings import CometAPISettings

if TYPE_CHECKING:
    from ...runway.ledger.store import Ledger


@dataclass(frozen=True)
class Shared:
    """What one run has read and opened."""

    settings: CometAPISettings
    ledger: "Ledger"
    client: tuple[CometAPICredentials, RunwayClient] | None = None
    assets: AssetClients | None = None
    budget: Budget | None = None
    tally: Tally | None = None


_shared: ContextVar[Shared | None] = ContextVar("shared", default=None)


@contextmanager
def sharing(shared: Shared) -> Iterator[None]:
    """Have every step within the block use these."""
    token = _shared.set(shared)
    try:
        yield
    finally:
        _shared.reset(token)


def settings_now() -> CometAPISettings:
    """The settings as the run read them when it started, or as they are now."""
    shared = _shared.get()
    return shared.settings if shared else CometAPISettings()


def shared_ledger() -> "Ledger | None":
    """The ledger that the run has opened, if it has."""
    shared = _shared.get()
    return shared.ledger if shared else None


def shared_budget() -> Budget | None:
    """Return what the batch of this run may spend, if that has a limit."""
    shared = _shared.get()
    return shared.budget if shared else None


def shared_tally() -> Tally | None:
    """Return what the run has bought so far, if somebody wants to know."""
    shared = _shared.get()
    return shared.tally if shared else None


@asynccontextmanager
async def client_for(credentials: CometAPICredentials) -> AsyncIterator[RunwayClient]:
    """The client that is shared for these credentials, or one of the step's own."""
    shared = _shared.get()
    if shared and shared.client and shared.client[0] == credentials:
        yield shared.client[1]
        return
    async with credentials.get_client() as client:
        yield client


@asynccontextmanager
async def clients_for_assets() -> AsyncIterator[AssetClients]:
    """The clients that are shared for downloads, or those of the step alone."""
    shared = _shared.get()
    if shared and shared.assets:
        yield shared.assets
        return
    async with AssetClients() as clients:
        yield clients
