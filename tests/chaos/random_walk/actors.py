# SPDX-License-Identifier: Apache-2.0
"""Processes of the random walk: buyers, collectors, and the user who decides.

Each is a fork of the runner, which has imported everything; it does one piece of work and ends.
"""

import asyncio
import io
import os
import random
import shutil
import signal
import traceback
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from prefect_cometapi.blocks import CometAPICredentials
from prefect_cometapi.deployments.cli import app
from prefect_cometapi.flows import collector
from prefect_cometapi.flows.runtime.identity import this_run
from prefect_cometapi.flows.runtime.run_context import RunContext
from prefect_cometapi.flows.steps.delivery import INLINE, StepSet, deliver
from prefect_cometapi.runway import CometAPISettings, Entry, Ledger, State
from prefect_cometapi.runway.api import client
from prefect_cometapi.runway.api.client import RunwayClient
from prefect_cometapi.runway.errors import CometAPIError, ServiceUnavailable
from prefect_cometapi.runway.ledger.statement import Sql
from prefect_cometapi.runway.media import download
from prefect_cometapi.runway.media.download import AssetClients

from ..harness.processes import run_fork
from .journal import Journal

KEY = "sk-chaos-91f0b7e35ac2"
LEASE = 2.0
"""Duration of a lease in seconds; in production it is a minute."""

DATABASE_TIMEOUT = 10.0
"""Seconds for which an actor waits for the database."""

READ_TIMEOUT = 1.5
"""Read timeout of an actor in seconds; in production it is a minute."""

KEYS_AT_ONCE = 4
"""Keys that a buyer works on at a time."""

ATTEMPTS = 4
"""Attempts of a buyer on one key, as Prefect's retries make them."""

DECIDABLE = {State.UNCERTAIN, State.WRITTEN_OFF, State.FAILED, State.CANCELLED, State.SUBMITTED}
"""States of the generations that the user may settle."""

DELETION_POINTS = ("posting", "polling", "persisting")
"""Points at which a row is deleted: between the claim and the reply, between the reply and the end,
and between the download and the publication of the file."""


@dataclass(frozen=True)
class ActorEnv:
    """Folders and addresses that an actor uses.

    Attributes:
        folder: Folder of the whole run.
        ledger_url: URL of the ledger.
        service: Root URL of the service.
        storage: Folder for the videos.
        seed: Seed of this actor.
    """

    folder: Path
    ledger_url: str
    service: str
    storage: Path
    seed: str

    @property
    def events(self) -> Journal:
        """File in which actors report events."""
        return Journal(self.folder / "events.jsonl")

    @property
    def accepted(self) -> Journal:
        """File in which the service writes the purchases that it accepted."""
        return Journal(self.folder / "accepted.jsonl")

    @property
    def ledger_file(self) -> Path:
        """File of a SQLite ledger."""
        return Path(self.ledger_url.removeprefix("sqlite:///"))

    def variables(self) -> dict[str, str]:
        """Return the settings of an actor."""
        return {
            "COMETAPI_KEY": KEY,
            "COMETAPI_BASE_URL": self.service,
            "COMETAPI_STORAGE": str(self.storage),
            "COMETAPI_LEDGER_URL": self.ledger_url,
            "COMETAPI_POLL_INTERVAL": "0.15",
            "COMETAPI_NOT_FOUND_GRACE": "5",
            "COMETAPI_GENERATION_TIMEOUT": "40",
        }


def start(env: ActorEnv, act: Callable[[ActorEnv], None]) -> int:
    """Fork an actor in a process group of its own; return its process id."""
    pid = os.fork()
    if not pid:
        run_fork(partial(_act, env, act), env.folder / "log")
    with suppress(PermissionError, ProcessLookupError):
        os.setpgid(pid, pid)
    return pid


