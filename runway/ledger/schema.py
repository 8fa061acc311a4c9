# SPDX-License-Identifier: Apache-2.0
"""Tables of the ledger, and their creation."""

from collections.abc import Generator, Sequence
from typing import NamedTuple
from uuid import uuid4

from ..errors import LedgerUnavailable
from .entry import State
from .statement import Row, Sql, texts_in

VERSION = 1
"""Version of the tables. A ledger with another version is refused."""

GENERATIONS = "cometapi_generations"
"""Name of the table with one row for each generation."""

VERSIONS = "cometapi_ledger_version"
"""Name of the table with one row: the version of the tables, the identity of the ledger, and the
serial floor. The next claim gets a serial above the floor. The floor rises when the user accepts
that claims are missing, and when an entry is deleted."""


class Column(NamedTuple):
    """Column of a table.

    Attributes:
        name: Name of the column.
        type: Type in SQL; ``{time}`` and ``{double}`` differ between the databases.
        required: True if the column is never NULL.
    """

    name: str
    type: str
    required: bool = False

    def definition(self) -> str:
        """Return the column as part of ``CREATE TABLE``."""
        return f"{self.name} {self.type}{' NOT NULL' if self.required else ''}"


COLUMNS = (
    Column("idempotency_key", "TEXT", required=True),
    Column("state", "TEXT", required=True),
    Column("task_id", "TEXT"),
    Column("claim", "TEXT", required=True),
    Column("attempts", "INTEGER", required=True),
    Column("owner", "TEXT"),
    Column("leased_until", "{double}"),
    Column("base_url", "TEXT", required=True),
    Column("credentials", "TEXT"),
    Column("flow_run_id", "TEXT"),
    Column("route", "TEXT"),
    Column("model", "TEXT"),
    Column("fingerprint", "TEXT"),
    Column("request", "JSON"),
    Column("billed_seconds", "{double}"),
    Column("storage", "TEXT"),
    Column("created_at", "{time}", required=True),
    Column("changed_at", "{time}", required=True),
    Column("submitted_at", "{time}"),
    Column("finished_at", "{time}"),
    Column("stored_at", "{time}"),
    Column("polls", "INTEGER", required=True),
    Column("outputs", "JSON", required=True),
    Column("videos", "JSON", required=True),
    Column("failure_code", "TEXT", required=True),
    Column("note", "TEXT", required=True),
    Column("charges", "INTEGER", required=True),
    Column("cost", "{double}"),
    Column("currency", "TEXT"),
    Column("cost_source", "TEXT"),
    Column("claimed_at", "{time}"),
    Column("unresolved_since", "{time}"),
    Column("evidence", "TEXT", required=True),
    Column("resubmitted_by", "JSON", required=True),
    Column("task_id_checked", "BOOLEAN", required=True),
    Column("serial", "BIGINT"),
    Column("request_id", "TEXT"),
    Column("deployment_id", "TEXT"),
    Column("deployment", "TEXT"),
    Column("tags", "JSON"),
    Column("list_cost", "{double}"),
    Column("list_currency", "TEXT"),
)
"""Columns of the generations. Rows are read and written by these names. A ledger of an older
release gets the columns that it lacks, so a new column must not be required."""

JSON_COLUMNS = frozenset(column.name for column in COLUMNS if column.type == "JSON")
TIME_COLUMNS = frozenset(column.name for column in COLUMNS if column.type == "{time}")

UNKNOWN_STATE = f"state NOT IN {texts_in(State)}"
"""Condition that a row has none of the states, so it is corrupted."""

DELIVERED = f"state IN {texts_in([State.SUCCEEDED, State.STORED])}"
"""Condition that a row is of a generation that succeeded."""

UNRESOLVED = (
    f"(state IN {texts_in([State.CLAIMED, State.UNCERTAIN, State.WRITTEN_OFF])} "
    "OR unresolved_since IS NOT NULL OR (task_id IS NOT NULL AND task_id_checked = FALSE))"
)
"""Condition that a row has a submission whose outcome is unknown."""

BINARY_KEY = "idempotency_key COLLATE {binary}"
"""Key with byte-by-byte comparison, so that a range of keys is exact on every database."""

