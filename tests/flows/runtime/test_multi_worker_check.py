# SPDX-License-Identifier: Apache-2.0
"""Runs that do not share ledger and storage are warned or refused before they pay."""

from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.flow_engine import run_flow_async
from prefect.settings import PREFECT_API_URL, temporary_settings

from prefect_cometapi.flows import (
    acollect,
    afinish_generation,
    agenerate_batch,
    aimage_to_video,
    asubmit_generation,
)
from prefect_cometapi.flows.runtime.multi_worker_check import check_sharing, is_on_volume
from prefect_cometapi.flows.runtime.run_context import RunContext
from prefect_cometapi.runway import InvalidEnvironment

pytestmark = pytest.mark.server

TASK_ID = "3d957031-9a2a-45e2-9dc7-bc8513059c50"


async def run_in_a_pool(
    image, workers: int = 0, kind: str = "process", its_flow: Any = aimage_to_video, **parameters
) -> str:
    """Run a flow as a worker does, in a pool with N workers online; return the pool's name."""
    pool = f"pool-{uuid4()}"
    async with get_client() as client:
        await client.create_work_pool(WorkPoolCreate(name=pool, type=kind))
        for number in range(workers):
            await client.send_worker_heartbeat(pool, f"worker-{number}")
        deployment = await client.create_deployment(
            await client.create_flow(its_flow), name=pool, work_pool_name=pool
        )
        run = await client.create_flow_run_from_deployment(deployment)
    if its_flow is aimage_to_video:
        parameters = {"request": image, "idempotency_key": pool}
    await run_flow_async(its_flow, flow_run=run, parameters=parameters)
    return pool


@flow
async def of_a_user(request: dict[str, Any]) -> None:
    """Flow of a user, which calls a flow of this package."""
    await aimage_to_video(request)


@flow
async def with_one_step(request: dict[str, Any]) -> None:
    """Flow of a user with the single step that pays."""
    await asubmit_generation(request)


async def test_a_container_with_a_local_ledger_or_folder_is_refused_before_it_pays(
    prefect_server, sandbox, image
):
    """In a container pool, a SQLite file and a folder are refused with the settings to set."""
    with pytest.raises(InvalidEnvironment) as refused:
        await run_in_a_pool(image, kind="docker")
    message = str(refused.value)
    assert "starts a container for each run" in message
    assert "set COMETAPI_LEDGER_URL=postgresql://" in message
    assert "set COMETAPI_STORAGE=s3://" in message
    assert "nothing was charged" in message
    assert not sandbox.accepted


@pytest.mark.heavy
@pytest.mark.parametrize("kind", ["kubernetes", "ecs", "cloud-run-v2", "azure-container-instance"])
@pytest.mark.parametrize("its_flow", [of_a_user, with_one_step])
async def test_a_flow_of_a_user_in_a_container_is_refused_too(
    prefect_server, sandbox, image, kind, its_flow
):
    """The pool of the outermost run counts, for a subflow and for the single step that pays."""
    with pytest.raises(InvalidEnvironment, match="COMETAPI_LEDGER_URL"):
        await run_in_a_pool(image, kind=kind, its_flow=its_flow, request=image)
    assert not sandbox.accepted


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("its_flow", "parameters"),
    [
        (agenerate_batch, {"requests": [{"id": "1", "promptImage": "https://example.com/a.jpg"}]}),
        (acollect, {}),
        (afinish_generation, {"task_id": TASK_ID}),
    ],
)
async def test_no_other_flow_starts_with_a_ledger_that_nobody_sees(
    prefect_server, sandbox, image, its_flow, parameters
):
    """Batches, the collector and the finishing of a bought generation are refused as well."""
    with pytest.raises(InvalidEnvironment, match="starts a container for each run"):
        await run_in_a_pool(image, kind="docker", its_flow=its_flow, **parameters)
    assert not sandbox.requests


@pytest.mark.heavy
async def test_a_container_with_a_shared_ledger_and_a_volume_makes_its_video(
    prefect_server, sandbox, image, postgres, monkeypatch, small_disk
):
    """A PostgreSQL ledger and a folder on a mounted volume are all that a container needs."""
    monkeypatch.setenv("COMETAPI_LEDGER_URL", postgres.create_database())
    volume = Path(small_disk(80_000).folder) / "videos"
    monkeypatch.setenv("COMETAPI_STORAGE", str(volume))
    await run_in_a_pool(image, kind="docker")
    assert len(list(volume.glob("*.mp4"))) == len(sandbox.accepted) == 1


async def test_a_pool_that_is_not_known_refuses_nothing(prefect_server, sandbox, image):
    """Without an answer of Prefect's server, a run is neither refused nor delayed."""

    @flow
    async def alone() -> None:
        with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
            await check_sharing(RunContext())

    await alone()


async def test_an_unusable_ledger_or_storage_is_left_to_the_step_that_needs_it(monkeypatch):
    """The check raises no error of its own for a ledger or a storage that cannot be opened."""
    monkeypatch.setenv("COMETAPI_STORAGE", "no-such-block/at-all")
    await check_sharing(RunContext())
    monkeypatch.setenv("COMETAPI_LEDGER_URL", "nonsense://")
    await check_sharing(RunContext())


def test_a_mount_point_is_a_volume_and_the_root_is_none(tmp_path, monkeypatch):
    """A folder below a mount point outlives the container, and one of its own file system not."""
    mounted = {Path("/"), tmp_path / "data"}
    monkeypatch.setattr(Path, "is_mount", lambda path: path in mounted)
    assert is_on_volume(tmp_path / "data" / "videos")
    assert is_on_volume(tmp_path / "data")
    assert not is_on_volume(tmp_path / "videos")


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.heavy
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
    assert "workers serve the work pool" not in caplog.text
