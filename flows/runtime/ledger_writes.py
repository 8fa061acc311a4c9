# SPDX-License-Identifier: Apache-2.0
"""Changes of the ledger after the purchase.

They must not cause the loss of a paid generation: if the ledger is unavailable, the delivery logs a
warning and continues without it.
"""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

from ...runway.errors import LedgerUnavailable
from ...runway.ledger.entry import Entry
from ...runway.models.generation import Submission
from .log import logger
from .run_context import RunContext

if TYPE_CHECKING:
    from ...runway.ledger.store import Ledger

T = TypeVar("T")


async def write_best_effort(
    context: RunContext, change: Callable[["Ledger"], Awaitable[T]]
) -> T | None:
    """Read or change the ledger without failing if it is unavailable.

    Args:
        context: Context of the run.
        change: Function that reads or changes the ledger. It returns None if the ledger does not
            allow the change.

    Returns:
        The result of the function, or None if the ledger is unavailable.
    """
    try:
        return await change(await context.ledger())
    except LedgerUnavailable as error:
        logger().warning("%s; the delivery continues without it", error.message)
        return None


def write_in_background(
    context: RunContext, change: Callable[["Ledger"], Awaitable[object]]
) -> None:
    """Change the ledger in the background.

    Nothing waits for the change. If it is lost, the only cost is a repeated poll.
    """
    from ...runway.ledger.loop_thread import in_background

    recording = in_background(write_best_effort(context, change))
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
