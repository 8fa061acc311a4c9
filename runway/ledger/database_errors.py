# SPDX-License-Identifier: Apache-2.0
"""Classification of database errors: which are transient, and what the user can do about others."""

import errno
import re
import socket

import asyncpg
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from ..redact import scrub

DATABASE_ERRORS = (
    SQLAlchemyError,
    asyncpg.PostgresError,  # refused connection; SQLAlchemy wraps this error only from 2.1 on
    OSError,
    TimeoutError,
    TypeError,  # raised by drivers for invalid parameters in a URL
    ValueError,
    OverflowError,
)
"""Errors that a statement, or the connection for it, may raise."""

# SQLSTATE prefixes of PostgreSQL: connection failure, shutdown or start, too many connections, and
# rollback because of another transaction.
_TRANSIENT_STATES = ("08", "57P", "53300", "40")

# With several addresses, asyncio raises an OSError whose errno is None.
_TRANSIENT_ERRNOS = {None, errno.EHOSTUNREACH, errno.ENETUNREACH, socket.EAI_AGAIN}

_RESTORE = "; put a backup in its place, and do not delete it: it records what was bought"

_ADVICE = {
    "is full|No space left": "; make room on its disk",
    "disk I/O error": "; check that its disk has room, is sound and can be written",
    "unable to open": "; check that its folder exists and can be written",
    "readonly database": "; make it writable",
    "too many clients|connection slots": "; raise max_connections, or run fewer processes",
    "read-only transaction": "; the server is a standby, or is set to read-only",
    "not a database|malformed|unsupported file": _RESTORE,
}


def is_transient(error: Exception) -> bool:
    """Return True if the database is only locked, restarting or unreachable for now; pure."""
    if isinstance(error, DBAPIError):
        if error.connection_invalidated:
            return True
        locked = any(word in str(error.orig) for word in ("database is locked", "is busy"))
        away = isinstance(error.orig, OSError) or isinstance(cause_of(error.orig), OSError)
        return _has_transient_state(error.orig) or locked or away
    if _has_transient_state(error):  # a refused connection raises the driver's own error
        return True
    unreachable = type(error) in {OSError, socket.gaierror}
    return isinstance(error, ConnectionError | TimeoutError | PoolTimeout) or (
        unreachable and isinstance(error, OSError) and error.errno in _TRANSIENT_ERRNOS
    )


def cause_of(error: BaseException | None) -> BaseException | None:
    """Return the cause of an error, or None."""
    return error.__cause__ if error else None


def describe(error: Exception) -> str:
    """Return the reason of an error, followed by advice where there is any; pure."""
    cause = getattr(error, "orig", None) or error
    text = scrub(str(cause), limit=200)
    reason = f"{type(cause).__name__}: {text}" if text else type(cause).__name__
    found = (advice for pattern, advice in _ADVICE.items() if re.search(pattern, str(cause)))
    return reason + next(found, "")


def _has_transient_state(error: BaseException | None) -> bool:
    return str(getattr(error, "sqlstate", None) or "").startswith(_TRANSIENT_STATES)
