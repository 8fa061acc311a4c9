# SPDX-License-Identifier: Apache-2.0
"""Disturbances of the random walk, which the seed chooses by their weights."""

import ctypes
import os
import random
import shutil
import signal
import sqlite3
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from prefect_cometapi.runway.ledger.schema import generations

from . import actors
from .actors import LEASE, MOMENTS, Buyer, Person, Place
from .walk import KILOBYTES, Walk

Act = Callable[[Walk, random.Random], bool]

BOTH = ("sqlite", "postgresql")


@dataclass(frozen=True)
class Disturbance:
    """Disturbance of the processes, the ledger or the storage.

    Attributes:
        name: Name by which it is switched off.
        weight: Its frequency, relative to the others.
        act: Performs it; returns whether it was possible at that moment.
        databases: Databases with which it is possible.
        needs: Command of the package that it needs, if any.
    """

    name: str
    weight: float
    act: Act
    databases: tuple[str, ...] = BOTH
    needs: str = ""


def kill(walk: Walk, chance: random.Random) -> bool:
    """SIGKILL a buyer or a collector."""
    return _signalled(walk, chance, signal.SIGKILL, "buyer", "buyer", "collector")


def pause(walk: Walk, chance: random.Random) -> bool:
    """Stop a process for longer than its lease, and let it continue."""
    able = walk.of_kind("buyer", "collector")
    if not able:
        return False
    actor = chance.choice(able)
    actor.signal(signal.SIGSTOP)
    walk.later(LEASE * (1.2 + chance.random()), lambda: actor.signal(signal.SIGCONT))
    return True


def copy(walk: Walk, chance: random.Random) -> bool:
    """Have every process that has the ledger open copy its files, or one of them."""
    if chance.random() < 0.5:
        return _signalled(walk, chance, signal.SIGUSR1, "buyer")
    for actor in walk.of_kind("buyer"):
        actor.signal(signal.SIGUSR1)
    return True


def fork(walk: Walk, chance: random.Random) -> bool:
    """Have a buyer fork and continue in the child, while the parent ends."""
    return _signalled(walk, chance, signal.SIGUSR2, "buyer")


def _signalled(walk: Walk, chance: random.Random, number: signal.Signals, *kinds: str) -> bool:
    able = walk.of_kind(*kinds)
    if able:
        chance.choice(able).signal(number)
    return bool(able)


def outside_copy(walk: Walk, chance: random.Random) -> bool:
    """Copy the ledger's one file from another process, and look for every purchase in it."""
    walk.start("copier", partial(_copy, file=_fresh_file(walk, "outside")))
    return True


def backup(walk: Walk, chance: random.Random) -> bool:
    """Back the ledger up with the package's command, and look for every purchase in it."""
    file = _fresh_file(walk, "backup")
    walk.start("copier", partial(_back_up, file=file))
    for old in walk.backups[:-2]:
        old.unlink(missing_ok=True)
    walk.backups = [*walk.backups[-2:], file]
    return True


def _fresh_file(walk: Walk, what: str) -> Path:
    folder = walk.folder / "copies"
    folder.mkdir(exist_ok=True)
    return folder / f"{what}-{walk.happened.total()}.db"


def _copy(place: Place, file: Path) -> None:
    known = _recorded(place.ledger_file)
    shutil.copy(place.ledger_file, file)
    _compare(place, known, file)
    file.unlink()


def _back_up(place: Place, file: Path) -> None:
    known = _recorded(place.ledger_file)
    status, output = actors.command("ledger", "backup", str(file))
    if status:
        place.events.write("incomplete", text=f"a backup failed: {output[:200]}")
    else:
        _compare(place, known, file)


def _compare(place: Place, known: dict[str, str], file: Path) -> None:
    """Report the purchases that a copy lacks, except those whose rows were deleted meanwhile."""
    try:
        missing = known.keys() - _recorded(file).keys()
    except sqlite3.Error as error:
        place.events.write("incomplete", text=f"{file.name} of {len(known)} purchases: {error}")
        return
    deleted = {line["key"] for line in place.events.lines() if line["what"] == "deleted"}
    lacking = [key for task_id, key in known.items() if task_id in missing and key not in deleted]
    if lacking:
        text = f"{file.name} lacks {len(lacking)} of {len(known)} purchases: {lacking[:5]}"
        place.events.write("incomplete", text=text)


