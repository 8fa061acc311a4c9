# SPDX-License-Identifier: Apache-2.0
"""Context of a run: settings, ledger, credentials, storage and identity, each resolved once.

A flow makes one context and its steps use it. A step that runs by itself, as a task in a user's own
flow, makes its own. A batch also has clients, a budget and a tally in it, so that thousands of
generations use a few connections and one limit.
"""

from collections import defaultdict
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from dataclasses import KW_ONLY, dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

from prefect.runtime import flow_run

from ...blocks.credentials import CometAPICredentials
from ...runway.api.catalogue import Catalogue
from ...runway.api.client import RunwayClient
from ...runway.api.cohort import Cohort
from ...runway.environment import check_environment, read_settings
from ...runway.errors import CometAPIError, StorageUnavailable
from ...runway.ledger.budget import Budget, estimate
from ...runway.ledger.costs import BILLED_CURRENCY
from ...runway.ledger.entry import CostSource, Entry, GenerationKind, Intent
from ...runway.ledger.figures import Tally
from ...runway.media.download import AssetClients
from ...runway.models.catalogue import CatalogueReply
from ...runway.models.generation import Submission
from ...runway.models.prices import Price
from ...runway.models.requests import GenerationRequest
from ...runway.settings import CometAPISettings
from ...runway.storage.base import Storage
from . import log
from .block_storage import canonical_location, resolve_storage
from .caller_arguments import GivenCredentials, GivenStorage, as_credentials, as_location
from .identity import Deployment, current_tags, this_deployment, this_run
from .ledger_access import open_ledger

if TYPE_CHECKING:
    from ...runway.ledger.store import Ledger


@dataclass(frozen=True)
class RunLease:
    """Lease of a generation that the run has acquired and renews.

    Attributes:
        ledger: Ledger of the generation.
        idempotency_key: Key of the generation in the ledger.
        owner: Name under which the run has the lease.
    """

    ledger: "Ledger"
    idempotency_key: str
    owner: str

    def entry_of(self, submission: Submission) -> Entry | None:
        """Return the current entry of a submission, or None if this is not a valid lease of it."""
        entry = self.ledger.leases.held.entry(self.idempotency_key)
        if entry and entry.owner == self.owner and entry.task_id == submission.task_id:
            return entry
        return None


