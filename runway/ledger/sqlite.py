# SPDX-License-Identifier: Apache-2.0
"""SQLite database of the ledger, for one machine.

SQLite uses a rollback journal, so that between two changes the ledger is one file, which can be
copied or moved like any other file. A lock file beside it protects a process that copies the ledger
from losing its locks. Each change is flushed to disk, and so is the folder. A write-ahead log would
be faster, but it is a second file: a copy of the first file alone lacks purchases, and a process
that closes its own descriptor of the file drops the locks that guard the log.

The flushes take most of the time of a change. So the statements that wait at one moment share one
transaction and its flushes, and none of them is answered before it is committed.
"""

import asyncio
import json
import os
import sqlite3
import threading
from collections import defaultdict
from collections.abc import Generator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from ..errors import LedgerUnavailable
from .clock import Instant
from .database import Answer, Database, Retries
from .database_errors import COMMON_ERRORS
from .database_url import DatabaseURL
from .file_lock import FileLock
from .loop_thread import background_loop
from .schema import creation, missing_columns, missing_indexes
from .statement import SQLITE, Row, Sql, Value, render

Outcome = Answer | Exception
"""Answer of a statement, or the error with which it failed."""

_BEGIN = ("BEGIN IMMEDIATE",)
_LARGEST_GROUP = 256
"""Maximum number of statements in one transaction, so that other processes get their turn."""

_CACHED_STATEMENTS = 256

_GATHERING = 0.01
"""Seconds to wait for more statements while several come at a time."""


class _Request(NamedTuple):
    """Statement that waits for its turn.

    Attributes:
        statement: Statement to run.
        loop: Event loop of the caller.
        answer: Future that the caller awaits.
        retries: Retries that are left.
    """

    statement: Sql
    loop: asyncio.AbstractEventLoop
    answer: asyncio.Future[Answer]
    retries: Retries


class SQLite(Database):
    """Database in a SQLite file.

    All statements run in the background thread over one connection, since SQLite has one writer at
    a time. So waiting for a lock may block the thread.

    Args:
        url: URL with the absolute path of the file.
        retry_timeout: Maximum seconds to wait for a file that is locked.
    """

    is_shared = False
    errors = (sqlite3.Error, *COMMON_ERRORS)

    def __init__(self, url: DatabaseURL, retry_timeout: float) -> None:
        super().__init__(url, retry_timeout)
        self._file = Path(url.database or "")
        self._file_lock = FileLock(self._file, retry_timeout)
        self._connection: sqlite3.Connection | None = None
        self._opened_file: tuple[int, int] | None = None
        self._start_queue()

    def _start_queue(self) -> None:
        self._queue_lock = threading.Lock()
        self._waiting: list[_Request] = []
        self._is_flushing = False
        self._is_busy = False  # the latest group had several statements

    @property
    def file(self) -> Path:
        """Path of the database file."""
        return self._file

    async def execute_timed(self, statement: Sql, lock: str | None = None) -> Answer:
        """Return the time at which a statement started, and its rows; the base describes it.

        A file has only one writer at a time, so a statement needs no other lock.
        """
        _ = lock
        loop = asyncio.get_running_loop()
        request = _Request(statement, loop, loop.create_future(), self._retries())
        self._enqueue(request)
        return await request.answer

    def _enqueue(self, request: "_Request") -> None:
        with self._queue_lock:
            self._waiting.append(request)
            if self._is_flushing:
                return
            self._is_flushing = True
        background_loop().call_soon_threadsafe(self._flush_soon)

    def _flush_soon(self) -> None:
        """Run the statements that wait: at once, or in a batch when more have come."""
        if self._is_busy:
            background_loop().call_later(_GATHERING, self._flush)
        else:
            self._flush()

    def _flush(self) -> None:
        """Run the statements that wait, commit once, and then answer each of them."""
        with self._queue_lock:
            group, self._waiting = self._waiting[:_LARGEST_GROUP], self._waiting[_LARGEST_GROUP:]
        outcomes: Sequence[Outcome]
        try:
            outcomes = self._run([request.statement for request in group])
        except Exception as error:  # noqa: BLE001 -- each caller raises it
            outcomes = [error] * len(group)
        if any(_is_read_only(outcome) for outcome in outcomes):
            self._disconnect()  # a new connection may be able to write again
        self._answer(group, outcomes)
        self._is_busy = len(group) > 1
        with self._queue_lock:
            self._is_flushing = bool(self._waiting)
        if self._is_flushing:
            background_loop().call_soon(self._flush_soon)

    def _answer(self, group: Sequence["_Request"], outcomes: Sequence[Outcome]) -> None:
        """Answer the requests, with one message to each event loop, or repeat them later."""
        answers: defaultdict[asyncio.AbstractEventLoop, list[tuple[_Request, Outcome]]]
        answers = defaultdict(list)
        for request, outcome in zip(group, outcomes, strict=True):
            if isinstance(outcome, Exception):
                pause = request.retries.next_pause(outcome)
                if pause is not None:
                    background_loop().call_later(pause, self._enqueue, request)
                    continue
                outcome = self._unavailable(outcome)  # noqa: PLW2901 -- the caller's form of it
            answers[request.loop].append((request, outcome))
        for loop, some in answers.items():
            with suppress(RuntimeError):  # the loop was closed, so nobody waits
                loop.call_soon_threadsafe(_deliver, some)

    def _run(self, statements: Sequence[Sql]) -> Sequence[Outcome]:
        connection = self._connected()
        with self._file_lock.held():
            return run_together(connection, statements)

    def _connected(self) -> sqlite3.Connection:
        """Return the connection to the file that is at the path now."""
        if self._connection and self._was_replaced():
            self._disconnect()
        if self._connection is None:
            self._connection = self._connect()
        return self._connection

    def _connect(self) -> sqlite3.Connection:
        if not self._file.parent.is_dir():  # a mistyped path must not become an empty ledger
            raise LedgerUnavailable(
                f"the ledger at {self.redacted_url} cannot be used: its folder does not exist; "
                "create it, or correct COMETAPI_LEDGER_URL"
            )
        with suppress(FileExistsError):  # SQLite would make it and its journal readable by all
            os.close(os.open(self._file, os.O_CREAT | os.O_EXCL, 0o600))
        connection = sqlite3.connect(
            self._file,
            timeout=self.retry_timeout,
            isolation_level=None,
            check_same_thread=False,  # a forked child keeps it, and never uses it
            cached_statements=_CACHED_STATEMENTS,
        )
        try:
            with self._file_lock.held():
                _configure(connection)
                _create(connection, creation(_BEGIN))
                _create(connection, missing_columns(_BEGIN))
                # A ledger without the newest indexes is only slower.
                with suppress(sqlite3.Error):
                    _create(connection, missing_indexes(_BEGIN))
        except BaseException:
            connection.close()
            raise
        self._opened_file = _identity(self._file)
        return connection

    def _was_replaced(self) -> bool:
        """Return True if the path of the open file now belongs to another file.

        Raises:
            LedgerUnavailable: There is no file at the path. The open file could still be written,
                but nobody would ever read it again. A new, empty file would lack all purchases.
        """
        now = _identity(self._file)
        if now is None:
            raise LedgerUnavailable(
                f"the ledger at {self.redacted_url} was deleted or moved away while it was in use; "
                "put it back, because it records what was bought (a new process would start with "
                "an empty one)"
            )
        return now != self._opened_file

    async def _close(self) -> None:
        self._disconnect()

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection:
            connection.close()
            self._file_lock.close()

    def _detach(self) -> object:
        connection, self._connection = self._connection, None
        self._start_queue()
        self._file_lock.close()
        return connection


