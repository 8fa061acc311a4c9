# SPDX-License-Identifier: Apache-2.0
"""Flow runs of the shards of a batch at Prefect: which there are, and what to do with each.

A crashed run has ended, and yet it can start again: the automations of this package schedule it,
and a user can. So a run that must not buy any more is closed: it becomes Cancelled, and gets a
message that it reads before it buys anything.
"""

import hashlib
import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from uuid import UUID

import httpx
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId, FlowRunFilterTags
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import PrefectException
from prefect.input.run_input import asend_input
from prefect.states import Cancelled, Cancelling

from ...runway.batch.sharding import ShardOrder
from ...runway.ledger.leases import Leases
from ..runtime.flow_decorator import TAG
from ..runtime.pages import PAGE_SIZE, read_pages

UNAVAILABLE = (httpx.HTTPError, PrefectException, RuntimeError)
"""Errors of a request that Prefect refused or did not answer; RuntimeError if it is not reached."""

_SHARD, _BATCH = f"{TAG}-shard:", f"{TAG}-batch:"
_ATTEMPTS = 3


def shard_tag(digest: str) -> str:
    """Return the tag of the runs of an order."""
    return f"{_SHARD}{digest}"


def batch_tag(key: str) -> str:
    """Return the tag of all runs of a batch, and of its shards, from the batch's key; pure."""
    digest = hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{_BATCH}{digest[:32]}"


def is_batch_tag(tag: str) -> bool:
    """Return whether a tag names a batch; pure."""
    return tag.startswith(_BATCH)


def digest_of(run: FlowRun) -> str | None:
    """Return the digest of the order that a run makes, or None if it makes no shard; pure."""
    tags = (tag for tag in run.tags if tag.startswith(_SHARD))
    return next((tag.removeprefix(_SHARD) for tag in tags), None)


@dataclass
class Shard:
    """Shard and its flow run.

    Attributes:
        order: Order of the shard.
        digest: Digest of the order.
        run: Flow run that makes it, as last read.
        restarts: Number of times that this run restarted it.
        read_due: Time of the next reading of its results, in seconds of the monotonic clock.
        started: Time at which this run began to wait for it, on the same clock.
        is_late: True once it was reported that no worker starts it.
        is_closed: True once nothing waits for its run any more, although it has not ended well.
        is_read: True once the results of its ended run were read.
        problem: Reason why its results were not read at the last attempt, if there is one.
        has_stop: True once its run has the message that stops it.
        watched: Id of the state of its run that is watched.
        watched_since: Time at which this state was first read, on the monotonic clock.
        former: Owners of leases that may be former processes of its run.
    """

    order: ShardOrder
    digest: str
    run: FlowRun
    restarts: int = 0
    read_due: float = 0.0
    started: float = field(default_factory=time.monotonic)
    is_late: bool = False
    is_closed: bool = False
    is_read: bool = False
    problem: str = ""
    has_stop: bool = False
    watched: UUID | None = None
    watched_since: float = 0.0
    former: set[str | None] = field(default_factory=set[str | None])

    @property
    def is_over(self) -> bool:
        """True once its run has ended; a crashed run may start again until it is closed."""
        if self.is_closed:
            return True
        return not is_active(self.run) and self.run.state_type is not StateType.CRASHED

    def ending(self) -> str:
        """Return how the run of the shard ended, in words."""
        state = self.run.state
        message = ((state and state.message) or "").partition("\n")[0]
        ended = f"shard {self.order.name} ended as {state.name if state else 'unknown'}"
        ended = f"{ended}: {message}" if message else ended
        return ended if self.is_read else f"{ended} (its results could not be read)"


class Liveness(Enum):
    """State of the process of a run, as its leases show it."""

    ALIVE = auto()
    DEAD = auto()
    UNKNOWN = auto()


def liveness(leases: Iterable[tuple[str | None, bool]], former: Collection[str | None]) -> Liveness:
    """Return what the leases of a run show about its process; pure.

    Args:
        leases: Owner of each lease of the run, and whether that owner is active.
        former: Owners that may be former processes of the run, so that they do not show its end.
    """
    found = list(leases)
    if any(is_active for _owner, is_active in found):
        return Liveness.ALIVE
    is_own = any(owner not in former for owner, _is_active in found)
    return Liveness.DEAD if is_own else Liveness.UNKNOWN


async def owners_of(leases: Leases, run: FlowRun) -> list[tuple[str | None, bool]]:
    """Return the owner of each lease of a run, and whether that owner is active.

    Raises:
        LedgerUnavailable: The ledger cannot be read.
    """
    entries = await leases.entries_of_run(str(run.id))
    return [(entry.owner, await leases.is_active(entry)) for entry in entries]


