# SPDX-License-Identifier: Apache-2.0
"""Check that the runs of a work pool share one ledger and one storage, before money is spent."""

from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext
from prefect.runtime import flow_run

from ...runway.errors import InvalidEnvironment, LedgerUnavailable, StorageError
from ...runway.storage.folder import FolderStorage
from . import log
from .block_storage import canonical_location
from .run_context import RunContext
from .work_pools import SHARED_LEDGER, SHARED_STORAGE, read_pool, starts_containers

if TYPE_CHECKING:
    from prefect.client.schemas.objects import WorkPool

    from ...runway.ledger.store import Ledger


def apart(ledger: "Ledger", storage: str) -> list[str]:
    """Return what is local to this machine, each with the setting that would share it."""
    found: list[str] = []
    if not ledger.database.is_shared:
        found.append("the ledger (COMETAPI_LEDGER_URL=postgresql://…)")
    if canonical_location(storage).startswith("/"):
        found.append("the storage (COMETAPI_STORAGE=s3://…, or a folder that all of them mount)")
    return found


async def check_sharing(context: RunContext, *, stores: bool = True) -> None:
    """Check that other runs of the work pool can see what this run buys and stores.

    A pool that starts a container for each run needs a ledger on a server, and a storage outside of
    the container. In other pools, a local ledger is only a problem if the workers run on several
    machines, which is a warning. If Prefect's server does not say which pool it is, the check
    passes. Each context is checked once.

    Args:
        context: Context of the run.
        stores: Whether the run stores videos in the storage of the context.

    Raises:
        InvalidEnvironment: The run is in a container, and its ledger or its videos would be deleted
            with it.
    """
    if context.sharing_checked:
        return
    context.sharing_checked = True
    try:
        ledger = await context.ledger()
    except LedgerUnavailable:  # A run that buys raises it itself.
        return
    folder = await _folder_of(context) if stores else None
    if ledger.database.is_shared and folder is None:
        return
    pool = await _pool_of_this_run()
    if pool is None:
        return
    if starts_containers(pool):
        _refuse_lost_files(pool.name, ledger, folder)
    elif not ledger.database.is_shared:
        await _warn_of_several_workers(pool.name, apart(ledger, context.storage_name))


async def _folder_of(context: RunContext) -> Path | None:
    """Return the folder of the run's storage, or None if it is elsewhere or cannot be used."""
    try:
        storage = await context.storage()
    except StorageError:  # A run that stores raises it itself.
        return None
    return storage.folder if isinstance(storage, FolderStorage) else None


async def _pool_of_this_run() -> "WorkPool | None":
    """Return the work pool of the outermost flow run.

    It is None if no worker started the run, or if the server does not say which pool it is.
    """
    context = FlowRunContext.get()
    run = context.flow_run if context else None
    if run is None or not (run.work_pool_name or run.parent_task_run_id):
        return None
    try:
        async with get_client() as client:
            if run.parent_task_run_id and (root := flow_run.root_flow_run_id):
                run = await client.read_flow_run(UUID(root))
            return await read_pool(client, run.work_pool_name) if run.work_pool_name else None
    except Exception as error:  # noqa: BLE001 -- a run that is fine must not fail for the check
        log.logger().debug("The work pool is unknown: %s", type(error).__name__)
        return None


def _refuse_lost_files(pool: str, ledger: "Ledger", folder: Path | None) -> None:
    lost: list[str] = []
    if not ledger.database.is_shared:
        lost.append(
            f"the ledger ({ledger.database.redacted_url}) would be deleted with it, or is not "
            f"seen by other containers: set {SHARED_LEDGER}"
        )
    if folder and not is_on_volume(folder):
        lost.append(
            f"the videos in {folder} would be deleted with it: set {SHARED_STORAGE}, or mount a "
            "volume there"
        )
    if lost:
        raise InvalidEnvironment(
            f"the work pool {pool} starts a container for each run. " + "; ".join(lost)
        )


def is_on_volume(folder: Path) -> bool:
    """Return whether a folder is below a mount point, as volumes of a container are."""
    mounts = (parent for parent in (folder, *folder.parents) if parent.is_mount())
    return next(mounts, Path("/")) != Path("/")


@log.best_effort
async def _warn_of_several_workers(pool: str, local: list[str]) -> None:
    """Log a warning if a pool has several workers, and the ledger is a local one.

    Only the ledger justifies a warning in each run: without a shared ledger, two workers may pay
    twice for one generation. A storage folder may be one that all workers mount.
    """
    async with get_client() as client:
        workers = await client.read_workers_for_work_pool(pool)
    online = sum(worker.status == "ONLINE" for worker in workers)
    if online > 1:
        log.logger().warning(
            "%d workers serve the work pool %s. If they run on several machines, share %s. "
            "`prefect-cometapi doctor` shows the details",
            online,
            pool,
            " and ".join(local),
        )
