# SPDX-License-Identifier: Apache-2.0
"""Commands ``deploy`` and ``serve``, which need nothing but the installed package."""

import asyncio
import re
import subprocess
import sys
import tempfile
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import yaml
from cyclopts import Parameter

from ...runway.models.requests import ROUTES
from ..console import console, stop_at_prefect
from ..prefect_env import quieten_prefect
from .models import warn_of_unsold

Pool = Annotated[str, Parameter(help="Work pool whose workers run the flows.")]


def deploy(*, pool: Pool = "videos") -> None:
    """Deploy the flows to a work pool. Keeps parameters and schedules that you changed."""
    quieten_prefect()
    text = (files("prefect_cometapi.deployments") / "prefect.yaml").read_text(encoding="utf-8")
    wanted = with_all_routes(yaml.safe_load(in_pool(text, pool)), pool)
    new = asyncio.run(_missing(wanted["deployments"], pool))
    if new:
        _deploy_file(wanted | {"deployments": new})
    asyncio.run(_warn())
    console.print(f"[dim]Next:[/] prefect worker start --pool {pool}")


async def _warn() -> None:
    from prefect.client.orchestration import get_client

    async with get_client() as client:
        await warn_of_unsold(client)


async def _missing(wanted: list[dict[str, Any]], pool: str) -> list[dict[str, Any]]:
    """Return the deployments that the server does not have yet, and update the others."""
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound

    missing: list[dict[str, Any]] = []
    async with get_client() as client:
        try:
            await client.read_work_pool(pool)
        except ObjectNotFound:
            stop_at_prefect(
                f"there is no work pool {pool}", f"prefect-cometapi setup --pool {pool}"
            )
        for one in wanted:
            flow = _flow_of(one)
            try:
                there = await client.read_deployment_by_name(f"{flow.name}/{one['name']}")
            except ObjectNotFound:
                missing.append(one)
                continue
            await client.update_deployment(there.id, _changes(one, flow, there.tags, pool))
            console.print(f"{flow.name}/{one['name']} updated", highlight=False)
    return missing


def _flow_of(wanted: dict[str, Any]) -> Any:
    module, _, name = wanted["entrypoint"].rpartition(".")
    return getattr(import_module(module), name)


def _changes(wanted: dict[str, Any], flow: Any, tags: list[str], pool: str) -> Any:
    """Return the update of an existing deployment.

    It contains only what a new version of the package may change; the rest is the user's.
    """
    from prefect.client.schemas.actions import DeploymentUpdate
    from prefect.utilities.callables import parameter_schema

    return DeploymentUpdate(
        description=wanted["description"],
        entrypoint=wanted["entrypoint"],
        tags=sorted({*tags, *wanted["tags"]}),
        work_pool_name=pool,
        parameter_openapi_schema=parameter_schema(flow).model_dump_for_openapi(),
    )


def _deploy_file(wanted: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "prefect.yaml"
        path.write_text(yaml.safe_dump(wanted), encoding="utf-8")
        command = [sys.executable, "-P", "-m", "prefect", "--no-prompt", "deploy", "--all"]
        status = subprocess.run([*command, "--prefect-file", str(path)], check=False).returncode  # noqa: S603 -- Prefect itself
    if status:
        sys.exit(status)


def in_pool(text: str, pool: str) -> str:
    """Return the text of a prefect.yaml with another work pool; pure."""
    return re.sub(r"(work_pool:\n\s+name: )\S+", lambda found: found[1] + pool, text)


def with_all_routes(content: dict[str, Any], pool: str) -> dict[str, Any]:
    """Return the content of a prefect.yaml with a deployment for each route; pure.

    A route without an entry in the file gets one without a schedule, with the example of its
    request.
    """
    entries = content["deployments"]
    deployed = {entry["entrypoint"].rpartition(".")[2] for entry in entries}
    added = [
        {
            "name": "example",
            "entrypoint": f"prefect_cometapi.flows.{route}",
            "description": f"{request.summary}. Set your parameters before you run it.",
            "tags": ["cometapi", route.replace("_", "-")],
            "parameters": {"request": request.example()},
            "schedules": [],
            "concurrency_limit": {"limit": 10, "collision_strategy": "ENQUEUE"},
            "work_pool": {"name": pool, "job_variables": {"working_dir": "."}},
        }
        for route, request in ROUTES.items()
        if route not in deployed
    ]
    return {**content, "deployments": [*entries, *added]}


def serve(
    *,
    limit: Annotated[int, Parameter(help="Maximum number of flow runs at a time.")] = 10,
) -> None:
    """Run the flows in this process when the UI or a schedule starts them. Needs no worker."""
    quieten_prefect()
    from prefect import serve as prefect_serve

    names = ", ".join(route.replace("_", "-") for route in ROUTES)
    console.print(f"Serving {names}, generate-batch and collect.")
    console.print("[dim]Press Ctrl-C to stop. Submitted generations continue at CometAPI.[/]")
    prefect_serve(*served(), limit=limit, print_starting_message=False)


def served() -> list[Any]:
    """Return the deployments to serve.

    Only collect has a schedule, as it buys nothing.
    """
    from prefect.types.entrypoint import EntrypointType

    from ... import flows

    def deployment(flow: Any, **options: Any) -> Any:
        return flow.to_deployment(
            name="served",
            description=flow.description,
            tags=["cometapi"],
            entrypoint_type=EntrypointType.MODULE_PATH,
            **options,
        )

    return [
        *(deployment(getattr(flows, route)) for route in ROUTES),
        deployment(flows.generate_batch, concurrency_limit=1),
        deployment(flows.collect, interval=300, concurrency_limit=1),
    ]
