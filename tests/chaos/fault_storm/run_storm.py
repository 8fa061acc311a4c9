# SPDX-License-Identifier: Apache-2.0
"""Storm: many generations at once against a faulty service, and the user's recovery from it."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import httpx
import pytest
from prefect import tags

from prefect_cometapi.flows import CollectResult, acollect, aimage_to_video, avideo_to_video
from prefect_cometapi.flows.runtime.ledger_access import open_ledger
from prefect_cometapi.runway.api import client
from prefect_cometapi.runway.errors import CometAPIError
from prefect_cometapi.runway.ledger.entry import State
from prefect_cometapi.runway.ledger.purchase import attach
from prefect_cometapi.runway.ledger.store import Ledger
from prefect_cometapi.runway.media import download
from prefect_cometapi.sandbox import FaultPlan, RecordedRequest, ReplyShape, Sandbox

from ..kill_matrix.fork_client import ROOT, pictures
from .checker import Ending, Found, Violation, violations
from .collect_state import clip, found_in, retries, shown
from .fault_profile import weather

AT_ONCE = 16
"""Generations in progress at a time."""

PATIENCE = 3.0
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
        patience: Sets the read timeout of the client, in seconds.
        tell: Called with progress messages.
        endings: Result of each call of a flow.
        rounds: Counts of these results, round by round.
        collected: Result of the last ``collect``.
        started: Start time.
    """

    orders: Sequence[Order]
    sandbox: Sandbox
    folder: Path
    patience: Callable[[float], None]
    tell: Callable[[str], None]
    endings: list[Ending] = field(default_factory=list)
    rounds: list[tuple[str, Counter[str]]] = field(default_factory=list)
    collected: CollectResult | None = None
    started: float = field(default_factory=time.monotonic)

    async def go(self) -> None:
        """Buy everything during the storm, and recover once while it lasts."""
        await self._round("in the storm", self.orders)
        recovery = self._round("again, in the storm", self.unfinished())
        await asyncio.gather(recovery, acollect())

    async def recover(self) -> None:
        """Run unfinished generations again after the storm, and collect."""
        app = self.sandbox._app
        app.plan = FaultPlan((), app.plan.seed)
        self.patience(60)
        await self._quiet()
        await self._round("again, after it", self.unfinished())
        self.collected = await acollect()

    async def decide(self) -> tuple[int, int]:
        """Settle uncertain generations as a user does who looks into CometAPI's console.

        Returns:
            The number of adopted ids, and the number of released submissions.
        """
        await self._quiet()
        adopted, released = await settled(await open_ledger(), self.sandbox)
        decided = {*adopted, *released}
        await self._round(
            "after the decisions", [order for order in self.orders if order.key in decided]
        )
        self.collected = await acollect()
        return len(adopted), len(released)

    def unfinished(self) -> list[Order]:
        """Return the orders that have no result yet."""
        last = {ending.key: ending for ending in self.endings}
        return [order for order in self.orders if last[order.key].error]

    def struck(self) -> list[RecordedRequest]:
        """Return the requests that met a fault."""
        return [request for request in self.sandbox.requests if request.fault]

    async def _quiet(self) -> None:
        """Wait until the service has processed every request, so that its records are complete."""
        state = self.sandbox._server.server_state
        while state.connections or state.tasks:  # noqa: ASYNC110 -- uvicorn tells nobody
            await asyncio.sleep(0.02)

    async def found(self) -> Found:
        """Return the current snapshot for the checker."""
        ledger = await open_ledger()
        generations = self.collected.generations if self.collected else ()
        listed = (item.idempotency_key for item in generations if item.state is State.UNCERTAIN)
        return await found_in(
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

        async def play(order: Order) -> None:
            async with slots:
                ending = await _ending(order)
            self.endings.append(ending)
            tally[ending.error or "stored"] += 1
            done = tally.total()
            if done % 25 == 0 or done == len(orders):
                seconds, struck = time.monotonic() - self.started, len(self.struck())
                self.tell(
                    f"{seconds:5.0f} s, {name}: {done}/{len(orders)}, {tally['stored']} stored; "
                    f"{len(self.sandbox.requests)} requests, {struck} of them struck"
                )

        await asyncio.gather(*(play(order) for order in orders))


async def settled(ledger: Ledger, sandbox: Sandbox) -> tuple[list[str], list[str]]:
    """Settle uncertain generations as a user does who looks into CometAPI's console.

    Returns:
        The keys whose ids were found and adopted, and those that were released.
    """
    accepted = {shown(job): job.task_id for job in sandbox.accepted}
    adopted: list[str] = []
    released: list[str] = []
    for entry in await ledger.entries(states=[State.UNCERTAIN]):
        if task_id := accepted.get(entry.idempotency_key):
            await attach(ledger, entry, task_id)
            adopted.append(entry.idempotency_key)
        else:
            await ledger.mark_resubmit_allowed(entry, "not accepted")
            released.append(entry.idempotency_key)
    return adopted, released


async def _ending(order: Order) -> Ending:
    try:
        await order.buy(order.request, idempotency_key=order.key)
    except CometAPIError as error:
        return Ending(order.key, type(error).__name__, text=error.message)
    except Exception as error:  # noqa: BLE001 -- that there is none is what is looked at
        return Ending(order.key, type(error).__qualname__, typed=False, text=str(error)[:300])
    return Ending(order.key)


@dataclass(frozen=True)
class Outcome:
    """Outcome of a storm.

    Attributes:
        seed: Seed of the faults.
        seconds: Duration of the storm.
        requests: Requests per route.
        struck: Faults by route and kind.
        retries: Retries by step, as Prefect recorded them.
        rounds: Counts of the flow results, round by round.
        uncertain: Number of submissions that were uncertain after the storm.
        adopted: Number of these that were accepted, and whose ids were adopted.
        released: Number of these that were not accepted, and were submitted once more.
        accepted: Jobs that would have been charged for.
        states: States in the ledger in the end.
        found: All violations.
    """

    seed: int
    seconds: float
    requests: Counter[str]
    struck: Counter[tuple[str, str]]
    retries: Counter[str]
    rounds: Sequence[tuple[str, Counter[str]]]
    uncertain: int
    adopted: int
    released: int
    accepted: int
    states: Counter[str]
    found: Sequence[Violation]


async def play(
    generations: int, seed: int, folder: Path, api: str, tell: Callable[[str], None]
) -> Outcome:
    """Run one storm in an empty folder, with a Prefect server that is already running."""
    tag = f"storm-{folder.name}-{seed}"
    with sources(folder) as (image, video), tags(tag):
        orders = list(wanted(generations, seed, image, video))
        with _service(seed, folder) as (sandbox, patience):
            storm = Storm(orders, sandbox, folder, patience, tell)
            await storm.go()
            await storm.recover()
            after_the_storm = await storm.found()
            adopted, released = await storm.decide()
            in_the_end = await storm.found()
            seconds = time.monotonic() - storm.started
            await (await open_ledger()).database.close()
            wrong = [*violations(after_the_storm), *violations(in_the_end, decided=True)]
            async with httpx.AsyncClient(base_url=api, timeout=60) as http:
                retried = await retries(http, tag)
            return Outcome(
                seed=seed,
                seconds=seconds,
                requests=Counter(request.route for request in sandbox.requests),
                struck=Counter((request.route, str(request.fault)) for request in storm.struck()),
                retries=retried,
                rounds=storm.rounds,
                uncertain=adopted + released,
                adopted=adopted,
                released=released,
                accepted=len(in_the_end.jobs),
                states=Counter(row.state for row in in_the_end.rows),
                found=list(dict.fromkeys(wrong)),
            )


@contextmanager
def _service(seed: int, folder: Path) -> Iterator[tuple[Sandbox, Callable[[float], None]]]:
    """Start a faulty service with the settings for it; yield it and the setter of the timeout."""
    with ExitStack() as stack:
        sandbox = stack.enter_context(
            Sandbox(
                shapes=get_args(ReplyShape),
                faults=weather(),
                seed=seed,
                render_seconds=0.3,
                not_visible_polls=2,
                asset_ttl=20,
            )
        )
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        places = {
            "COMETAPI_BASE_URL": sandbox.url,
            "COMETAPI_STORAGE": str(folder / "videos"),
            "COMETAPI_LEDGER_URL": f"sqlite:///{folder}/ledger.db",
        }
        for name, value in (SETTINGS | places).items():
            patch.setenv(name, value)
        patch.chdir(folder)

        def patience(seconds: float) -> None:
            patch.setattr(client, "TIMEOUT", httpx.Timeout(seconds))
            patch.setattr(client, "TOTAL_TIMEOUT", seconds)
            patch.setattr(download, "TIMEOUT", httpx.Timeout(seconds))

        patience(PATIENCE)
        yield sandbox, patience


@contextmanager
def sources(folder: Path) -> Iterator[tuple[str, str]]:
    """Serve one picture and one short video under every address; yield both base addresses."""
    source = folder / "source.mp4"
    source.write_bytes(clip())
    with (
        pictures(ROOT / "deployments" / "commands" / "comet.jpg") as image,
        pictures(source) as video,
    ):
        yield image, video


def wanted(generations: int, seed: int, image: str, video: str) -> Iterable[Order]:
    """Return the orders, images and videos in turn.

    Each order has a source of its own, which tells the service's jobs apart. A clip that is drawn
    from an image is large and depends on the prompt, of which there are few. A clip that is drawn
    from the video is small, and differs from any other.
    """
    for number in range(generations):
        key = f"storm-{seed}-{number:04}"
        if number % 2:
            request = {"videoUri": f"{video}/{key}.mp4", "promptText": f"take {number}"}
            yield Order(key, avideo_to_video, request)
        else:
            prompt = PROMPTS[number // 2 % len(PROMPTS)]
            request = {"promptImage": f"{image}/{key}.jpg", "promptText": prompt}
            yield Order(key, aimage_to_video, request)
