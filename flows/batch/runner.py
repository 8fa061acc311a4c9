# SPDX-License-Identifier: Apache-2.0
"""Run of a batch: makes every item, and continues after failures.

The run first reads the ledger entries of all items. A batch that is run again therefore buys only
what is missing. Items start in order, as slots become free.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from prefect import task

from ...runway.batch import outcomes
from ...runway.batch.models import BatchItem, ItemResult
from ...runway.errors import (
    BudgetExceeded,
    CometAPIError,
    LedgerUnavailable,
    SubmissionUncertain,
)
from ...runway.ledger.budget import Budget, estimate
from ...runway.ledger.entry import CostSource, Entry
from ...runway.models.generation import (
    CompletedGeneration,
    FetchedVideo,
    GenerationResult,
    Submission,
)
from ..runtime import log
from ..runtime.lease import own_lease
from ..runtime.ledger_writes import write_best_effort
from ..runtime.run_context import RunContext
from ..steps import fetch, persist, poll, submit
from ..steps.common import step_options
from ..steps.costs import update_billed
from ..steps.delivery import INLINE, StepSet, deliver, named_after
from ..steps.reconcile import reconcile_quietly
from .concurrency import ConcurrencyLimits, Slot
from .plan import looked_up
from .progress import BatchProgress

RETRIED_ERRORS = (
    *submit.RETRIED_ERRORS,
    *poll.RETRIED_ERRORS,
    *fetch.RETRIED_ERRORS,
    *persist.RETRIED_ERRORS,
)


@task(
    **step_options("generate", "{item}", *RETRIED_ERRORS, retries=1000),
)
async def agenerate_item(item: str, make: Callable[[], Awaitable[None]]) -> None:
    """Make one item of a large batch, with all four steps in one task run.

    The task takes only the id of the item, for the name of its task run, and returns nothing.
    Prefect copies the parameters and keeps the result until the end of the flow, for each of
    thousands of items.
    """
    _ = item
    await make()


@dataclass
class BatchRun:
    """State and resources of one run of a batch.

    Attributes:
        context: Context of the run, with the resources that its items share.
        progress: Results of the items.
        budget: Limits of the spending.
        concurrency: Concurrency limits.
        max_failures: Number of items that may fail before no more are bought, or None for no limit.
        one_task_run: Whether an item is one task run instead of four.
        stopped: Reason why no more items are bought, or None.
        failures: Number of items that failed in this run.
        bought: Idempotency keys with a generation that was bought or possibly charged.
    """

    context: RunContext
    progress: BatchProgress
    budget: Budget
    concurrency: ConcurrencyLimits
    max_failures: int | None = None
    one_task_run: bool = False
    stopped: str | None = None
    failures: int = 0
    bought: set[str] = field(default_factory=set[str])

    async def run(self, items: Sequence[BatchItem], invalid: Sequence[ItemResult] = ()) -> None:
        """Make every item that is not stored yet, and record the results."""
        await self._reconcile_earlier(items)
        found = await looked_up(self.context, items)
        self.bought = found.bought
        await self.count_spent()
        self.progress.begin([*found.results, *invalid])
        missing = [
            item
            for item, result in zip(items, found.results, strict=True)
            if not result.outcome.is_final
        ]
        with log.as_batch(quiet=self.one_task_run):
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
        making: set[asyncio.Task[None]] = set()
        try:
            for item in items:
                await self.concurrency.started.acquire()
                one = asyncio.create_task(self._make(item))
                making.add(one)
                one.add_done_callback(making.discard)
                one.add_done_callback(lambda _done: self.concurrency.started.release())
            await asyncio.gather(*making)
        finally:
            for one in making:
                one.cancel()
            await asyncio.gather(*making, return_exceptions=True)

    async def _make(self, item: BatchItem) -> None:
        async with self.concurrency.slot() as slot:
            if self.stopped:
                self.progress.put(outcomes.not_bought(item, self.stopped))
                return
            try:
                await self._check_budget(item)
                self.progress.put(outcomes.running(item))
                result = await self._make_video(item, slot)
            except BudgetExceeded as error:
                self.progress.put(outcomes.not_bought(item, error.message))
            except Exception as error:  # noqa: BLE001 -- the others go on
                self._failed(item, error)
            else:
                self.progress.put(outcomes.stored(item, result))

    async def _check_budget(self, item: BatchItem) -> None:
        """Refuse an item that exceeds the budget before a task run starts and fails for it.

        This is not the decisive check: the claim in the ledger enforces the limit.

        Raises:
            BudgetExceeded: The item does not fit into the budget.
        """
        if item.idempotency_key in self.bought or not self.budget.is_limited:
            return
        seconds = item.request.billed_seconds()
        cost = estimate(item.request, self.budget.prices)
        row = {"cost": cost, "billed_seconds": seconds, "charges": 1, "model": item.request.model}
        # If the ledger is unavailable, the submission step retries until it is available.
        with suppress(LedgerUnavailable):
            ledger = await self.context.ledger()
            spent = await ledger.spent(self.budget.prefix, self.budget.prices, self.budget.currency)
            if why := self.budget.objection(spent, *self.budget.cost_of(row)):
                raise BudgetExceeded(why)

    async def count_spent(self) -> None:
        """Read the amounts spent under the keys of the batch from the ledger."""
        spent = await write_best_effort(
            self.context,
            lambda ledger: ledger.spent(
                self.budget.prefix, self.budget.prices, self.budget.currency
            ),
        )
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
        steps = self._limited_steps(item, slot)
        if not self.one_task_run:
            return await self._buy_and_deliver(item, steps)
        results: list[GenerationResult] = []

        async def make() -> None:
            results.append(await self._buy_and_deliver(item, steps))

        await agenerate_item(item.id, make)
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
        steps = INLINE if self.one_task_run else named_after(item.id)
        limits = self.concurrency

        async def submit(*arguments: Any, **options: Any) -> Submission:
            async with limits.submissions:
                if item.idempotency_key not in self.bought:
                    await limits.rate.acquire()
                try:
                    return await steps.submit(*arguments, **options)
                except SubmissionUncertain:
                    await asyncio.sleep(limits.apart)
                    raise

        async def poll(*arguments: Any, **options: Any) -> CompletedGeneration:
            finished = await steps.poll(*arguments, **options)
            slot.release()  # The generation is no longer in flight at the service.
            return finished

        async def fetch(*arguments: Any, **options: Any) -> list[FetchedVideo]:
            async with limits.downloads:
                return await steps.fetch(*arguments, **options)

        return StepSet(submit, poll, fetch, steps.persist)