def _act(env: ActorEnv, act: Callable[[ActorEnv], None]) -> None:
    """Run an actor in its process, and report the error that ends it."""
    try:
        os.setpgid(0, 0)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        random.seed(env.seed)
        os.environ |= env.variables()
        os.chdir(env.folder)
        timeout = httpx.Timeout(READ_TIMEOUT)
        for module, name, value in (
            (client, "TIMEOUT", timeout),
            (client, "TOTAL_TIMEOUT", READ_TIMEOUT),
            (download, "TIMEOUT", timeout),
        ):
            setattr(module, name, value)
        act(env)
    except CometAPIError as error:
        env.events.write("ended", key="", error=type(error).__name__, text=error.message[:200])
    except BaseException as error:
        env.events.write("untyped", error=f"{type(error).__name__}: {error}"[:300])
        raise


def request_of(key: str) -> dict[str, Any]:
    """Return the request that is bought under a key; the service reads the key in it."""
    return {"promptImage": "https://example.com/picture.jpg", "promptText": key, "duration": 5}


@asynccontextmanager
async def _shared(ledger: Ledger) -> AsyncIterator[None]:
    """Share settings, a ledger and connections, as a flow does."""
    settings = CometAPISettings()
    credentials = CometAPICredentials.from_settings(settings)
    async with credentials.get_client() as caller, AssetClients() as assets:
        context = RunContext(
            credentials, settings=settings, opened_ledger=ledger, client=caller, assets=assets
        )
        with context.active():
            yield


@asynccontextmanager
async def reported(events: Journal, key: str) -> AsyncIterator[None]:
    """Report the end of the work on a key; an error of the package is an ordinary end."""
    try:
        yield
        events.write("ended", key=key, error="")
    except CometAPIError as error:
        events.write("ended", key=key, error=type(error).__name__, text=error.message[:200])
    except Exception as error:  # noqa: BLE001 -- the checks look at it
        traceback.print_exc()
        events.write("untyped", key=key, error=f"{type(error).__name__}: {error}"[:300])


@dataclass
class Buyer:
    """Process that buys keys, one batch after the other.

    SIGUSR1 makes it copy the ledger's files while they are in use, as a backup in Python does.
    SIGUSR2 makes it fork after the batch: the parent ends and the child continues, as a daemon.
    SIGTERM makes it end after the batch.

    Args:
        keys: Keys to buy, in this order.
        unfinished: Share of the keys that it only submits.
        deletion_point: Point at which the row of each key is deleted, if any.
    """

    keys: list[str]
    unfinished: float = 0.1
    deletion_point: str = ""
    _must_fork: bool = field(default=False, init=False)
    _must_end: bool = field(default=False, init=False)

    def __call__(self, env: ActorEnv) -> None:
        """Buy all keys."""
        signal.signal(signal.SIGUSR1, lambda *_: _copy_own_ledger(env))
        signal.signal(signal.SIGUSR2, self._fork_soon)
        signal.signal(signal.SIGTERM, self._end_soon)
        ledger = Ledger(env.ledger_url, lease=LEASE, retry_timeout=DATABASE_TIMEOUT)
        for first in range(0, len(self.keys), KEYS_AT_ONCE):
            asyncio.run(self._buy(env, ledger, self.keys[first : first + KEYS_AT_ONCE]))
            if self._must_end:
                break
            if self._must_fork:
                self._must_fork = False
                ledger = _continue_in_child(env, ledger)
        asyncio.run(ledger.database.close())

    def _fork_soon(self, *_signal: object) -> None:
        self._must_fork = True

    def _end_soon(self, *_signal: object) -> None:
        self._must_end = True

    async def _buy(self, env: ActorEnv, ledger: Ledger, keys: Iterable[str]) -> None:
        async with _shared(ledger):
            await asyncio.gather(*(self._buy_one(env, ledger, key) for key in keys))

    async def _buy_one(self, env: ActorEnv, ledger: Ledger, key: str) -> None:
        async with reported(env.events, key):
            if self.deletion_point:
                delete_row = partial(_delete_row, env, key)
                with _calling_at(self.deletion_point, delete_row) as steps:
                    await buy_key(ledger, key, steps=steps)
            else:
                await buy_key(ledger, key, wait=random.random() >= self.unfinished)


