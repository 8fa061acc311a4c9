# SPDX-License-Identifier: Apache-2.0
"""What several workers need together, and who says so where they have it apart."""

from typing import TYPE_CHECKING

from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext

from . import log
from .block_storage import full_name

if TYPE_CHECKING:
    from ...runway.ledger.store import Ledger


def apart(ledger: "Ledger", storage: str) -> list[str]:
    """What lies on this machine alone, with what would share it."""
    found: list[str] = []
    if not ledger.database.is_shared:
        found.append("the ledger (COMETAPI_LEDGER_URL=postgresql://…)")
    if full_name(storage).startswith("/"):
        found.append("the storage (COMETAPI_STORAGE=s3://…, or a folder that all of them mount)")
    return found


@log.harmless
async def warn_where_apart(ledger: "Ledger", storage: str) -> None:
    """Warn in a run of a pool with several workers whose ledger is this machine's own.

    Only the ledger is worth a warning in each run: without one for all, two workers pay for one
    video twice. A folder may well be one that all of them mount.
    """
    context = FlowRunContext.get()
    pool = context.flow_run.work_pool_name if context and context.flow_run else None
    if pool is None or ledger.database.is_shared:
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
            " and ".join(apart(ledger, storage)),
        )
