# SPDX-License-Identifier: Apache-2.0
"""The ledger's database: valid URLs, durability, and errors when it is not available."""

import asyncio
import errno
import multiprocessing
import os
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import asyncpg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_cometapi.runway import Ledger, LedgerUnavailable, State
from prefect_cometapi.runway.ledger.database_errors import is_transient
from prefect_cometapi.runway.ledger.open_database import ledger_url, open_database
from prefect_cometapi.runway.ledger.purchase import buy_once
from prefect_cometapi.runway.ledger.statement import Sql
from prefect_cometapi.runway.ledger.store import get_ledger

from ..factories import Service, buy, change, intent, put, until

S = State
NOBODY = 65534
PASSWORD = "topsecret5c0ffee"
UNUSABLE = "nothing was charged"


@pytest.mark.parametrize(
    ("url", "advice"),
    [
        ("sqlite:///ledger.db", "needs an absolute path (sqlite:////folder/ledger.db)"),
        ("sqlite:///./ledger.db", "needs an absolute path"),
        ("sqlite://", "a database in memory is lost with its process"),
        ("sqlite:///:memory:", "a database in memory is lost with its process"),
        ("sqlite:////:memory:", "a database in memory is lost with its process"),
        ("sqlite:///file:/tmp/x.db?uri=true", "needs an absolute path"),
        ("mysql://u:p@host/db", "must be in SQLite or PostgreSQL, not in mysql"),
        ("duckdb:////tmp/x", "must be in SQLite or PostgreSQL, not in duckdb"),
        ("nonsense", "write sqlite:////folder/ledger.db or postgresql://user:password@host"),
        ("foo", "is 'foo', which is not a database URL"),
        ("u:s3cr3t@host", "is not a valid database URL"),
        ("/folder/ledger.db", "for that file, write sqlite:////folder/ledger.db"),
        ("", "write sqlite:////folder/ledger.db or postgresql://"),
        ("**********", "write sqlite:////folder/ledger.db or postgresql://"),
    ],
)
def test_a_url_that_can_be_no_ledger_is_refused_with_what_to_write(url, advice):
    """An invalid URL is refused at once, not when the first video is bought."""
    with pytest.raises(LedgerUnavailable) as caught:
        Ledger(url)
    assert advice in caught.value.message
    assert UNUSABLE in str(caught.value)
    assert "Next: correct COMETAPI_LEDGER_URL." in str(caught.value)
    assert "s3cr3t" not in str(caught.value)


@pytest.mark.parametrize("port", ["abc", f"{PASSWORD}@host"])
def test_a_url_with_an_impossible_port_is_refused_without_its_password(port):
    """The port looks invalid if an @ in the password is not escaped."""
    with pytest.raises(LedgerUnavailable) as caught:
        Ledger(f"postgresql://user:p@ss:{port}/db")
    assert PASSWORD not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("sqlite:////a/b.db", "sqlite:////a/b.db"),
        (" sqlite+aiosqlite:////a/b.db\n", "sqlite:////a/b.db"),
        ("postgresql://u:p@h:5433/d", "postgresql://u:p@h:5433/d"),
        ("postgresql+psycopg2://u@h/d", "postgresql://u@h/d"),
        ("postgresql://u:p%40ss@h/d", "postgresql://u:p%40ss@h/d"),
    ],
)
def test_a_url_works_with_whatever_driver_it_names(url, expected):
    """Any driver in the URL is accepted, such as the one that Prefect uses."""
    assert ledger_url(url) == expected


@given(url=st.text(max_size=40) | st.from_regex(r"(sqlite|postgresql)://[a-z@:/]{0,20}"))
def test_any_text_is_a_url_or_is_refused(url):
    """An invalid URL raises an error of this package."""
    try:
        found = ledger_url(url)
    except LedgerUnavailable:
        return
    assert found.startswith(("sqlite:", "postgresql:"))


@pytest.mark.parametrize("address", ["127.0.0.1:1", "localhost:1", "nowhere.invalid"])
async def test_a_password_is_never_shown(address):
    """The password is hidden in the location and in connection errors."""
    ledger = Ledger(f"postgresql://user:{PASSWORD}@{address}/db", retry_timeout=0.2)
    assert ledger.database.redacted_url.startswith("postgresql")
    assert f"@{address}/db" in ledger.database.redacted_url
    with pytest.raises(LedgerUnavailable) as caught:
        await ledger.get("sku-17")
    assert f"@{address}/db" in caught.value.message
    for shown in (
        ledger.database.redacted_url,
        repr(ledger),
        repr(vars(ledger)),
        str(caught.value),
    ):
        assert PASSWORD not in shown
    assert PASSWORD not in repr(caught.value)


