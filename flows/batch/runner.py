# SPDX-License-Identifier: Apache-2.0
"""Run of a batch: makes every item, and continues after failures.

The run first reads the ledger entries of all items. A batch that is run again therefore buys only
what is missing. Items start in order, as slots become free.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from ...runway.batch import outcomes
from ...runway.batch.models import BatchItem, ItemResult
from ...runway.batch.outcomes import FollowUp
from ...runway.errors import (
    BudgetExceeded,
    CometAPIError,
    LedgerUnavailable,
    SubmissionUncertain,
)
from ...runway.ledger.budget import Budget, Spent, estimate
from ...runway.ledger.entry import CostSource, Entry
from ...runway.models.generation import (
    CompletedGeneration,
    FetchedVideo,
    GenerationResult,
    Submission,
)
from ...runway.redact import origin_of
from ..runtime import log
from ..runtime.lease import own_lease
from ..runtime.ledger_writes import write_best_effort
from ..runtime.run_context import RunContext
from ..steps.costs import update_billed
from ..steps.delivery import INLINE, StepSet, deliver, named_after
from ..steps.reconcile import reconcile_quietly
from .availability import Availability
from .concurrency import ConcurrencyLimits, Slot, all_together
from .plan import look_up, read_spent
from .progress import BatchProgress
from .task_runs import TaskRuns, agenerate_group, agenerate_item, name_of, with_retries


class _Stopped(Exception):
    """Item that is not sent, since the batch was stopped while the item waited for its turn."""


@dataclass
class BatchRun:
    """State and resources of one run of a batch.

    Attributes:
        context: Context of the run, with the resources that its items share.
        progress: Results of the items.
        budget: Limits of the spending.
        concurrency: Concurrency limits.
        max_failures: Number of items that may fail before no more are bought, or None for no limit.
        task_runs: Extent of a task run.
        stopped: Reason why no more items are bought, or None.
        failures: Number of items that failed in this run.
        bought: Idempotency keys with a generation that was bought or possibly charged.
        expected: Spending as last read from the ledger, and the cost of each item begun since.
    """

    context: RunContext
    progress: BatchProgress
    budget: Budget
    concurrency: ConcurrencyLimits
    max_failures: int | None = None
    task_runs: TaskRuns = TaskRuns.PER_STEP
    stopped: str | None = None
    failures: int = 0
    bought: set[str] = field(default_factory=set[str])
    expected: Spent = field(default_factory=Spent)
    service: Availability = field(init=False)

    def __post_init__(self) -> None:
        """Create the pause that all items share."""
        settings = self.context.settings
        self.service = Availability(
            self._ask_service,
            interval=settings.poll_interval,
            timeout=settings.generation_timeout,
            address=origin_of(self.context.base_url),
        )

    async def _ask_service(self) -> None:
        """Send a free request that only CometAPI answers in its own words."""
        async with self.context.open_client() as client:
            await client.check_key()

    async def run(self, items: Sequence[BatchItem], invalid: Sequence[ItemResult] = ()) -> None:
        """Make every item that is not stored yet, and record the results."""
        await self._reconcile_earlier(items)
        found = await look_up(self.context, items)
        self.bought = found.bought
        await self.count_spent()
        self.expected = self.progress.spent
        self.progress.begin([*found.results, *invalid])
        missing = [
            item
            for item, result in zip(items, found.results, strict=True)
            if not result.outcome.is_final
        ]
        with log.as_batch(quiet=self.task_runs is not TaskRuns.PER_STEP):
            await self._make_all(missing)
        await self._add_costs(items)

    async def _reconcile_earlier(self, items: Sequence[BatchItem]) -> None:
        """Let the account decide about uncertain items of earlier runs, if the settings allow it.

        This comes before the first submission, so that none overlaps with an earlier one.
        """
        if self.context.settings.on_uncertain == "reconcile":
            keys = [item.idempotency_key for item in items]
            await reconcile_quietly(self.context, keys, resolve_claims=True)

    async def _add_costs(self, items: Sequence[BatchItem]) -> None:
        """Look up the charges of the items, and add the costs to their results."""
        keys = [item.idempotency_key for item in items]

        async def known() -> dict[str, Entry]:
            return await write_best_effort(self.context, lambda to: to.get_many(keys)) or {}

        entries = await known()
        unbilled = [
            entry
            for entry in entries.values()
            if entry.has_ended and entry.cost_source is not CostSource.BILLED
        ]
        if await update_billed(self.context, unbilled):
            entries = await known()
        for result in self.progress.results():
            entry = entries.get(result.idempotency_key or "")
            if (priced := outcomes.with_cost(result, entry)) != result:
                self.progress.put(priced)

    async def _make_all(self, items: Sequence[BatchItem]) -> None:
        if self.task_runs is not TaskRuns.PER_GROUP:
            await self._start_in_order(items)
            return
        size = self.context.settings.items_per_task_run
        async with all_together() as start:
            for first in range(0, len(items), size):
                group = items[first : first + size]
                all_started = asyncio.Event()
                make = partial(self._start_in_order, group, all_started.set)
                running = start(agenerate_group(name_of(group), make))
                running.add_done_callback(lambda _done, event=all_started: event.set())
                await all_started.wait()

    async def _start_in_order(
        self, items: Sequence[BatchItem], on_all_started: Callable[[], None] = lambda: None
    ) -> None:
        """Make items; each one starts as soon as there is a slot for it."""
        async with all_together() as start:
            for item in items:
                await self.concurrency.started.acquire()
                making = start(self._make(item))
                making.add_done_callback(lambda _done: self.concurrency.started.release())
            on_all_started()

    async def _make(self, item: BatchItem) -> None:
        async with self.concurrency.slot() as slot:
            earlier: list[Exception] = []
            since = 0.0
            while not self.stopped:
                try:
                    await self._check_budget(item)
                    self.progress.put(outcomes.running(item))
                    result = await self._make_video(item, slot)
                except BudgetExceeded as error:
                    self.progress.put(outcomes.not_bought(item, error.message))
                    return
                except _Stopped:
                    continue
                except Exception as error:  # noqa: BLE001 -- the others continue
                    since = since if earlier else time.monotonic()
                    if not await self._is_sent_again(item, error, earlier, since):
                        return
                    earlier.append(error)
                else:
                    self.progress.put(outcomes.stored(item, result))
                    return
            self.progress.put(outcomes.not_bought(item, self.stopped))

    async def _is_sent_again(
        self, item: BatchItem, error: Exception, earlier: Sequence[Exception], since: float
    ) -> bool:
        """Return True if an item is sent again, once CometAPI is reached; else record its failure.

        Args:
            item: Item that failed.
            error: Its error.
            earlier: Errors after which it was sent again in this run.
            since: Time of the first of them, in seconds of the monotonic clock.
        """
        follow = outcomes.follow_up(error, earlier, is_bought=item.idempotency_key in self.bought)
        if follow is not FollowUp.PAUSE_AND_REPEAT:
            self._failed(item, error)
        if follow is FollowUp.NONE or not isinstance(error, CometAPIError):
            return False
        try:
            gave_up = await self.service.recover(error, since)
        except CometAPIError as refusal:
            if follow is FollowUp.PAUSE_AND_REPEAT:
                self._failed(item, refusal)
            return False
        self.stopped = self.stopped or gave_up
        return follow is FollowUp.PAUSE_AND_REPEAT

    async def _check_budget(self, item: BatchItem) -> None:
        """Refuse an item that exceeds the budget before a task run starts and fails for it.

        This is not the decisive check: the claim in the ledger enforces the limit. The ledger adds
        up all rows of the batch, so it is asked only if the item does not fit into what is left.

        Raises:
            BudgetExceeded: The item does not fit into the budget.
        """
        if item.idempotency_key in self.bought or not self.budget.is_limited:
            return
        seconds = item.request.billed_seconds()
        cost = estimate(item.request, self.budget.prices)
        row = {"cost": cost, "billed_seconds": seconds, "charges": 1, "model": item.request.model}
        money, seconds = self.budget.cost_of(row)
        # If the ledger is unavailable, the submission step retries until it is available.
        with suppress(LedgerUnavailable):
            if self.budget.objection(self.expected, money, seconds):
                self.expected = await read_spent(self.budget, await self.context.ledger())
            if why := self.budget.objection(self.expected, money, seconds):
                raise BudgetExceeded(why)
        self.expected = self.expected.with_one_more(money, seconds)

    async def count_spent(self) -> None:
        """Read the amounts spent under the keys of the batch from the ledger."""
        spent = await write_best_effort(self.context, partial(read_spent, self.budget))
        self.progress.spent = spent or self.progress.spent

    def _failed(self, item: BatchItem, error: Exception) -> None:
        self.failures += 1
        self.stopped = self.stopped or outcomes.reason_to_stop(
            error, self.failures, self.max_failures
        )
        self.progress.put(outcomes.ended(item, error))
        what = error.message if isinstance(error, CometAPIError) else error
        log.logger().warning("%s: %s: %s", item.id, type(error).__name__, what)

    async def _make_video(self, item: BatchItem, slot: Slot) -> GenerationResult:
        make = partial(self._buy_and_deliver, item, self._limited_steps(item, slot))
        if self.task_runs is TaskRuns.PER_STEP:
            return await make()
        if self.task_runs is TaskRuns.PER_GROUP:
            return await with_retries(make)
        results: list[GenerationResult] = []

        async def make_and_keep() -> None:
            results.append(await make())

        await agenerate_item(item.id, make_and_keep)
        return results[0]

    async def _buy_and_deliver(self, item: BatchItem, steps: StepSet) -> GenerationResult:
        credentials, storage = self.context.given_credentials, self.context.given_storage
        async with own_lease(self.context, item.idempotency_key):
            submission = await steps.submit(
                item.request, credentials, item.idempotency_key, storage=storage
            )
            return await deliver(submission, credentials, storage, steps=steps)

    def _limited_steps(self, item: BatchItem, slot: Slot) -> StepSet:
        """Return the steps of an item under the limits of the batch."""
        steps = named_after(item.id) if self.task_runs is TaskRuns.PER_STEP else INLINE
        limits = self.concurrency

        async def submit(*arguments: Any, **options: Any) -> Submission:
            async with limits.submissions:
                if item.idempotency_key not in self.bought:
                    await limits.rate.acquire()
                    await self.service.reached()
                    if self.stopped:
                        raise _Stopped(self.stopped)
                try:
                    submission = await steps.submit(*arguments, **options)
                except SubmissionUncertain:
                    await asyncio.sleep(limits.apart)
                    raise
            if item.idempotency_key not in self.bought:
                self.service.note_answer()
            return submission

        async def poll(*arguments: Any, **options: Any) -> CompletedGeneration:
            finished = await steps.poll(*arguments, **options)
            slot.release()  # The generation is no longer in flight at the service.
            return finished

        async def fetch(*arguments: Any, **options: Any) -> list[FetchedVideo]:
            async with limits.downloads:
                return await steps.fetch(*arguments, **options)

        return StepSet(submit, poll, fetch, steps.persist)