async def buy_key(ledger: Ledger, key: str, *, wait: bool = True, steps: StepSet = INLINE) -> None:
    """Buy a key, or continue the purchase under it, and deliver it; retry transient errors."""
    for left in reversed(range(ATTEMPTS)):
        try:
            async with ledger.leases.hold(key, this_run()):
                submission = await steps.submit(request_of(key), None, key)
                if wait:
                    await deliver(submission, None, None, steps=steps)
                return
        except ServiceUnavailable:
            if not left:
                raise
        await asyncio.sleep(0.1 + 0.3 * random.random())


def _copy_own_ledger(env: ActorEnv) -> None:
    """Copy the ledger's files within a process that has them open."""
    copies = env.folder / "copies"
    copies.mkdir(exist_ok=True)
    with suppress(OSError):
        for file in sorted(env.ledger_file.parent.glob("ledger.db*")):
            shutil.copy(file, copies / f"own-{file.name}")
        env.events.write("copied")


def _continue_in_child(env: ActorEnv, ledger: Ledger) -> Ledger:
    """Continue in a child; return its ledger: the object of the parent, or a new one."""
    closes, inherits = random.random() < 0.5, random.random() < 0.5
    pid = os.fork()
    if pid:
        env.events.write("forked", pid=pid, parent=os.getpid(), group=os.getpgid(0))
        if closes:
            asyncio.run(ledger.database.close())
        os._exit(0)
    random.seed(f"{env.seed} {os.getpid()}")
    return (
        ledger if inherits else Ledger(env.ledger_url, lease=LEASE, retry_timeout=DATABASE_TIMEOUT)
    )


async def _delete_row(env: ActorEnv, key: str) -> None:
    """Delete the row of a key over a connection of its own, as a lost disk page would."""
    ledger = Ledger(env.ledger_url, lease=LEASE, retry_timeout=DATABASE_TIMEOUT)
    deletion = "DELETE FROM cometapi_generations WHERE idempotency_key = :key RETURNING state"
    gone = await ledger.database.rows(Sql(deletion, {"key": key}))
    await ledger.database.close()
    if gone:
        env.events.write("deleted", key=key, state=gone[0]["state"])


class _calling_at:  # noqa: N801 -- it reads as a function
    """Run a callback at a point of a delivery, once; yield the steps that do it."""

    def __init__(self, point: str, callback: Callable[[], Awaitable[None]]) -> None:
        self._point = point
        self._callback = callback
        self._create = RunwayClient.create

    async def _once(self, point: str) -> None:
        if point == self._point:
            self._point = ""
            await self._callback()

    def __enter__(self) -> Any:
        original = self._create

        async def create(caller: RunwayClient, *args: Any, **options: Any) -> str:
            try:
                return await original(caller, *args, **options)
            finally:
                await self._once("posting")

        async def poll(*args: Any) -> Any:
            await self._once("polling")
            return await INLINE.poll(*args)

        async def persist(*args: Any) -> Any:
            await self._once("persisting")
            return await INLINE.persist(*args)

        setattr(RunwayClient, "create", create)  # noqa: B010 -- its signature is wider
        return replace(INLINE, poll=poll, persist=persist)

    def __exit__(self, *_error: object) -> None:
        RunwayClient.create = self._create


def collect(env: ActorEnv) -> None:
    """Finish purchases that nobody works on, as the flow ``collect`` does."""
    setattr(collector, "deliver", partial(deliver, steps=INLINE))  # noqa: B010 -- it only imports it
    ledger = Ledger(env.ledger_url, lease=LEASE, retry_timeout=DATABASE_TIMEOUT)

    async def collect_once() -> None:
        async with _shared(ledger), reported(env.events, "collect"):
            await collector.acollect.fn()
        await ledger.database.close()

    asyncio.run(collect_once())


