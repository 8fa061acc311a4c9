# SPDX-License-Identifier: Apache-2.0
"""Parts of SQL statements with named parameters, and their form in each database; pure.

A text names its parameters (``:key``), and names in braces what the databases spell differently
(``{now}``). The text of a statement depends on its kind alone and its values travel beside it. So
each kind is rendered once, and the prepared statements of the drivers are used again.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from typing import Any, NamedTuple

Value = str | int | float | datetime | Sequence[str] | None
"""Value of a parameter. A sequence belongs to ``{any:name}``."""

Row = Mapping[str, Any]
"""Row from a database, by column. A corrupted row may have a value of any type."""

_TOKEN = re.compile(r":([a-z]\w*)|\{([a-z_]+)(?::(\w+))?\}")


@dataclass(frozen=True)
class Sql:
    """Statement, or part of one, with the values of its parameters.

    Attributes:
        text: SQL with named parameters.
        values: Values by parameter.
    """

    text: str
    values: Mapping[str, Value] = field(default_factory=dict[str, Value], repr=False)

    def __add__(self, other: "Sql | str") -> "Sql":
        """Return both parts, one after the other."""
        if isinstance(other, str):
            return Sql(self.text + other, self.values)
        return join("", [self, other])

    @property
    def only_reads(self) -> bool:
        """True if the statement changes nothing."""
        return self.text.startswith(("SELECT ", "WITH "))


def join(separator: str, parts: Iterable[Sql]) -> Sql:
    """Return the parts with a separator between them.

    Raises:
        ValueError: Two parts have different values for one parameter.
    """
    texts: list[str] = []
    values: dict[str, Value] = {}
    for part in parts:
        texts.append(part.text)
        for name, value in part.values.items():
            if values.setdefault(name, value) != value:
                raise ValueError(f"the parameter {name} has two values")
    return Sql(separator.join(texts), values)


def all_of(conditions: Iterable[Sql]) -> Sql:
    """Return the condition that all of these conditions hold."""
    return join(" AND ", conditions)


def texts_in(values: Iterable[str]) -> str:
    """Return a list of constant texts for ``IN``, sorted; each may hold letters and ``_`` only.

    Constants in the text let the database use an index that covers only rows with these values.

    Raises:
        ValueError: A text has another character.
    """
    texts = sorted(values)
    if not all(re.fullmatch(r"\w+", text) for text in texts):
        raise ValueError("a constant in SQL may hold letters only")
    return "({})".format(", ".join(f"'{text}'" for text in texts))


@dataclass(frozen=True, eq=False)
class Dialect:
    """Spelling of one database.

    Attributes:
        words: Texts for the words in braces.
        any_of: Text for ``{any:name}``: equal to one of the texts of a parameter.
        numbers: True if parameters are numbered (``$1``) and not named.
    """

    words: Mapping[str, str]
    any_of: str
    numbers: bool


class Rendered(NamedTuple):
    """Statement in the spelling of one database.

    Attributes:
        text: SQL for the driver.
        names: Parameters in the order of their numbers.
    """

    text: str
    names: tuple[str, ...]


@lru_cache(maxsize=1024)
def render(text: str, dialect: Dialect) -> Rendered:
    """Return the text of a statement in the spelling of a database."""
    names: list[str] = []

    def parameter(name: str) -> str:
        if name not in names:
            names.append(name)
        return f"${names.index(name) + 1}" if dialect.numbers else f":{name}"

    def replacement(found: re.Match[str]) -> str:
        name, word, argument = found.groups()
        if name:
            return parameter(name)
        if argument:
            return dialect.any_of.format(parameter(argument))
        return dialect.words[word]

    return Rendered(_TOKEN.sub(replacement, text), tuple(names))


SQLITE = Dialect(
    words={
        "now": "((julianday('now') - 2440587.5) * 86400.0)",
        "binary": "BINARY",
        "same": "IS",
        "position": "instr",
        "skip_locked": "",
        "relations": "SELECT name FROM sqlite_master",
        "columns": "SELECT p.name FROM sqlite_master AS t JOIN pragma_table_info(t.name) AS p "
        "WHERE t.name =",
        "double": "DOUBLE",
        "time": "DATETIME",
    },
    any_of="IN (SELECT value FROM json_each({}))",
    numbers=False,
)

POSTGRESQL = Dialect(
    words={
        "now": "CAST(extract(epoch FROM clock_timestamp()) AS double precision)",
        "binary": '"C"',
        "same": "IS NOT DISTINCT FROM",
        "position": "strpos",
        "skip_locked": " FOR UPDATE SKIP LOCKED",
        "relations": "SELECT relname AS name FROM pg_catalog.pg_class "
        "WHERE relnamespace = to_regnamespace(quote_ident(current_schema()))",
        "columns": "SELECT attname AS name FROM pg_catalog.pg_attribute JOIN pg_catalog.pg_class "
        "ON attrelid = pg_class.oid AND attnum > 0 AND NOT attisdropped "
        "AND relnamespace = to_regnamespace(quote_ident(current_schema())) WHERE relname =",
        "double": "DOUBLE PRECISION",
        "time": "TIMESTAMP WITH TIME ZONE",
    },
    any_of="= ANY(CAST({} AS text[]))",
    numbers=True,
)
