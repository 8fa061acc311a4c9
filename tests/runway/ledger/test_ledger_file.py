# SPDX-License-Identifier: Apache-2.0
"""A ledger in SQLite is one file, which may be copied, moved and forked like any other."""

import asyncio
import errno
import fcntl
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from prefect_cometapi.runway import Ledger, State
from prefect_cometapi.runway.ledger import database, file_lock, held_leases, owners
from prefect_cometapi.runway.ledger.file_lock import FileLock
from prefect_cometapi.runway.ledger.owners import owner_name

from ..factories import put

USER = Path(__file__).with_name("ledger_user.py")


class User:
    """A process that has the ledger open."""

    def __init__(self, url: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(USER), url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def does(self, command: str) -> str:
        """Send a command and wait for its answer."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(f"{command}\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline().strip()
        assert answer, "the process ended"
        return answer

    def kill(self) -> None:
        """Kill the process."""
        self.process.kill()
        self.process.wait(10)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


@pytest.fixture
def user(file: Path) -> Iterator[Callable[[], User]]:
    """Return a function that starts processes with the ledger open."""
    with ExitStack() as stack:

        def start() -> User:
            one = User(f"sqlite:///{file}")
            stack.callback(one.kill)
            return one

        yield start


def keys_in(file: Path) -> set[str]:
    """Read the keys in a file with SQLite itself."""
    with closing(sqlite3.connect(file)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        found = connection.execute("SELECT idempotency_key FROM cometapi_generations")
        return {key for (key,) in found}


def named(prefix: str, count: int = 5) -> list[str]:
    return [f"{prefix}{number}" for number in range(count)]


@pytest.mark.heavy
def test_a_copy_by_a_process_that_has_it_open_loses_nothing(user, file, tmp_path):
    """POSIX drops a process's locks when it copies the file; the ledger does not need them."""
    first, second = user(), user()
    first.does(f"buy {' '.join(named('a'))}")
    first.does(f"copy {tmp_path / 'backup.db'}")
    second.does(f"buy {' '.join(named('b'))}")
    second.does("close")
    first.does(f"buy {' '.join(named('c'))}")
    assert user().does("count") == "15"
    assert keys_in(file) == {*named("a"), *named("b"), *named("c")}


@pytest.mark.heavy
def test_processes_that_copy_it_while_they_write_do_not_destroy_it(user, file):
    """Each copy drops SQLite's own locks, but not the lock beside the file."""
    users = [user() for _ in range(4)]
    with ThreadPoolExecutor(len(users)) as threads:
        work = zip(users, "abcd", strict=True)
        bought = list(threads.map(lambda one: int(one[0].does(f"copying {one[1]} 3")), work))
    assert len(keys_in(file)) == sum(bought)


def test_a_process_that_holds_the_lock_for_long_is_waited_for_and_named(tmp_path):
    """A process that was stopped while it wrote is waited for, and the error names it."""
    first, second = (FileLock(tmp_path / "ledger.db", 0.1) for _ in range(2))
    with (
        first.held(),
        pytest.raises(TimeoutError, match=r"holds .*ledger\.db\.lock"),
        second.held(),
    ):
        pass
    with second.held():
        pass
    for lock in (first, second):
        lock.close()


@pytest.mark.parametrize("trouble", ["missing folder", "no locks", "no fcntl"])
def test_where_there_are_no_such_locks_the_ledger_works_without(tmp_path, monkeypatch, trouble):
    """SQLite's own locks are still used where the extra lock is not supported."""
    folder = tmp_path / "missing" if trouble == "missing folder" else tmp_path
    if trouble == "no fcntl":
        monkeypatch.setattr(file_lock, "fcntl", None)
    if trouble == "no locks":

        def refuse(_descriptor: int, _operation: int) -> None:
            raise OSError(errno.ENOLCK, "no locks available")

        monkeypatch.setattr(fcntl, "flock", refuse)
    with FileLock(folder / "ledger.db", 0.1).held():
        pass


def test_another_error_of_the_lock_is_not_hidden(tmp_path, monkeypatch):
    """An error of a failing disk is raised."""

    def fail(_descriptor: int, _operation: int) -> None:
        raise OSError(errno.EIO, "input/output error")

    monkeypatch.setattr(fcntl, "flock", fail)
    with pytest.raises(OSError, match="input/output error"), FileLock(tmp_path / "l.db", 1).held():
        pass


@pytest.mark.heavy
def test_a_daemon_that_forks_with_it_open_loses_nothing(user, file):
    """The end of the parent does not close the connection of the child."""
    daemon = user()
    daemon.does(f"buy {' '.join(named('a'))}")
    child = int(daemon.does("fork"))
    try:
        daemon.process.wait(10)
        daemon.does(f"buy {' '.join(named('b'))}")
        assert user().does(f"buy {' '.join(named('c'))}") == "done"
        assert daemon.does("count") == "15"
    finally:
        os.kill(child, signal.SIGKILL)
    assert keys_in(file) == {*named("a"), *named("b"), *named("c")}


def test_a_copy_of_the_file_in_use_has_what_was_bought_before(user, file, tmp_path):
    """A copy has every purchase that was answered before the copy began."""
    buyer, bought = user(), set()
    for key in named("a", 6):
        buyer.does(f"buy {key}")
        bought.add(key)
        copy = shutil.copyfile(file, tmp_path / f"{key}.db")
        assert keys_in(copy) == bought


@pytest.mark.heavy
def test_after_a_kill_the_one_file_may_be_moved(user, file, tmp_path):
    """All purchases are in the one file, so it may be moved after a kill."""
    buyer = user()
    buyer.does(f"buy {' '.join(named('a'))}")
    buyer.kill()
    moved = file.rename(tmp_path / "elsewhere.db")
    assert keys_in(moved) == set(named("a"))
    assert User(f"sqlite:///{moved}").does("count") == "5"


@pytest.mark.heavy
def test_a_ledger_with_a_write_ahead_log_is_converted(user, file):
    """Entries that are only in the write-ahead log are kept."""
    user().does(f"buy {' '.join(named('a'))}")
    with closing(sqlite3.connect(file, isolation_level=None)) as old:
        old.execute("PRAGMA journal_mode=WAL")
        old.execute("UPDATE cometapi_generations SET note = 'in the log'")
        copies = [shutil.copyfile(path, f"{path}.copy") for path in file.parent.glob("ledger.db*")]
    for copy in copies:  # as after a crash
        Path(copy).replace(copy.removesuffix(".copy"))
    assert file.with_name("ledger.db-wal").exists()
    assert user().does("count") == "5"
    assert sorted(path.name for path in file.parent.glob("ledger.db-*")) == []
    with closing(sqlite3.connect(file)) as now:
        assert now.execute("SELECT DISTINCT note FROM cometapi_generations").fetchall() == [
            ("in the log",)
        ]


async def test_a_forked_child_has_neither_leases_nor_the_connection_of_its_parent(file):
    """Otherwise the child would keep the leases of a dead parent, and end the parent's work."""
    ledger = Ledger(f"sqlite:///{file}")
    await put(ledger, State.SUBMITTED, "sku-17", task_id="task-1")
    parent = owner_name("run")
    async with ledger.leases.hold_exclusively("sku-17", "run"):
        child = os.fork()
        if not child:
            held = ledger.leases.held.owners() or ledger.leases.held.count("sku-17", parent)
            os._exit(1 if held or vars(ledger.database)["_connection"] else 0)
        _, status = await asyncio.to_thread(os.waitpid, child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        assert ledger.leases.held.owners() == [parent]
    await ledger.database.close()


async def test_what_a_child_forgets_is_opened_again_when_it_is_used(file):
    """Connection, leases and blocks of the parent are replaced when the child uses them."""
    ledger = Ledger(f"sqlite:///{file}")
    await put(ledger, State.SUBMITTED, "sku-17", task_id="task-1")
    with ledger.leases.renewing("sku-17", owner_name("run")):
        for forget in (
            database._forget_connections,
            held_leases._forget_leases,
            owners._forget_workers,
        ):
            forget()
        assert ledger.leases.held.owners() == []
        assert vars(ledger.database)["_connection"] is None
    found = await ledger.get("sku-17")
    assert found
    assert found.task_id == "task-1"
    await ledger.database.close()
