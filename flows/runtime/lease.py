# SPDX-License-Identifier: Apache-2.0
"""Lease of the generation that a run works on.

The run that owns a generation acquires its lease once. The steps within find it in the context of
the run. A step that runs by itself acquires the lease for itself.
"""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from ...runway.errors import LedgerUnavailable
from ...runway.ledger.entry import Entry
from ...runway.ledger.owners import owner_name
from ...runway.models.generation import Submission
from .log import logger, show_waiting
from .run_context import RunContext, RunLease


@asynccontextmanager
async def own_lease(context: RunContext, key: str) -> AsyncIterator[None]:
    """Keep the lease of a generation that the run is about to buy or to continue.

    Raises:
        LedgerUnavailable: The ledger cannot be opened.
    """
    ledger = await context.ledger()
    async with ledger.leases.hold(key, context.run) as owner:
        with context.holding(RunLease(ledger, key, owner)):
            yield


@asynccontextmanager
async def exclusive_lease(
    context: RunContext, submission: Submission, location: str | None = None
) -> AsyncIterator[Entry | None]:
    """Have the lease of a generation within the block; wait while another run has it.

    The function does not wait if the generation has ended. With a location, it does not wait if
    the generation is stored there or has failed. A run that has the lease already does not acquire
    it again.

    Args:
        context: Context of the run.
        submission: The generation.
        location: Canonical storage location of the videos.

    Yields:
        The entry of the generation, or None if the ledger does not know the generation or is
        unavailable. If the idempotency key now belongs to another purchase, the entry has a key
        of its own.
    """
    if context.lease and (entry := context.lease.entry_of(submission)):
        yield entry
        return
    async with AsyncExitStack() as stack:
        entry = None
        try:
            entry = await _acquire(stack, context, submission, location)
        except LedgerUnavailable as error:
            logger().warning("%s; the delivery continues without it", error.message)
        yield entry


def _report(text: str) -> None:
    logger().info(text)
    show_waiting(text)


async def _acquire(
    stack: AsyncExitStack, context: RunContext, submission: Submission, location: str | None
) -> Entry | None:
    def is_enough(entry: Entry) -> bool:
        if location is None:
            return entry.has_ended
        return location in entry.videos or entry.failure() is not None

    ledger = await context.ledger()

    async def acquire(key: str) -> Entry | None:
        block = ledger.leases.hold_exclusively(key, context.run, report=_report, is_done=is_enough)
        return await stack.enter_async_context(block)

    entry = await acquire(submission.idempotency_key)
    if entry is None or entry.task_id != submission.task_id:
        known = Entry.of_submission(submission, location)
        own = await ledger.restore(known, logger().warning) if known else None
        entry = await acquire(own.idempotency_key) if own else entry
    if entry:
        lease = RunLease(ledger, entry.idempotency_key, owner_name(context.run))
        stack.enter_context(context.holding(lease))
    return entry
