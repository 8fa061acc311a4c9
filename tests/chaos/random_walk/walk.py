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
from ..harness.checker import Row
from ..harness.collect_state import files_in, row_of
from ..harness.processes import ROOT
from ..harness.sources import draw_clip
from . import actors
from .actors import DATABASE_TIMEOUT, READ_TIMEOUT, ActorEnv, Buyer, User
from .checker import FinalState, Permission, Purchase
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
        kind: Kind of work.
        group: Its process group, which a daemon keeps.
        protected: Whether it is neither killed nor stopped, since only it can repair a row.
        private: Keys that nobody else buys before it has ended.
    """

    kind: str
    group: int
    protected: bool = False
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
        counts: Counts of the disturbances, by name.
        incomplete: Copies and backups that lack a purchase, as text.
        backups: Copies of the ledger that the package made, the oldest first.
        is_unreadable: Whether the ledger was damaged beyond reading.
        disk: Small disk for the videos, if this machine can mount one.
    """

    folder: Path
    seed: int
    postgres: Postgres | None
    faults: Iterable[str]
    counts: Counter[str] = field(default_factory=Counter[str])
    incomplete: list[str] = field(default_factory=list[str])
    backups: list[Path] = field(default_factory=list[Path])
    disk: SmallDisk | None = None
    is_unreadable: bool = field(default=False, init=False)
    env: ActorEnv = field(init=False)
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
        self.env = ActorEnv(
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
        video.write_bytes(draw_clip())
        words = [
            str(self.accepted.path),
            str(video),
            str(self.seed),
            str(READ_TIMEOUT),
            *self.faults,
        ]
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
        self.env = replace(self.env, service=f"http://127.0.0.1:{port}")
        try:
            yield
        finally:
            self.kill_all()
            process.kill()
            process.wait()
            if self.disk:
                self.disk.remove()

    def ask_service(self, route: str) -> dict[str, Any]:
        """Return the state that the service reports; ``end-faults`` also ends its faults."""
        with urllib.request.urlopen(f"{self.env.service}/-/{route}") as answer:
            return json.load(answer)

    # Actors

    def start(self, kind: str, act: Callable[[ActorEnv], None], **values: Any) -> Actor:
        """Start an actor."""
        self._numbers[kind] += 1
        env = replace(self.env, seed=f"{self.seed} {kind} {self._numbers[kind]}")
        actor = Actor(kind, actors.start(env, act), **values)
        self.actors.append(actor)
        return actor

    def buyer(self) -> None:
        """Start a buyer of new keys, of keys that others buy at that moment, and of old ones."""
        rng = random.Random(f"{self.seed} keys {self._numbers['buyer']}")
        recent = rng.sample(self.keys[-24:], min(6, len(self.keys)))
        old = rng.choices(self.keys, k=2) if self.keys else []
        keys = list(dict.fromkeys([*(self.new_key() for _ in range(5)), *recent, *old]))
        rng.shuffle(keys)
        self.start("buyer", Buyer(keys))

    def new_key(self, *, private: bool = False) -> str:
        """Return a key that nobody bought yet; a private one is not given to other buyers."""
        self._numbers["key"] += 1
        key = f"walk-{self.seed}-{self._numbers['key']:05}"
        if not private:
            self.keys.append(key)
        return key

    def actors_of(self, *kinds: str) -> list[Actor]:
        """Return the actors that may be killed or stopped, of these kinds."""
        return [actor for actor in self.actors if actor.kind in kinds and not actor.protected]

    def maintain(self) -> None:
        """Remove actors that ended, and undo disturbances that lasted long enough."""
        self._reap()
        now = time.monotonic()
        due = [undo for at, undo in self._undo if at <= now]
        self._undo = [(at, undo) for at, undo in self._undo if at > now]
        for undo in due:
            undo()
        for line in self.events.new_lines():
            if line["what"] in {"copied", "forked"}:
                self.counts[line["what"]] += 1
            elif line["what"] == "deleted":
                self.counts[f"row deleted while {line['state']}"] += 1
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

    def undo_later(self, seconds: float, undo: Callable[[], object]) -> None:
        """Undo a disturbance after a while."""
        self._undo.append((time.monotonic() + seconds, undo))

    def wait(self, seconds: float, waited: Callable[[Actor], bool] = lambda _: True) -> bool:
        """Wait until no such actor is left; return whether that happened in time."""
        end = time.monotonic() + seconds
        while any(waited(actor) for actor in self.actors):
            if time.monotonic() > end:
                return False
            self.maintain()
            time.sleep(TICK)
        return True

    def kill_all(self) -> None:
        """SIGKILL every actor, and wait until all are gone."""
        for actor in self.actors:
            actor.signal(signal.SIGKILL)
        assert self.wait(30), "a killed process does not end"

    # The end

    def wait_for_service(self) -> None:
        """Wait until the service has processed the requests that clients gave up."""
        while self.ask_service("state")["pending"]:
            time.sleep(10 * TICK)

    def end_actors(self) -> None:
        """Undo every disturbance, and let work in progress end."""
        now, self._undo = self._undo, []
        for _, undo in now:
            undo()
        for actor in self.actors:
            actor.signal(signal.SIGCONT)
        for actor in self.actors_of("buyer"):
            actor.signal(signal.SIGTERM)
        if not self.wait(120):
            self.counts["hung"] += len(self.actors)
            self.incomplete += [f"{actor.kind} did not end" for actor in self.actors]
            self.kill_all()

    def settle(self, *, every: bool = False) -> bool:
        """Settle and finish everything; return whether that is done.

        Args:
            every: Whether to run settled keys once more as well.
        """
        open_keys = list(self.keys) if every else self._unsettled()
        for _ in range(ROUNDS):
            if not open_keys or self.is_unreadable:
                break
            self.start("user", User(final=True))
            assert self.wait(180), "the user does not end"
            for number in range(BUYERS):
                if some := open_keys[number::BUYERS]:
                    self.start("last buyer", Buyer(some, unfinished=0))
            self.start("collector", actors.collect)
            assert self.wait(60 + 2 * len(open_keys)), "the last buyers do not end"
            open_keys = self._unsettled()
        return not open_keys and not self.is_unreadable

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

    def final_state(self) -> FinalState:
        """Return the input of the checker."""
        events = self.events.lines()
        refused = Counter(line["key"] for line in events if line["what"] == "permission refused")
        permissions: list[Permission] = []
        for line in reversed([line for line in events if line["what"] == "permission"]):
            if refused[line["key"]]:
                refused[line["key"]] -= 1
            else:
                permissions.append(Permission(line["key"], line["at"]))
        names = ("task_id", "key", "end", "sha256", "at")
        return FinalState(
            keys=self.keys,
            purchases=[
                Purchase(**{name: line[name] for name in names}) for line in self.accepted.lines()
            ],
            permissions=permissions,
            rows=self.rows(),
            files=files_in(self.env.storage),
            untyped=[line["error"] for line in events if line["what"] == "untyped"],
            integrity=self._integrity(),
            incomplete=self.incomplete,
        )

    def _integrity(self) -> str:
        if self.postgres:
            return "ok"
        connection = sqlite3.connect(self.env.ledger_file)
        try:
            return connection.execute("PRAGMA integrity_check").fetchone()[0]
        except sqlite3.DatabaseError as error:
            return str(error)
        finally:
            connection.close()


def _read(env: ActorEnv, file: Path) -> None:
    """Write the whole ledger to a file."""

    async def read() -> list[Row]:
        ledger = Ledger(env.ledger_url, retry_timeout=DATABASE_TIMEOUT)
        entries = await ledger.entries()
        await ledger.database.close()
        return [row_of(entry) for entry in entries]

    rows = [asdict(row) | {"beside": sorted(row.beside)} for row in asyncio.run(read())]
    file.write_text(json.dumps(rows), encoding="utf-8")
