# SPDX-License-Identifier: Apache-2.0
"""Storm: many generations at once against a faulty service, and the recovery by a user."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from prefect import tags

from prefect_cometapi.flows import CollectResult, acollect, aimage_to_video, avideo_to_video
from prefect_cometapi.flows.runtime.ledger_access import open_ledger
from prefect_cometapi.runway.api import client
from prefect_cometapi.runway.ledger.entry import State
from prefect_cometapi.runway.media import download
from prefect_cometapi.sandbox import RecordedRequest, Sandbox

from ..harness.checker import Ending, Snapshot, Violation, find_violations
from ..harness.collect_state import collect_snapshot, count_retries
from ..harness.endings import await_ending
from ..harness.service import end_faults, faulty_service, settle_uncertain, wait_until_idle
from ..harness.sources import image_request, serve_sources, video_request

AT_ONCE = 16
"""Generations in progress at a time."""

READ_TIMEOUT = 3.0
"""Read timeout of the client, in seconds; in production it is minutes."""

SETTINGS = {
    "COMETAPI_KEY": "sk-storm-7d20c4f19ab3",
    "COMETAPI_POLL_INTERVAL": "0.1",
    "COMETAPI_NOT_FOUND_GRACE": "5",
    "COMETAPI_GENERATION_TIMEOUT": "40",
}
PROMPTS = ("slow zoom", "a warm dawn", "to the left", "rain sets in")


@dataclass(frozen=True)
class Order:
    """One requested generation.

    Attributes:
        key: Its idempotency key, which is also the name of its source.
        buy: Flow that buys it.
        request: Its request.
    """

    key: str
    buy: Callable[..., Any]
    request: dict[str, Any]


@dataclass
class Storm:
    """One storm, from the first submission to the final snapshot.

    Attributes:
        orders: Requested generations.
        sandbox: Service.
        folder: Folder for the videos and the ledger.
        set_timeout: Sets the read timeout of the client, in seconds.
        log: Called with progress messages.
        endings: Result of each call of a flow.
        rounds: Counts of these results, round by round.
        collected: Result of the last ``collect``.
        started: Start time.
    """

    orders: Sequence[Order]
    sandbox: Sandbox
    folder: Path
    set_timeout: Callable[[float], None]
    log: Callable[[str], None]
    endings: list[Ending] = field(default_factory=list)
    rounds: list[tuple[str, Counter[str]]] = field(default_factory=list)
    collected: CollectResult | None = None
    started: float = field(default_factory=time.monotonic)

    async def run(self) -> None:
        """Buy everything during the storm, and recover once while it lasts."""
        await self._round("in the storm", self.orders)
        recovery = self._round("again, in the storm", self.unfinished())
        await asyncio.gather(recovery, acollect())

    async def recover(self) -> None:
        """Run unfinished generations again after the storm, and collect."""
        end_faults(self.sandbox)
        self.set_timeout(60)
        await wait_until_idle(self.sandbox)
        await self._round("again, after it", self.unfinished())
        self.collected = await acollect()

    async def decide(self) -> tuple[int, int]:
        """Settle uncertain generations as a user does, and run them again.

        Returns:
            The number of adopted ids, and the number of submissions that were allowed again.
        """
        await wait_until_idle(self.sandbox)
        adopted, resubmitted = await settle_uncertain(await open_ledger(), self.sandbox)
        decided = {*adopted, *resubmitted}
        await self._round(
            "after the decisions", [order for order in self.orders if order.key in decided]
        )
        self.collected = await acollect()
        return len(adopted), len(resubmitted)

    def unfinished(self) -> list[Order]:
        """Return the orders that have no result yet."""
        last = {ending.key: ending for ending in self.endings}
        return [order for order in self.orders if last[order.key].error]

    def faulted(self) -> list[RecordedRequest]:
        """Return the requests that met a fault."""
        return [request for request in self.sandbox.requests if request.fault]

    async def snapshot(self) -> Snapshot:
        """Return the current input of the checker."""
        ledger = await open_ledger()
        generations = self.collected.generations if self.collected else ()
        listed = (item.idempotency_key for item in generations if item.state is State.UNCERTAIN)
        return await collect_snapshot(
            [order.key for order in self.orders],
            self.sandbox,
            await ledger.entries(),
            self.folder / "videos",
            self.endings,
            frozenset(listed),
        )

    async def _round(self, name: str, orders: Sequence[Order]) -> None:
        slots = asyncio.Semaphore(AT_ONCE)
        tally: Counter[str] = Counter()
        self.rounds.append((name, tally))

        async def buy(order: Order) -> None:
            async with slots:
                call = order.buy(order.request, idempotency_key=order.key)
                ending = await await_ending(order.key, call)
            self.endings.append(ending)
            tally[ending.error or "stored"] += 1
            done = tally.total()
            if done % 25 == 0 or done == len(orders):
                seconds, faulted = time.monotonic() - self.started, len(self.faulted())
                self.log(
                    f"{seconds:5.0f} s, {name}: {done}/{len(orders)}, {tally['stored']} stored; "
                    f"{len(self.sandbox.requests)} requests, {faulted} with a fault"
                )

        await asyncio.gather(*(buy(order) for order in orders))


@dataclass(frozen=True)
class Outcome:
    """Outcome of a storm.

    Attributes:
        seed: Seed of the faults.
        seconds: Duration of the storm.
        requests: Requests per route.
        faulted: Requests that met a fault, by route and kind of the fault.
        retries: Retries by step, as Prefect recorded them.
        rounds: Counts of the flow results, round by round.
        uncertain: Number of submissions that were uncertain after the storm.
        adopted: Number of these that were accepted, and whose ids were adopted.
        resubmitted: Number of these that were not accepted, and were submitted once more.
        accepted: Jobs that would have been charged for.
        states: States in the ledger in the end.
        violations: All violations.
    """

    seed: int
    seconds: float
    requests: Counter[str]
    faulted: Counter[tuple[str, str]]
    retries: Counter[str]
    rounds: Sequence[tuple[str, Counter[str]]]
    uncertain: int
    adopted: int
    resubmitted: int
    accepted: int
    states: Counter[str]
    violations: Sequence[Violation]


async def run_storm(
    generations: int, seed: int, folder: Path, api: str, log: Callable[[str], None]
) -> Outcome:
    """Run one storm in an empty folder, with a Prefect server that is already running."""
    tag = f"storm-{folder.name}-{seed}"
    with serve_sources(folder) as (pictures, videos), tags(tag):
        orders = list(make_orders(generations, seed, pictures, videos))
        with _service(seed, folder) as (sandbox, set_timeout):
            storm = Storm(orders, sandbox, folder, set_timeout, log)
            await storm.run()
            await storm.recover()
            after_the_storm = await storm.snapshot()
            adopted, resubmitted = await storm.decide()
            at_the_end = await storm.snapshot()
            seconds = time.monotonic() - storm.started
            await (await open_ledger()).database.close()
            violations = [
                *find_violations(after_the_storm),
                *find_violations(at_the_end, decided=True),
            ]
            async with httpx.AsyncClient(base_url=api, timeout=60) as http:
                retries = await count_retries(http, tag)
            return Outcome(
                seed=seed,
                seconds=seconds,
                requests=Counter(request.route for request in sandbox.requests),
                faulted=Counter((request.route, str(request.fault)) for request in storm.faulted()),
                retries=retries,
                rounds=storm.rounds,
                uncertain=adopted + resubmitted,
                adopted=adopted,
                resubmitted=resubmitted,
                accepted=len(at_the_end.jobs),
                states=Counter(row.state for row in at_the_end.rows),
                violations=list(dict.fromkeys(violations)),
            )


@contextmanager
def _service(seed: int, folder: Path) -> Iterator[tuple[Sandbox, Callable[[float], None]]]:
    """Start a faulty service with the settings for it; yield it and the setter of the timeout."""
    with ExitStack() as stack:
        sandbox = stack.enter_context(
            faulty_service(seed=seed, render_seconds=0.3, not_visible_polls=2, asset_ttl=20)
        )
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        locations = {
            "COMETAPI_BASE_URL": sandbox.url,
            "COMETAPI_STORAGE": str(folder / "videos"),
            "COMETAPI_LEDGER_URL": f"sqlite:///{folder}/ledger.db",
        }
        for name, value in (SETTINGS | locations).items():
            patch.setenv(name, value)
        patch.chdir(folder)

        def set_timeout(seconds: float) -> None:
            patch.setattr(client, "TIMEOUT", httpx.Timeout(seconds))
            patch.setattr(client, "TOTAL_TIMEOUT", seconds)
            patch.setattr(download, "TIMEOUT", httpx.Timeout(seconds))

        set_timeout(READ_TIMEOUT)
        yield sandbox, set_timeout


def make_orders(generations: int, seed: int, pictures: str, videos: str) -> Iterable[Order]:
    """Return the orders, images and videos in turn.

    Each order has a source of its own, which tells the jobs of the service apart. A clip that is
    drawn from an image is large and depends on the prompt, of which there are few. A clip that is
    drawn from the video is small, and differs from any other.
    """
    for number in range(generations):
        key = f"storm-{seed}-{number:04}"
        if number % 2:
            yield Order(key, avideo_to_video, video_request(videos, key, f"variant {number}"))
        else:
            prompt = PROMPTS[number // 2 % len(PROMPTS)]
            yield Order(key, aimage_to_video, image_request(pictures, key, prompt))
