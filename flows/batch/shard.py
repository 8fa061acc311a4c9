# SPDX-License-Identifier: Apache-2.0
"""Flow of one shard of a batch, which any worker can run.

A repeated run of the same shard, after a crash, buys only what is missing, like a batch.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext, suppress
from typing import Annotated
from uuid import UUID

from prefect.input import receive_input
from prefect.runtime import flow_run
from pydantic import Field

from ...runway.batch.models import Outcome
from ...runway.batch.rows import batch_prefix
from ...runway.batch.sharding import ShardOrder, order_name, results_name
from ...runway.errors import StorageError, StorageUnavailable
from ...runway.ledger.budget import Budget
from ..parameters import Location
from ..runtime import log
from ..runtime.flow_decorator import recorded_flow, sync_flow
from ..runtime.garbage_collection import rarer_collections
from ..runtime.identity import check_starts
from ..runtime.ledger_check import check_ledger, leave_mark
from ..runtime.run_context import RunContext, new_context
from ..steps.delivery import check_storage
from .plan import Plan, spending_of
from .progress import BatchProgress
from .report import Report, completed
from .resources import concurrency_limits, shared_resources
from .runner import BatchRun
from .shard_checks import SHARD_FLOW, difference, identity_of_ledger
from .task_runs import TaskRuns, task_runs_of

LISTEN_INTERVAL = 5.0
"""Seconds between two reads of the batch's messages from Prefect."""

ShardKey = Annotated[
    str, Field(description="Prefix of the idempotency keys of the batch that this is a part of.")
]
ShardName = Annotated[
    str, Field(description="Number of this shard and of all shards, such as 2/4.")
]
Order = Annotated[
    str, Field(description="Digest of the order, a file in the storage with the items to make.")
]


@recorded_flow(SHARD_FLOW)
async def agenerate_batch_shard(
    idempotency_key: ShardKey,
    *,
    shard: ShardName,
    order: Order,
    storage: Location = None,
) -> str:
    """Make one part of a batch. The flow generate-batch starts it; you need not.

    Raises:
        StorageUnavailable: This worker cannot read the order; nothing was bought.
        LedgerUnavailable: This worker has another ledger; nothing was bought.
        CometAPIError: The shard could not start; nothing was bought.
    """
    given = new_context(None, storage)
    settings = given.settings
    check_starts(settings.max_run_attempts)
    wanted = await _read_order(given, order)
    context = new_context(wanted.credentials, wanted.storage)
    if error := difference(wanted, context.base_url, *await identity_of_ledger(context)):
        raise error
    log.logger().info("Shard %s of %s: %d items", shard, idempotency_key, len(wanted.rows))
    plan = Plan(wanted.idempotency_key, await asyncio.to_thread(wanted.items), [])
    is_priced = wanted.max_spend is not None
    budget = Budget(
        batch_prefix(plan.idempotency_key),
        wanted.prices if is_priced else await context.prices(),
        wanted.max_spend,
        wanted.max_seconds,
        wanted.currency if is_priced else context.currency,
    )
    await check_storage(context)
    progress = BatchProgress(budget, spending_of(plan, budget))
    async with shared_resources(context, budget, progress) as shared:
        await check_ledger(shared)
        run = BatchRun(
            context=shared,
            progress=progress,
            budget=budget,
            concurrency=await concurrency_limits(
                settings, wanted.max_in_flight, wanted.submissions_per_second
            ),
            max_failures=wanted.max_failures,
            task_runs=task_runs_of(wanted.total, settings),
        )
        is_large = run.task_runs is not TaskRuns.PER_STEP
        place = await context.storage(), results_name(order, str(flow_run.id))
        async with (
            Report(plan.idempotency_key, progress, run.count_spent, *place, has_gallery=False),
            _until_stopped(run),
        ):
            with rarer_collections() if is_large else nullcontext():
                await run.run(plan.items)
    await leave_mark(context)
    # The batch as a whole decides if it failed.
    snapshot = progress.snapshot()
    sentence = snapshot.sentence() + (f"; {run.stopped}" if run.stopped else "")
    return completed(sentence, snapshot.counts[Outcome.STORED], snapshot.total, sentence)


generate_batch_shard = sync_flow(agenerate_batch_shard)


async def _read_order(context: RunContext, digest: str) -> ShardOrder:
    """Return the order of this shard.

    Raises:
        StorageUnavailable: It cannot be read, such as from a folder of another machine.
    """
    storage = await context.storage()
    name = order_name(digest)
    try:
        content = await asyncio.to_thread(storage.read, name)
    except StorageError as error:
        raise StorageUnavailable(
            f"this worker cannot read the order of its shard ({error.message}). All workers of a "
            "batch need the same storage: an object store, or a folder that all of them mount"
        ) from error
    return ShardOrder.unpack(content, digest)


@asynccontextmanager
async def _until_stopped(run: BatchRun) -> AsyncIterator[None]:
    """Stop the purchases of a run while the block runs, if the batch sends the message for it.

    A run that was stopped and starts again, such as by an automation, has the message already. So
    the messages are read before the block runs.
    """
    messages = receive_input(
        str, timeout=None, poll_interval=LISTEN_INTERVAL, flow_run_id=UUID(str(flow_run.id))
    )
    try:
        for message in await messages.filter_for_inputs():
            _stop(run, messages.to_instance(message))
    except Exception as error:  # noqa: BLE001 -- they are read again while the block runs
        log.logger().warning("Could not read messages from Prefect: %s", type(error).__name__)
    listening = asyncio.create_task(_listen(run, messages))
    try:
        yield
    finally:
        listening.cancel()
        with suppress(asyncio.CancelledError):
            await listening


async def _listen(run: BatchRun, messages: AsyncIterator[object]) -> None:
    while not run.stopped:
        try:
            async for why in messages:
                _stop(run, why)
                return
        except Exception as error:  # noqa: BLE001 -- the server may be away for a while
            log.logger().debug("Could not read messages from Prefect: %s", type(error).__name__)
            await asyncio.sleep(LISTEN_INTERVAL)


def _stop(run: BatchRun, why: object) -> None:
    log.logger().warning("The batch is stopped: %s", why)
    run.stopped = run.stopped or str(why)
