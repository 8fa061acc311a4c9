# SPDX-License-Identifier: Apache-2.0
"""Command ``prefect-cometapi models``: models that CometAPI sells on Runway's routes."""

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from rich.table import Table

from ...flows.runtime.pages import read_pages
from ...runway.api.catalogue import Catalogue
from ...runway.models.catalogue import CatalogueReply
from ...runway.models.model_limits import known_models
from ...runway.models.requests import ROUTES, route_of
from ...runway.settings import CometAPISettings
from ..console import console, escape

if TYPE_CHECKING:
    from prefect.client.orchestration import PrefectClient

_IN_WORDS = {True: "yes", False: "no", None: "unknown"}


@dataclass(frozen=True)
class ModelRow:
    """Model in the output of the command; ``sold`` is None if that is unknown."""

    model: str
    name: str
    routes: tuple[str, ...]
    price: str | None
    sold: bool | None
    limits_known: bool


def models(
    *,
    json: Annotated[bool, Parameter(negative="", help="Print the result as JSON.")] = False,
) -> None:
    """List the models that CometAPI sells on Runway's routes, with their prices. Free."""
    found = asyncio.run(Catalogue(CometAPISettings().base_url).models())
    rows = model_rows(found)
    if json:
        listed = [vars(row) for row in rows]
        console.print_json(data={"models": listed, "problem": found.problem})
        return
    table = Table("model", "name", "routes", "price", "sold", "limits known", box=None)
    for row in rows:
        routes = ", ".join(row.routes)
        cells = (row.model, row.name, routes, row.price or "unknown", _IN_WORDS[row.sold])
        table.add_row(*map(escape, cells), _IN_WORDS[row.limits_known])
    console.print(table)
    if found.problem:
        console.print(
            f"[yellow]CometAPI's catalogue is unknown or incomplete:[/] {escape(found.problem)}",
            soft_wrap=True,
        )
    console.print("[dim]Prices in USD, per generation or per second of video (/s).[/]")


def model_rows(found: CatalogueReply) -> list[ModelRow]:
    """Return the Runway models of a catalogue, and those whose limits are known; pure."""
    sold = {model.id: model for model in found.runway_models}
    rows: list[ModelRow] = []
    known = known_models()
    for name in sorted({*sold, *known}):
        listed = sold.get(name) or found.find(name)
        own = (known[name].route,) if name in known else ()
        rows.append(
            ModelRow(
                model=name,
                name=listed.name if listed else "",
                routes=(listed and listed.routes) or own,
                price=str(listed.price) if listed and listed.price else None,
                sold=found.is_sold(name),
                limits_known=name in known,
            )
        )
    return rows


def unsold(found: CatalogueReply, wanted: Mapping[str, Iterable[str]]) -> list[str]:
    """Return a sentence for each model in use that CometAPI does not sell; pure.

    Args:
        found: Catalogue. Nothing is reported unless it is complete.
        wanted: Models by the name of what uses them.
    """
    users: dict[str, list[str]] = {}
    for user, names in wanted.items():
        for name in names:
            if found.is_sold(name) is False:
                users.setdefault(name, []).append(user)
    return [
        f"CometAPI's catalogue does not list the model {name} ({', '.join(used_by)})"
        for name, used_by in users.items()
    ]


def default_models() -> dict[str, list[str]]:
    """Return the default model of each flow."""
    return {
        f"default of {kind.route}": [kind.model_fields["model"].default] for kind in ROUTES.values()
    }


def models_of(parameters: Mapping[str, Any]) -> list[str]:
    """Return the models in the parameters of a deployment; those of a manifest are unknown."""
    requests = parameters.get("requests")
    given = [parameters.get("request"), *(requests if isinstance(requests, list) else [])]
    named = [_model_of(request) for request in given if isinstance(request, Mapping)]
    return [model for model in named if model]


def _model_of(request: Mapping[str, Any]) -> str | None:
    """Return the model of a request, or None if nothing says which it is."""
    try:
        kind = ROUTES[route_of(request, request.get("route"))]
    except ValueError:
        return request.get("model")
    return request.get("model") or kind.model_fields["model"].default


async def models_of_deployments(client: "PrefectClient") -> dict[str, list[str]]:
    """Return the models that the deployments of this package's flows use."""
    from prefect.client.schemas.sorting import DeploymentSort

    found: dict[str, list[str]] = {}
    for one in await read_pages(
        lambda limit, offset: client.read_deployments(
            sort=DeploymentSort.NAME_ASC, limit=limit, offset=offset
        )
    ):
        if (one.entrypoint or "").startswith("prefect_cometapi."):
            found[f"deployment {one.name}"] = models_of(one.parameters)
    return found


async def warn_of_unsold(client: "PrefectClient") -> None:
    """Print a warning for each default model and deployment whose model is not sold."""
    found = await Catalogue(CometAPISettings().base_url).models()
    for sentence in unsold(found, default_models() | await models_of_deployments(client)):
        console.print(f"[yellow]Warning:[/] {escape(sentence)}", soft_wrap=True)
        console.print("  [dim]Next:[/] prefect-cometapi models")