def _recorded(file: Path) -> dict[str, str]:
    """Return the keys in a ledger's file by their task ids, read without the package."""
    if not file.exists():
        return {}
    connection = sqlite3.connect(file, timeout=30)
    try:
        if not connection.execute("SELECT 1 FROM sqlite_master WHERE type = 'table'").fetchall():
            return {}
        query = f"SELECT task_id, key FROM {generations.name} WHERE task_id IS NOT NULL"
        return dict(connection.execute(query).fetchall())
    finally:
        connection.close()


def move(walk: Walk, chance: random.Random) -> bool:
    """Kill every process, move the ledger's file to another folder, and continue there.

    The journal of a change that was cut off is part of the file, and is moved with it.
    """
    if not _alone(walk):
        return False
    folder = walk.folder / f"ledger-{walk.happened['move'] + 1}"
    folder.mkdir()
    for name in ("ledger.db", "ledger.db-journal"):
        with suppress(FileNotFoundError):
            (walk.place.ledger_file.parent / name).rename(folder / name)
    walk.place = replace(walk.place, ledger_url=f"sqlite:///{folder}/ledger.db")
    return True


def _alone(walk: Walk) -> bool:
    """Kill every process once no row is to be repaired; return whether that was possible."""
    if not walk.wait(20, lambda actor: actor.shielded):
        return False
    walk.kill_all()
    return True


def restore(walk: Walk, chance: random.Random) -> bool:
    """Replace the ledger with an older backup, which must buy nothing before it is rebuilt."""
    made = [file for file in walk.backups if file.exists()]
    if not made or not walk.wait(20, lambda actor: actor.shielded):
        return False
    walk.end_actors()
    walk.wait_for_service()
    if not walk.settle():
        return False
    rows = walk.rows()
    known = _recorded(made[-1])
    newer = [row for row in rows if row.task_id and row.task_id not in known]
    if not newer:
        return False
    for name in ("ledger.db-journal", "ledger.db-wal", "ledger.db-shm"):
        (walk.place.ledger_file.parent / name).unlink(missing_ok=True)
    shutil.copy(made[-1], walk.place.ledger_file)
    before = len(walk.accepted.lines())
    keys = [row.key for row in newer[:3]] + [walk.fresh_key() for _ in range(3)]
    walk.start("buyer", Buyer(keys))
    walk.wait(120)
    if bought := len(walk.accepted.lines()) - before:
        walk.incomplete.append(f"an older backup in the ledger's place bought {bought} videos")
    walk.start("person", _rebuild)
    assert walk.wait(300), "the rebuilding does not end"
    there = {row.key: row for row in walk.rows()}
    ids = {row.task_id for row in there.values()}
    for row in rows:
        if row.state == "stored" and row.task_id not in ids:
            walk.incomplete.append(f"{row.key} is not in the ledger that was rebuilt")
        elif row.key not in there or there[row.key].state in {"rejected", "resubmit_allowed"}:
            walk.events.write("leave", key=row.key)  # only the old ledger knew the failure
    return True


def _rebuild(place: Place) -> None:
    status, output = actors.command("ledger", "rebuild")
    if status:  # Refused and failed claims have no video.
        status, output = actors.command("ledger", "rebuild", "--accept-missing")
    if status:
        place.events.write("incomplete", text=f"the ledger cannot be rebuilt: {output[:200]}")


def vanish(walk: Walk, chance: random.Random) -> bool:
    """Delete the row of a purchase while a run works on it; that run is not disturbed otherwise."""
    key = walk.fresh_key(private=True)
    buyer = Buyer([key], moment=chance.choice(MOMENTS))
    walk.start("careful buyer", buyer, shielded=True, private=[key])
    return True


