# SPDX-License-Identifier: Apache-2.0
"""Workers with separate ledgers are warned before the second one pays for the same video."""

from uuid import uuid4

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.flow_engine import run_flow_async

from prefect_cometapi.flows import aimage_to_video

pytestmark = pytest.mark.server


async def run_in_a_pool(image, workers: int) -> None:
    """Run the check as in a worker, in a pool with N workers online."""
    pool = f"pool-{uuid4()}"
    async with get_client() as client:
        await client.create_work_pool(WorkPoolCreate(name=pool, type="process"))
        for number in range(workers):
            await client.send_worker_heartbeat(pool, f"worker-{number}")
        deployment = await client.create_deployment(
            await client.create_flow(aimage_to_video), name=pool, work_pool_name=pool
        )
        run = await client.create_flow_run_from_deployment(deployment)
    parameters = {"request": image, "idempotency_key": pool}
    await run_flow_async(aimage_to_video, flow_run=run, parameters=parameters)


@pytest.mark.parametrize("workers", [1, 2])
async def test_two_workers_with_a_ledger_each_are_told(
    prefect_server, sandbox, image, caplog, workers
):
    """Two workers with separate ledgers log a warning with the settings to share; one does not."""
    await run_in_a_pool(image, workers)
    assert ("share the ledger (COMETAPI_LEDGER_URL=postgresql://" in caplog.text) == (workers > 1)
    assert len(sandbox.accepted) == 1


@pytest.mark.heavy
async def test_with_a_ledger_for_all_there_is_nothing_to_tell(
    prefect_server, sandbox, image, caplog, postgres, monkeypatch
):
    """Two workers with one PostgreSQL ledger log no warning."""
    monkeypatch.setenv("COMETAPI_LEDGER_URL", postgres.create_database())
    await run_in_a_pool(image, 2)
    assert "workers run the pool" not in caplog.text
