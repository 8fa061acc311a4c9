# SPDX-License-Identifier: Apache-2.0
"""Collector: the flow that finishes generations without an active owner.

It completes submissions that were made with ``wait=False`` or ``wait="suspend"``. It also finishes
generations of runs that were killed, cancelled or timed out. Several collectors may run at once,
because each works only on generations whose lease it can acquire.
"""

import asyncio
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, Field

from ..runway.errors import CometAPIError, LedgerCorrupted
from ..runway.ledger.entry import UNFINISHED, Entry, State
from ..runway.ledger.owners import owner_name
from ..runway.models.generation import FrozenModel
from ..runway.redact import scrub
from .parameters import Credentials
from .runtime import log
from .runtime.caller_arguments import GivenStorage, as_location
from .runtime.flow_decorator import recorded_flow, sync_flow
from .runtime.ledger_writes import write_best_effort
from .runtime.multi_worker_check import check_sharing
from .runtime.run_context import RunContext, run_context
from .runtime.suspension import resume_waiting
from .steps.adoption import credentials_of
from .steps.costs import update_unbilled
from .steps.delivery import deliver
from .steps.reconcile import reconcile_entries
from .ui import artifacts

if TYPE_CHECKING:
    from ..runway.api.reconcile import Reconciled
    from ..runway.ledger.store import Ledger

AT_ONCE = 100
"""Maximum number of generations that one collector works on at a time."""

if TYPE_CHECKING:
    Location = GivenStorage
else:
    Location = Annotated[
        str | None,
        BeforeValidator(as_location),
        Field(
            description="Storage location for the videos, in place of the one that was given at "
            "the submission."
        ),
    ]


class Collected(FrozenModel):
    """Outcome of one generation that the collector processed."""

    idempotency_key: str
    task_id: str | None = Field(default=None, description="Task id at CometAPI.")
    state: State = Field(description="State in the ledger.")
    uris: tuple[str, ...] = Field(default=(), description="Locations of its videos.")
    note: str = Field(default="", description="Explanation, or the next step for the user.")


class CollectResult(FrozenModel):
    """Result of a collector run."""

    stored: int = Field(description="Number of generations that were stored.")
    failed: int = Field(description="Number that failed or were cancelled at CometAPI.")
    unfinished: int = Field(description="Number that were bought and are left to the next run.")
    uncertain: int = Field(description="Number that were possibly charged and need a decision.")
    generations: tuple[Collected, ...] = Field(description="Outcome of each generation.")


# Stored results refer to the classes by this public module.
for _class in (Collected, CollectResult):
    _class.__module__ = "prefect_cometapi.flows"


@recorded_flow("collect")
async def acollect(credentials: Credentials = None, storage: Location = None) -> CollectResult:
    """Finish every bought generation that no other run is working on. Buys nothing.

    All generations share one event loop. A generation that fails does not stop the others. A
    ledger row that cannot be read fails the run after the other generations are finished.
    """
    context = run_context(credentials, storage)
    ledger = await context.ledger()
    await check_sharing(context, stores=False)
    corrupted: dict[str, LedgerCorrupted] = {}

    def report(error: LedgerCorrupted) -> None:
        corrupted[error.message] = error

    async def entries(*states: State) -> list[Entry]:
        return await ledger.entries(states=states, on_corrupted=report)

    await _resolve_dead_claims(ledger, await entries(State.CLAIMED))
    verdicts = await _reconcile(context, await entries(State.UNCERTAIN))
    slots = asyncio.Semaphore(AT_ONCE)
    me = owner_name(context.run)

    async def finish(key: str) -> Collected | None:
        async with slots:
            entry = await ledger.leases.acquire(key, me)
            try:
                # Another run owns the generation, or has finished it since the list was read.
                if entry is None or entry.state not in UNFINISHED:
                    return None
                finished = await _finish(context, entry)
            finally:
                await write_best_effort(context, lambda ledger: ledger.leases.release(key, me))
            if entry.flow_run_id:
                await resume_waiting(ledger, entry.flow_run_id)
            return finished

    left = await entries(*UNFINISHED)
    looked_at = await asyncio.gather(*(finish(entry.idempotency_key) for entry in reversed(left)))
    finished = [generation for generation in looked_at if generation]
    # A run may suspend itself just after its generation was stored. Nothing above resumes it.
    await resume_waiting(ledger)
    if len(finished) < len(left):
        log.logger().info("Skipped %d generations owned by other runs", len(left) - len(finished))
    uncertain = _uncertain(await entries(State.UNCERTAIN), verdicts)
    await update_unbilled(context)
    result = _summary([*finished, *uncertain])
    await artifacts.show_collected([item.model_dump(mode="json") for item in result.generations])
    for error in corrupted.values():
        log.logger().error("%s", error)
    if corrupted:
        raise next(iter(corrupted.values()))
    return result


