# SPDX-License-Identifier: Apache-2.0
"""Disturbances of the random walk, which the seed chooses by weight."""

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

from prefect_cometapi.runway.ledger.file_lock import FileLock
from prefect_cometapi.runway.ledger.schema import GENERATIONS

from . import actors
from .actors import DELETION_POINTS, LEASE, ActorEnv, Buyer, User
from .walk import KILOBYTES, Walk

Action = Callable[[Walk, random.Random], bool]

BOTH = ("sqlite", "postgresql")

_TRIES = 20
"""Copies of the ledger until one is made between two changes."""

_CHANGE_COUNTER = 24
"""Position of the change counter in the header of a SQLite file."""


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
    act: Action
    databases: tuple[str, ...] = BOTH
    needs: str = ""


def kill(walk: Walk, rng: random.Random) -> bool:
    """SIGKILL a buyer or a collector."""
    return _send_signal(walk, rng, signal.SIGKILL, "buyer", "buyer", "collector")


def pause(walk: Walk, rng: random.Random) -> bool:
    """Stop a process for longer than its lease, and let it continue."""
    candidates = walk.actors_of("buyer", "collector")
    if not candidates:
        return False
    actor = rng.choice(candidates)
    actor.signal(signal.SIGSTOP)
    walk.undo_later(LEASE * (1.2 + rng.random()), lambda: actor.signal(signal.SIGCONT))
    return True


def copy(walk: Walk, rng: random.Random) -> bool:
    """Have every process that has the ledger open copy its files, or have one of them do it."""
    if rng.random() < 0.5:
        return _send_signal(walk, rng, signal.SIGUSR1, "buyer")
    for actor in walk.actors_of("buyer"):
        actor.signal(signal.SIGUSR1)
    return True


def fork(walk: Walk, rng: random.Random) -> bool:
    """Have a buyer fork and continue in the child, while the parent ends."""
    return _send_signal(walk, rng, signal.SIGUSR2, "buyer")


def _send_signal(walk: Walk, rng: random.Random, number: signal.Signals, *kinds: str) -> bool:
    candidates = walk.actors_of(*kinds)
    if candidates:
        rng.choice(candidates).signal(number)
    return bool(candidates)


def outside_copy(walk: Walk, rng: random.Random) -> bool:
    """Copy the file of the ledger in another process, and look for every purchase in the copy."""
    walk.start("copier", partial(_copy, file=_new_file(walk, "outside")))
    return True


def backup(walk: Walk, rng: random.Random) -> bool:
    """Back the ledger up with the command of the package, and look for every purchase in it."""
    file = _new_file(walk, "backup")
    walk.start("copier", partial(_back_up, file=file))
    for old in walk.backups[:-2]:
        old.unlink(missing_ok=True)
    walk.backups = [*walk.backups[-2:], file]
    return True


def _new_file(walk: Walk, prefix: str) -> Path:
    folder = walk.folder / "copies"
    folder.mkdir(exist_ok=True)
    return folder / f"{prefix}-{walk.counts.total()}.db"


def _copy(env: ActorEnv, file: Path) -> None:
    known = _known(env)
    for _ in range(_TRIES):
        before = change_of(env.ledger_file)
        shutil.copy(env.ledger_file, file)
        # A copy of a file that is being written may be incomplete, as docs/ledger.md says.
        if before is not None and before == change_of(env.ledger_file):
            _compare(env, known, file)
            break
    file.unlink()


def change_of(ledger: Path) -> bytes | None:
    """Return the number of a SQLite file's last change, or None while one is being written."""
    journal = ledger.with_name(f"{ledger.name}-journal")
    if journal.exists():
        return None
    with ledger.open("rb") as file:
        file.seek(_CHANGE_COUNTER)
        change = file.read(4)
    return None if journal.exists() else change


def _known(env: ActorEnv) -> dict[str, str]:
    # Without the lock, a reader could take the journal of a change for that of a dead process.
    with FileLock(env.ledger_file, retry_timeout=30).held():
        return _recorded(env.ledger_file)


