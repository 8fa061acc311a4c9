# SPDX-License-Identifier: Apache-2.0
"""Checks of a batch in shards, before anything is bought.

The run that starts the shards checks what it can see: the deployment and its work pool. Each shard
checks its own worker: it must have the storage, the ledger and the service of the batch.
"""

from typing import TYPE_CHECKING

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowFilter, FlowFilterName
from prefect.client.schemas.sorting import DeploymentSort

from ...runway.batch.sharding import ShardOrder
from ...runway.errors import CometAPIError, InvalidEnvironment, InvalidRequest, LedgerUnavailable
from ...runway.processes import this_process
from ...runway.redact import origin_of
from ..runtime.pages import read_pages
from ..runtime.run_context import RunContext
from ..runtime.work_pools import SHARED_LEDGER, pool_of, starts_containers

if TYPE_CHECKING:
    from prefect.client.schemas.responses import DeploymentResponse

SHARD_FLOW = "generate-batch-shard"
"""Name of the flow that makes one shard."""


def choose_deployment(named: str | None, found: list[str]) -> str:
    """Return the name of the deployment that runs the shards; pure.

    Args:
        named: Name that the user gave, with or without the name of the flow.
        found: Names of all deployments of the flow.

    Raises:
        InvalidRequest: There is none, or no such one, or several to choose from.
    """
    wanted = named.removeprefix(f"{SHARD_FLOW}/") if named else None
    if wanted in found:
        return wanted
    if not found:
        raise InvalidRequest(
            f"shards need a deployment of the flow {SHARD_FLOW}, and this Prefect server has none "
            "(prefect-cometapi deploy makes it)"
        )
    names = ", ".join(sorted(found))
    if wanted is not None:
        raise InvalidRequest(f"there is no deployment {SHARD_FLOW}/{wanted}, but there is {names}")
    if len(found) > 1:
        raise InvalidRequest(f"choose one deployment for the shards (shard_deployment): {names}")
    return found[0]


async def check_shards(
    context: RunContext, shards: int, max_in_flight: int, named: str | None
) -> "DeploymentResponse":
    """Return the deployment that runs the shards, if a batch can be made in shards.

    Raises:
        InvalidRequest: There is no such deployment, or each shard cannot have a slot, or the
            credentials are not saved, so that no worker could load them.
        LedgerUnavailable: The workers of the deployment cannot use the ledger.
    """
    if shards > max_in_flight:
        raise InvalidRequest(
            f"{shards} shards need max_in_flight (COMETAPI_MAX_IN_FLIGHT) of at least {shards}, "
            f"and it is {max_in_flight}"
        )
    if context.given_credentials and not context.given_credentials.saved_as:
        raise InvalidRequest(
            "the credentials are not saved, so the workers of the shards cannot load them. Save "
            "the block and pass it or its name, or set COMETAPI_KEY on the workers"
        )
    async with get_client() as client:
        flow = FlowFilter(name=FlowFilterName(any_=[SHARD_FLOW]))
        deployments = await read_pages(
            lambda limit, offset: client.read_deployments(
                flow_filter=flow, sort=DeploymentSort.NAME_ASC, limit=limit, offset=offset
            )
        )
        found = {one.name: one for one in deployments}
        deployment = found[choose_deployment(named, list(found))]
        pool = await pool_of(client, deployment.work_pool_name)
    is_shared = (await context.ledger()).database.is_shared
    if pool and starts_containers(pool) and not is_shared:
        raise LedgerUnavailable(
            f"the work pool {pool.name} starts a container for each run, which cannot use the "
            f"ledger of this machine. Set {SHARED_LEDGER}, for all of them"
        )
    return deployment


async def identity_of_ledger(context: RunContext) -> tuple[str, str | None]:
    """Return the identity of the ledger, and its machine if no other machine can use it.

    Raises:
        LedgerUnavailable: The ledger cannot be used.
    """
    ledger = await context.ledger()
    host = None if ledger.database.is_shared else this_process().host
    return await ledger.history.identity(), host


def difference(
    order: ShardOrder, base_url: str, ledger: str, host: str | None
) -> CometAPIError | None:
    """Return the error for a worker that differs from the run that started the shards; pure.

    Args:
        order: Order of the shard.
        base_url: Base URL of the service that the worker uses.
        ledger: Identity of the worker's ledger.
        host: Machine of the worker's ledger, if no other machine can use it.
    """
    if (ledger, host) != (order.ledger, order.host):
        where = f" of the machine {order.host}" if order.host else ""
        return LedgerUnavailable(
            f"this worker does not have the ledger{where} that the batch was started with. For "
            f"all workers, set the same {SHARED_LEDGER}"
        )
    if base_url != order.base_url:
        return InvalidEnvironment(
            f"this worker buys from {origin_of(base_url)}, and the batch was started for "
            f"{origin_of(order.base_url)} (COMETAPI_BASE_URL)"
        )
    return None