class Step(Enum):
    """Reaction of the run of a batch to the state of the run of a shard."""

    FOLLOW = auto()
    MARK_CRASHED = auto()
    RESTART = auto()
    CLOSE = auto()
    LEAVE = auto()


def next_step(kind: StateType | None, process: Liveness | None, *, may_restart: bool) -> Step:
    """Return what to do with the run of a shard; pure.

    A run that is being cancelled ends when its worker stops it. If it has no worker any more, it
    stays as it is, and nothing waits for it.

    Args:
        kind: Type of its state.
        process: What its leases show, or None if they were not read.
        may_restart: Whether a crashed run may be scheduled again.
    """
    if kind is StateType.CRASHED:
        return Step.RESTART if may_restart else Step.CLOSE
    if kind is StateType.RUNNING and process is Liveness.DEAD:
        return Step.MARK_CRASHED
    if kind is StateType.CANCELLING and process in {Liveness.DEAD, Liveness.UNKNOWN}:
        return Step.LEAVE
    return Step.FOLLOW


def is_active(run: FlowRun) -> bool:
    """Return whether a run may buy, or will; a run that is being cancelled counts; pure."""
    return run.state is not None and not run.state.is_final()


def is_attachable(run: FlowRun) -> bool:
    """Return whether a run makes its order or will, so that no other has to; pure."""
    return is_active(run) and run.state_type is not StateType.CANCELLING


def strays(runs: Iterable[FlowRun], digests: Collection[str]) -> list[FlowRun]:
    """Return the active runs of shards of a batch whose order is not one of these; pure."""
    return [run for run in runs if is_active(run) and digest_of(run) not in digests]


async def runs_of_batch(tag: str) -> list[FlowRun]:
    """Return all runs of shards with the tag of a batch."""
    chosen = FlowRunFilter(tags=FlowRunFilterTags(all_=[tag]))
    async with get_client() as client:
        found = await read_pages(
            lambda limit, offset: client.read_flow_runs(
                flow_run_filter=chosen, sort=FlowRunSort.ID_DESC, limit=limit, offset=offset
            )
        )
    return [run for run in found if digest_of(run)]


async def read_runs(ids: Sequence[UUID]) -> dict[UUID, FlowRun]:
    """Return the runs with these ids; a run that was deleted is missing."""
    found: dict[UUID, FlowRun] = {}
    async with get_client() as client:
        for start in range(0, len(ids), PAGE_SIZE):
            chosen = FlowRunFilter(id=FlowRunFilterId(any_=[*ids[start : start + PAGE_SIZE]]))
            runs = await client.read_flow_runs(flow_run_filter=chosen, limit=PAGE_SIZE)
            found |= {run.id: run for run in runs}
    return found


async def tag_run(run: UUID, tag: str) -> None:
    """Add a tag to a run."""
    async with get_client() as client:
        known = (await client.read_flow_run(run)).tags
        if tag not in known:
            await client.update_flow_run(run, tags=[*known, tag])


async def change_state(client: PrefectClient, run: FlowRun, state: State) -> tuple[FlowRun, bool]:
    """Change the state of a run, unless it has another one than when it was read.

    A worker, an automation or another run of the batch may have changed it. Prefect cannot compare
    and set a state in one request, so this only makes the time between the two short.

    Returns:
        The run as it is now, and whether its state was changed.
    """
    now = await client.read_flow_run(run.id)
    if now.state_id != run.state_id:
        return now, False
    await client.set_flow_run_state(run.id, state)
    return await client.read_flow_run(run.id), True


async def close_crashed(run: FlowRun, why: str) -> FlowRun:
    """Close a crashed run, so that it buys nothing more, and return it as it is now.

    An automation that has seen the crash may be about to schedule the run again. So it also gets
    the message that stops it.
    """
    async with get_client() as client:
        now, is_changed = await change_state(client, run, Cancelled(message=why))
    if is_changed:
        await asend_input(why, run.id)
    return now


async def cancel_run(run: FlowRun, why: str) -> bool:
    """Cancel a run unless it has ended; return False if its state kept changing meanwhile."""
    async with get_client() as client:
        for _ in range(_ATTEMPTS):
            if run.state_type is StateType.CRASHED:
                state: State = Cancelled(message=why)
            elif run.state_type is StateType.CANCELLING or not is_active(run):
                return True
            else:
                state = Cancelling(message=why)
            run, is_changed = await change_state(client, run, state)
            if is_changed:
                await asend_input(why, run.id)
                return True
    return False
