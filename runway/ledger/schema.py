# SPDX-License-Identifier: Apache-2.0
"""Tables of the ledger, and their creation."""

from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Dialect,
    Double,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    TypeDecorator,
    case,
    func,
    inspect,
    select,
)
from sqlalchemy.engine import Connection
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

from ..errors import LedgerUnavailable

VERSION = 1
"""Version of the tables. A ledger with another version is refused."""


class UtcTime(TypeDecorator[datetime]):
    """Time with its zone, also on databases without time zones."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Convert the time to UTC before it is written."""
        _ = dialect
        return value.astimezone(UTC) if value else None

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Add UTC to a time that was read without a zone."""
        _ = dialect
        return value if value is None or value.tzinfo else value.replace(tzinfo=UTC)

    def result_processor(self, dialect: Dialect, coltype: Any) -> Any:
        """Return a function that reads a time, and turns a corrupted one into an invalid text."""
        read = super().result_processor(dialect, coltype)

        def read_or_unreadable(value: Any) -> Any:
            try:
                return read(value) if read else value
            except (TypeError, ValueError):
                return "unreadable"

        return read_or_unreadable


class database_time(FunctionElement[float]):  # noqa: N801 -- reads as SQL's own functions do
    """Seconds since 1970 on the database's clock, the only clock that all owners share."""

    type = Double()
    inherit_cache = True


@compiles(database_time, "postgresql")
def _postgresql_time(*_args: Any, **_kwargs: Any) -> str:
    return "extract(epoch FROM clock_timestamp())::double precision"


@compiles(database_time, "sqlite")
def _sqlite_time(*_args: Any, **_kwargs: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


class binary_key(FunctionElement[str]):  # noqa: N801 -- reads as SQL's own functions do
    """Key with byte-by-byte comparison, so that a range of keys is exact on every database."""

    type = Text()
    inherit_cache = True


@compiles(binary_key, "postgresql")
def _postgresql_key(element: Any, compiler: Any, **options: Any) -> str:
    return f'{compiler.process(element.clauses, **options)} COLLATE "C"'


@compiles(binary_key, "sqlite")
def _sqlite_key(element: Any, compiler: Any, **options: Any) -> str:
    return f"{compiler.process(element.clauses, **options)} COLLATE BINARY"


_metadata = MetaData()

generations = Table(
    "cometapi_generations",
    _metadata,
    Column("idempotency_key", Text, primary_key=True),
    Column("state", Text, nullable=False, index=True),
    Column("task_id", Text, index=True),
    Column("claim", Text, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("owner", Text, index=True),
    Column("leased_until", Double),
    Column("base_url", Text, nullable=False),
    Column("credentials", Text),
    Column("flow_run_id", Text, index=True),
    Column("route", Text),
    Column("model", Text),
    Column("fingerprint", Text),
    Column("request", JSON),
    Column("billed_seconds", Double),
    Column("storage", Text),
    Column("created_at", UtcTime, nullable=False, index=True),
    Column("changed_at", UtcTime, nullable=False),
    Column("submitted_at", UtcTime),
    Column("finished_at", UtcTime),
    Column("stored_at", UtcTime),
    Column("polls", Integer, nullable=False),
    Column("outputs", JSON, nullable=False),
    Column("videos", JSON, nullable=False),
    Column("failure_code", Text, nullable=False),
    Column("note", Text, nullable=False),
    Column("charges", Integer, nullable=False),
    Column("cost", Double),
    Column("currency", Text),
    Column("cost_source", Text),
    Column("claimed_at", UtcTime),
    Column("unresolved_since", UtcTime),
    Column("evidence", Text, nullable=False),
    Column("resubmitted_by", JSON, nullable=False),
    Column("task_id_checked", Boolean, nullable=False),
    Column("serial", BigInteger),
    Column("request_id", Text),
    Index("ix_cometapi_generations_kind", "base_url", "route", "model", "submitted_at"),
    Index("ix_cometapi_generations_serial", "serial"),
)
Index(
    "ix_cometapi_generations_spending",
    binary_key(generations.c.idempotency_key),
    *(
        generations.c[name]
        for name in ("charges", "cost", "currency", "cost_source", "billed_seconds", "model")
    ),
)

versions = Table(
    "cometapi_ledger_version",
    _metadata,
    Column("version", Integer, nullable=False),
    Column("identity", Text),
    Column("serial_floor", BigInteger, nullable=False),
)
"""Table with one row: the version of the tables, the identity of the ledger, and the serial floor.
The next claim gets a serial above the floor. The floor rises when the user accepts that claims are
missing, and when an entry is deleted."""

_highest = select(func.coalesce(func.max(generations.c.serial), 0)).scalar_subquery()
_floor = select(func.coalesce(func.max(versions.c.serial_floor), 0)).scalar_subquery()
last_serial = case((_highest > _floor, _highest), else_=_floor)
"""SQL expression for the serial of the newest claim, or the serial floor if that is higher. It only
grows, unless rows are lost."""


def create_tables(connection: Connection, begin: Sequence[str]) -> None:
    """Create the tables of a new ledger, while other processes that create them wait.

    Args:
        connection: Connection to the database.
        begin: Statements that begin a transaction and make the other processes wait.

    Raises:
        LedgerUnavailable: The tables have another version.
    """
    if _has_tables(connection):
        return
    for statement in begin:
        connection.exec_driver_sql(statement)
    try:
        if not _has_tables(connection):
            _metadata.create_all(connection)
            connection.execute(
                versions.insert().values(version=VERSION, identity=uuid4().hex, serial_floor=0)
            )
    except BaseException:
        with suppress(SQLAlchemyError):  # a lost connection has rolled back already
            connection.exec_driver_sql("ROLLBACK")
        raise
    connection.exec_driver_sql("COMMIT")


def _has_tables(connection: Connection) -> bool:
    """Return True if the tables exist in this version, or False if there are none."""
    if not inspect(connection).has_table(versions.name):
        return False
    found = connection.execute(select(func.max(versions.c.version))).scalar()
    if found != VERSION:
        raise LedgerUnavailable(
            f"the ledger has version {found} and this package uses version {VERSION}: "
            "install the version of prefect-cometapi that wrote the ledger"
        )
    return True