def test_a_password_in_the_query_of_a_url_is_not_shown_either():
    """PostgreSQL also accepts a password in the query of a URL."""
    assert (
        PASSWORD
        not in open_database(f"postgresql://h/d?user=u&password={PASSWORD}", 1).redacted_url
    )


@pytest.mark.parametrize("rest", ["127.0.0.1:1/d?sslmode=require", "127.0.0.1:99999/d"])
async def test_a_url_that_the_driver_does_not_take_makes_the_ledger_unavailable(rest):
    """Every method raises only that error."""
    with pytest.raises(LedgerUnavailable):
        await Ledger(f"postgresql://u@{rest}", retry_timeout=0.2).get("sku-17")


async def test_a_ledger_that_is_not_there_is_told_quickly():
    """A wrong port or name ends the run within the retry timeout, and nothing is sent."""
    service = Service()
    ledger = Ledger("postgresql://u@127.0.0.1:1/d", retry_timeout=0.5)
    async with asyncio.timeout(5):
        with pytest.raises(LedgerUnavailable, match="ConnectionRefusedError"):
            await buy_once(ledger, intent(), service.post, run="r")
    assert service.posts == 0


async def test_a_mistyped_path_makes_no_folder(tmp_path):
    """An empty ledger in a new folder would know none of the purchases."""
    ledger = Ledger(f"sqlite:///{tmp_path}/new/folder/ledger.db", retry_timeout=0.2)
    with pytest.raises(LedgerUnavailable, match="its folder does not exist"):
        await ledger.get("sku-17")
    assert not (tmp_path / "new").exists()


async def test_a_file_in_a_folder_that_all_may_read_is_for_its_owner_only(tmp_path):
    """The file contains prompts and purchases, so only its owner may read it."""
    tmp_path.chmod(0o755)
    before = os.umask(0)
    try:
        ledger = Ledger(f"sqlite:///{tmp_path}/ledger.db")
        assert await ledger.get("sku-17") is None
    finally:
        os.umask(before)
    assert (tmp_path / "ledger.db").stat().st_mode & 0o777 == 0o600
    await ledger.database.close()


async def test_a_file_is_flushed_with_every_change(file_ledger):
    """Committed changes survive a power failure."""
    (mode,) = await file_ledger.database.rows(Sql("PRAGMA journal_mode"))
    (synchronous,) = await file_ledger.database.rows(Sql("PRAGMA synchronous"))
    assert list(mode.values()) == ["delete"]
    assert list(synchronous.values()) == [3]


@pytest.mark.heavy
async def test_postgresql_commits_synchronously_whatever_its_default_is(postgres):
    """A recorded id is on the disk."""
    url = postgres.create_database()
    name = url.rpartition("/")[2]
    postgres.execute(f"ALTER DATABASE {name} SET synchronous_commit = off")
    assert postgres.execute("SHOW synchronous_commit", name) == "off"
    ledger = Ledger(url)
    (row,) = await ledger.database.rows(Sql("SHOW synchronous_commit"))
    assert list(row.values()) == ["on"]
    await ledger.database.close()


@pytest.mark.heavy
async def test_a_value_that_a_column_does_not_take_is_told_at_once(postgres):
    """A value of the wrong type does not become right by waiting."""
    ledger = Ledger(postgres.create_database(), retry_timeout=30)
    await ledger.get("open")
    async with asyncio.timeout(10):
        with pytest.raises(LedgerUnavailable, match="DataError"):
            await ledger.database.rows(Sql("SELECT CAST(:a AS INTEGER)", {"a": "x"}))
    await ledger.database.close()


@pytest.mark.parametrize(
    "content", [b"not a database at all" * 100, b"SQLite format 3\0" + b"x" * 4080]
)
async def test_a_damaged_file_is_told_and_left_as_it_is(tmp_path, content):
    """Nothing is bought, and the file is not repaired by dropping data."""
    path, service = tmp_path / "ledger.db", Service()
    path.write_bytes(content)
    ledger = Ledger(f"sqlite:///{path}", retry_timeout=1)
    with pytest.raises(LedgerUnavailable, match=f"sqlite.*{path}.*DatabaseError") as caught:
        await buy_once(ledger, intent(), service.post, run="r")
    assert UNUSABLE in str(caught.value)
    assert service.posts == 0
    assert path.read_bytes() == content