_INDEXES = {
    "created_at": "(created_at)",
    "state_created": "(state, created_at)",
    "unknown_state": f"(created_at) WHERE {UNKNOWN_STATE}",
    "unresolved": f"(base_url, created_at) WHERE {UNRESOLVED}",
    "submitted_at": "(submitted_at)",
    "kind": "(base_url, route, model, submitted_at)",
    "kind_seconds": "(base_url, model, route, billed_seconds, submitted_at)",
    "serial": "(serial)",
    "owner": "(owner)",
    "flow_run_id": "(flow_run_id)",
    "task_id": "(task_id)",
    "spending": f"({BINARY_KEY}, charges, cost, currency, cost_source, billed_seconds, model)",
}
"""Indexes of the generations. A partial index needs a new name when its condition changes."""

LAST_SERIAL = Sql(
    f"""(SELECT CASE WHEN highest > floor THEN highest ELSE floor END FROM
    (SELECT (SELECT coalesce(max(serial), 0) FROM {GENERATIONS}) AS highest,
    (SELECT coalesce(max(serial_floor), 0) FROM {VERSIONS}) AS floor) AS serials)"""
)
"""Serial of the newest claim, or the serial floor if that is higher. It only grows, unless rows are
lost."""

NEXT_SERIAL = LAST_SERIAL + " + 1"
"""Serial of the next claim."""


def index_name(name: str) -> str:
    """Return the name in the database of an index of the generations."""
    return f"ix_{GENERATIONS}_{name}"


def creation(begin: Sequence[str]) -> Generator[Sql, Sequence[Row], None]:
    """Yield the statements that create the tables of a new ledger; send the rows of each.

    Args:
        begin: Statements that begin a transaction and make other processes wait that create them.

    Raises:
        LedgerUnavailable: The tables have another version.
    """
    if (yield from _has_tables()):
        return
    for statement in begin:
        yield Sql(statement)
    if not (yield from _has_tables()):
        columns = ", ".join(column.definition() for column in COLUMNS)
        yield Sql(f"CREATE TABLE {GENERATIONS} ({columns}, PRIMARY KEY (idempotency_key))")
        yield Sql(
            f"CREATE TABLE {VERSIONS} (version INTEGER NOT NULL, identity TEXT, "
            "serial_floor BIGINT NOT NULL)"
        )
        for name in _INDEXES:
            yield _index(name)
        yield Sql(
            f"INSERT INTO {VERSIONS} (version, identity, serial_floor) "
            "VALUES (:version, :identity, 0)",
            {"version": VERSION, "identity": uuid4().hex},
        )
    yield Sql("COMMIT")


def missing_columns(begin: Sequence[str]) -> Generator[Sql, Sequence[Row], None]:
    """Yield the statements that add the columns that an older ledger lacks; send the rows of each.

    An older release still uses such a ledger: it reads and writes columns by their names.

    Args:
        begin: Same as for ``creation``.
    """
    if not (yield from _lacking()):
        return
    for statement in begin:
        yield Sql(statement)
    for column in (yield from _lacking()):  # another process may have added them meanwhile
        yield Sql(f"ALTER TABLE {GENERATIONS} ADD COLUMN {column.definition()}")
    yield Sql("COMMIT")


def missing_indexes(begin: Sequence[str]) -> Generator[Sql, Sequence[Row], None]:
    """Yield the statements that add the indexes that an older ledger lacks; send the rows of each.

    Args:
        begin: Same as for ``creation``.
    """
    missing = yield from _missing()
    if not missing:
        return
    for statement in begin:
        yield Sql(statement)
    for name in missing:
        yield _index(name)
    yield Sql("COMMIT")


def _index(name: str) -> Sql:
    return Sql(f"CREATE INDEX IF NOT EXISTS {index_name(name)} ON {GENERATIONS} {_INDEXES[name]}")


def _relations() -> Generator[Sql, Sequence[Row], set[str]]:
    rows = yield Sql("{relations}")
    return {str(row["name"]) for row in rows}


def _lacking() -> Generator[Sql, Sequence[Row], list[Column]]:
    rows = yield Sql(f"{{columns}} '{GENERATIONS}'")
    there = {str(row["name"]) for row in rows}
    return [column for column in COLUMNS if column.name not in there]


def _missing() -> Generator[Sql, Sequence[Row], list[str]]:
    there = yield from _relations()
    return [name for name in _INDEXES if index_name(name) not in there]


def _has_tables() -> Generator[Sql, Sequence[Row], bool]:
    """Return True if the tables exist in this version, or False if there are none."""
    if VERSIONS not in (yield from _relations()):
        return False
    (row,) = yield Sql(f"SELECT max(version) AS version FROM {VERSIONS}")
    if row["version"] != VERSION:
        raise LedgerUnavailable(
            f"the ledger has version {row['version']} and this package uses version {VERSION}: "
            "install the version of prefect-cometapi that wrote the ledger"
        )
    return True