def command(*words: str) -> tuple[int, str]:
    """Run a command of the package in this process; return its exit status and its output."""
    output = io.StringIO()
    with redirect_stdout(output), redirect_stderr(output):
        try:
            status = app(list(words), result_action="return_value") or 0
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
        except CometAPIError as error:
            status = 1
            print(error)
    return status if isinstance(status, int) else 0, output.getvalue()


def has_command(name: str) -> bool:
    """Return whether the package has this command about the ledger."""
    return name in list(app["ledger"])


def has_option(name: str, option: str) -> bool:
    """Return whether a command about the ledger takes this option."""
    function: Any = app["ledger"][name].default_command
    return option in function.__annotations__


@dataclass(frozen=True)
class User:
    """User who looks into the console of the service and settles uncertain generations.

    Args:
        final: Whether to settle everything now: adopt what was accepted, and permit one more
            submission of what was not.
    """

    final: bool = False

    def __call__(self, env: ActorEnv) -> None:
        """Settle each generation that waits for a decision."""
        rng = random.Random(env.seed)
        for entry, candidates in sorted(_undecided(env), key=lambda pair: pair[0].idempotency_key):
            decision = self._decision(entry, candidates, rng)
            if decision == "adopt":
                status, _ = command(
                    "ledger", "adopt", entry.idempotency_key, rng.choice(candidates)
                )
                env.events.write(
                    "adopt" if not status else "adopt refused", key=entry.idempotency_key
                )
            elif decision == "resubmit":
                _resubmit(env, entry.idempotency_key, now=self.final or rng.random() < 0.5)
            elif decision:
                status, _ = command("ledger", decision, entry.idempotency_key)
                env.events.write(
                    decision if not status else f"{decision} refused", key=entry.idempotency_key
                )

    def _decision(self, entry: Entry, candidates: list[str], rng: random.Random) -> str:
        share = rng.random()
        is_open = entry.state in {State.UNCERTAIN, State.WRITTEN_OFF}
        if self.final:
            return "" if not is_open else "adopt" if candidates else "resubmit"
        # The key of a second purchase is never requested again.
        if entry.state is State.SUBMITTED:
            return "abandon" if share < 0.03 and "+" not in entry.idempotency_key else ""
        if not is_open:
            return "resubmit" if share < 0.3 else ""
        if candidates:
            return "adopt" if share < 0.85 else "resubmit" if share < 0.95 else ""
        return "resubmit" if share < 0.5 else "write-off" if share < 0.65 else ""


def _undecided(env: ActorEnv) -> list[tuple[Entry, list[str]]]:
    """Return the entries to settle, each with its unrecorded purchases since the claim."""
    bought: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    ledger = Ledger(env.ledger_url, retry_timeout=DATABASE_TIMEOUT)

    for line in env.accepted.lines():
        bought[line["key"]].append(line)

    async def unrecorded(entry: Entry) -> list[str]:
        since = entry.claimed_at.timestamp() if entry.claimed_at else 0.0
        ids = [line["task_id"] for line in bought[entry.idempotency_key] if line["at"] >= since]
        return [
            task_id for task_id in ids if not await ledger.find_by_task_id(task_id, env.service)
        ]

    async def find_undecided() -> list[tuple[Entry, list[str]]]:
        entries = await ledger.entries(states=sorted(DECIDABLE))
        undecided = [(entry, await unrecorded(entry)) for entry in entries]
        await ledger.database.close()
        return undecided

    return asyncio.run(find_undecided())


def _resubmit(env: ActorEnv, key: str, *, now: bool) -> None:
    """Allow one more submission; the permission is recorded before it takes effect."""
    forced = ["--now"] if now and has_option("resubmit", "now") else []
    for options in ([], forced) if forced else ([],):
        env.events.write("permission", key=key, now=bool(options))
        status, _ = command("ledger", "resubmit", key, *options)
        if not status:
            return
        env.events.write("permission refused", key=key)