@pytest.mark.parametrize("place", ["/proc/nowhere/ledger.db", "/dev/null/ledger.db", "/proc"])
async def test_a_place_where_no_file_can_be_is_told(place):
    """The error has the reason of the operating system."""
    with pytest.raises(LedgerUnavailable, match=r"cannot be used: .+"):
        await Ledger(f"sqlite:///{place}", retry_timeout=0.2).get("sku-17")


async def test_a_full_disk_stops_before_anything_is_sent(file_ledger):
    """A claim that cannot be written does not count, and it works once there is space."""

    async def limit(pages: int) -> None:
        await file_ledger.database.rows(Sql(f"PRAGMA max_page_count = {pages}"))

    await put(file_ledger, S.SUBMITTED, "before", task_id="t")
    service = Service()

    async def buy(key: str) -> None:
        wish = intent(key, request={"promptText": "x" * 50_000})
        await buy_once(file_ledger, wish, service.post, run="r")

    await limit(1)
    with pytest.raises(LedgerUnavailable, match="database or disk is full"):
        await buy("a")
    assert service.posts == 0
    assert (await file_ledger.get("before")).task_id == "t"
    await limit(10**6)
    await buy("a")
    assert service.posts == 1


async def test_one_ledger_serves_many_loops_and_threads(ledger):
    """Each sync task has its own event loop, which ends with the task."""

    def one(number: int) -> str | None:
        async def work() -> str | None:
            made = await put(ledger, S.SUBMITTED, f"k{number}", task_id=f"t{number}")
            there = await ledger.get(made.idempotency_key)
            return there.task_id if there else None

        return asyncio.run(work())

    with ThreadPoolExecutor(8) as threads:
        found = list(await asyncio.to_thread(lambda: list(threads.map(one, range(24)))))
    assert found == [f"t{number}" for number in range(24)]
    assert len(await ledger.entries()) == 24
    names = [thread.name for thread in threading.enumerate()]
    assert names.count("cometapi-ledger") == 1


async def test_a_change_is_made_although_its_caller_is_gone(ledger):
    """A change is made completely or not at all."""
    await put(ledger, S.UNCERTAIN)
    writing = asyncio.create_task(change(ledger, "sku-17", S.WRITTEN_OFF, note="given up"))
    await asyncio.sleep(0)
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing

    async def made():
        return (await ledger.get("sku-17")).state is S.WRITTEN_OFF

    await until(made)
    assert (await ledger.get("sku-17")).note == "given up"


async def test_a_closed_ledger_opens_again_when_it_is_used(ledger):
    """A reopened ledger has all its entries, and one that never opened can be closed."""
    await ledger.database.close()
    await put(ledger, S.SUBMITTED, task_id="t")
    await ledger.database.close()
    assert (await ledger.get("sku-17")).task_id == "t"


def test_a_process_has_one_ledger_for_a_url(file_url):
    """The ledger is the same for every driver in the URL, and an invalid URL is refused."""
    assert get_ledger(file_url) is get_ledger(file_url.replace("sqlite:", "sqlite+aiosqlite:"))
    assert get_ledger(file_url) is not get_ledger(f"{file_url}2")
    with pytest.raises(LedgerUnavailable):
        get_ledger("nonsense")


@pytest.mark.heavy
def test_a_script_that_ends_without_closing_its_ledger_ends_without_a_word(ledger_url):
    """A script that does not close its ledger ends without a warning."""
    code = (
        "import asyncio, sys; from prefect_cometapi.runway import Ledger\n"
        "print(asyncio.run(Ledger(sys.argv[1]).get('sku-17')))"
    )
    words = [sys.executable, "-c", code, ledger_url]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True)
    assert (done.stdout, done.stderr) == ("None\n", "")