def restart(walk: Walk, chance: random.Random) -> bool:
    """Restart PostgreSQL, which ends all sessions."""
    assert walk.postgres
    walk.postgres.restart("fast")
    return True


def crash(walk: Walk, chance: random.Random) -> bool:
    """Stop PostgreSQL without a shutdown, and start it again."""
    assert walk.postgres
    walk.postgres.restart("immediate")
    return True


def kill_server(walk: Walk, chance: random.Random) -> bool:
    """SIGKILL the main process of PostgreSQL, and start it again."""
    assert walk.postgres
    walk.postgres.kill()
    walk.postgres.start()
    return True


def unwritable(walk: Walk, chance: random.Random) -> bool:
    """Replace the folder of the videos with a file for a while."""
    storage, other = walk.place.storage, walk.place.storage.with_name("not-a-folder")
    if other.exists():
        return False
    try:
        other.touch()
    except OSError:  # The disk is full at this moment.
        return False
    if not _exchanged(storage, other):
        other.unlink()
        return False

    def undo() -> None:
        _exchanged(storage, other)
        other.unlink()

    walk.later(0.5 + 1.5 * chance.random(), undo)
    return True


def _exchanged(one: Path, other: Path) -> bool:
    """Exchange two names atomically if this system can; return whether it did."""
    names = os.fsencode(one), os.fsencode(other)
    return ctypes.CDLL(None).renameat2(-100, names[0], -100, names[1], 2) == 0


def full(walk: Walk, chance: random.Random) -> bool:
    """Fill the disk with the videos for a while."""
    disk = walk.disk
    if disk is None or not disk.resize(disk.used()):
        return False
    walk.later(0.5 + 1.5 * chance.random(), lambda: disk.resize(KILOBYTES))
    return True


def clear_staging(walk: Walk, chance: random.Random) -> bool:
    """Delete every downloaded file that is not published yet."""
    staged = list((walk.place.storage / ".incoming").glob("*"))
    for file in staged:
        file.unlink(missing_ok=True)
    return bool(staged)


def lose_video(walk: Walk, chance: random.Random) -> bool:
    """Delete a stored video; the next run with its key must fetch it again without paying."""
    stored = sorted(walk.place.storage.glob("*.mp4"))
    if not stored:
        return False
    chance.choice(stored).unlink(missing_ok=True)
    return True


def collect(walk: Walk, chance: random.Random) -> bool:
    """Start a collector."""
    walk.start("collector", actors.collect)
    return True


def person(walk: Walk, chance: random.Random) -> bool:
    """Have a person settle uncertain generations."""
    walk.start("person", Person())
    return True


DISTURBANCES = (
    Disturbance("kill", 10, kill),
    Disturbance("pause", 9, pause),
    Disturbance("person", 6, person),
    Disturbance("collect", 3, collect),
    Disturbance("vanish", 3, vanish),
    Disturbance("fork", 3, fork),
    Disturbance("copy", 3, copy, ("sqlite",)),
    Disturbance("outside-copy", 2, outside_copy, ("sqlite",)),
    Disturbance("move", 0.7, move, ("sqlite",)),
    Disturbance("backup", 1, backup, ("sqlite",), needs="backup"),
    Disturbance("restore", 0.15, restore, ("sqlite",), needs="rebuild"),
    Disturbance("restart", 0.7, restart, ("postgresql",)),
    Disturbance("crash", 0.5, crash, ("postgresql",)),
    Disturbance("kill-server", 0.5, kill_server, ("postgresql",)),
    Disturbance("unwritable", 1, unwritable),
    Disturbance("full", 1, full),
    Disturbance("clear-staging", 1.5, clear_staging),
    Disturbance("lose-video", 1, lose_video),
)


def possible(database: str, without: set[str]) -> list[Disturbance]:
    """Return the disturbances that are possible and not switched off."""
    return [
        one
        for one in DISTURBANCES
        if database in one.databases
        and one.name not in without
        and (not one.needs or actors.has_command(one.needs))
    ]
