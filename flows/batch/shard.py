# SPDX-License-Identifier: Apache-2.0
"""Flow of one shard of a batch, which any worker can run.

A repeated run of the same shard, after a crash, buys only what is missing, like a batch.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext, suppress
from typing import Annotated, cast
from uuid import UUID

from prefect.input import receive_input
from prefect.runtime import flow_run
from prefect.states import Completed
from pydantic import Field

from ...runway.batch.models import Outcome
from ...runway.batch.rows import batch_prefix
from ...runway.batch.sharding import ShardOrder, order_name, results_name
from ...runway.errors import StorageError, StorageUnavailable
from ...runway.ledger.budget import Budget
from ..parameters import Credentials, Location
from ..runtime import log
from ..runtime.flow_decorator import recorded_flow, sync_flow
from ..runtime.garbage_collection import rarer_collections
from ..runtime.identity import check_starts
from ..runtime.ledger_check import check_ledger, leave_mark
from ..runtime.run_context import RunContext, new_context
from ..steps.delivery import check_storage
from .plan import Plan, spending_of
from .progress import BatchProgress
from .report import Report
from .resources import concurrency_limits, shared_resources
from .runner import BatchRun
from .shard_checks import SHARD_FLOW, difference, place_of_ledger
from .task_runs import TaskRuns, task_runs_of

LISTEN_EVERY = 5.0
"""Seconds between two questions to Prefect whether the batch was stopped."""

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
    credentials: Credentials = None,
    storage: Location = None,
) -> str:
    """Make one part of a batch. The flow generate-batch starts it; you need not.

    Raises:
        StorageUnavailable: This worker cannot read the order; nothing was bought.
        LedgerUnavailable: This worker has another ledger; nothing was bought.
        CometAPIError: The shard could not start; nothing was bought.
    """
    context = new_context(credentials, storage)
    settings = context.settings
    check_starts(settings.max_run_attempts)
    wanted = await _read_order(context, order)
    if error := difference(wanted, context.base_url, *await place_of_ledger(context)):
        raise error
    log.logger().info("Shard %s of %s: %d items", shard, idempotency_key, len(wanted.rows))
    plan = Plan(wanted.idempotency_key, await asyncio.to_thread(wanted.items), [])
    budget = Budget(
        batch_prefix(plan.idempotency_key),
        wanted.prices,
        wanted.max_spend,
        wanted.max_seconds,
        wanted.currency,
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
    return _as_state(progress, run.stopped)


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
    """Stop the purchases of a run while the block runs, if the batch says so."""
    listening = asyncio.create_task(_listen(run, UUID(str(flow_run.id))))
    try:
        yield
    finally:
        listening.cancel()
        with suppress(asyncio.CancelledError):
            await listening


async def _listen(run: BatchRun, own_id: UUID) -> None:
    while not run.stopped:
        try:
            async for why in receive_input(
                str, timeout=None, poll_interval=LISTEN_EVERY, flow_run_id=own_id
            ):
                log.logger().warning("The batch is stopped: %s", why)
                run.stopped = run.stopped or str(why)
                return
        except Exception as error:  # noqa: BLE001 -- the server may be away for a while
            log.logger().debug("Prefect was not asked: %s", type(error).__name__)
            await asyncio.sleep(LISTEN_EVERY)


def _as_state(progress: BatchProgress, stopped: str | None) -> str:
    """Return the counts as a Prefect state; the batch as a whole decides if it failed."""
    snapshot = progress.snapshot()
    sentence = snapshot.sentence() + (f"; {stopped}" if stopped else "")
    whole = snapshot.counts[Outcome.STORED] == snapshot.total
    name = "Completed" if whole else "PartlyStored"
    return cast("str", Completed(name=name, message=sentence, data=sentence))
