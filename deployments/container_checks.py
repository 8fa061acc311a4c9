# SPDX-License-Identifier: Apache-2.0
"""Check of the deployments whose runs are containers: what they get, and what they would lose."""

from collections import defaultdict
from collections.abc import Mapping
from typing import TYPE_CHECKING

from pydantic import SecretStr

from ..flows.runtime.pages import read_pages
from ..flows.runtime.work_pools import pool_of, starts_containers
from ..runway.errors import CometAPIError
from ..runway.settings import CometAPISettings
from .findings import Finding, failed, passed, warning
from .job_variables import Problem, container_problems, environment_of, local_ledger

if TYPE_CHECKING:
    from prefect.client.orchestration import PrefectClient
    from prefect.client.schemas.responses import DeploymentResponse


async def deployments_in(client: "PrefectClient", pool: str) -> "list[DeploymentResponse]":
    """Return the deployments of this package's flows in a work pool."""
    from prefect.client.schemas.filters import WorkPoolFilter, WorkPoolFilterName
    from prefect.client.schemas.sorting import DeploymentSort

    chosen = WorkPoolFilter(name=WorkPoolFilterName(any_=[pool]))
    found = await read_pages(
        lambda limit, offset: client.read_deployments(
            work_pool_filter=chosen, sort=DeploymentSort.NAME_ASC, limit=limit, offset=offset
        )
    )
    return [one for one in found if (one.entrypoint or "").startswith("prefect_cometapi.")]


async def check_containers(client: "PrefectClient", name: str) -> list[Finding]:
    """Check the deployments of a pool that starts a container for each run.

    The settings of this machine do not matter for them: a container has those of its deployment,
    its work pool and its platform.
    """
    pool = await pool_of(client, name)
    if pool is None:  # the check of the workers reports it
        return []
    deployments = await deployments_in(client, name)
    if not (deployments and starts_containers(pool)):
        return []
    found: defaultdict[Problem, list[str]] = defaultdict(list)
    for one in deployments:
        for problem in [
            *container_problems(pool, one.job_variables),
            *await _local_ledger(environment_of(pool, one.job_variables)),
        ]:
            found[problem].append(one.name)
    check = f"containers of {name}"
    return [
        (failed if problem.is_certain else warning)(
            check, f"{problem.message} ({', '.join(names)})", problem.fix
        )
        for problem, names in found.items()
    ] or [passed(check, "image, API key, ledger and storage are set")]


async def _local_ledger(environment: Mapping[str, str]) -> "list[Problem]":
    """Return a problem if the containers use a ledger block with a SQLite file."""
    from ..flows.runtime.block_loading import is_block_name
    from ..flows.runtime.ledger_access import open_ledger

    url = environment.get("COMETAPI_LEDGER_URL", "")
    if not is_block_name(url):
        return []
    try:
        ledger = await open_ledger(CometAPISettings(ledger_url=SecretStr(url)))
    except CometAPIError as error:
        return [Problem(f"their ledger cannot be used: {error.message}", "correct the block")]
    return [] if ledger.database.is_shared else [local_ledger()]
