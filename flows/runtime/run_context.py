# SPDX-License-Identifier: Apache-2.0
"""Resources that the steps of one run share: settings, ledger, clients, budget and tally.

A flow reads the settings and opens the ledger once for all of its steps. A batch also shares its
clients, so that thousands of generations use a few connections. A step that runs alone, as a task
in a user's own flow, reads and opens its own.
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
    """Resources that one run has read and opened."""

    settings: CometAPISettings
    ledger: "Ledger"
    client: tuple[CometAPICredentials, RunwayClient] | None = None
    assets: AssetClients | None = None
    budget: Budget | None = None
    tally: Tally | None = None


_shared: ContextVar[Shared | None] = ContextVar("shared", default=None)


@contextmanager
def sharing(shared: Shared) -> Iterator[None]:
    """Make every step within the block use these resources."""
    token = _shared.set(shared)
    try:
        yield
    finally:
        _shared.reset(token)


def current_settings() -> CometAPISettings:
    """Return the settings that the run read at its start, or the current ones outside of a run."""
    shared = _shared.get()
    return shared.settings if shared else CometAPISettings()


def shared_ledger() -> "Ledger | None":
    """Return the ledger that the run has opened, or None."""
    shared = _shared.get()
    return shared.ledger if shared else None


def shared_budget() -> Budget | None:
    """Return the budget of the batch, or None if it has no limit."""
    shared = _shared.get()
    return shared.budget if shared else None


def shared_tally() -> Tally | None:
    """Return the tally of what the run has bought so far, or None if it is not counted."""
    shared = _shared.get()
    return shared.tally if shared else None


@asynccontextmanager
async def client_for(credentials: CometAPICredentials) -> AsyncIterator[RunwayClient]:
    """Yield the shared client for these credentials, or a new one for this step."""
    shared = _shared.get()
    if shared and shared.client and shared.client[0] == credentials:
        yield shared.client[1]
        return
    async with credentials.get_client() as client:
        yield client


@asynccontextmanager
async def clients_for_assets() -> AsyncIterator[AssetClients]:
    """Yield the shared clients for downloads, or new ones for this step."""
    shared = _shared.get()
    if shared and shared.assets:
        yield shared.assets
        return
    async with AssetClients() as clients:
        yield clients