def _back_up(env: ActorEnv, file: Path) -> None:
    known = _known(env)
    status, output = actors.command("ledger", "backup", str(file))
    if status:
        env.events.write("incomplete", text=f"a backup failed: {output[:200]}")
    else:
        _compare(env, known, file)


def _compare(env: ActorEnv, known: dict[str, str], file: Path) -> None:
    """Report the purchases that a copy lacks, except those whose rows were deleted meanwhile."""
    try:
        missing = known.keys() - _recorded(file).keys()
    except sqlite3.Error as error:
        env.events.write("incomplete", text=f"{file.name} of {len(known)} purchases: {error}")
        return
    deleted = {line["key"] for line in env.events.lines() if line["what"] == "deleted"}
    lost = [key for task_id, key in known.items() if task_id in missing and key not in deleted]
    if lost:
        text = f"{file.name} lacks {len(lost)} of {len(known)} purchases: {lost[:5]}"
        env.events.write("incomplete", text=text)


def _recorded(file: Path) -> dict[str, str]:
    """Return the keys in a ledger's file by their task ids, read without the package."""
    if not file.exists():
        return {}
    connection = sqlite3.connect(file, timeout=30)
    try:
        if not connection.execute("SELECT 1 FROM sqlite_master WHERE type = 'table'").fetchall():
            return {}
        query = f"SELECT task_id, idempotency_key FROM {GENERATIONS} WHERE task_id IS NOT NULL"
        return dict(connection.execute(query).fetchall())
    finally:
        connection.close()


def move(walk: Walk, rng: random.Random) -> bool:
    """Kill every process, move the ledger's file to another folder, and continue there.

    The journal of a change that was cut off is part of the file, and is moved with it.
    """
    if not _kill_everything(walk):
        return False
    folder = walk.folder / f"ledger-{walk.counts['move'] + 1}"
    folder.mkdir()
    for name in ("ledger.db", "ledger.db-journal"):
        with suppress(FileNotFoundError):
            (walk.env.ledger_file.parent / name).rename(folder / name)
    walk.env = replace(walk.env, ledger_url=f"sqlite:///{folder}/ledger.db")
    return True


def _kill_everything(walk: Walk) -> bool:
    """Kill every process once no row needs a repair; return whether that was possible."""
    if not walk.wait(20, lambda actor: actor.protected):
        return False
    walk.kill_all()
    return True


def restore(walk: Walk, rng: random.Random) -> bool:
    """Replace the ledger with an older backup, which must buy nothing before it is rebuilt."""
    backups = [file for file in walk.backups if file.exists()]
    if not backups or not walk.wait(20, lambda actor: actor.protected):
        return False
    walk.end_actors()
    walk.wait_for_service()
    if not walk.settle():
        return False
    rows = walk.rows()
    known = _recorded(backups[-1])
    newer = [row for row in rows if row.task_id and row.task_id not in known]
    if not newer:
        return False
    for name in ("ledger.db-journal", "ledger.db-wal", "ledger.db-shm"):
        (walk.env.ledger_file.parent / name).unlink(missing_ok=True)
    shutil.copy(backups[-1], walk.env.ledger_file)
    before = len(walk.accepted.lines())
    keys = [row.key for row in newer[:3]] + [walk.new_key() for _ in range(3)]
    walk.start("buyer", Buyer(keys))
    walk.wait(120)
    if bought := len(walk.accepted.lines()) - before:
        walk.incomplete.append(f"an older backup in place of the ledger bought {bought} videos")
    walk.start("user", _rebuild)
    assert walk.wait(300), "the rebuild does not end"
    rebuilt = {row.key: row for row in walk.rows()}
    ids = {row.task_id for row in rebuilt.values()}
    for row in rows:
        if row.state == "stored" and row.task_id not in ids:
            walk.incomplete.append(f"{row.key} is not in the rebuilt ledger")
        elif row.key not in rebuilt or rebuilt[row.key].state in {"rejected", "resubmit_allowed"}:
            walk.events.write(
                "permission", key=row.key
            )  # only the replaced ledger had recorded the failure
    return True


