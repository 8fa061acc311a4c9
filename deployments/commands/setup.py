# SPDX-License-Identifier: Apache-2.0
"""Command ``prefect-cometapi setup``: objects in Prefect, created once and updated in place."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter, validators

from ..console import console, escape, stop_at_prefect
from ..prefect_env import quieten_prefect

if TYPE_CHECKING:
    from prefect.automations import Automation
    from prefect.blocks.core import Block
    from prefect.client.orchestration import PrefectClient

MADE, CHANGED, REGISTERED, THERE = "made", "changed", "registered", "there already"
LEFT_OUT = "left out: COMETAPI_KEY is not set"


def setup(
    *,
    block: Annotated[str, Parameter(help="Name under which the blocks are saved.")] = "default",
    pool: Annotated[str, Parameter(help="Work pool for our deployments.")] = "videos",
    limit: Annotated[
        int | None,
        Parameter(
            help="Generations upstream at a time, for all processes; COMETAPI_MAX_IN_FLIGHT else.",
            validator=validators.Number(gte=1),
        ),
    ] = None,
    notify: Annotated[
        str | None,
        Parameter(help="Notification block (slack-webhook/ops) that is told of what went wrong."),
    ] = None,
    then: Annotated[
        str | None,
        Parameter(help="Deployment (flow/name) to run for each stored clip; it gets its uri."),
    ] = None,
    dry_run: Annotated[
        bool, Parameter(negative="", help="Say what would be made or changed, and do nothing.")
    ] = False,
) -> None:
    """Create blocks, a work pool, a limit and automations in Prefect. You can run it again."""
    quieten_prefect()
    from prefect.exceptions import ObjectNotFound

    plan = Plan(block, pool, limit, notify, then)
    try:
        asyncio.run(Setup(dry_run=dry_run).run(plan))
    except ObjectNotFound:
        named = " or ".join(name for name in (notify, then) if name)
        stop_at_prefect(f"there is no {named}", "prefect deployment ls, prefect block ls")


@dataclass(frozen=True)
class Plan:
    """Objects to set up in Prefect."""

    block: str = "default"
    pool: str = "videos"
    limit: int | None = None
    notify: str | None = None
    then: str | None = None


@dataclass
class Setup:
    """Creation and update of the planned objects, or a dry run that only reports them.

    Attributes:
        dry_run: True to change nothing.
        done: Outcome for each object.
    """

    dry_run: bool = False
    done: dict[str, str] = field(default_factory=dict[str, str])

    async def run(self, plan: Plan) -> None:
        """Set up all objects, one after the other."""
        from prefect.client.orchestration import get_client

        from ...runway.settings import CometAPISettings

        settings = CometAPISettings()
        async with get_client() as client:
            await self._blocks(settings, plan.block)
            await self._pool(client, plan.pool)
            await self._limit(client, plan.limit or settings.max_in_flight)
            for automation in await _automations(client, plan):
                await self._automation(automation)
        self._advise(plan)

    async def _blocks(self, settings: Any, name: str) -> None:
        from ...blocks import CometAPICredentials, GenerationLedger
        from ...flows.runtime.block_loading import is_block_name

        for kind in (CometAPICredentials, GenerationLedger):
            register = kind.aregister_type_and_schema  # changes nothing if the type is registered
            await self._do(f"block type {kind.get_block_type_slug()}", REGISTERED, register)
        if settings.key:
            await self._block(CometAPICredentials.from_settings(settings), name)
        else:
            self._tell(f"block cometapi-credentials/{name}", LEFT_OUT)
        ledger = settings.ledger_url.get_secret_value() if settings.ledger_url else ""
        if ledger and not is_block_name(ledger):
            await self._block(GenerationLedger(url=settings.ledger_url), name)

    async def _block(self, block: "Block", name: str) -> None:
        kind = type(block)
        what = f"block {kind.get_block_type_slug()}/{name}"
        try:
            there = await kind.aload(name)
        except ValueError:
            outcome = MADE
        else:
            same = all(getattr(there, name) == value for name, value in _fields(block))
            outcome = THERE if same else CHANGED
        await self._do(what, outcome, lambda: block.asave(name, overwrite=True))

    async def _pool(self, client: "PrefectClient", name: str) -> None:
        from prefect.client.schemas.actions import WorkPoolCreate
        from prefect.exceptions import ObjectNotFound

        try:
            await client.read_work_pool(name)
            outcome = THERE
        except ObjectNotFound:
            outcome = MADE
        await self._do(
            f"work pool {name}",
            outcome,
            lambda: client.create_work_pool(WorkPoolCreate(name=name, type="process")),
        )

    async def _limit(self, client: "PrefectClient", limit: int) -> None:
        from prefect.exceptions import ObjectNotFound

        from ...flows.batch.concurrency import IN_FLIGHT_LIMIT

        try:
            there = await client.read_global_concurrency_limit_by_name(IN_FLIGHT_LIMIT)
            outcome = THERE if there.limit == limit else CHANGED
        except ObjectNotFound:
            outcome = MADE
        await self._do(
            f"concurrency limit {IN_FLIGHT_LIMIT}: {limit}",
            outcome,
            lambda: client.upsert_global_concurrency_limit_by_name(IN_FLIGHT_LIMIT, limit),
        )

    async def _automation(self, wanted: "Automation") -> None:
        from prefect.automations import Automation

        from ..automations import differ

        try:
            there = await Automation.aread(name=wanted.name)
        except ValueError:
            await self._do(f"automation {wanted.name!r}", MADE, wanted.acreate)
            return
        wanted.id = there.id
        outcome = CHANGED if differ(wanted, there) else THERE
        await self._do(f"automation {wanted.name!r}", outcome, wanted.aupdate)

    async def _do(self, what: str, outcome: str, act: Callable[[], Awaitable[Any]]) -> None:
        if outcome is not THERE and not self.dry_run:
            await act()
        self._tell(what, outcome)

    def _tell(self, what: str, outcome: str) -> None:
        self.done[what] = outcome
        would = "would be " if self.dry_run and outcome in {MADE, CHANGED, REGISTERED} else ""
        colour = {MADE: "green", CHANGED: "yellow"}.get(outcome, "dim")
        console.print(f"  {escape(what)}  [{colour}]{would}{outcome}[/]", soft_wrap=True)

    def _advise(self, plan: Plan) -> None:
        if not self.dry_run:
            console.print(f"[dim]Next:[/] prefect-cometapi deploy --pool {escape(plan.pool)}")


def _fields(block: "Block") -> list[tuple[str, Any]]:
    return [(name, getattr(block, name)) for name in type(block).model_fields]


async def _automations(client: "PrefectClient", plan: Plan) -> "list[Automation]":
    """Return the automations of a plan.

    Raises:
        ObjectNotFound: The block or the deployment does not exist.
        ValueError: The name of the deployment does not have the form flow/name.
    """
    from .. import automations

    wanted = [
        automations.silent_runs_crash(),
        automations.unbegun_runs_crash(),
        automations.crashed_runs_start_again(),
    ]
    if plan.notify:
        block = await _block_id(client, plan.notify)
        wanted += [
            automations.failures_are_told(block),
            automations.uncertain_ones_are_told(block),
        ]
    if plan.then:
        deployment = await client.read_deployment_by_name(plan.then)
        wanted.append(automations.each_clip_runs(deployment.id, plan.then))
    return wanted


async def _block_id(client: "PrefectClient", name: str) -> Any:
    kind, _, own = name.partition("/")
    document = await client.read_block_document_by_name(own, kind)
    return document.id
