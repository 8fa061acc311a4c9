# SPDX-License-Identifier: Apache-2.0
"""Runner of the random walk: the service, the actors, and their disturbances.

It has one thread, and every actor is a fork of it. It never opens the ledger itself, since a
process that had it open and forked would be one of the disturbances.
"""

import asyncio
import ctypes
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from prefect_cometapi.runway import Ledger
from prefect_cometapi.runway.http_clients import tls_context

from ...disks import SmallDisk
from ...postgres import Postgres
from ..fault_storm.checker import Row
from ..fault_storm.collect_state import _files, _row, clip
from ..kill_matrix.fork_client import ROOT
from . import actors
from .actors import PATIENCE, TIMEOUT, Buyer, Person, Place
from .checker import Leave, Left, Purchase
from .journal import Journal

BUYERS = 4
"""Buyers at a time."""

ROUNDS = 15
"""Rounds of the end in which everything must be settled."""

TICK = 0.02
KILOBYTES = 1 << 20
"""Size of the disk for the videos."""

_SUBREAPER = 36


@dataclass
class Actor:
    """Process that was forked, or the child in which it continues.

    Attributes:
        what: Kind of work.
        group: Its process group, which a daemon keeps.
        shielded: Whether it is neither killed nor stopped, as only it can repair a row.
        private: Keys that nobody else buys before it has ended.
    """

    what: str
    group: int
    shielded: bool = False
    private: Sequence[str] = ()

    def signal(self, number: signal.Signals) -> None:
        """Send the process group a signal."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.group, number)

    def has_ended(self) -> bool:
        """Return whether no process of the group is left."""
        try:
            os.killpg(self.group, 0)
        except ProcessLookupError:
            return True
        return False


@dataclass
class Walk:
    """One random walk.

    Attributes:
        folder: Folder for everything that it writes.
        seed: Seed of all random choices.
        postgres: PostgreSQL server of the ledger; without it, the ledger is in SQLite.
        faults: Faults of the service that may happen.
        happened: Counts of the disturbances, by name.
        incomplete: Copies and backups that lack a purchase, in words.
        backups: Copies of the ledger that the package made, the oldest first.
        is_unreadable: Whether the ledger was damaged beyond reading.
        disk: Small disk for the videos, if this machine can mount one.
    """

    folder: Path
    seed: int
    postgres: Postgres | None
    faults: Iterable[str]
    happened: Counter[str] = field(default_factory=Counter[str])
    incomplete: list[str] = field(default_factory=list[str])
    backups: list[Path] = field(default_factory=list[Path])
    disk: SmallDisk | None = None
    is_unreadable: bool = field(default=False, init=False)
    place: Place = field(init=False)
    keys: list[str] = field(default_factory=list[str], init=False)
    actors: list[Actor] = field(default_factory=list[Actor], init=False)
    database: str = field(default="", init=False)
    _undo: list[tuple[float, Callable[[], object]]] = field(default_factory=list, init=False)
    _numbers: Counter[str] = field(default_factory=Counter[str], init=False)
    _service: str = field(default="", init=False)

    def __post_init__(self) -> None:
        ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)  # daemons become children of this process
        tls_context()
        self.events = Journal(self.folder / "events.jsonl")
        self.accepted = Journal(self.folder / "accepted.jsonl")
        disk = self.folder / "disk"
        disk.mkdir()
        with suppress(PermissionError):
            self.disk = SmallDisk(disk, KILOBYTES)
        (disk / "videos").mkdir()
        home = self.folder / "ledger-0"
        home.mkdir()
        if self.postgres:
            self.database = self.postgres.create_database()
        self.place = Place(
            folder=self.folder,
            ledger_url=self.database or f"sqlite:///{home}/ledger.db",
            service="",
            storage=disk / "videos",
            seed="",
        )

    # The service

    @contextmanager
    def service(self) -> Iterator[None]:
        """Run the double of the service while the block runs."""
        video = self.folder / "clip.mp4"
        video.write_bytes(clip())
        words = [str(self.accepted.path), str(video), str(self.seed), str(TIMEOUT), *self.faults]
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.random_walk.service", *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=(self.folder / "service.log").open("wb"),
            cwd=ROOT,
        )
        assert process.stdin
        assert process.stdout
        port = int(process.stdout.readline())
        self.place = replace(self.place, service=f"http://127.0.0.1:{port}")
        try:
            yield
        finally:
            self.kill_all()
            process.kill()
            process.wait()
            if self.disk:
                self.disk.remove()

    def ask_service(self, what: str) -> dict[str, Any]:
        """Return the state that the service reports; ``calm`` also ends its faults."""
        with urllib.request.urlopen(f"{self.place.service}/-/{what}") as answer:
            return json.load(answer)

    # Actors

    def start(self, what: str, act: Callable[[Place], None], **values: Any) -> Actor:
        """Start an actor."""
        self._numbers[what] += 1
        place = replace(self.place, seed=f"{self.seed} {what} {self._numbers[what]}")
        actor = Actor(what, actors.start(place, act), **values)
        self.actors.append(actor)
        return actor

    def buyer(self) -> None:
        """Start a buyer of new keys, of keys that others buy at that moment, and of old ones."""
        chance = random.Random(f"{self.seed} keys {self._numbers['buyer']}")
        recent = chance.sample(self.keys[-24:], min(6, len(self.keys)))
        old = chance.choices(self.keys, k=2) if self.keys else []
        keys = list(dict.fromkeys([*(self.fresh_key() for _ in range(5)), *recent, *old]))
        chance.shuffle(keys)
        self.start("buyer", Buyer(keys))

    def fresh_key(self, *, private: bool = False) -> str:
        """Return a key that nobody bought yet; a private one is not given to other buyers."""
        self._numbers["key"] += 1
        key = f"walk-{self.seed}-{self._numbers['key']:05}"
        if not private:
            self.keys.append(key)
        return key

    def of_kind(self, *kinds: str) -> list[Actor]:
        """Return the actors that may be killed or stopped, of these kinds."""
        return [one for one in self.actors if one.what in kinds and not one.shielded]

    def tend(self) -> None:
        """Remove actors that ended, and undo disturbances that lasted long enough."""
        self._reap()
        now = time.monotonic()
        due = [undo for at, undo in self._undo if at <= now]
        self._undo = [(at, undo) for at, undo in self._undo if at > now]
        for undo in due:
            undo()
        for line in self.events.news():
            if line["what"] in {"copied", "forked"}:
                self.happened[line["what"]] += 1
            elif line["what"] == "deleted":
                self.happened[f"row deleted while {line['state']}"] += 1
            elif line["what"] == "incomplete":
                self.incomplete.append(line["text"])

    def _reap(self) -> None:
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        ended = [actor for actor in self.actors if actor.has_ended()]
        self.actors = [actor for actor in self.actors if actor not in ended]
        for actor in ended:
            self.keys += [key for key in actor.private if key not in self.keys]

    def later(self, seconds: float, undo: Callable[[], object]) -> None:
        """Undo a disturbance after a while."""
        self._undo.append((time.monotonic() + seconds, undo))

    def wait(self, seconds: float, waited: Callable[[Actor], bool] = lambda _: True) -> bool:
        """Wait until no such actor is left; return whether that happened in time."""
        end = time.monotonic() + seconds
        while any(waited(actor) for actor in self.actors):
            if time.monotonic() > end:
                return False
            self.tend()
            time.sleep(TICK)
        return True

    def kill_all(self) -> None:
        """SIGKILL every actor, and wait until all are gone."""
        for actor in self.actors:
            actor.signal(signal.SIGKILL)
        assert self.wait(30), "a killed process does not end"

    # The end

    def wait_for_service(self) -> None:
        """Wait until the service accepts no more requests that clients gave up."""
        while self.ask_service("state")["pending"]:
            time.sleep(10 * TICK)

    def end_actors(self) -> None:
        """Undo every disturbance, and let work in progress end."""
        now, self._undo = self._undo, []
        for _, undo in now:
            undo()
        for actor in self.actors:
            actor.signal(signal.SIGCONT)
        for actor in self.of_kind("buyer"):
            actor.signal(signal.SIGTERM)
        if not self.wait(120):
            self.happened["hung"] += len(self.actors)
            self.incomplete += [f"{actor.what} did not end" for actor in self.actors]
            self.kill_all()

    def settle(self, *, every: bool = False) -> bool:
        """Settle and finish everything; return whether that is done.

        Args:
            every: Whether to run settled keys once more as well.
        """
        left = list(self.keys) if every else self._unsettled()
        for _ in range(ROUNDS):
            if not left or self.is_unreadable:
                break
            self.start("person", Person(final=True))
            assert self.wait(180), "the person does not end"
            for number in range(BUYERS):
                if some := left[number::BUYERS]:
                    self.start("last buyer", Buyer(some, leaves=0))
            self.start("collector", actors.collect)
            assert self.wait(60 + 2 * len(left)), "the last buyers do not end"
            left = self._unsettled()
        return not left and not self.is_unreadable

    def _unsettled(self) -> list[str]:
        """Return the keys that are neither failed nor stored, or whose file is missing."""
        settled = {
            row.key
            for row in self.rows()
            if row.state in {"stored", "failed"} and all(Path(name).exists() for name in row.videos)
        }
        return [key for key in self.keys if key not in settled]

    def rows(self) -> list[Row]:
        """Return the whole ledger, read by another process."""
        file = self.folder / "rows.json"
        file.unlink(missing_ok=True)
        self.start("reader", partial(_read, file=file))
        self.wait(120)
        if not file.exists():
            self.incomplete.append("the ledger cannot be read")
            self.is_unreadable = True
            return []
        return [
            Row(**row | {"beside": frozenset(row["beside"])})
            for row in json.loads(file.read_text(encoding="utf-8"))
        ]

    def left(self) -> Left:
        """Return the checker's input."""
        events = self.events.lines()
        refused = Counter(line["key"] for line in events if line["what"] == "leave refused")
        leaves: list[Leave] = []
        for line in reversed([line for line in events if line["what"] == "leave"]):
            if refused[line["key"]]:
                refused[line["key"]] -= 1
            else:
                leaves.append(Leave(line["key"], line["at"]))
        names = ("task_id", "key", "end", "sha256", "at")
        return Left(
            keys=self.keys,
            purchases=[
                Purchase(**{name: line[name] for name in names}) for line in self.accepted.lines()
            ],
            leaves=leaves,
            rows=self.rows(),
            files=_files(self.place.storage),
            untyped=[line["error"] for line in events if line["what"] == "untyped"],
            integrity=self._integrity(),
            incomplete=self.incomplete,
        )

    def _integrity(self) -> str:
        if self.postgres:
            return "ok"
        connection = sqlite3.connect(self.place.ledger_file)
        try:
            return connection.execute("PRAGMA integrity_check").fetchone()[0]
        except sqlite3.DatabaseError as error:
            return str(error)
        finally:
            connection.close()


def _read(place: Place, file: Path) -> None:
    """Write the whole ledger to a file."""

    async def look() -> list[Row]:
        ledger = Ledger(place.ledger_url, retry_timeout=PATIENCE)
        found = await ledger.entries()
        await ledger.database.close()
        return [_row(entry) for entry in found]

    rows = [asdict(row) | {"beside": sorted(row.beside)} for row in asyncio.run(look())]
    file.write_text(json.dumps(rows), encoding="utf-8")
