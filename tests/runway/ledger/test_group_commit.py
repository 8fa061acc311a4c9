# SPDX-License-Identifier: Apache-2.0
"""Statements that wait at one moment share one transaction, and nobody is answered before it."""

import asyncio
import os
import re
import sqlite3
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest

from prefect_cometapi.runway import Ledger, LedgerUnavailable, State
from prefect_cometapi.runway.ledger import sqlite
from prefect_cometapi.runway.ledger.loop_thread import background_loop, in_background
from prefect_cometapi.runway.ledger.statement import Sql

from ...machine import path_of
from ..factories import Service, buy, intent, put, until

S = State
SCRIPT = Path(__file__).with_name("group_buyer.py")


@asynccontextmanager
async def waiting_together() -> AsyncIterator[None]:
    """Hold up the background thread during the block, so that its statements form one group."""
    begun, free = threading.Event(), threading.Event()

    async def hold_up() -> None:
        begun.set()
        free.wait(20)

    held = in_background(hold_up())
    await asyncio.to_thread(begun.wait, 20)
    try:
        yield
        await asyncio.sleep(0)
    finally:
        free.set()
        await asyncio.wrap_future(held)


def statements_of(ledger: Ledger) -> list[str]:
    """Return a list of the statements that SQLite begins from now on."""
    begun: list[str] = []
    vars(ledger.database)["_connection"].set_trace_callback(begun.append)
    return begun


def commits(begun: list[str]) -> int:
    return sum(text == "COMMIT" for text in begun)


async def together(*work: Any) -> list[Any]:
    """Return the results or errors of statements that form one group."""
    async with waiting_together():
        tasks = [asyncio.ensure_future(one) for one in work]
        await asyncio.sleep(0)
    return await asyncio.gather(*tasks, return_exceptions=True)


async def test_what_waits_together_is_committed_together(file_ledger):
    """Twenty claims take one transaction with its flushes, and each is answered."""
    await file_ledger.get("open")
    begun = statements_of(file_ledger)
    made = await together(*(put(file_ledger, S.SUBMITTED, f"k{n}", task_id="t") for n in range(20)))
    assert {entry.idempotency_key for entry in made} == {f"k{n}" for n in range(20)}
    assert commits(begun) == 1
    assert len(await file_ledger.entries()) == 20


async def test_statements_that_follow_a_group_wait_for_each_other(file_ledger, monkeypatch):
    """In a batch the next claims gather for a moment and share their commit."""
    await file_ledger.get("open")
    begun = statements_of(file_ledger)
    await together(*(put(file_ledger, S.SUBMITTED, f"k{n}", task_id="t") for n in range(2)))
    monkeypatch.setattr(sqlite, "_GATHERING", 3600)
    first = asyncio.ensure_future(put(file_ledger, S.SUBMITTED, "k2", task_id="t"))
    await _background_had_its_turn()
    second = asyncio.ensure_future(put(file_ledger, S.SUBMITTED, "k3", task_id="t"))
    await _background_had_its_turn()
    assert not first.done()
    background_loop().call_soon_threadsafe(file_ledger.database._flush)
    await asyncio.gather(first, second)
    assert commits(begun) == 2


async def test_a_statement_that_comes_alone_does_not_wait(file_ledger, monkeypatch):
    """A run with a single generation has its claim at once."""
    await file_ledger.get("open")
    monkeypatch.setattr(sqlite, "_GATHERING", 3600)
    for number in range(2):
        await asyncio.wait_for(put(file_ledger, S.SUBMITTED, f"k{number}", task_id="t"), 20)


async def _background_had_its_turn() -> None:
    for _ in range(2):
        await asyncio.wrap_future(in_background(asyncio.sleep(0)))


async def test_a_group_has_a_largest_size(file_ledger, monkeypatch):
    """Other processes get their turn between two groups."""
    monkeypatch.setattr(sqlite, "_LARGEST_GROUP", 2)
    await file_ledger.get("open")
    begun = statements_of(file_ledger)
    await together(*(put(file_ledger, S.SUBMITTED, f"k{n}", task_id="t") for n in range(6)))
    assert commits(begun) == 3
    assert len(await file_ledger.entries()) == 6


async def test_queries_that_wait_together_need_no_transaction(file_ledger):
    """A group that only reads takes no lock for writing."""
    await put(file_ledger, S.SUBMITTED, "a", task_id="t")
    begun = statements_of(file_ledger)
    found = await together(*(file_ledger.get("a") for _ in range(3)))
    assert [entry.task_id for entry in found] == ["t"] * 3
    assert not [text for text in begun if text.startswith(("BEGIN", "COMMIT"))]


