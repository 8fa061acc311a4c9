# SPDX-License-Identifier: Apache-2.0
"""URLs of ledgers, and the database that each one names."""

import re
from pathlib import Path

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from ..errors import LedgerUnavailable
from .database import Database
from .postgres import PostgreSQL
from .sqlite import SQLite


def ledger_url(url: str) -> str:
    """Check the URL of a ledger, and return it with its driver.

    Raises:
        LedgerUnavailable: The URL is not valid for a ledger.
    """
    return _parse(url).render_as_string(hide_password=False)


def open_database(url: str, retry_timeout: float) -> Database:
    """Return the database at a URL, which connects on first use.

    Raises:
        LedgerUnavailable: The URL is not valid for a ledger.
    """
    parsed = _parse(url)
    kind = SQLite if parsed.get_backend_name() == "sqlite" else PostgreSQL
    return kind(parsed, retry_timeout)


def _parse(url: str) -> URL:
    try:
        parsed = make_url(re.sub("^postgres:", "postgresql:", url.strip()))
    except (ArgumentError, ValueError):
        raise LedgerUnavailable(
            "the ledger's URL is not a valid database URL: write sqlite:////folder/ledger.db or "
            "postgresql://user:password@host/database"
        ) from None
    backend = parsed.get_backend_name()
    if backend == "sqlite":
        path = Path(parsed.database or "")
        if not path.is_absolute() or path.name.startswith(":"):
            raise LedgerUnavailable(
                "the ledger's file needs an absolute path (sqlite:////folder/ledger.db): a worker "
                "runs flows in a temporary folder, and a database in memory is lost with its "
                "process"
            )
        return parsed.set(drivername="sqlite+pysqlite")
    if backend == "postgresql":
        query = {("ssl" if name == "sslmode" else name): it for name, it in parsed.query.items()}
        return parsed.set(drivername="postgresql+asyncpg", query=query)
    raise LedgerUnavailable(f"a ledger must be in SQLite or PostgreSQL, not in {backend}")
