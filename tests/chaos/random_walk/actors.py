# SPDX-License-Identifier: Apache-2.0
"""Processes of the random walk: buyers, collectors, and the person who decides.

Each is a fork of the runner, which has imported everything; it does one thing and ends.
"""

import asyncio
import io
import os
import random
import shutil
import signal
import sys
import traceback
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import httpx
from sqlalchemy import delete

from prefect_cometapi.blocks import CometAPICredentials
from prefect_cometapi.deployments.cli import app
from prefect_cometapi.flows import collector
from prefect_cometapi.flows.runtime.ledger_access import this_run
from prefect_cometapi.flows.runtime.run_context import Shared, sharing
from prefect_cometapi.flows.steps import bodies
from prefect_cometapi.flows.steps.delivery import PLAIN, deliver
from prefect_cometapi.runway import CometAPISettings, Entry, Ledger, State
from prefect_cometapi.runway.api import client
from prefect_cometapi.runway.api.client import RunwayClient
from prefect_cometapi.runway.errors import CometAPIError, ServiceUnavailable
from prefect_cometapi.runway.ledger.schema import generations
from prefect_cometapi.runway.media import download
from prefect_cometapi.runway.media.download import AssetClients

from .journal import Journal

KEY = "sk-chaos-91f0b7e35ac2"
LEASE = 2.0
"""Duration of a lease in seconds; in production it is a minute."""

PATIENCE = 10.0
"""Seconds for which an actor waits for the database."""

TIMEOUT = 1.5
"""Read timeout of an actor in seconds; in production it is a minute."""

AT_ONCE = 4
"""Keys that a buyer works on at a time."""

TRIES = 4
"""Attempts of a buyer on one key, as Prefect's retries make them."""

DECIDABLE = {State.UNCERTAIN, State.WRITTEN_OFF, State.FAILED, State.CANCELLED, State.SUBMITTED}
"""States of the generations that the person may settle."""

MOMENTS = ("posting", "polling", "persisting")
"""Moments at which a row is deleted: between the claim and the reply, between the reply and the
end, and between the download and the publication of the file."""


@dataclass(frozen=True)
class Place:
    """Folders and addresses of an actor.

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

    def environment(self) -> dict[str, str]:
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


def start(place: Place, act: Callable[[Place], None]) -> int:
    """Fork an actor in a process group of its own; return its process id."""
    pid = os.fork()
    if not pid:
        _live(place, act)
    with suppress(PermissionError, ProcessLookupError):
        os.setpgid(pid, pid)
    return pid


def _live(place: Place, act: Callable[[Place], None]) -> NoReturn:
    code = 70
    try:
        os.setpgid(0, 0)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        log = os.open(place.folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for target in (1, 2):
            os.dup2(log, target)
        random.seed(place.seed)
        os.environ |= place.environment()
        os.chdir(place.folder)
        limits = {"TIMEOUT": httpx.Timeout(TIMEOUT), "TOTAL_TIMEOUT": TIMEOUT}
        for module, name in ((client, "TIMEOUT"), (client, "TOTAL_TIMEOUT"), (download, "TIMEOUT")):
            setattr(module, name, limits[name])
        act(place)
        code = 0
    except CometAPIError as error:
        place.events.write("ended", key="", error=type(error).__name__, text=error.message[:200])
    except BaseException as error:  # noqa: BLE001 -- nothing may return into the runner's loop
        traceback.print_exc()
        place.events.write("untyped", error=f"{type(error).__name__}: {error}"[:300])
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def request_of(key: str) -> dict[str, Any]:
    """Return the request that is bought under a key; the service reads the key in it."""
    return {"promptImage": "https://example.com/picture.jpg", "promptText": key, "duration": 5}


@asynccontextmanager
async def _shared(ledger: Ledger) -> AsyncIterator[None]:
    """Share settings, a ledger and connections, as a flow does."""
    settings = CometAPISettings()
    credentials = CometAPICredentials.from_settings(settings)
    async with credentials.get_client() as caller, AssetClients() as assets:
        with sharing(Shared(settings, ledger, (credentials, caller), assets)):
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
        leaves: Share of the keys that it only submits.
        moment: Moment at which the row of each key is deleted, if any.
    """

    keys: list[str]
    leaves: float = 0.1
    moment: str = ""
    _must_fork: bool = field(default=False, init=False)
    _must_end: bool = field(default=False, init=False)

    def __call__(self, place: Place) -> None:
        """Buy all keys."""
        signal.signal(signal.SIGUSR1, lambda *_: _copy_own_ledger(place))
        signal.signal(signal.SIGUSR2, self._fork_soon)
        signal.signal(signal.SIGTERM, self._end_soon)
        ledger = Ledger(place.ledger_url, lease=LEASE, retry_timeout=PATIENCE)
        for first in range(0, len(self.keys), AT_ONCE):
            asyncio.run(self._buy(place, ledger, self.keys[first : first + AT_ONCE]))
            if self._must_end:
                break
            if self._must_fork:
                self._must_fork = False
                ledger = _daemonized(place, ledger)
        asyncio.run(ledger.database.close())

    def _fork_soon(self, *_signal: object) -> None:
        self._must_fork = True

    def _end_soon(self, *_signal: object) -> None:
        self._must_end = True

    async def _buy(self, place: Place, ledger: Ledger, keys: Iterable[str]) -> None:
        async with _shared(ledger):
            await asyncio.gather(*(self._buy_one(place, ledger, key) for key in keys))

    async def _buy_one(self, place: Place, ledger: Ledger, key: str) -> None:
        async with reported(place.events, key):
            if self.moment:
                strike = partial(_delete_row, place, key)
                with _striking(self.moment, strike) as by:
                    await bought(ledger, key, by=by)
            else:
                await bought(ledger, key, wait=random.random() >= self.leaves)


