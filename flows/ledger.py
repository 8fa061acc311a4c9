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

from ..blocks.credentials import CometAPICredentials
from ..blocks.ledger import GenerationLedger
from ..runway.entries import Entry, Intent
from ..runway.errors import LedgerUnavailable
from ..runway.generation import Submission
from ..runway.holders import holder_name
from ..runway.requests import GenerationRequest
from .display import logger
from .saved_blocks import is_block_name, load_block
from .sharing import settings_now, shared_ledger
from .storage import full_name

if TYPE_CHECKING:
    from ..runway.ledger import Ledger

T = TypeVar("T")


async def open_ledger() -> "Ledger":
    """The ledger that the settings name; it connects when it is first used.

    Raises:
        LedgerUnavailable: There is no such block, or the URL names no database.
    """
    from ..runway.ledger import ledger_at  # SQLAlchemy loads with the first use

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
    Yields its entry, or None where the ledger does not know it or is out of reach.
    """
    from ..runway.buying import working_on

    def enough(entry: Entry) -> bool:
        return place in entry.videos or entry.failure() is not None if place else entry.has_ended

    tell = logger().info
    async with AsyncExitStack() as stack:
        entry = None
        try:
            alone = working_on(
                await open_ledger(), submission.key, this_run(), tell=tell, enough=enough
            )
            entry = await stack.enter_async_context(alone)
            if entry is None and (known := Entry.of_submission(submission, place)):
                ledger = await open_ledger()
                entry = await ledger.restore(
                    known.model_copy(update={"holder": holder_name(this_run())})
                )
        except LedgerUnavailable as error:
            logger().warning("%s; the delivery goes on without it", error.what)
        yield entry


async def record(
    change: Callable[["Ledger"], Awaitable[T]], *, held: Entry | None = None
) -> T | None:
    """Make a change to the ledger, or a look at it, that a delivery does not have to wait for.

    Args:
        change: Makes it; gives None where the ledger does not allow it.
        held: The entry as the run has it in hand. Where the ledger has lost it, it is written
            again, and the change is made once more.
    """
    try:
        ledger = await open_ledger()
        changed = await change(ledger)
        if changed is None and held and await ledger.restore(held):
            changed = await change(ledger)
    except LedgerUnavailable as error:
        logger().warning("%s; the delivery goes on without it", error.what)
        return None
    return changed


def record_soon(
    change: Callable[["Ledger"], Awaitable[object]], *, held: Entry | None = None
) -> None:
    """Make a change to the ledger that nothing waits for: if it is lost, a poll is repeated."""
    from ..runway.background import in_background

    recording = in_background(record(change, held=held))
    recording.add_done_callback(lambda done: done.result())  # raised there, an error is logged