def _rebuild(env: ActorEnv) -> None:
    status, output = actors.command("ledger", "rebuild")
    if status:  # Refused and failed claims have no video.
        status, output = actors.command("ledger", "rebuild", "--accept-missing")
    if status:
        env.events.write("incomplete", text=f"the ledger cannot be rebuilt: {output[:200]}")


def vanish(walk: Walk, rng: random.Random) -> bool:
    """Delete the row of a purchase while a run works on it; nothing else disturbs that run."""
    key = walk.new_key(private=True)
    buyer = Buyer([key], deletion_point=rng.choice(DELETION_POINTS))
    walk.start("careful buyer", buyer, protected=True, private=[key])
    return True


def restart(walk: Walk, rng: random.Random) -> bool:
    """Restart PostgreSQL, which ends all sessions."""
    assert walk.postgres
    walk.postgres.restart("fast")
    return True


def crash(walk: Walk, rng: random.Random) -> bool:
    """Stop PostgreSQL without a shutdown, and start it again."""
    assert walk.postgres
    walk.postgres.restart("immediate")
    return True


def kill_server(walk: Walk, rng: random.Random) -> bool:
    """SIGKILL the main process of PostgreSQL, and start it again."""
    assert walk.postgres
    walk.postgres.kill()
    walk.postgres.start()
    return True


def unwritable(walk: Walk, rng: random.Random) -> bool:
    """Replace the folder of the videos with a file for a while."""
    storage, other = walk.env.storage, walk.env.storage.with_name("not-a-folder")
    if other.exists():
        return False
    try:
        other.touch()
    except OSError:  # The disk is full at this moment.
        return False
    if not _exchange(storage, other):
        other.unlink()
        return False

    def undo() -> None:
        _exchange(storage, other)
        other.unlink()

    walk.undo_later(0.5 + 1.5 * rng.random(), undo)
    return True


def _exchange(first: Path, second: Path) -> bool:
    """Exchange two names atomically if this system can; return whether it did."""
    names = os.fsencode(first), os.fsencode(second)
    return ctypes.CDLL(None).renameat2(-100, names[0], -100, names[1], 2) == 0


def full(walk: Walk, rng: random.Random) -> bool:
    """Fill the disk with the videos for a while."""
    disk = walk.disk
    if disk is None or not disk.resize(disk.used()):
        return False
    walk.undo_later(0.5 + 1.5 * rng.random(), lambda: disk.resize(KILOBYTES))
    return True


def clear_staging(walk: Walk, rng: random.Random) -> bool:
    """Delete every downloaded file that is not published yet."""
    staged = list((walk.env.storage / ".incoming").glob("*"))
    for file in staged:
        file.unlink(missing_ok=True)
    return bool(staged)


def lose_video(walk: Walk, rng: random.Random) -> bool:
    """Delete a stored video; the next run with its key must fetch it again without paying."""
    stored = sorted(walk.env.storage.glob("*.mp4"))
    if not stored:
        return False
    rng.choice(stored).unlink(missing_ok=True)
    return True


def collect(walk: Walk, rng: random.Random) -> bool:
    """Start a collector."""
    walk.start("collector", actors.collect)
    return True


def user(walk: Walk, rng: random.Random) -> bool:
    """Have a user settle uncertain generations."""
    walk.start("user", User())
    return True


DISTURBANCES = (
    Disturbance("kill", 10, kill),
    Disturbance("pause", 9, pause),
    Disturbance("user", 6, user),
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
        disturbance
        for disturbance in DISTURBANCES
        if database in disturbance.databases
        and disturbance.name not in without
        and (not disturbance.needs or actors.has_command(disturbance.needs))
    ]
