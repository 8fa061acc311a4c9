# SPDX-License-Identifier: Apache-2.0
"""Command ``prefect-cometapi setup``: creates and updates this package's objects in Prefect."""

import asyncio
import re
import shlex
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter, validators
from pydantic import ValidationError

from ..connection import connect
from ..console import console, escape, note_temporary_server, stop_at_prefect
from ..prefect_env import quieten_prefect
from .models import warn_of_unsold

if TYPE_CHECKING:
    from prefect.automations import Automation
    from prefect.blocks.core import Block
    from prefect.client.orchestration import PrefectClient

CREATED, UPDATED, REGISTERED, UNCHANGED = "created", "updated", "registered", "unchanged"
SKIPPED = "skipped: COMETAPI_KEY is not set"


def _two_parts(form: str) -> Callable[[Any, str | None], None]:
    """Return a validator for names with one slash, whose message says which form is expected."""

    def check(_type: Any, name: str | None) -> None:
        if name is not None and not re.fullmatch("[^/]+/[^/]+", name):
            raise ValueError(f"expected {form}")

    return check


def setup(
    *,
    block: Annotated[str, Parameter(help="Name of the saved blocks.")] = "default",
    pool: Annotated[str, Parameter(help="Name of the work pool.")] = "videos",
    limit: Annotated[
        int | None,
        Parameter(
            help="Maximum number of generations in flight, for the batches of all processes "
            "together (default: the limit that is there, or COMETAPI_MAX_IN_FLIGHT).",
            validator=validators.Number(gte=1),
        ),
    ] = None,
    notify: Annotated[
        str | None,
        Parameter(
            help="Block that notifies you of failures, such as slack-webhook/ops.",
            validator=_two_parts("TYPE-SLUG/NAME of a saved block, such as slack-webhook/ops"),
        ),
    ] = None,
    then: Annotated[
        str | None,
        Parameter(
            help="Deployment to run for each stored video, as flow/name; it receives the location "
            "as its parameter uri.",
            validator=_two_parts("FLOW/NAME of a deployment, such as load/nightly"),
        ),
    ] = None,
    dry_run: Annotated[
        bool, Parameter(negative="", help="Print the objects that would be created or updated.")
    ] = False,
) -> None:
    """Create or update the blocks, work pool, limit and automations in Prefect. Buys nothing."""
    quieten_prefect()
    note_temporary_server(
        "It keeps its data in Prefect's home, where a later prefect server start finds it."
    )
    connect(lambda: None, lambda _text: None)
    asyncio.run(Setup(dry_run=dry_run).run(Plan(block, pool, limit, notify, then)))


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
    """Creation and update of the planned objects, or a dry run that only prints them.

    Attributes:
        dry_run: True to change nothing.
        done: Outcome of each object.
    """

    dry_run: bool = False
    done: dict[str, str] = field(default_factory=dict[str, str])

    async def run(self, plan: Plan) -> None:
        """Create or update all objects, one after the other."""
        from prefect.client.orchestration import get_client

        from ...runway.settings import CometAPISettings

        settings = CometAPISettings()
        async with get_client() as client:
            await self._blocks(client, settings, plan.block)
            await self._pool(client, plan.pool)
            await self._limit(client, plan.limit, settings.max_in_flight)
            attempts = max(2, settings.max_run_attempts)  # the flow itself refuses a second start
            for automation in await _automations(client, plan, attempts):
                await self._automation(automation)
            await warn_of_unsold(client)
        self._advise(plan)

    async def _blocks(self, client: "PrefectClient", settings: Any, name: str) -> None:
        from ...blocks import CometAPICredentials, GenerationLedger
        from ...flows.runtime.block_loading import is_block_name

        for kind in (CometAPICredentials, GenerationLedger):
            register = kind.aregister_type_and_schema  # changes nothing if the type is registered
            await self._do(f"block type {kind.get_block_type_slug()}", REGISTERED, register)
        if settings.key:
            await self._block(client, CometAPICredentials.from_settings(settings), name)
        else:
            self._report(f"block cometapi-credentials/{name}", SKIPPED)
        ledger = settings.ledger_url.get_secret_value() if settings.ledger_url else ""
        if ledger and not is_block_name(ledger):
            await self._block(client, GenerationLedger(url=settings.ledger_url), name)

    async def _block(self, client: "PrefectClient", block: "Block", name: str) -> None:
        from prefect.exceptions import ObjectNotFound

        slug = block.get_block_type_slug()
        try:
            document = await client.read_block_document_by_name(name, slug)
        except ObjectNotFound:
            outcome = CREATED
        else:
            saved = _validated(type(block), document.data, f"{slug}/{name}")
            for field_name, value in _fields(saved):
                if getattr(block, field_name) is None:  # such as a token that only the UI was given
                    setattr(block, field_name, value)
            outcome = UNCHANGED if _fields(saved) == _fields(block) else UPDATED
        await self._do(f"block {slug}/{name}", outcome, lambda: block.asave(name, overwrite=True))

    async def _pool(self, client: "PrefectClient", name: str) -> None:
        from prefect.client.schemas.actions import WorkPoolCreate
        from prefect.exceptions import ObjectNotFound

        try:
            await client.read_work_pool(name)
            outcome = UNCHANGED
        except ObjectNotFound:
            outcome = CREATED
        await self._do(
            f"work pool {name}",
            outcome,
            lambda: client.create_work_pool(WorkPoolCreate(name=name, type="process")),
        )

    async def _limit(self, client: "PrefectClient", wanted: int | None, default: int) -> None:
        """Create the limit, or change it to the wanted one; without one, keep what is there."""
        from prefect.exceptions import ObjectNotFound

        from ...flows.batch.concurrency import IN_FLIGHT_LIMIT

        try:
            there = await client.read_global_concurrency_limit_by_name(IN_FLIGHT_LIMIT)
            limit = wanted or there.limit
            outcome = UNCHANGED if there.limit == limit else UPDATED
        except ObjectNotFound:
            limit, outcome = wanted or default, CREATED
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
            await self._do(f"automation {wanted.name!r}", CREATED, wanted.acreate)
            return
        wanted.id = there.id
        outcome = UPDATED if differ(wanted, there) else UNCHANGED
        await self._do(f"automation {wanted.name!r}", outcome, wanted.aupdate)

    async def _do(self, what: str, outcome: str, act: Callable[[], Awaitable[Any]]) -> None:
        if outcome is not UNCHANGED and not self.dry_run:
            await act()
        self._report(what, outcome)

    def _report(self, what: str, outcome: str) -> None:
        self.done[what] = outcome
        would = "would be " if self.dry_run and outcome in {CREATED, UPDATED, REGISTERED} else ""
        colour = {CREATED: "green", UPDATED: "yellow"}.get(outcome, "dim")
        console.print(f"  {escape(what)}  [{colour}]{would}{outcome}[/]", soft_wrap=True)

    def _advise(self, plan: Plan) -> None:
        if not self.dry_run:
            console.print(f"[dim]Next:[/] prefect-cometapi deploy --pool {escape(plan.pool)}")


