# SPDX-License-Identifier: Apache-2.0
"""Run of a batch: makes every item, and continues after failures.

The run first reads the ledger entries of all items. A batch that is run again therefore buys only
what is missing. Items start in order, as slots become free.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from prefect import task

from ...blocks.credentials import CometAPICredentials
from ...runway.batch import outcomes
from ...runway.batch.models import BatchItem, ItemResult
from ...runway.errors import BudgetExceeded, CometAPIError, LedgerUnavailable
from ...runway.ledger.budget import Budget, estimate
from ...runway.models.generation import Finished, GenerationResult
from ..runtime import log
from ..runtime.ledger_access import record, this_run
from ..steps.delivery import PLAIN, Steps, deliver, named_after
from ..steps.retries import retry_on
from ..steps.tasks import WORTH_RETRYING, step_options
from .concurrency import ConcurrencyLimits, Slot
from .plan import looked_up
from .progress import BatchProgress

if TYPE_CHECKING:
    from ...runway.ledger.store import Ledger


@task(
    **step_options("generate", retries=1000, retry=retry_on(*WORTH_RETRYING, share=0.2)),
    task_run_name="{item}",
)
async def agenerate_item(item: str, make: Callable[[], Awaitable[None]]) -> None:
    """Make one item of a large batch, with all four steps in one task run.

    The task takes only the id of the item and returns nothing. Prefect copies the parameters and
    keeps the result until the end of the flow, for each of thousands of items.
    """
    _ = item  # The parameter is used in the name of the task run.
    await make()


@dataclass
class BatchRun:
    """State and resources of one run of a batch.

    Attributes:
        credentials: Credentials with the API key.
        storage: Location for the videos.
        ledger: Ledger that records what is bought.
        progress: Results of the items.
        budget: Limits of the spending.
        concurrency: Concurrency limits.
        max_failures: Number of items that may fail before no more are bought, or None for no limit.
        one_task_run: Whether an item is one task run instead of four.
        stopped: Reason why no more items are bought, or None.
        failures: Number of items that failed in this run.
        bought: Idempotency keys with a generation that was bought or possibly charged.
    """

    credentials: CometAPICredentials
    storage: str | None
    ledger: "Ledger"
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
        found = await looked_up(items, self.ledger, self.storage)
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

    async def _make_all(self, items: Sequence[BatchItem]) -> None:
        making: set[asyncio.Task[None]] = set()
        try:
            for item in items:
                await self.concurrency.open.acquire()
                one = asyncio.create_task(self._make(item))
                making.add(one)
                one.add_done_callback(making.discard)
                one.add_done_callback(lambda _done: self.concurrency.open.release())
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
                result = await self._made(item, self._gated(item, slot))
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
            spent = await self.ledger.spent(self.budget.prefix, self.budget.prices)
            if why := self.budget.objection(spent, *self.budget.cost_of(row)):
                raise BudgetExceeded(why)

    async def count_spent(self) -> None:
        """Read the amounts spent under the keys of the batch from the ledger."""
        spent = await record(lambda ledger: ledger.spent(self.budget.prefix, self.budget.prices))
        self.progress.spent = spent or self.progress.spent

    def _failed(self, item: BatchItem, error: Exception) -> None:
        self.failures += 1
        self.stopped = self.stopped or outcomes.reason_to_stop(
            error, self.failures, self.max_failures
        )
        self.progress.put(outcomes.ended(item, error))
        what = error.message if isinstance(error, CometAPIError) else error
        log.logger().warning("%s: %s: %s", item.id, type(error).__name__, what)

    async def _made(self, item: BatchItem, by: Steps) -> GenerationResult:
        made: list[GenerationResult] = []

        async def make() -> None:
            async with self.ledger.leases.hold(item.idempotency_key, this_run()):
                async with self.concurrency.submissions:
                    if item.idempotency_key not in self.bought:
                        await self.concurrency.pace.acquire()
                    submission = await by.submit(
                        item.request, self.credentials, item.idempotency_key, storage=self.storage
                    )
                made.append(await deliver(submission, self.credentials, self.storage, by=by))

        await (agenerate_item(item.id, make) if self.one_task_run else make())
        return made[0]

    def _gated(self, item: BatchItem, slot: Slot) -> Steps:
        """Return the steps of an item with the limits of the batch.

        The slot is released when the poll step ends. The fetch step waits for a download slot.
        """
        by = PLAIN if self.one_task_run else named_after(item.id)

        async def poll(*arguments: Any) -> Finished:
            finished = await by.poll(*arguments)
            slot.free()
            return finished

        def in_turn(step: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
            async def taking_turns(*arguments: Any) -> Any:
                async with self.concurrency.downloads:
                    return await step(*arguments)

            return taking_turns

        return replace(by, poll=poll, fetch=in_turn(by.fetch))
