# SPDX-License-Identifier: Apache-2.0
"""Commands ``deploy`` and ``serve``, which need nothing but the installed package."""

import asyncio
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import yaml
from cyclopts import Parameter

from ...runway.models.requests import ROUTES
from ..connection import connect, uses_temporary_server
from ..console import console, escape, note_temporary_server, stop_at_prefect
from ..container_checks import deployments_in
from ..docs_links import with_page
from ..job_variables import (
    JobSettings,
    check_assignment,
    check_image,
    check_secret,
    container_problems,
)
from ..prefect_env import quieten_prefect
from .models import warn_of_unsold

if TYPE_CHECKING:
    from prefect.client.orchestration import PrefectClient
    from prefect.client.schemas.objects import WorkPool
    from prefect.client.schemas.responses import DeploymentResponse

Pool = Annotated[str, Parameter(help="Work pool whose workers run the flows.")]


def _valid(check: Callable[[str], None]) -> Callable[[Any, Any], None]:
    """Return a validator of one option or of each of several."""

    def validate(_type: Any, given: str | tuple[str, ...] | None) -> None:
        for one in (given,) if isinstance(given, str) else given or ():
            check(one)

    return validate


def deploy(
    *,
    pool: Pool = "videos",
    image: Annotated[
        str | None,
        Parameter(
            help="Image with this package, as REPOSITORY/NAME:TAG, for a pool that starts a "
            "container for each run.",
            validator=_valid(check_image),
        ),
    ] = None,
    env: Annotated[
        tuple[str, ...],
        Parameter(
            help="Environment variable of the runs, as NAME=VALUE. May be repeated.",
            negative="",
            show_default=False,
            validator=_valid(check_assignment),
        ),
    ] = (),
    secret: Annotated[
        tuple[str, ...],
        Parameter(
            help="Environment variable that the worker fills from a saved block when it starts a "
            "run, such as COMETAPI_KEY=cometapi-credentials/default. May be repeated.",
            negative="",
            show_default=False,
            validator=_valid(check_secret),
        ),
    ] = (),
) -> None:
    """Deploy the flows to a work pool. Keeps parameters and schedules that you changed."""
    quieten_prefect()
    text = (files("prefect_cometapi.deployments") / "prefect.yaml").read_text(encoding="utf-8")
    wanted = with_all_routes(yaml.safe_load(in_pool(text, pool)), pool)["deployments"]
    settings = JobSettings.of(image, env, secret)
    asyncio.run(_deploy(wanted, pool, settings))
    console.print(f"[dim]Next:[/] prefect worker start --pool {pool}")


async def _deploy(wanted: list[dict[str, Any]], name: str, settings: JobSettings) -> None:
    from prefect.client.orchestration import get_client

    async with get_client() as client:
        pool = await _checked_pool(client, name, settings)
        new = await _missing(client, wanted, pool, settings)
        if new:
            if status := await asyncio.to_thread(_deploy_file, new, pool, settings.image):
                sys.exit(status)
            await _add_environment(client, new, pool, settings)
        await _warn_of_lacks(client, pool)
        await warn_of_unsold(client)


async def _checked_pool(client: "PrefectClient", name: str, settings: JobSettings) -> "WorkPool":
    """Return the work pool, or exit with status 1 if it cannot run such deployments."""
    from prefect.exceptions import ObjectNotFound

    from ...flows.runtime.work_pools import read_pool

    try:
        pool = await read_pool(client, name)
    except ObjectNotFound:
        create = f"prefect work-pool create {name} --type kubernetes"
        make = create if settings.image else f"prefect-cometapi setup --pool {name}"
        stop_at_prefect(f"there is no work pool {name}", make)
    if refused := settings.refusal(pool):
        stop_at_prefect(*refused)
    for block in settings.secrets.values():
        kind, _, block_name = block.partition("/")
        try:
            await client.read_block_document_by_name(block_name, kind, include_secrets=False)
        except ObjectNotFound:
            stop_at_prefect(f"there is no block {block}", "prefect block ls")
    return pool


async def _missing(
    client: "PrefectClient",
    wanted: list[dict[str, Any]],
    pool: "WorkPool",
    settings: JobSettings,
) -> list[dict[str, Any]]:
    """Return the deployments that the server does not have yet, and update the others."""
    from prefect.exceptions import ObjectNotFound

    missing: list[dict[str, Any]] = []
    for one in wanted:
        flow = _flow_of(one)
        try:
            there = await client.read_deployment_by_name(f"{flow.name}/{one['name']}")
        except ObjectNotFound:
            missing.append(one)
            continue
        await client.update_deployment(there.id, _changes(one, flow, there, pool, settings))
        console.print(f"{flow.name}/{one['name']} updated", highlight=False)
    return missing


async def _add_environment(
    client: "PrefectClient",
    new: list[dict[str, Any]],
    pool: "WorkPool",
    settings: JobSettings,
) -> None:
    """Set the environment of new deployments.

    ``prefect deploy`` replaces references to blocks by their content, so that secrets would be
    stored with the deployment. A run that starts before this buys nothing: it has no API key.
    """
    from prefect.client.schemas.actions import DeploymentUpdate

    if not settings.environment:
        return
    for one in new:
        there = await client.read_deployment_by_name(f"{_flow_of(one).name}/{one['name']}")
        variables = settings.variables(pool, there.job_variables)
        await client.update_deployment(there.id, DeploymentUpdate(job_variables=variables))