async def test_a_statement_that_fails_fails_alone(file_ledger):
    """The others of its group are committed."""
    await file_ledger.get("open")
    first, failed, last = await together(
        put(file_ledger, S.SUBMITTED, "a", task_id="t"),
        file_ledger.database.rows(Sql("UPDATE no_such SET a = 1")),
        put(file_ledger, S.SUBMITTED, "b", task_id="t"),
    )
    assert (first.idempotency_key, last.idempotency_key) == ("a", "b")
    assert isinstance(failed, LedgerUnavailable)
    assert "no such table" in failed.message
    assert len(await file_ledger.entries()) == 2


async def test_a_mistake_in_a_statement_is_no_trouble_of_the_database(file_ledger):
    """It is raised as it is, and nothing of its group is committed."""
    await file_ledger.get("open")
    failed, other = await together(
        file_ledger.database.rows(Sql("UPDATE {no_such_word} SET a = 1")),
        put(file_ledger, S.SUBMITTED, "a", task_id="t"),
    )
    assert [type(failed), type(other)] == [KeyError, KeyError]
    assert await file_ledger.entries() == []


async def test_a_lost_transaction_fails_everybody_in_it(file_ledger):
    """SQLite may roll back all of a transaction; then nothing of it counts."""
    await put(file_ledger, S.SUBMITTED, "a", task_id="t")
    loses = (
        "CREATE TRIGGER loses BEFORE UPDATE ON cometapi_generations WHEN NEW.note = 'lost' "
        "BEGIN SELECT RAISE(ROLLBACK, 'the transaction is lost'); END"
    )
    await file_ledger.database.rows(Sql(loses))
    answers = await together(
        put(file_ledger, S.SUBMITTED, "b", task_id="t"),
        file_ledger.database.rows(Sql("UPDATE cometapi_generations SET note = 'lost'")),
        put(file_ledger, S.SUBMITTED, "c", task_id="t"),
    )
    assert all(isinstance(answer, LedgerUnavailable) for answer in answers)
    assert [entry.idempotency_key for entry in await file_ledger.entries()] == ["a"]


def file_of(ledger: Ledger) -> Path:
    assert ledger.database.file
    return ledger.database.file


@asynccontextmanager
async def reader(ledger: Ledger) -> AsyncIterator[None]:
    """Read the file in a transaction during the block: others may change it, and not commit."""
    with closing(sqlite3.connect(file_of(ledger), isolation_level=None)) as connection:
        connection.execute("BEGIN")
        connection.execute("SELECT * FROM cometapi_generations").fetchall()
        yield


async def test_nobody_buys_when_the_commit_fails(file_url):
    """A claim is on the disk before its request is sent; a commit that fails takes all along."""
    ledger, service = Ledger(file_url, retry_timeout=0.2), Service()
    await put(ledger, S.SUBMITTED, "before", task_id="t")
    begun = statements_of(ledger)
    async with reader(ledger):
        answers = await together(
            *(buy(ledger, service, wish=intent(f"k{number}")) for number in range(5))
        )
        assert [type(answer) for answer in answers] == [LedgerUnavailable] * 5
        assert "database is locked" in answers[0].message
    assert commits(begun) > 0
    assert service.posts == 0
    assert [entry.idempotency_key for entry in await ledger.entries()] == ["before"]
    assert (await buy(ledger, service, wish=intent("k0"))).attempts == 1
    await ledger.database.close()


async def test_a_group_whose_commit_had_to_wait_is_committed_once(file_url):
    """Each claim of the group is repeated until the file is free, and bought once."""
    ledger, service = Ledger(file_url), Service()
    await put(ledger, S.SUBMITTED, "before", task_id="t")
    begun = statements_of(ledger)

    async def tried() -> bool:
        return bool(begun)

    async with reader(ledger):
        buying = [
            asyncio.create_task(buy(ledger, service, wish=intent(f"k{number}")))
            for number in range(5)
        ]
        await until(tried)
        assert service.posts == 0
    bought = await asyncio.gather(*buying)
    assert [entry.attempts for entry in bought] == [1] * 5
    assert service.posts == 5
    await ledger.database.close()