async def bought(ledger: Ledger, key: str, *, wait: bool = True, by: Any = PLAIN) -> None:
    """Buy a key, or continue the purchase under it, and deliver it; retry transient errors."""
    for left in reversed(range(TRIES)):
        try:
            async with ledger.leases.hold(key, this_run()):
                submission = await bodies.submit(request_of(key), None, key)
                if wait:
                    await deliver(submission, None, None, by=by)
                return
        except ServiceUnavailable:
            if not left:
                raise
        await asyncio.sleep(0.1 + 0.3 * random.random())


def _copy_own_ledger(place: Place) -> None:
    """Copy the ledger's files within a process that has them open."""
    copies = place.folder / "copies"
    copies.mkdir(exist_ok=True)
    with suppress(OSError):
        for file in sorted(place.ledger_file.parent.glob("ledger.db*")):
            shutil.copy(file, copies / f"own-{file.name}")
        place.events.write("copied")


def _daemonized(place: Place, ledger: Ledger) -> Ledger:
    """Continue in a child; return the ledger that it uses: the parent's object, or a new one."""
    closes, inherits = random.random() < 0.5, random.random() < 0.5
    pid = os.fork()
    if pid:
        place.events.write("forked", pid=pid, parent=os.getpid(), group=os.getpgid(0))
        if closes:
            asyncio.run(ledger.database.close())
        os._exit(0)
    random.seed(f"{place.seed} {os.getpid()}")
    return ledger if inherits else Ledger(place.ledger_url, lease=LEASE, retry_timeout=PATIENCE)


async def _delete_row(place: Place, key: str) -> None:
    """Delete the row of a key over a connection of its own, as a lost disk page would."""
    ledger = Ledger(place.ledger_url, lease=LEASE, retry_timeout=PATIENCE)
    statement = delete(generations).where(generations.c.idempotency_key == key)
    gone = await ledger.database.rows(statement.returning(generations.c.state))
    await ledger.database.close()
    if gone:
        place.events.write("deleted", key=key, state=gone[0]["state"])


class _striking:  # noqa: N801 -- it reads as a function
    """Run a callback at a moment of a delivery, once; yield the steps that do it."""

    def __init__(self, moment: str, strike: Callable[[], Awaitable[None]]) -> None:
        self._moment = moment
        self._strike = strike
        self._create = RunwayClient.create

    async def _once(self, moment: str) -> None:
        if moment == self._moment:
            self._moment = ""
            await self._strike()

    def __enter__(self) -> Any:
        original = self._create

        async def create(caller: RunwayClient, *args: Any, **options: Any) -> str:
            try:
                return await original(caller, *args, **options)
            finally:
                await self._once("posting")

        async def poll(*args: Any) -> Any:
            await self._once("polling")
            return await PLAIN.poll(*args)

        async def persist(*args: Any) -> Any:
            await self._once("persisting")
            return await PLAIN.persist(*args)

        setattr(RunwayClient, "create", create)  # noqa: B010 -- its signature is wider
        return replace(PLAIN, poll=poll, persist=persist)

    def __exit__(self, *_error: object) -> None:
        RunwayClient.create = self._create


