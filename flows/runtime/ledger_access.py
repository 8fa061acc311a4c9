# SPDX-License-Identifier: Apache-2.0
"""The ledger as flows use it: which one, what is written into it, and when it may be missing.

Before money moves, no ledger means no submission. After that it must not cost a clip that is paid
for: a delivery whose ledger is out of reach goes on without, and says so.
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
from .block_storage import full_name
from .log import logger
from .run_context import settings_now, shared_ledger

if TYPE_CHECKING:
    from ...runway.ledger.store import Ledger

T = TypeVar("T")


async def open_ledger() -> "Ledger":
    """The ledger that the settings name; it connects when it is first used.

    Raises:
        LedgerUnavailable: There is no such block, or the URL names no database.
    """
    from ...runway.ledger.store import ledger_at  # SQLAlchemy loads with the first use

    if opened := shared_ledger():
        return opened
    secret = settings_now().ledger_url
    place = secret.get_secret_value() if secret else _default_url()
    if not is_block_name(place):
        return ledger_at(place)
    block = await load_block(place, LedgerUnavailable)
    if not isinstance(block, GenerationLedger):
        raise LedgerUnavailable(f"the block {place} is no GenerationLedger")
    return block.get_ledger()


def _default_url() -> str:
    return f"sqlite:///{get_current_settings().home.expanduser().absolute()}/cometapi-ledger.db"


def this_run() -> str:
    """Who works, as the ledger names it: the flow run, or a script outside of any."""
    return str(flow_run.id or "a script")


def intent_for(
    key: str,
    credentials: CometAPICredentials,
    storage: str | None,
    request: GenerationRequest | None = None,
) -> Intent:
    """What is about to be bought, or attached where there is no request."""
    asked: dict[str, Any] = {}
    if request:
        asked = {
            "route": request.route,
            "model": request.model,
            "fingerprint": request.fingerprint(),
            "request": request.shown(),
            "billed_seconds": request.billed_seconds(),
            "cost": estimate(request, settings_now().prices),
        }
    return Intent(
        key=key,
        base_url=credentials.base_url,
        storage=full_name(storage or settings_now().storage),
        credentials=credentials.saved_as,
        flow_run_id=str(flow_run.id) if flow_run.id else None,
        **asked,
    )


@asynccontextmanager
async def working_alone(
    submission: Submission, place: str | None = None
) -> AsyncIterator[Entry | None]:
    """Have a generation to oneself while working on it; waits while another run has it.

    It does not wait for what is stored already, or, where a place is named, stored there.
    Yields its entry, or None where the ledger does not know it or is out of reach. Where the key
    stands for another purchase by now, that is the entry under the name of its own.
    """
    from ...runway.ledger.purchase import working_on

    def enough(entry: Entry) -> bool:
        return place in entry.videos or entry.failure() is not None if place else entry.has_ended

    async def taken(key: str) -> Entry | None:
        alone = working_on(ledger, key, this_run(), tell=logger().info, enough=enough)
        return await stack.enter_async_context(alone)

    async with AsyncExitStack() as stack:
        entry = None
        try:
            ledger = await open_ledger()
            entry = await taken(submission.key)
            if entry is None or entry.task_id != submission.task_id:
                known = Entry.of_submission(submission, place)
                own = await ledger.restore(known, logger().warning) if known else None
                entry = await taken(own.key) if own else entry
        except LedgerUnavailable as error:
            logger().warning("%s; the delivery goes on without it", error.what)
        yield entry


async def record(change: Callable[["Ledger"], Awaitable[T]]) -> T | None:
    """Make a change to the ledger, or a look at it, that a delivery does not have to wait for.

    Args:
        change: Makes it; gives None where the ledger does not allow it.
    """
    try:
        return await change(await open_ledger())
    except LedgerUnavailable as error:
        logger().warning("%s; the delivery goes on without it", error.what)
        return None


def record_soon(change: Callable[["Ledger"], Awaitable[object]]) -> None:
    """Make a change to the ledger that nothing waits for: if it is lost, a poll is repeated."""
    from ...runway.ledger.loop_thread import in_background

    recording = in_background(record(change))
    recording.add_done_callback(lambda done: done.result())  # raised there, an error is logged


def restoring(
    submission: Submission,
    held: Entry | None,
    change: Callable[["Ledger", Submission], Awaitable[Entry | None]],
) -> Callable[["Ledger"], Awaitable[None]]:
    """Return a change to a purchase that is made once more if the ledger had lost the purchase.

    Args:
        submission: The purchase.
        held: Its entry as the run has it in hand, which is then written again.
        change: Makes the change to the purchase under the key that it has in the ledger; gives
            None where the ledger does not allow it.
    """

    def under(key: str) -> Submission:
        return submission.model_copy(update={"key": key})

    async def changed(ledger: "Ledger") -> None:
        there = await change(ledger, under(held.key) if held else submission)
        if there is None and held and (own := await ledger.restore(held, logger().warning)):
            await change(ledger, under(own.key))

    return changed
