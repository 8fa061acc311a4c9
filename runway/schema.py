# SPDX-License-Identifier: Apache-2.0
"""The ledger's table, and how an older one becomes the present one."""

from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
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
    func,
    inspect,
    select,
    text,
)
from sqlalchemy.engine import Connection
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

from .errors import LedgerUnavailable

VERSION = 2
"""Of the table. Each higher one needs an entry in MIGRATIONS."""

MIGRATIONS: dict[int, tuple[str, ...]] = {
    2: (
        """CREATE INDEX ix_cometapi_generations_kind
        ON cometapi_generations (base_url, route, model, submitted_at)""",
    ),
}
"""Statements that lead to a version from the one before it, the same on every database."""

_LOCK = 0x636F6D6574  # "comet"
_BEGIN = {
    "sqlite": ("BEGIN IMMEDIATE",),
    "postgresql": ("BEGIN", f"SELECT pg_advisory_xact_lock({_LOCK})"),
}
"""Begins a transaction in which all others that migrate the ledger wait."""


class UtcTime(TypeDecorator[datetime]):
    """A time with its zone, on databases without zones too."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Write it in UTC."""
        _ = dialect
        return value.astimezone(UTC) if value else None

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Read it as UTC."""
        _ = dialect
        return value if value is None or value.tzinfo else value.replace(tzinfo=UTC)

    def result_processor(self, dialect: Dialect, coltype: Any) -> Any:
        """What reads it; what is none, in a damaged row, becomes a text that is none either."""
        read = super().result_processor(dialect, coltype)

        def read_or_unreadable(value: Any) -> Any:
            try:
                return read(value) if read else value
            except (TypeError, ValueError):
                return "unreadable"

        return read_or_unreadable


class database_time(FunctionElement[float]):  # noqa: N801 -- reads as SQL's own functions do
    """Seconds since 1970 on the database's clock, the one clock that all holders share."""

    type = Double()
    inherit_cache = True


@compiles(database_time, "postgresql")
def _postgresql_time(*_args: Any, **_kwargs: Any) -> str:
    return "extract(epoch FROM clock_timestamp())::double precision"


@compiles(database_time, "sqlite")
def _sqlite_time(*_args: Any, **_kwargs: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


_metadata = MetaData()

generations = Table(
    "cometapi_generations",
    _metadata,
    Column("key", Text, primary_key=True),
    Column("state", Text, nullable=False, index=True),
    Column("task_id", Text, index=True),
    Column("claim", Text, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("holder", Text, index=True),
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
    Index("ix_cometapi_generations_kind", "base_url", "route", "model", "submitted_at"),
)

versions = Table("cometapi_ledger_version", _metadata, Column("version", Integer, nullable=False))


def migrate(connection: Connection) -> None:
    """Make the table, or bring an older one up to date, while nobody else does.

    Raises:
        LedgerUnavailable: A newer version of this package wrote it.
    """
    if _version(connection) == VERSION:
        return
    _begin(connection)
    try:
        found = _version(connection)
        if found is None:
            _metadata.create_all(connection)
            connection.execute(versions.insert().values(version=VERSION))
        elif found > VERSION:
            raise LedgerUnavailable(
                f"the ledger has version {found} and this package knows {VERSION}: "
                "a newer prefect-cometapi wrote it, so install that one here too"
            )
        else:
            for version in range(found + 1, VERSION + 1):
                for statement in MIGRATIONS[version]:
                    connection.execute(text(statement))
            connection.execute(versions.update().values(version=VERSION))
    except BaseException:
        with suppress(SQLAlchemyError):  # a lost connection took along what it began
            connection.exec_driver_sql("ROLLBACK")
        raise
    connection.exec_driver_sql("COMMIT")


def _version(connection: Connection) -> int | None:
    if not inspect(connection).has_table(versions.name):
        return None
    return connection.execute(select(func.max(versions.c.version))).scalar()


def _begin(connection: Connection) -> None:
    for statement in _BEGIN[connection.dialect.name]:
        connection.exec_driver_sql(statement)
