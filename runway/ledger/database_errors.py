# SPDX-License-Identifier: Apache-2.0
"""Classification of database errors: which are transient, and what the user can do about others."""

import errno
import re
import socket
import sqlite3

from ..redact import scrub

COMMON_ERRORS = (
    OSError,
    TimeoutError,
    TypeError,  # raised by drivers for invalid parameters
    ValueError,
    OverflowError,
)
"""Errors that a statement, or the connection for it, may raise in every database."""

READ_ONLY = "25006"
"""SQLSTATE of PostgreSQL for a change that a standby, or a read-only server, rejects."""

# SQLSTATE prefixes of PostgreSQL: connection failure, shutdown or start, too many connections,
# rollback because of another transaction, and a standby, which may take over.
_TRANSIENT_STATES = ("08", "57P", "53300", "40", READ_ONLY)

# With several addresses, asyncio raises an OSError whose errno is None.
_TRANSIENT_ERRNOS = {None, errno.EHOSTUNREACH, errno.ENETUNREACH, socket.EAI_AGAIN}

# A driver or a pooler reports these like a lost connection, but they do not pass by themselves.
_PERMANENT = ("rejected SSL upgrade", "unsupported startup parameter", "CERTIFICATE_VERIFY_FAILED")

_RESTORE = "; put a backup in its place, and do not delete it: it records what was bought"

_ADVICE = {
    "is full|No space left": "; make room on its disk",
    "disk I/O error": "; check that its disk has room, is sound and can be written",
    "unable to open": "; check that its folder exists and can be written",
    "readonly database": "; make it writable",
    "too many clients|connection slots": "; raise max_connections, or run fewer processes",
    "read-only transaction": "; the server is a standby, or is set to read-only",
    "not a database|malformed|unsupported file": _RESTORE,
    "password authentication failed": "; check the user and the password in its URL",
    'database ".*" does not exist': "; create it, or correct the name in its URL",
    "Name or service not known|nodename nor servname": "; check the host in its URL",
    "rejected SSL upgrade": "; the server has no TLS, which the sslmode of the URL demands",
    "no encryption|SSL required|requires SSL": "; add sslmode=require to its URL",
    "CERTIFICATE_VERIFY_FAILED": "; name the provider's certificate: sslrootcert=FILE in its URL",
    "unsupported startup parameter": "; use the provider's direct URL, and not the pooled one",
}


def is_transient(error: Exception) -> bool:
    """Return True if the database is only locked, restarting or unreachable for now; pure."""
    if any(words in str(error) for words in _PERMANENT):
        return False
    if isinstance(error, sqlite3.Error):
        return any(words in str(error) for words in ("database is locked", "is busy"))
    if str(getattr(error, "sqlstate", None) or "").startswith(_TRANSIENT_STATES):
        return True
    unreachable = type(error) in {OSError, socket.gaierror}
    return isinstance(error, ConnectionError | TimeoutError) or (
        unreachable and isinstance(error, OSError) and error.errno in _TRANSIENT_ERRNOS
    )


def describe(error: Exception) -> str:
    """Return the reason of an error, followed by advice where there is any; pure."""
    text = scrub(str(error), limit=200)
    reason = f"{type(error).__name__}: {text}" if text else type(error).__name__
    found = (advice for pattern, advice in _ADVICE.items() if re.search(pattern, str(error)))
    return reason + next(found, "")
