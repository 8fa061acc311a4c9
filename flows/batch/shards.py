# SPDX-License-Identifier: Apache-2.0
"""Run of a batch in shards: starts one run of a deployment for each, and joins their results.

Prefect schedules the runs, on any worker. This run holds no lease and buys nothing, so it may end
at any time: the shards continue, and another run of the batch attaches to them. What a shard has
made is in the ledger; what it could not make is in a file of results, which it writes beside the
videos.
"""

import asyncio
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, NamedTuple
from uuid import UUID

from prefect.client.schemas.objects import FlowRun, StateType
from prefect.deployments import arun_deployment
from prefect.runtime import flow_run

from ...runway.batch import outcomes
from ...runway.batch.errors import first_names
from ...runway.batch.models import BatchItem, ItemResult, Outcome
from ...runway.batch.sharding import (
    ShardOrder,
    left_behind,
    order_name,
    reason_of_gap,
    reason_to_stop_shards,
    row_of,
    share,
    split,
)
from ...runway.errors import CometAPIError, InvalidRequest
from ...runway.ledger.budget import Budget
from ...runway.ledger.costs import BILLED_CURRENCY
from ...runway.models.prices import Price
from ...runway.redact import scrub
from ...runway.storage.base import publish_written
from ..runtime import log
from ..runtime.flow_decorator import TAG
from ..runtime.ledger_writes import write_best_effort
from ..runtime.run_context import RunContext
from .plan import look_up, read_spent
from .progress import BatchProgress
from .shard_checks import identity_of_ledger
from .shard_files import remove_files
from .shard_follower import ShardFollower
from .shard_runs import (
    UNAVAILABLE,
    Liveness,
    Shard,
    batch_tag,
    close_crashed,
    digest_of,
    is_active,
    is_attachable,
    liveness,
    owners_of,
    runs_of_batch,
    shard_tag,
    strays,
    tag_run,
)

if TYPE_CHECKING:
    from prefect.client.schemas.responses import DeploymentResponse


