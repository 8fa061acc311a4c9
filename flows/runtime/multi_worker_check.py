# SPDX-License-Identifier: Apache-2.0
"""Warning about several workers that do not share a ledger."""

from typing import TYPE_CHECKING

from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext

from . import log
from .block_storage import canonical_location
from .run_context import RunContext

if TYPE_CHECKING:
    from ...runway.ledger.store import Ledger


def apart(ledger: "Ledger", storage: str) -> list[str]:
    """Return what is local to this machine, each with the setting that would share it."""
    found: list[str] = []
    if not ledger.database.is_shared:
        found.append("the ledger (COMETAPI_LEDGER_URL=postgresql://…)")
    if canonical_location(storage).startswith("/"):
        found.append("the storage (COMETAPI_STORAGE=s3://…, or a folder that all of them mount)")
    return found


@log.best_effort
async def warn_where_apart(context: RunContext) -> None:
    """Log a warning if the run's work pool has several workers and the ledger is a local one.

    Only the ledger justifies a warning in each run: without a shared ledger, two workers may pay
    twice for one generation. A storage folder may be one that all workers mount.
    """
    prefect_run = FlowRunContext.get()
    pool = prefect_run.flow_run.work_pool_name if prefect_run and prefect_run.flow_run else None
    if pool is None or (ledger := await context.ledger()).database.is_shared:
        return
    async with get_client() as client:
        workers = await client.read_workers_for_work_pool(pool)
    online = sum(worker.status == "ONLINE" for worker in workers)
    if online > 1:
        log.logger().warning(
            "%d workers run the pool %s. If they are several machines, share %s; "
            "`prefect-cometapi doctor` tells more",
            online,
            pool,
            " and ".join(apart(ledger, context.storage_name)),
        )
