# SPDX-License-Identifier: Apache-2.0
"""SQLite database of the ledger, for one machine.

SQLite uses a rollback journal, so that between two changes the ledger is one file, which can be
copied or moved like any other file. A lock file beside it protects a process that copies the ledger
from losing its locks. Each change is flushed to disk, and so is the folder. A write-ahead log would
be faster, but it is a second file: a copy of the first file alone lacks purchases, and a process
that closes its own descriptor of the file drops the locks that guard the log.
"""

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, StaticPool, Table, create_engine, event
from sqlalchemy.dialects import sqlite
from sqlalchemy.engine import URL
from sqlalchemy.exc import OperationalError

from ..errors import LedgerUnavailable
from .clock import Instant
from .database import ENGINE_OPTIONS, Database, fetch
from .file_lock import FileLock
from .schema import create_tables


class SQLite(Database):
    """Database in a SQLite file.

    All statements run in the background thread over one connection, since SQLite has one writer at
    a time. So waiting for a lock may block the thread.

    Args:
        url: URL with the absolute path of the file.
        retry_timeout: Maximum seconds to wait for a file that is locked.
    """

    is_shared = False

    def __init__(self, url: URL, retry_timeout: float) -> None:
        super().__init__(url, retry_timeout)
        self._file = Path(url.database or "")
        self._file_lock = FileLock(self._file, retry_timeout)
        self._connection: Connection | None = None
        self._opened_file: tuple[int, int] | None = None

    @property
    def file(self) -> Path:
        """Path of the database file."""
        return self._file

    def insert_new(self, table: Table) -> Any:
        """Return an insert statement without values, which skips rows whose keys exist."""
        return sqlite.insert(table).on_conflict_do_nothing()

    async def _execute(self, statement: Any, lock: str | None) -> tuple[Instant, list[Any]]:
        """Run a statement once; a file has only one writer at a time and needs no lock."""
        _ = lock
        connection = self._connected()
        try:
            with self._file_lock.held():
                started = Instant.now()
                return started, fetch(connection.execute(statement))
        except OperationalError as error:
            if "readonly" in str(error.orig):  # a new connection may be able to write again
                self._disconnect()
            raise

    def _connected(self) -> Connection:
        """Return the connection to the file that is at the path now."""
        if self._connection and self._was_replaced():
            self._disconnect()
        if self._connection is None:
            self._connection = self._connect()
        return self._connection

    def _connect(self) -> Connection:
        self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with suppress(FileExistsError):  # SQLite would make it and its journal readable by all
            os.close(os.open(self._file, os.O_CREAT | os.O_EXCL, 0o600))
        engine = create_engine(
            self._url,
            connect_args={"timeout": self.retry_timeout},
            json_deserializer=_json_or_unchanged,
            poolclass=StaticPool,
            **ENGINE_OPTIONS,
        )
        event.listen(engine, "connect", _configure)
        try:
            with self._file_lock.held():
                connection = engine.connect()
                create_tables(connection, begin=("BEGIN IMMEDIATE",))
        except BaseException:
            engine.dispose()
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
            connection.engine.dispose()
            self._file_lock.close()

    def _detach(self) -> object:
        connection, self._connection = self._connection, None
        self._file_lock.close()
        return connection


def _configure(connection: Any, _record: Any) -> None:
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


def _json_or_unchanged(text: Any) -> Any:
    """Parse JSON; return a corrupted text unchanged, which the row's reader then rejects."""
    try:
        return json.loads(text)
    except (TypeError, ValueError):
        return text


def _identity(file: Path) -> tuple[int, int] | None:
    """Return the device and inode of a file, or None if there is no file."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