def _validated(kind: "type[Block]", data: dict[str, Any], name: str) -> "Block":
    """Return a saved block, or exit with status 1 if its fields are no longer valid.

    The block is not overwritten, because its owner may have edited it.
    """
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, one['loc']))}: {one['msg'].removeprefix('Value error, ')}"
            for one in error.errors(include_url=False, include_context=False, include_input=False)
        )
        stop_at_prefect(
            f"the saved block {name} is not valid: {problems}",
            f"correct it in the UI, or: prefect block delete {shlex.quote(name)}, "
            "then run setup again",
        )


def _fields(block: "Block") -> list[tuple[str, Any]]:
    return [(name, getattr(block, name)) for name in type(block).model_fields]


async def _automations(client: "PrefectClient", plan: Plan, attempts: int) -> "list[Automation]":
    """Return the automations of a plan.

    The command exits with status 1 if the block or the deployment does not exist.
    """
    from prefect.exceptions import ObjectNotFound

    from .. import automations

    window = automations.crash_window(attempts)
    wanted = [
        automations.mark_silent_runs_crashed(),
        automations.mark_unstarted_runs_crashed(),
        automations.restart_crashed_runs(window),
        automations.restart_runs_that_stay_crashed(),
        automations.fail_runs_that_keep_crashing(attempts, window),
    ]
    if plan.notify:
        kind, _, name = plan.notify.partition("/")
        try:
            block = (await client.read_block_document_by_name(name, kind)).id
        except ObjectNotFound:
            stop_at_prefect(f"there is no block {plan.notify}", "prefect block ls")
        wanted += [
            automations.notify_on_failure(block),
            automations.notify_on_uncertain(block),
        ]
    if plan.then:
        try:
            deployment = await client.read_deployment_by_name(plan.then)
        except ObjectNotFound:
            stop_at_prefect(f"there is no deployment {plan.then}", "prefect deployment ls")
        wanted.append(automations.run_for_each_video(deployment.id, plan.then))
    return wanted
