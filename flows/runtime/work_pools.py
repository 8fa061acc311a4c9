# SPDX-License-Identifier: Apache-2.0
"""Work pools as their own base job templates describe them.

The server has the template of each pool: that of its type, or an edited one. So nothing here
depends on a list of types.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prefect.client.orchestration import PrefectClient
    from prefect.client.schemas.objects import WorkPool

SHARED_LEDGER = "COMETAPI_LEDGER_URL=postgresql://…, or the name of a GenerationLedger block"
"""Setting of a ledger that all containers see, for messages."""

SHARED_STORAGE = "COMETAPI_STORAGE=s3://…, or the name of a storage block"
"""Setting of a storage that outlives a container, for messages."""


async def read_pool(client: "PrefectClient", name: str) -> "WorkPool":
    """Return a work pool with its template.

    A pool that was made by an API call has none until its first worker starts. Then it gets the one
    of its type, which the server also has.

    Raises:
        ObjectNotFound: There is no such pool.
    """
    pool = await client.read_work_pool(name)
    if pool.base_job_template:
        return pool
    known = await client.read_worker_metadata()
    templates = [types[pool.type] for types in known.values() if pool.type in types]
    template = templates[0]["default_base_job_configuration"] if templates else {}
    return pool.model_copy(update={"base_job_template": template})


async def pool_of(client: "PrefectClient", name: str | None) -> "WorkPool | None":
    """Return the work pool of this name with its template, or None if there is no such pool.

    A deployment that is served without a pool has no name of one.
    """
    from prefect.exceptions import ObjectNotFound

    if name is None:
        return None
    try:
        return await read_pool(client, name)
    except ObjectNotFound:
        return None


def variables_of(pool: "WorkPool") -> Mapping[str, Any]:
    """Return the job variables that a pool accepts, by name, each with its schema; pure."""
    return (pool.base_job_template.get("variables") or {}).get("properties") or {}


def starts_containers(pool: "WorkPool") -> bool:
    """Return whether the workers of a pool start a container for each flow run; pure.

    Such a pool (docker, kubernetes, ecs, cloud-run, azure-container-instance, vertex-ai) has a job
    variable for the image. A process pool has none.
    """
    return "image" in variables_of(pool)