@dataclass(eq=False)
class RunContext:
    """Resources and identity of a run. Each is resolved when it is first used.

    Attributes:
        given_credentials: Credentials that the run was given.
        given_storage: Storage location that the run was given.
        settings: Settings as read when the run started.
        client: Client that the generations of a batch share.
        assets: Download clients that the generations of a batch share.
        budget: Spending limits of a batch, or None if it has no limits.
        tally: Tally of what a batch has bought.
        catalogue: CometAPI's catalogue of models, which all steps of the run share.
        cohorts: Generations that the run waits for together, by kind.
        sharing_checked: Whether it was checked that other runs can see what this one buys.
    """

    given_credentials: CometAPICredentials | None = None
    given_storage: str | None = None
    _: KW_ONLY
    settings: CometAPISettings = field(default_factory=read_settings)
    opened_ledger: "Ledger | None" = None
    client: RunwayClient | None = None
    assets: AssetClients | None = None
    budget: Budget | None = None
    tally: Tally | None = None
    catalogue: Catalogue | None = None
    cohorts: defaultdict[GenerationKind, Cohort] = field(
        default_factory=lambda: defaultdict(Cohort)
    )
    sharing_checked: bool = False
    _storage: Storage | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        """Create the catalogue, which copies of the context share.

        Raises:
            InvalidEnvironment: A proxy, the certificates or ``.env`` cannot be used.
        """
        check_environment()
        if self.catalogue is None or self.catalogue.base_url != self.base_url:
            self.catalogue = Catalogue(self.base_url)

    @cached_property
    def credentials(self) -> CometAPICredentials:
        """Credentials of the run; those of the settings if none were given.

        Raises:
            AuthenticationError: There is no API key.
        """
        return self.given_credentials or CometAPICredentials.from_settings(self.settings)

    @property
    def lease(self) -> RunLease | None:
        """Lease of the generation that the caller works on, while it has one."""
        return _lease.get()

    @property
    def base_url(self) -> str:
        """Root URL of the service; it is known without an API key."""
        given = self.given_credentials
        return given.base_url if given else self.settings.base_url

    @property
    def storage_name(self) -> str:
        """Storage location as the user wrote it."""
        return self.given_storage or self.settings.storage

    @cached_property
    def location(self) -> str:
        """Canonical storage location."""
        return canonical_location(self.storage_name)

    @cached_property
    def run(self) -> str:
        """Name of the run for the ledger."""
        return this_run()

    @cached_property
    def deployment(self) -> Deployment:
        """Deployment of the run, as far as it is known without a request to Prefect."""
        return this_deployment()

    async def ledger(self) -> "Ledger":
        """Return the ledger that the settings name.

        Raises:
            LedgerUnavailable: The ledger cannot be opened.
        """
        if self.opened_ledger is None:
            self.opened_ledger = await open_ledger(self.settings)
        return self.opened_ledger

    async def storage(self) -> Storage:
        """Return the storage at the run's location.

        Raises:
            StorageError: The location cannot be used.
        """
        if self._storage is None:
            self._storage = await resolve_storage(self.storage_name)
        return self._storage

    async def models(self) -> CatalogueReply:
        """Return CometAPI's catalogue, or the reason why it is unknown."""
        return await (self.catalogue or Catalogue(self.base_url)).models()

    @property
    def currency(self) -> str:
        """Currency of the prices; the catalogue has prices in US dollars."""
        settings = self.settings
        return BILLED_CURRENCY if isinstance(settings.prices, str) else settings.currency

    async def prices(self) -> Mapping[str, Price]:
        """Return the prices of the settings, or those of CometAPI's catalogue if they name it.

        If the catalogue does not answer, no price is known, and the log says so; a batch says it
        once.
        """
        if not isinstance(self.settings.prices, str):
            return self.settings.prices
        found = await self.models()
        if found.problem and self.tally is None:
            log.logger().warning(
                "COMETAPI_PRICES=catalogue: %s at CometAPI's catalogue: %s",
                "some prices are unknown" if found.models else "the prices are unknown",
                found.problem,
            )
        return found.prices()

    async def intent(
        self,
        key: str,
        request: GenerationRequest | None = None,
        versions: Mapping[str, str] | None = None,
    ) -> Intent:
        """Return the description of a purchase, or of an adoption if there is no request.

        Args:
            key: Idempotency key of the generation.
            request: Request to submit, if there is one.
            versions: Versions of its stored sources.
        """
        wanted: dict[str, Any] = {}
        if request:
            cost = estimate(request, await self.prices())
            wanted = {
                "route": request.route,
                "model": request.model,
                "fingerprint": request.fingerprint(versions),
                "request": request.redacted(versions),
                "billed_seconds": request.billed_seconds(),
                "cost": cost,
                "currency": None if cost is None else self.currency,
                "cost_source": None if cost is None else CostSource.ESTIMATED,
                "list_cost": cost,
                "list_currency": None if cost is None else self.currency,
            }
        return Intent(
            idempotency_key=key,
            base_url=self.credentials.base_url,
            storage=self.location,
            credentials=self.credentials.saved_as,
            flow_run_id=str(flow_run.id) if flow_run.id else None,
            deployment_id=self.deployment.id,
            deployment=self.deployment.name,
            tags=current_tags(),
            **wanted,
        )

    @asynccontextmanager
    async def open_client(self) -> AsyncIterator[RunwayClient]:
        """Yield the client of the batch, or a new one within the block."""
        if self.client:
            yield self.client
            return
        async with self.credentials.get_client() as client:
            yield client

    @asynccontextmanager
    async def open_assets(self) -> AsyncIterator[AssetClients]:
        """Yield the download clients of the batch, or new ones within the block."""
        if self.assets:
            yield self.assets
            return
        async with AssetClients() as clients:
            yield clients

    def derive(self, credentials: CometAPICredentials | None, storage: str | None) -> "RunContext":
        """Return the context for other credentials or another storage; None leaves either as is."""
        same_account = credentials is None or credentials == self.given_credentials
        if same_account and storage in {None, self.given_storage}:
            return self
        return replace(
            self,
            given_credentials=credentials or self.given_credentials,
            given_storage=storage or self.given_storage,
            client=self.client if same_account else None,
        )

    @contextmanager
    def active(self) -> Iterator[Self]:
        """Let every step within the block use this context."""
        token = _current.set(self)
        try:
            yield self
        finally:
            _current.reset(token)

    @contextmanager
    def holding(self, lease: RunLease) -> Iterator[None]:
        """Let every step within the block know that the run has a lease."""
        token = _lease.set(lease)
        try:
            with self.active():
                yield
        finally:
            _lease.reset(token)


_current: ContextVar[RunContext | None] = ContextVar("run_context", default=None)
_lease: ContextVar[RunLease | None] = ContextVar("run_lease", default=None)


def new_context(credentials: GivenCredentials, storage: GivenStorage) -> RunContext:
    """Return a new context for a flow.

    Raises:
        AuthenticationError: The credentials are a name, and there is no such block.
        StorageUnavailable: The storage is a block that is not saved.
    """
    return RunContext(as_credentials(credentials), as_location(storage))


def run_context(
    credentials: GivenCredentials = None,
    storage: GivenStorage = None,
    *,
    lack: type[CometAPIError] = StorageUnavailable,
) -> RunContext:
    """Return the context of the current run, or a new one for a step that runs by itself.

    Args:
        credentials: Credentials, or the name of their block.
        storage: Location for the videos, or its block.
        lack: Type of the error for a storage block that is not saved.
    """
    account, location = as_credentials(credentials), as_location(storage, lack)
    current = _current.get()
    return current.derive(account, location) if current else RunContext(account, location)


def current_settings() -> CometAPISettings:
    """Return the settings that the run read at its start, or the current ones outside of a run."""
    current = _current.get()
    return current.settings if current else read_settings()
