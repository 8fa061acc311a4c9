# SPDX-License-Identifier: Apache-2.0
"""Choice of the database that a ledger's URL names."""

from .database import Database
from .database_url import DatabaseURL, read_url
from .libpq import connection_of, with_login
from .sqlite import SQLite


def ledger_url(url: str) -> str:
    """Check the URL of a ledger, and return it in one form, without the name of a driver.

    Raises:
        LedgerUnavailable: The URL is not valid for a ledger.
    """
    return _checked(url).text


def open_database(url: str, retry_timeout: float) -> Database:
    """Return the database at a URL, which connects on first use.

    Raises:
        LedgerUnavailable: The URL is not valid for a ledger.
    """
    checked = _checked(url)
    if checked.backend == "sqlite":
        return SQLite(checked, retry_timeout)
    from .postgres import PostgreSQL  # a ledger in a file never loads its driver

    return PostgreSQL(checked, retry_timeout)


def _checked(url: str) -> DatabaseURL:
    parsed = read_url(url)
    if parsed.backend == "postgresql":
        parsed = with_login(parsed)
        connection_of(parsed)
    return parsed
