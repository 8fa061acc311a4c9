# SPDX-License-Identifier: Apache-2.0
"""Run of a batch in shards: starts one run of a deployment for each, and joins their results.

Prefect schedules the runs, on any worker. This run holds no lease and buys nothing, so it may end
at any time: the shards continue, and another run of the batch attaches to them. What a shard has
made is in the ledger; what it could not make is in a file of results, which it writes beside the
videos.
"""

import asyncio
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import TYPE_CHECKING

import httpx
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId, FlowRunFilterTags
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.deployments import arun_deployment
from prefect.exceptions import PrefectHTTPStatusError
from prefect.input.run_input import asend_input
from prefect.states import Crashed, Scheduled

from ...runway.batch import outcomes
from ...runway.batch.models import BatchItem, ItemResult, Outcome
from ...runway.batch.results import next_write
from ...runway.batch.sharding import (
    ShardOrder,
    left_behind,
    order_name,
    read_rows,
    reason_of_gap,
    reason_to_stop,
    results_name,
    row_of,
    share,
    split,
)
from ...runway.errors import StorageError
from ...runway.ledger.budget import Budget
from ...runway.ledger.entry import Entry
from ...runway.storage.base import publish_written
from ..runtime import log
from ..runtime.flow_decorator import TAG
from ..runtime.ledger_writes import write_best_effort
from ..runtime.run_context import RunContext
from .plan import look_up, read_spent
from .progress import BatchProgress
from .shard_checks import place_of_ledger

if TYPE_CHECKING:
    from prefect.client.schemas.responses import DeploymentResponse

LOOK_EVERY = 2.0
"""Seconds between two questions to Prefect about the runs of the shards; one for all of them."""

CHECK_LEASES_EVERY = 10.0
"""Seconds between two checks that the process of a shard is alive."""

READING_SHARE = 0.02
"""Maximum share of the time of a batch that reading the results of a shard takes."""