def test_a_forked_process_opens_a_ledger_of_its_own(ledger_url):
    """A connection shared with the parent would break both."""
    ledger = get_ledger(ledger_url)
    asyncio.run(put(ledger, S.SUBMITTED, "parent", task_id="t"))
    reader, writer = multiprocessing.Pipe()

    def child() -> None:
        own = get_ledger(ledger_url)
        made = asyncio.run(put(own, S.SUBMITTED, "child", task_id="t2"))
        seen = asyncio.run(own.get("parent"))
        writer.send((own is ledger, made.idempotency_key, seen and seen.task_id, os.getpid()))

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    assert reader.poll(30)
    shared, key, seen, pid = reader.recv()
    process.join(30)
    assert (shared, key, seen) == (False, "child", "t")
    assert pid == process.pid
    assert {entry.idempotency_key for entry in asyncio.run(ledger.entries())} == {"parent", "child"}
    asyncio.run(ledger.database.close())


def test_a_child_forgets_the_server_connections_of_its_parent():
    """The child opens its own connections, and leaves those of the parent alone."""
    database = open_database("postgresql://u@127.0.0.1:1/d", 1)
    parent = vars(database)["_pool"] = object()
    database.forget_connection()
    assert vars(database)["_pool"] is not parent


class ServerError(Exception):
    def __init__(self, sqlstate: str | None) -> None:
        super().__init__(sqlstate)
        self.sqlstate = sqlstate


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ServerError("57P01"), True),
        (ServerError("57P03"), True),
        (ServerError("08006"), True),
        (ServerError("53300"), True),
        (ServerError("40001"), True),
        (ServerError("40P01"), True),
        (ServerError("23505"), False),
        (ServerError("42P01"), False),
        (ServerError(None), False),
        (ConnectionResetError(), True),
        (sqlite3.OperationalError("database is locked"), True),
        (sqlite3.OperationalError("database or disk is full"), False),
        (sqlite3.OperationalError("disk I/O error"), False),
        (sqlite3.DatabaseError("file is not a database"), False),
        (ConnectionRefusedError(), True),
        (TimeoutError(), True),
        (OSError(errno.EHOSTUNREACH, "No route to host"), True),
        (socket.gaierror(socket.EAI_AGAIN, "try again"), True),
        (PermissionError(), False),
        (ValueError(), False),
    ],
    ids=repr,
)
def test_only_what_may_pass_is_waited_for(error, expected):
    """A lock, restart or lost connection is retried; a full disk or wrong password is not."""
    assert is_transient(error) is expected


async def test_a_connection_that_may_only_read_is_not_kept(file_ledger):
    """A file that was read-only for a while is written again by the same process."""
    service = Service()
    await file_ledger.database.rows(Sql("PRAGMA query_only=ON"))
    with pytest.raises(LedgerUnavailable, match="readonly database; make it writable"):
        await buy(file_ledger, service)
    assert service.posts == 0
    assert (await buy(file_ledger, service)).task_id == "task-1"


@pytest.mark.parametrize(("what", "mode"), [("ledger.db", 0o400), ("", 0o500)])
def test_a_ledger_that_may_only_be_read_stops_before_anything_is_sent(what, mode):
    """The error names the system's reason, for a read-only file as for a read-only folder."""
    reader, writer = multiprocessing.Pipe()
    with tempfile.TemporaryDirectory() as folder:
        url, service = f"sqlite:///{folder}/ledger.db", Service()
        ledger = Ledger(url)
        asyncio.run(put(ledger, S.SUBMITTED, "before", task_id="t"))
        asyncio.run(ledger.database.close())
        for path in (Path(folder), Path(folder, "ledger.db")):
            os.chown(path, NOBODY, -1) if os.geteuid() == 0 else None
        Path(folder, what).chmod(mode)

        def child() -> None:
            if os.geteuid() == 0:  # root can write anywhere
                os.setegid(NOBODY)
                os.seteuid(NOBODY)
            try:
                asyncio.run(
                    buy_once(Ledger(url, retry_timeout=0.5), intent(), service.post, run="r")
                )
            except LedgerUnavailable as error:
                writer.send((error.message, service.posts))

        process = multiprocessing.get_context("fork").Process(target=child)
        process.start()
        told = reader.recv() if reader.poll(20) else ("nothing", service.posts)
        process.join(20)
        Path(folder).chmod(0o700)
    assert "OperationalError" in told[0]
    assert told[1] == 0


def test_a_refused_connection_is_transient():
    """The driver raises its own error for a refused connection, and it has a code."""
    assert is_transient(asyncpg.exceptions.CannotConnectNowError("the database is starting up"))
    assert not is_transient(asyncpg.exceptions.InvalidPasswordError("wrong password"))