async def _warn_of_lacks(client: "PrefectClient", pool: "WorkPool") -> None:
    """Print a warning for each thing that the containers of a pool may lack."""
    deployments = await deployments_in(client, pool.name)
    found = {
        each: None for one in deployments for each in container_problems(pool, one.job_variables)
    }
    for problem in found:
        console.print(
            f"[yellow]Warning:[/] containers of {escape(pool.name)}: {escape(problem.message)}",
            soft_wrap=True,
        )
        console.print(f"  [dim]Next:[/] {escape(problem.fix)}", soft_wrap=True)


def _flow_of(wanted: dict[str, Any]) -> Any:
    module, _, name = wanted["entrypoint"].rpartition(".")
    return getattr(import_module(module), name)


def _changes(
    wanted: dict[str, Any],
    flow: Any,
    there: "DeploymentResponse",
    pool: "WorkPool",
    settings: JobSettings,
) -> Any:
    """Return the update of an existing deployment.

    It contains only what a new version of the package may change; the rest is the user's.
    """
    from prefect.client.schemas.actions import DeploymentUpdate
    from prefect.utilities.callables import parameter_schema

    moves = there.work_pool_name != pool.name
    variables = {**(_variables_of(wanted) if moves else {}), **there.job_variables}
    return DeploymentUpdate(
        description=wanted["description"],
        entrypoint=wanted["entrypoint"],
        tags=sorted({*there.tags, *wanted["tags"]}),
        work_pool_name=pool.name,
        job_variables=settings.variables(pool, variables),
        parameter_openapi_schema=parameter_schema(flow).model_dump_for_openapi(),
    )


def _variables_of(wanted: dict[str, Any]) -> dict[str, Any]:
    return wanted["work_pool"]["job_variables"]


def _deploy_file(new: list[dict[str, Any]], pool: "WorkPool", image: str | None) -> int:
    """Create deployments with ``prefect deploy``, and return its exit status."""
    for one in new:
        one["work_pool"]["job_variables"] = JobSettings(image).variables(pool, _variables_of(one))
    wanted = {"pull": [], "deployments": new}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "prefect.yaml"
        path.write_text(yaml.safe_dump(wanted), encoding="utf-8")
        command = [sys.executable, "-P", "-m", "prefect", "--no-prompt", "deploy", "--all"]
        return subprocess.run([*command, "--prefect-file", str(path)], check=False).returncode  # noqa: S603 -- Prefect itself


def in_pool(text: str, pool: str) -> str:
    """Return the text of a prefect.yaml with another work pool; pure."""
    return re.sub(r"(work_pool:\n\s+name: )\S+", lambda found: found[1] + pool, text)


def with_all_routes(content: dict[str, Any], pool: str) -> dict[str, Any]:
    """Return the content of a prefect.yaml with a deployment for each route, and links to the docs.

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
    linked = [
        {**one, "description": with_page(one["description"], one["entrypoint"])}
        for one in [*entries, *added]
    ]
    return {**content, "deployments": linked}


def serve(
    *,
    limit: Annotated[int, Parameter(help="Maximum number of flow runs at a time.")] = 10,
) -> None:
    """Run the flows in this process when the UI or a schedule starts them. Needs no worker."""
    quieten_prefect()
    note_temporary_server("It has no UI, and ends with this command.")
    has_ui = not uses_temporary_server()
    deployments = connect(served, lambda text: console.print(f"[dim]{text} …[/]"))
    from prefect import serve as prefect_serve
    from prefect.settings import PREFECT_UI_URL

    console.print("Serving:")
    for one in deployments:
        when = "  [dim]every five minutes[/]" if one.schedules else ""
        console.print(f"  {one.flow_name}/{one.name}{when}")
    if has_ui and (address := PREFECT_UI_URL.value()):
        console.print(f"[dim]Start them at[/] {escape(address)}/deployments", soft_wrap=True)
    console.print("[dim]Press Ctrl-C to stop. Submitted generations continue at CometAPI.[/]")
    prefect_serve(*deployments, limit=limit, print_starting_message=False)


def served() -> list[Any]:
    """Return the deployments to serve.

    Only collect has a schedule, as it buys nothing.
    """
    from prefect.types.entrypoint import EntrypointType

    from ... import flows

    def deployment(flow: Any, **options: Any) -> Any:
        return flow.to_deployment(
            name="served",
            # The rest of the docstring is in the form.
            description=with_page(flow.description.partition("\n\n")[0], flow.fn.__name__),
            tags=["cometapi"],
            entrypoint_type=EntrypointType.MODULE_PATH,
            **options,
        )

    return [
        *(deployment(getattr(flows, route)) for route in ROUTES),
        deployment(flows.generate_batch, concurrency_limit=1),
        deployment(flows.generate_batch_shard),
        deployment(flows.collect, interval=300, concurrency_limit=1),
    ]