def collect(place: Place) -> None:
    """Finish purchases that nobody works on, as the flow ``collect`` does."""
    setattr(collector, "deliver", partial(deliver, by=PLAIN))  # noqa: B010 -- it only imports it
    ledger = Ledger(place.ledger_url, lease=LEASE, retry_timeout=PATIENCE)

    async def pass_() -> None:
        async with _shared(ledger), reported(place.events, "collect"):
            await collector._collect(None, None)
        await ledger.database.close()

    asyncio.run(pass_())


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
class Person:
    """User who looks into the service's console and settles uncertain generations.

    Args:
        final: Whether everything is to be settled now: what was accepted is adopted, what was not
            is allowed once more.
    """

    final: bool = False

    def __call__(self, place: Place) -> None:
        """Settle each generation that waits for a decision."""
        chance = random.Random(place.seed)
        for entry, candidates in sorted(
            _undecided(place), key=lambda pair: pair[0].idempotency_key
        ):
            decision = self._decision(entry, candidates, chance)
            if decision == "adopt":
                status, _ = command(
                    "ledger", "adopt", entry.idempotency_key, chance.choice(candidates)
                )
                place.events.write(
                    "adopt" if not status else "adopt refused", key=entry.idempotency_key
                )
            elif decision == "resubmit":
                _resubmit(place, entry.idempotency_key, now=self.final or chance.random() < 0.5)
            elif decision:
                status, _ = command("ledger", decision, entry.idempotency_key)
                place.events.write(
                    decision if not status else f"{decision} refused", key=entry.idempotency_key
                )

    def _decision(self, entry: Entry, candidates: list[str], chance: random.Random) -> str:
        point = chance.random()
        open_outcome = entry.state in {State.UNCERTAIN, State.WRITTEN_OFF}
        if self.final:
            return "" if not open_outcome else "adopt" if candidates else "resubmit"
        # Nobody would ask for a second purchase's own key again.
        if entry.state is State.SUBMITTED:
            return "abandon" if point < 0.03 and "+" not in entry.idempotency_key else ""
        if not open_outcome:
            return "resubmit" if point < 0.3 else ""
        if candidates:
            return "adopt" if point < 0.85 else "resubmit" if point < 0.95 else ""
        return "resubmit" if point < 0.5 else "write-off" if point < 0.65 else ""


def _undecided(place: Place) -> list[tuple[Entry, list[str]]]:
    """Return the entries to settle, each with its unrecorded purchases since the claim."""
    bought: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    ledger = Ledger(place.ledger_url, retry_timeout=PATIENCE)

    for line in place.accepted.lines():
        bought[line["key"]].append(line)

    async def unknown(entry: Entry) -> list[str]:
        since = entry.claimed_at.timestamp() if entry.claimed_at else 0.0
        ids = [line["task_id"] for line in bought[entry.idempotency_key] if line["at"] >= since]
        return [
            task_id for task_id in ids if not await ledger.find_by_task_id(task_id, place.service)
        ]

    async def looked() -> list[tuple[Entry, list[str]]]:
        entries = await ledger.entries(states=sorted(DECIDABLE))
        found = [(entry, await unknown(entry)) for entry in entries]
        await ledger.database.close()
        return found

    return asyncio.run(looked())


def _resubmit(place: Place, key: str, *, now: bool) -> None:
    """Allow one more submission; the leave is written down before it takes effect."""
    forced = ["--now"] if now and has_option("resubmit", "now") else []
    for options in ([], forced) if forced else ([],):
        place.events.write("leave", key=key, now=bool(options))
        status, _ = command("ledger", "resubmit", key, *options)
        if not status:
            return
        place.events.write("leave refused", key=key)