def _deliver(answers: Sequence[tuple[_Request, Outcome]]) -> None:
    """Give the answers to the callers, in their event loop."""
    for request, outcome in answers:
        if request.answer.done():  # the caller was cancelled
            continue
        if isinstance(outcome, Exception):
            request.answer.set_exception(outcome)
        else:
            request.answer.set_result(outcome)


def run_together(connection: sqlite3.Connection, statements: Sequence[Sql]) -> list[Outcome]:
    """Run statements in one transaction; return the answer or the error of each.

    A statement that fails leaves the others alone, unless the transaction is lost with it.

    Raises:
        Exception: The transaction was lost or could not be committed, so nothing has changed.
    """
    if len(statements) == 1 or all(statement.only_reads for statement in statements):
        return [_outcome(connection, statement) for statement in statements]
    connection.execute(_BEGIN[0])
    outcomes: list[Outcome] = []
    try:
        for statement in statements:
            outcomes.append(outcome := _outcome(connection, statement))
            if isinstance(outcome, Exception) and not connection.in_transaction:
                raise outcome
        connection.execute("COMMIT")
    except BaseException:
        _roll_back(connection)
        raise
    return outcomes


def _outcome(connection: sqlite3.Connection, statement: Sql) -> Outcome:
    started = Instant.now()
    try:
        return started, _rows(connection, statement)
    except SQLite.errors as error:
        return error


def _rows(connection: sqlite3.Connection, statement: Sql) -> list[Row]:
    values = {name: _bindable(value) for name, value in statement.values.items()}
    cursor = connection.execute(render(statement.text, SQLITE).text, values)
    rows = cursor.fetchall()
    names = [column[0] for column in cursor.description or ()]
    return [dict(zip(names, row, strict=True)) for row in rows]


def _bindable(value: Value) -> str | int | float | None:
    """Return a value as SQLite stores it: a time as a text in UTC, a list as JSON."""
    if isinstance(value, datetime):
        return value.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S.%f")
    if value is None or isinstance(value, str | int | float):
        return value
    return json.dumps(list(value))


def _create(connection: sqlite3.Connection, steps: Generator[Sql, Sequence[Row], None]) -> None:
    """Run the statements that create tables or indexes; all of them or none take effect."""
    try:
        statement = next(steps, None)
        while statement:
            rows = _rows(connection, statement)
            try:
                statement = steps.send(rows)
            except StopIteration:
                statement = None
    except BaseException:
        _roll_back(connection)
        raise


def _roll_back(connection: sqlite3.Connection) -> None:
    if connection.in_transaction:  # a lost transaction has been rolled back already
        with suppress(sqlite3.Error):
            connection.execute("ROLLBACK")


def _is_read_only(outcome: object) -> bool:
    return isinstance(outcome, sqlite3.OperationalError) and "readonly" in str(outcome)


def _configure(connection: sqlite3.Connection) -> None:
    connection.text_factory = _text_or_unchanged
    connection.execute("PRAGMA journal_mode=DELETE")  # converts a ledger with a write-ahead log
    # EXTRA also flushes the folder, else a deleted journal may come back after a power failure.
    connection.execute("PRAGMA synchronous=EXTRA")


def _text_or_unchanged(text: bytes) -> str | bytes:
    """Decode a text; return a corrupted one unchanged, which the row's reader then rejects."""
    try:
        return text.decode()
    except ValueError:
        return text


def _identity(file: Path) -> tuple[int, int] | None:
    """Return the device and inode of a file, or None if there is no file."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