class PackedOrder(NamedTuple):
    """Order of a shard, with its digest and the content of its file."""

    order: ShardOrder
    digest: str
    content: bytes


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
    """

    context: RunContext
    progress: BatchProgress
    budget: Budget
    deployment: "DeploymentResponse"
    shards: int
    max_in_flight: int
    max_failures: int | None = None
    follower: ShardFollower = field(init=False)
    _spent_before: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        """Create the follower of the shards."""
        self.follower = ShardFollower(
            self.context, self.progress, self.deployment, self.max_failures
        )

    @property
    def stopped(self) -> str | None:
        """Reason why no more items are bought, or None."""
        return self.follower.stopped

    @property
    def _key(self) -> str:
        """Key of the batch."""
        return self.budget.prefix.removesuffix("/")

    async def run(self, items: Sequence[BatchItem], invalid: Sequence[ItemResult] = ()) -> None:
        """Let the shards make every item that is not stored yet, and record the results.

        Raises:
            InvalidRequest: Shards of this batch with other orders are active.
            StorageError: No order can be written.
        """
        found = await look_up(self.context, items)
        await self.count_spent()
        self.progress.begin([*found.results, *invalid])
        done = {one.id for one in found.results if one.outcome.is_final}
        # An order covers all items of its shard. So it is the same order in the next run of the
        # batch, which may then attach to a run that is still active.
        packed = await asyncio.to_thread(_packed, await self._orders(items))
        missing = [
            one for one in packed if not done.issuperset(row["id"] for row in one.order.rows)
        ]
        digests = {one.digest for one in packed}
        runs = [await self._without_crash(run) for run in await runs_of_batch(batch_tag(self._key))]
        if missing:
            await self._check_strays(runs, digests)
            await tag_run(UUID(str(flow_run.id)), batch_tag(self._key))
        shards = await self._start_all(missing, runs)
        await self.follower.follow(shards)
        await self._settle(items, shards)
        await self._remove_files(shards, digests)

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
        identity, host = await identity_of_ledger(self.context)
        credentials = self.context.given_credentials
        has_prices = self.budget.max_spend is not None
        return [
            ShardOrder(
                idempotency_key=self._key,
                number=number,
                of=self.shards,
                total=len(items),
                rows=tuple(map(row_of, part)),
                base_url=self.context.base_url,
                storage=self.context.location,
                credentials=credentials.saved_as if credentials else None,
                ledger=identity,
                host=host,
                max_in_flight=slot,
                submissions_per_second=per_second and per_second / len(parts),
                max_failures=self.max_failures,
                max_spend=self.budget.max_spend,
                max_seconds=self.budget.max_seconds,
                # Another price must not make another order, unless a limit depends on it.
                prices=dict(_prices_of(part, self.budget)) if has_prices else {},
                currency=self.budget.currency if has_prices else BILLED_CURRENCY,
            )
            for (number, part), slot in zip(parts, slots, strict=True)
        ]

    async def _without_crash(self, run: FlowRun) -> FlowRun:
        """Close a run that has crashed, since an automation could start it beside its successor."""
        if run.state_type is not StateType.CRASHED:
            return run
        return await close_crashed(run, "Another run of the batch continues its work.")

    async def _check_strays(self, runs: Sequence[FlowRun], digests: Collection[str]) -> None:
        """Check that no shards of this batch with other orders are active.

        Raises:
            InvalidRequest: There are some, which would buy beside the new ones.
        """
        found = [
            run
            for run in strays(runs, digests)
            if is_attachable(run) or await self._has_process(run)
        ]
        if found:
            error = InvalidRequest(
                f"shards of this batch are active ({first_names([run.name for run in found])}) "
                "that were started with other rows, limits, prices, credentials or another storage"
            )
            error.advice = (
                "wait until they have ended, or cancel them in Prefect, and run the batch again."
            )
            raise error

    async def _has_process(self, run: FlowRun) -> bool:
        """Return whether the leases of a run show that its process is alive."""
        leases = (await self.context.ledger()).leases
        return liveness(await owners_of(leases, run), ()) is Liveness.ALIVE

    async def _start_all(
        self, orders: Sequence[PackedOrder], runs: Sequence[FlowRun]
    ) -> list[Shard]:
        """Attach to the active run of each order, or start one.

        If one cannot be started, the others are stopped.

        Raises:
            CometAPIError: None could be started.
        """
        known: defaultdict[str | None, list[FlowRun]] = defaultdict(list)
        for run in runs:
            known[digest_of(run)].append(run)
        shards: list[Shard] = []
        others: list[PackedOrder] = []
        for one in orders:
            if run := next(filter(is_attachable, known[one.digest]), None):
                log.logger().info("Shard %s is in progress as %s", one.order.name, run.name)
                shards.append(Shard(one.order, one.digest, run))
            else:
                others.append(one)
        for one in others:
            try:
                shards.append(await self._start(one, len(known[one.digest]) + 1))
            except Exception as error:
                if not shards:
                    raise
                is_known = isinstance(error, CometAPIError)
                why = error.message if is_known else scrub(str(error), limit=200)
                self.follower.stopped = f"shard {one.order.name} could not be started: {why}"
                break
        return shards

    async def _start(self, packed: PackedOrder, attempt: int) -> Shard:
        """Start a run of an order.

        The idempotency key of a run counts the runs of its order that have ended. So two runs of
        the batch that come here at the same time get one run of the shard.

        Args:
            packed: The order.
            attempt: Number of the attempt. If there is a run of that number already, a later one
                is used.

        Raises:
            StorageError: The order cannot be written.
        """
        order, digest, content = packed
        storage = await self.context.storage()
        await asyncio.to_thread(
            publish_written, storage, order_name(digest), lambda path: path.write_bytes(content)
        )
        for number in count(attempt):
            run = await arun_deployment(
                self.deployment.id,
                parameters={
                    "idempotency_key": order.idempotency_key,
                    "shard": order.name,
                    "order": digest,
                    "storage": order.storage,
                },
                flow_run_name=f"{order.idempotency_key} {order.name}",
                tags=[TAG, shard_tag(digest), batch_tag(order.idempotency_key)],
                idempotency_key=f"{digest}-{number}",
                timeout=0,
            )
            if is_attachable(await self._without_crash(run)):
                log.logger().info("Shard %s: %d items, %s", order.name, len(order.rows), run.name)
                return Shard(order, digest, run)
        raise AssertionError("unreachable")

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
                    why = endings.get(item.id) or self.stopped or "its shard was not started"
                    result = left_behind(item, entry, why)
                self.progress.put_if_changed(outcomes.with_cost(result, entry))
        results_of_all = self.progress.results()
        self.follower.stopped = (
            self.stopped
            or reason_to_stop_shards(results_of_all, self.max_failures)
            or reason_of_gap(results_of_all)
        )

    async def _remove_files(self, shards: Sequence[Shard], digests: Collection[str]) -> None:
        """Delete the orders and the results of this batch that no active run needs.

        They may contain signed URLs.
        """
        try:
            runs = await runs_of_batch(batch_tag(self._key))
        except UNAVAILABLE as error:
            log.logger().warning(
                "The files of the shards stay in the storage until the next run of the batch, "
                "since Prefect did not answer: %s",
                type(error).__name__,
            )
            return
        left = {shard.run.id for shard in shards if shard.is_over}
        active = {digest_of(run) for run in runs if is_active(run) and run.id not in left}
        of_runs = {digest for run in runs if (digest := digest_of(run))}
        kept = await remove_files(
            await self.context.storage(), shards, ({*digests} | of_runs) - active
        )
        if kept:
            log.logger().warning(
                "%d files of the shards, such as %s, could not be deleted", len(kept), kept[0]
            )


def _packed(orders: Sequence[ShardOrder]) -> list[PackedOrder]:
    return [PackedOrder(order, *order.packed()) for order in orders]


def _prices_of(items: Sequence[BatchItem], budget: Budget) -> Mapping[str, Price]:
    """Return the prices of the models of some items; pure."""
    models = {item.request.model for item in items}
    return {name: price for name, price in budget.prices.items() if name in models}