async def test_a_statement_that_finds_the_file_locked_is_repeated(file_ledger):
    """The background thread is free meanwhile, and the caller is answered once."""
    await put(file_ledger, S.SUBMITTED, "before", task_id="t")
    await file_ledger.database.rows(Sql("PRAGMA busy_timeout = 0"))
    begun = statements_of(file_ledger)

    async def tried() -> bool:
        return bool(begun)

    async with reader(file_ledger):
        writing = asyncio.create_task(put(file_ledger, S.SUBMITTED, "a", task_id="t"))
        await until(tried)
        assert (await file_ledger.get("before")).task_id == "t"
        assert not writing.done()
    assert (await writing).idempotency_key == "a"


async def test_a_cancelled_caller_keeps_no_other_from_its_answer(file_ledger):
    """The change is made all the same, and the others of the group are answered."""
    await file_ledger.get("open")
    async with waiting_together():
        cancelled, other = (
            asyncio.ensure_future(put(file_ledger, S.SUBMITTED, key, task_id="t")) for key in "ab"
        )
        await asyncio.sleep(0)
        cancelled.cancel()
    assert (await other).idempotency_key == "b"
    assert {entry.idempotency_key for entry in await file_ledger.entries()} == {"a", "b"}


async def test_a_caller_whose_loop_was_closed_keeps_no_other_from_its_answer(file_ledger):
    """A sync task may be killed while its statement waits."""
    await file_ledger.get("open")

    async def begin() -> None:
        put_a = asyncio.ensure_future(put(file_ledger, S.SUBMITTED, "a", task_id="t"))
        await asyncio.wait([put_a], timeout=0)

    async with waiting_together():
        await asyncio.to_thread(asyncio.run, begin())
        other = asyncio.ensure_future(put(file_ledger, S.SUBMITTED, "b", task_id="t"))
        await asyncio.sleep(0)
    assert (await other).idempotency_key == "b"
    assert {entry.idempotency_key for entry in await file_ledger.entries()} == {"a", "b"}


async def test_each_caller_gets_an_error_of_its_own(file_ledger):
    """A caller adds its key to the error, which must not show in the error of another one."""
    await file_ledger.get("open")
    file_ledger.database.file.rename(file_ledger.database.file.with_name("elsewhere"))
    first, second = await together(file_ledger.get("a"), file_ledger.get("b"))
    assert first.message == second.message
    assert first is not second
    file_ledger.database.file.with_name("elsewhere").rename(file_ledger.database.file)


ENDED = r"(\)| <unfinished \.\.\.>[\s\S]*?<\.\.\. \w+ resumed>)"
"""End of a system call, perhaps after lines of another thread."""


def flushed_before(log: str, words: str, marker: str) -> bool:
    """Return True if words were written to the ledger and flushed before a marker was written.

    The ledger's page with the words is written, the file is flushed, the journal is deleted, which
    commits, and the folder is flushed.
    """
    steps = [
        rf'pwrite64\(\d+<[^>]*ledger\.db>, ".*{re.escape(words)}',
        rf"fdatasync\(\d+<[^>]*ledger\.db>{ENDED}",
        rf'unlink\("[^"]*ledger\.db-journal"{ENDED}',
        rf"fdatasync\(\d+<[^>]*/books>{ENDED}",
    ]
    end = log.index(f'"{marker}\\n"')
    position = 0
    for step in steps:
        found = re.compile(step).search(log, position, end)
        if not found:
            return False
        position = found.end()
    return True


@pytest.mark.heavy
def test_each_claim_and_each_id_is_flushed_before_anything_else_happens(tmp_path):
    """Forty purchases at once: the system calls show claim, request, id and result in order."""
    strace = path_of("strace")
    trial = subprocess.run([strace, "-o", os.devnull, "true"], check=False, capture_output=True)
    if trial.returncode:
        pytest.skip("this machine lets no process watch another one (ptrace)")
    folder, log, count = tmp_path / "books", tmp_path / "calls", 40
    folder.mkdir()
    watched = "trace=pwrite64,fdatasync,fsync,unlink,write"
    words = [strace, "-f", "-y", "-s", "5000", "-e", watched, "-o", str(log)]
    script = [sys.executable, str(SCRIPT), f"sqlite:///{folder}/ledger.db", str(count)]
    subprocess.run([*words, *script], check=True, capture_output=True, timeout=120)
    calls = log.read_text(encoding="utf-8", errors="replace")
    for number in range(count):
        assert flushed_before(calls, f"claim-of-{number}-", f"POST {number}")
        assert flushed_before(calls, f"task-of-{number}-", f"BOUGHT {number}")
        assert calls.index(f'"POST {number}\\n"') < calls.index(f"task-of-{number}-")
    commits_made = len(re.findall(r'unlink\("[^"]*ledger\.db-journal"', calls))
    assert commits_made < count  # else nothing was grouped
