# SPDX-License-Identifier: Apache-2.0
"""One run of a batch: every item gets its turn, and none that fails stops the others.

The ledger is asked first about all keys at once, so a batch that is run again buys only what is
missing. Items are started in order, as slots upstream become free.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from ..blocks.credentials import CometAPICredentials
from ..runway import outcomes
from ..runway.batch import BatchItem, ItemResult
from ..runway.budget import Budget
from ..runway.errors import CometAPIError
from ..runway.generation import Finished, GenerationResult
from . import display
from .attempts import retry_on
from .batch_plan import looked_up
from .board import Board
from .deliver import PLAIN, Steps, deliver, named_after
from .lanes import Lanes, Slot
from .ledger import this_run
from .tasks import WORTH_RETRYING, step_options

if TYPE_CHECKING:
    from ..runway.ledger import Ledger


@task(
    **step_options("generate", retries=1000, retry=retry_on(*WORTH_RETRYING, share=0.2)),
    task_run_name="{item}",
    persist_result=False,
    cache_policy=NO_CACHE,
)
async def agenerate_item(item: str, make: Callable[[], Awaitable[None]]) -> None:
    """Make one item of a large batch: all four steps in one task run.

    It gets the item's id alone and gives nothing back, since Prefect copies the one and keeps the
    other to the end of the flow, for each of thousands.
    """
    _ = item  # it names the task run
    await make()


@dataclass
class BatchRun:
    """What one run of a batch works with.

    Attributes:
        credentials: Whose key to use.
        storage: Where the videos are kept.
        ledger: Where it is recorded what was bought.
        board: Where the results stand.
        budget: What may be spent.
        lanes: How much is done at once.
        max_failures: How many items may fail before no more are bought, or None for any number.
        one_task_run: Whether an item is one task run, or four.
    """

    credentials: CometAPICredentials
    storage: str | None
    ledger: "Ledger"
    board: Board
    budget: Budget
    lanes: Lanes
    max_failures: int | None = None
    one_task_run: bool = False
    stopped: str | None = None
    failures: int = 0
    bought: set[str] = field(default_factory=set[str])

    async def run(self, items: Sequence[BatchItem], invalid: Sequence[ItemResult] = ()) -> None:
        """Make every item that is not stored yet; what became of each stands on the board."""
        found = await looked_up(items, self.ledger, self.budget, self.storage)
        self.bought = found.bought
        self.board.begin([*found.results, *invalid])
        missing = [
            item
            for item, result in zip(items, found.results, strict=True)
            if not result.outcome.is_final
        ]
        with display.as_batch(quiet=self.one_task_run):
            await self._make_all(missing)

    async def _make_all(self, items: Sequence[BatchItem]) -> None:
        making: set[asyncio.Task[None]] = set()
        try:
            for item in items:
                await self.lanes.open.acquire()
                one = asyncio.create_task(self._make(item))
                making.add(one)
                one.add_done_callback(making.discard)
                one.add_done_callback(lambda _done: self.lanes.open.release())
            await asyncio.gather(*making)
        finally:
            for one in making:
                one.cancel()
            await asyncio.gather(*making, return_exceptions=True)

    async def _make(self, item: BatchItem) -> None:
        async with self.lanes.slot() as slot:
            why_not = self.stopped or self._over_budget(item)
            if why_not:
                self.board.put(outcomes.not_bought(item, why_not))
                return
            self.board.put(outcomes.running(item))
            try:
                result = await self._made(item, self._gated(item, slot))
            except Exception as error:  # noqa: BLE001 -- the others go on
                self._failed(item, error)
            else:
                self.board.put(outcomes.stored(item, result))

    def _over_budget(self, item: BatchItem) -> str | None:
        if self.budget.reserve(item.key, item.request):
            return None
        return f"{outcomes.PASSES_LIMIT} of what the batch may spend"

    def _failed(self, item: BatchItem, error: Exception) -> None:
        self.failures += 1
        if outcomes.was_not_bought(error):
            self.budget.give_back(item.key)
        self.stopped = self.stopped or outcomes.reason_to_stop(
            error, self.failures, self.max_failures
        )
        self.board.put(outcomes.ended(item, error))
        what = error.what if isinstance(error, CometAPIError) else error
        display.logger().warning("%s: %s: %s", item.id, type(error).__name__, what)

    async def _made(self, item: BatchItem, by: Steps) -> GenerationResult:
        from ..runway.buying import staying_with

        made: list[GenerationResult] = []

        async def make() -> None:
            async with staying_with(self.ledger, item.key, this_run()):
                async with self.lanes.submissions:
                    if item.key not in self.bought:
                        await self.lanes.pace.turn()
                    submission = await by.submit(
                        item.request, self.credentials, item.key, storage=self.storage
                    )
                made.append(await deliver(submission, self.credentials, self.storage, by=by))

        await (agenerate_item(item.id, make) if self.one_task_run else make())
        return made[0]

    def _gated(self, item: BatchItem, slot: Slot) -> Steps:
        """The steps; the slot upstream is free after the wait, and downloads take turns."""
        by = PLAIN if self.one_task_run else named_after(item.id)

        async def poll(*arguments: Any) -> Finished:
            finished = await by.poll(*arguments)
            slot.free()
            return finished

        def in_turn(step: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
            async def taking_turns(*arguments: Any) -> Any:
                async with self.lanes.downloads:
                    return await step(*arguments)

            return taking_turns

        return replace(by, poll=poll, fetch=in_turn(by.fetch), fetch_again=in_turn(by.fetch_again))