collect = sync_flow(acollect)


async def _resolve_dead_claims(ledger: "Ledger", claimed: list[Entry]) -> None:
    """Resolve the claims whose owners are dead."""
    from ..runway.ledger.purchase import resolve_dead_claim

    for entry in claimed:
        if not await ledger.leases.is_active(entry):
            await resolve_dead_claim(ledger, entry)


async def _finish(context: RunContext, entry: Entry) -> Collected:
    """Finish one generation and return its outcome.

    A failure is logged and returned, not raised, so that the other generations are not affected.
    """
    wanted = context.given_storage or entry.storage
    known: dict[str, Any] = {"idempotency_key": entry.idempotency_key, "task_id": entry.task_id}
    try:
        own = await credentials_of(entry, context.given_credentials)
        if own.base_url != entry.base_url:
            note = f"it was bought at {entry.base_url}, but the credentials are for {own.base_url}"
            return Collected(**known, state=entry.state, note=note)
        with context.active():
            result = await deliver(entry.submission(), own, wanted)
    except CometAPIError as error:
        error.with_context(**known, request_id=entry.request_id)
        log.logger().warning("%s: %s", type(error).__name__, error)
        return Collected(**known, state=await _state_of(context, entry), note=error.message)
    except Exception as error:  # noqa: BLE001 -- the others are finished all the same
        log.logger().exception("Generation %s is left to the next collector", entry.task_id)
        note = f"{type(error).__name__}: {scrub(str(error), limit=200)}"
        return Collected(**known, state=await _state_of(context, entry), note=note)
    uris = tuple(video.uri for video in result.videos)
    return Collected(**known, state=State.STORED, uris=uris)


async def _state_of(context: RunContext, entry: Entry) -> State:
    found = await write_best_effort(context, lambda ledger: ledger.get(entry.idempotency_key))
    return found.state if found else entry.state


async def _reconcile(context: RunContext, uncertain: Sequence[Entry]) -> "dict[str, Reconciled]":
    """Return the verdicts of the account by key; carry them out if the settings allow it."""
    reconciles = context.settings.on_uncertain == "reconcile"
    try:
        found = await reconcile_entries(context, uncertain, apply=reconciles)
    except CometAPIError as error:
        log.logger().warning("Could not query the account: %s", error.message)
        return {}
    return {one.entry.idempotency_key: one for one in found}


def _uncertain(entries: Sequence[Entry], verdicts: "Mapping[str, Reconciled]") -> list[Collected]:
    """Return the outcomes of submissions that are uncertain, or were until this run."""
    from ..runway.ledger.reconciliation import Action

    left = [_undecided(entry, verdicts.get(entry.idempotency_key)) for entry in entries]
    for generation in left:
        log.logger().warning("Key %s is uncertain: %s", generation.idempotency_key, generation.note)
    return left + [_freed(one) for one in verdicts.values() if one.done is Action.RESUBMIT]


def _undecided(entry: Entry, found: "Reconciled | None") -> Collected:
    from ..runway.errors import SubmissionUncertain

    advice = (
        SubmissionUncertain(entry.note).with_context(idempotency_key=entry.idempotency_key).hint()
    )
    verdict = found.decision.in_words() if found else ""
    why_not = found.why_not if found else ""
    note = "; ".join(filter(None, [entry.note, verdict, why_not, advice]))
    return Collected(idempotency_key=entry.idempotency_key, state=entry.state, note=note)


def _freed(found: "Reconciled") -> Collected:
    log.logger().info("Key %s may be bought again", found.entry.idempotency_key)
    return Collected(
        idempotency_key=found.entry.idempotency_key,
        state=found.entry.state,
        note=f"{found.decision.in_words()}; run it again with the same idempotency key",
    )


def _summary(generations: Sequence[Collected]) -> CollectResult:
    def count(*states: State) -> int:
        return sum(1 for generation in generations if generation.state in states)

    return CollectResult(
        stored=count(State.STORED),
        failed=count(State.FAILED, State.CANCELLED),
        unfinished=count(*UNFINISHED),
        uncertain=count(State.UNCERTAIN),
        generations=tuple(generations),
    )
