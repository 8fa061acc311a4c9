# SPDX-License-Identifier: Apache-2.0
"""Access of flows to the ledger.

Before money is spent the ledger is required: without it nothing is submitted. Afterwards it must
not cause the loss of a paid generation: if the ledger is unavailable, the delivery logs a warning
and continues without it.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from prefect.runtime import flow_run
from prefect.settings import get_current_settings

from ...blocks.credentials import CometAPICredentials
from ...blocks.ledger import GenerationLedger
from ...runway.errors import LedgerUnavailable
from ...runway.ledger.budget import estimate
from ...runway.ledger.entry import Entry, Intent
from ...runway.models.generation import Submission
from ...runway.models.requests import GenerationRequest
from .block_loading import is_block_name, load_block
from .block_storage import canonical_location
from .log import logger
from .run_context import current_settings, shared_ledger

if TYPE_CHECKING:
    from ...runway.ledger.store import Ledger

T = TypeVar("T")


async def open_ledger() -> "Ledger":
    """Return the ledger that the settings name.

    The ledger connects to its database when it is first used.

    Raises:
        LedgerUnavailable: The block cannot be loaded or is not a ledger block, or the URL is not a
            valid database URL.
    """
    # The import is here so that SQLAlchemy is loaded only when a ledger is first used.
    from ...runway.ledger.store import get_ledger

    if opened := shared_ledger():
        return opened
    secret = current_settings().ledger_url
    place = secret.get_secret_value() if secret else _default_url()
    if not is_block_name(place):
        return get_ledger(place)
    block = await load_block(place, LedgerUnavailable)
    if not isinstance(block, GenerationLedger):
        raise LedgerUnavailable(f"the block {place} is no GenerationLedger")
    return block.get_ledger()


def _default_url() -> str:
    return f"sqlite:///{get_current_settings().home.expanduser().absolute()}/cometapi-ledger.db"


def this_run() -> str:
    """Return the name of the current run for the ledger: the flow run id, or ``a script``."""
    return str(flow_run.id or "a script")


def intent_for(
    key: str,
    credentials: CometAPICredentials,
    storage: str | None,
    request: GenerationRequest | None = None,
) -> Intent:
    """Return the ledger's description of a purchase, or of an adoption if there is no request."""
    asked: dict[str, Any] = {}
    if request:
        asked = {
            "route": request.route,
            "model": request.model,
            "fingerprint": request.fingerprint(),
            "request": request.shown(),
            "billed_seconds": request.billed_seconds(),
            "cost": estimate(request, current_settings().prices),
        }
    return Intent(
        idempotency_key=key,
        base_url=credentials.base_url,
        storage=canonical_location(storage or current_settings().storage),
        credentials=credentials.saved_as,
        flow_run_id=str(flow_run.id) if flow_run.id else None,
        **asked,
    )


@asynccontextmanager
async def exclusive_lease(
    submission: Submission, place: str | None = None
) -> AsyncIterator[Entry | None]:
    """Hold the lease of a generation within the block; wait while another run has the lease.

    The function does not wait if the generation has ended. With a location, it does not wait if
    the generation is stored there or has failed.

    Args:
        submission: The generation.
        place: Storage location of the videos.

    Yields:
        The entry of the generation, or None if the ledger does not know the generation or is
        unavailable. If the idempotency key now belongs to another purchase, the entry has a key
        of its own.
    """

    def enough(entry: Entry) -> bool:
        return place in entry.videos or entry.failure() is not None if place else entry.has_ended

    async def taken(key: str) -> Entry | None:
        alone = ledger.leases.hold_exclusively(
            key, this_run(), report=logger().info, is_done=enough
        )
        return await stack.enter_async_context(alone)

    async with AsyncExitStack() as stack:
        entry = None
        try:
            ledger = await open_ledger()
            entry = await taken(submission.idempotency_key)
            if entry is None or entry.task_id != submission.task_id:
                known = Entry.of_submission(submission, place)
                own = await ledger.restore(known, logger().warning) if known else None
                entry = await taken(own.idempotency_key) if own else entry
        except LedgerUnavailable as error:
            logger().warning("%s; the delivery goes on without it", error.message)
        yield entry


async def record(change: Callable[["Ledger"], Awaitable[T]]) -> T | None:
    """Read or change the ledger without failing if it is unavailable.

    Args:
        change: Function that reads or changes the ledger. It returns None if the ledger does not
            allow the change.

    Returns:
        The result of the function, or None if the ledger is unavailable.
    """
    try:
        return await change(await open_ledger())
    except LedgerUnavailable as error:
        logger().warning("%s; the delivery goes on without it", error.message)
        return None


def write_in_background(change: Callable[["Ledger"], Awaitable[object]]) -> None:
    """Change the ledger in the background.

    Nothing waits for the change. If it is lost, the only cost is a repeated poll.
    """
    from ...runway.ledger.loop_thread import in_background

    recording = in_background(record(change))
    # An exception that a callback raises is logged.
    recording.add_done_callback(lambda done: done.result())


def restoring(
    submission: Submission,
    held: Entry | None,
    change: Callable[["Ledger", Submission], Awaitable[Entry | None]],
) -> Callable[["Ledger"], Awaitable[None]]:
    """Return a change that restores the entry of a purchase first, if the ledger has lost it.

    Args:
        submission: The purchase.
        held: Entry as last read by the run. A lost entry is restored from it.
        change: Function that makes the change, called with the ledger and with the purchase under
            its key in the ledger. It returns None if the ledger does not allow the change.
    """

    def under(key: str) -> Submission:
        return submission.model_copy(update={"idempotency_key": key})

    async def changed(ledger: "Ledger") -> None:
        there = await change(ledger, under(held.idempotency_key) if held else submission)
        if there is None and held and (own := await ledger.restore(held, logger().warning)):
            await change(ledger, under(own.idempotency_key))

    return changed