UNSTARTED = 60.0
"""Seconds after which a shard that no worker has started is reported."""


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
        is_reported: True once it was reported that no worker starts it.
        is_read: True once the results of its ended run were read.
        gone: Owners of leases whose processes ended before the run was restarted.
    """

    order: ShardOrder
    digest: str
    run: FlowRun
    restarts: int = 0
    read_due: float = 0.0
    started: float = field(default_factory=time.monotonic)
    is_reported: bool = False
    is_read: bool = False
    gone: set[str | None] = field(default_factory=set[str | None])

    @property
    def is_over(self) -> bool:
        """True once its run has ended."""
        return self.run.state is not None and self.run.state.is_final()

    def ending(self) -> str:
        """Return how the run of the shard ended, in words."""
        state = self.run.state
        message = ((state and state.message) or "").partition("\n")[0]
        ended = f"shard {self.order.name} ended as {state.name if state else 'unknown'}"
        return f"{ended}: {message}" if message else ended


@dataclass
class ShardedRun:
    """State and resources of one run of a batch in shards.

    Attributes:
        context: Context of the run.
        progress: Results of the items of all shards.
        budget: Limits of the spending, for all shards together.
        deployment: Deployment whose runs make the shards.
        shards: Number of shards.
        max_in_flight: Generations in flight of all shards together.
        max_failures: Number of items that may fail in all shards, or None for no limit.
        stopped: Reason why no more items are bought, or None.
    """

    context: RunContext
    progress: BatchProgress
    budget: Budget
    deployment: "DeploymentResponse"
    shards: int
    max_in_flight: int
    max_failures: int | None = None
    stopped: str | None = None
    _leases_due: float = 0.0
    _spent_before: tuple[float, float] | None = None

    async def run(self, items: Sequence[BatchItem], invalid: Sequence[ItemResult] = ()) -> None:
        """Let the shards make every item that is not stored yet, and record the results."""
        found = await look_up(self.context, items)
        await self.count_spent()
        self.progress.begin([*found.results, *invalid])
        done = {one.id for one in found.results if one.outcome.is_final}
        # An order covers all items of its shard. So it is the same order in the next run of the
        # batch, which may then attach to a run that is still active.
        orders = [
            order
            for order in await self._orders(items)
            if not done.issuperset(row["id"] for row in order.rows)
        ]
        shards = [await self._start(order) for order in orders]
        await self._wait_for(shards)
        await self._settle(items, shards)
        await self._remove_files(shards)

    async def count_spent(self) -> None:
        """Read the amounts spent under the keys of the batch, and the part since the start."""
        spent = await write_best_effort(self.context, partial(read_spent, self.budget))
        if spent is None:
            return
        self.progress.spent = spent
        if self._spent_before is None:
            self._spent_before = spent.seconds, spent.money
        seconds, money = self._spent_before
        tally = self.progress.tally
        tally.seconds, tally.money = spent.seconds - seconds, spent.money - money

    async def _orders(self, items: Sequence[BatchItem]) -> list[ShardOrder]:
        """Return an order for each shard that has items."""
        parts = [(number, part) for number, part in enumerate(split(items, self.shards), 1) if part]
        slots = share(self.max_in_flight, len(parts))
        per_second = self.context.settings.submissions_per_second
        identity, host = await place_of_ledger(self.context)
        return [
            ShardOrder(
                idempotency_key=self.budget.prefix.removesuffix("/"),
                number=number,
                of=self.shards,
                total=len(items),
                rows=tuple(map(row_of, part)),
                base_url=self.context.base_url,
                ledger=identity,
                host=host,
                max_in_flight=slot,
                submissions_per_second=per_second and per_second / len(parts),
                max_failures=self.max_failures,
                max_spend=self.budget.max_spend,
                max_seconds=self.budget.max_seconds,
                prices=dict(self.budget.prices),
                currency=self.budget.currency,
            )
            for (number, part), slot in zip(parts, slots, strict=True)
        ]

    async def _start(self, order: ShardOrder) -> Shard:
        """Attach to the active run of an order, or start one.

        The idempotency key of a run counts the runs of its order that have ended. So two runs of
        the batch that come here at the same time get one run of the shard.

        Raises:
            StorageError: The order cannot be written.
        """
        digest, content = await asyncio.to_thread(order.packed)
        tag = f"{TAG}-shard:{digest}"
        async with get_client() as client:
            chosen = FlowRunFilter(tags=FlowRunFilterTags(all_=[tag]))
            runs = await client.read_flow_runs(flow_run_filter=chosen)
        for run in runs:
            if run.state and not run.state.is_final():
                log.logger().info("Shard %s is in progress as %s", order.name, run.name)
                return Shard(order, digest, run)
        storage = await self.context.storage()
        await asyncio.to_thread(
            publish_written, storage, order_name(digest), lambda path: path.write_bytes(content)
        )
        credentials = self.context.given_credentials
        for attempt in count(len(runs) + 1):
            run = await arun_deployment(
                self.deployment.id,
                parameters={
                    "idempotency_key": order.idempotency_key,
                    "shard": order.name,
                    "order": digest,
                    "storage": self.context.location,
                    "credentials": credentials.saved_as if credentials else None,
                },
                flow_run_name=f"{order.idempotency_key} {order.name}",
                tags=[TAG, tag],
                idempotency_key=f"{digest}-{attempt}",
                timeout=0,
            )
            if run.state and not run.state.is_final():
                log.logger().info("Shard %s: %d items, %s", order.name, len(order.rows), run.name)
                return Shard(order, digest, run)
        raise AssertionError("unreachable")

    async def _wait_for(self, shards: Sequence[Shard]) -> None:
        """Follow the shards until all of them have ended, and restart those that crash."""
        while not all(shard.is_over for shard in shards):
            await asyncio.sleep(LOOK_EVERY)
            try:
                await self._read_states(shards)
                await self._take_over(shards)
            except (httpx.HTTPError, PrefectHTTPStatusError) as error:
                log.logger().debug("Prefect did not answer: %s", type(error).__name__)
            await self._read_results(shards)
            await self._stop_if_due(shards)

    async def _read_states(self, shards: Sequence[Shard]) -> None:
        by_id = {shard.run.id: shard for shard in shards}
        async with get_client() as client:
            chosen = FlowRunFilter(id=FlowRunFilterId(any_=list(by_id)))
            for run in await client.read_flow_runs(flow_run_filter=chosen):
                by_id[run.id].run = run
        for shard in shards:
            waits = time.monotonic() - shard.started > UNSTARTED
            if waits and not shard.is_reported and shard.run.start_time is None:
                shard.is_reported = True
                log.logger().warning(
                    "No worker has started shard %s yet. Workers of %s: prefect worker start "
                    "--pool %s",
                    shard.order.name,
                    self.deployment.name,
                    self.deployment.work_pool_name or "POOL",
                )

    async def _take_over(self, shards: Sequence[Shard]) -> None:
        """Schedule crashed shards again, and mark those as crashed whose process is gone.

        The worker of a killed process reports its crash. If the worker is gone, too, only the
        leases show it: a process renews its leases for as long as it lives.
        """
        checks_leases = time.monotonic() >= self._leases_due
        if checks_leases:
            self._leases_due = time.monotonic() + CHECK_LEASES_EVERY
        for shard in shards:
            kind = shard.run.state_type
            if kind is StateType.RUNNING and checks_leases and await self._is_dead(shard):
                log.logger().warning("The process of shard %s is gone", shard.order.name)
                async with get_client() as client:
                    gone = Crashed(message="The process of the run is gone.")
                    await client.set_flow_run_state(shard.run.id, gone)
                    shard.run = await client.read_flow_run(shard.run.id)
            if shard.run.state_type is StateType.CRASHED:
                await self._restart(shard)

    async def _is_dead(self, shard: Shard) -> bool:
        """Return True if the run of a shard has leases and its process does not renew them."""
        held = [one for one in await self._leased_by(shard) if one.owner not in shard.gone]
        ledger = await self.context.ledger()
        for entry in held:
            if await ledger.leases.is_active(entry):
                return False
        return bool(held)

    async def _leased_by(self, shard: Shard) -> list[Entry]:
        run = str(shard.run.id)
        found = await write_best_effort(self.context, lambda to: to.leases.entries_of_run(run))
        return found or []

    async def _restart(self, shard: Shard) -> None:
        """Schedule a crashed run again, unless it crashed too often or the batch is stopped."""
        if self.stopped or shard.restarts >= self.context.settings.max_run_attempts:
            return
        shard.restarts += 1
        # The next process of the run takes these leases over one after the other. Until then, they
        # say nothing about it.
        shard.gone |= {entry.owner for entry in await self._leased_by(shard)}
        log.logger().warning("Shard %s crashed, and is scheduled again", shard.order.name)
        async with get_client() as client:
            again = Scheduled(message="Restarted after a crash.")
            await client.set_flow_run_state(shard.run.id, again)
            shard.run = await client.read_flow_run(shard.run.id)

    async def _read_results(self, shards: Iterable[Shard]) -> None:
        """Read what the shards have written about their items, at the latest when they end."""
        storage = await self.context.storage()
        for shard in shards:
            began = time.monotonic()
            if shard.is_read or (began < shard.read_due and not shard.is_over):
                continue
            shard.is_read = shard.is_over
            name = results_name(shard.digest, str(shard.run.id))
            with suppress(StorageError, ValueError):  # it is not written yet
                for row in read_rows(await asyncio.to_thread(storage.read, name)):
                    self.progress.put_if_changed(row)
            ended = time.monotonic()
            shard.read_due = next_write(ended, ended - began, READING_SHARE)

    async def _stop_if_due(self, shards: Sequence[Shard]) -> None:
        """Let all shards stop buying once more items failed than may fail in all of them."""
        if self.stopped:
            return
        self.stopped = reason_to_stop(self.progress.results(), self.max_failures)
        if not self.stopped:
            return
        for shard in shards:
            if not shard.is_over:
                with suppress(httpx.HTTPError, PrefectHTTPStatusError):
                    await asend_input(self.stopped, shard.run.id)

    async def _settle(self, items: Sequence[BatchItem], shards: Sequence[Shard]) -> None:
        """Complete the results from the ledger, which knows more than a shard that died.

        If the ledger is unavailable, items without a final result stay as they are.
        """
        keys = [item.idempotency_key for item in items]
        known = await write_best_effort(self.context, lambda to: to.get_many(keys))
        found = await write_best_effort(self.context, lambda _: look_up(self.context, items))
        if known is not None and found is not None:
            endings = {row["id"]: shard.ending() for shard in shards for row in shard.order.rows}
            results = {one.id: one for one in self.progress.results()}
            for item, now in zip(items, found.results, strict=True):
                entry, result = known.get(item.idempotency_key), results[item.id]
                if result.outcome is not Outcome.STORED and now.outcome is Outcome.STORED:
                    result = now
                elif not result.outcome.is_final:
                    result = left_behind(item, entry, endings[item.id])
                self.progress.put_if_changed(outcomes.with_cost(result, entry))
        results_of_all = self.progress.results()
        self.stopped = (
            self.stopped
            or reason_to_stop(results_of_all, self.max_failures)
            or reason_of_gap(results_of_all)
        )

    async def _remove_files(self, shards: Sequence[Shard]) -> None:
        """Delete the orders and the results of the shards, which may contain signed URLs."""
        storage = await self.context.storage()
        for shard in shards:
            for name in (
                order_name(shard.digest),
                results_name(shard.digest, str(shard.run.id)),
            ):
                with suppress(StorageError):
                    await asyncio.to_thread(storage.delete, name)
