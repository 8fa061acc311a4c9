# SPDX-License-Identifier: Apache-2.0
"""Translation of PostgreSQL URLs, as providers hand them out, to arguments of asyncpg; pure.

Providers write URLs for libpq (``psql``), and some for Prisma or JDBC. asyncpg takes other names,
and sends every parameter that it does not know to the server as a setting.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import urlencode

from ..errors import LedgerUnavailable
from .database_url import DatabaseURL

_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
_SSL_VALUES = {"true": "require", "1": "require", "no-verify": "require"} | {
    "false": "disable",
    "0": "disable",
}
_IN_DSN = {"sslrootcert", "sslcert", "sslkey", "sslpassword", "sslcrl", "sslnegotiation"} | {
    "ssl_min_protocol_version",
    "ssl_max_protocol_version",
    "passfile",
    "krbsrvname",
    "gsslib",
}
"""Parameters that asyncpg reads from a URL as libpq does."""

_WITHOUT_EFFECT = {"keepalives", "keepalives_idle", "keepalives_interval", "keepalives_count"} | {
    "tcp_user_timeout",
    "gssencmode",
    "sslcompression",
    "sslsni",
    "client_encoding",
    "load_balance_hosts",
    "connection_limit",  # this one and the next are of Prisma
    "pool_timeout",
}
"""Parameters that the ledger does not need, or that asyncpg does anyway."""

_LOGIN = ("user", "password", "dbname")
_SCHEMAS = ("schema", "currentSchema", "search_path")  # Prisma, JDBC, and as a plain parameter
_WRITABLE = ("any", "read-write", "primary")
_SEARCH_PATH = re.compile(r"(?:-c\s*|--)search_path=(\w+)")
_DEFAULT_SCHEMA = "public"
_DEFAULT_PORT = 5432
_MAX_TIMEOUT = 10.0
_POOLER = re.compile(r"-pooler\.|\.pooler\.supabase\.|pgbouncer")


@dataclass(frozen=True)
class Connection:
    """Connection that a URL describes.

    Attributes:
        arguments: Keyword arguments of ``asyncpg.connect``.
        files: Files of certificates and keys, by their parameters.
        trusts_system: True if the server's certificate is verified with the certificates that this
            machine trusts, unless libpq's own file of root certificates exists.
    """

    arguments: dict[str, Any] = field(repr=False)
    files: Mapping[str, str] = field(repr=False)
    trusts_system: bool = False


def with_login(url: DatabaseURL) -> DatabaseURL:
    """Return a URL whose query has no user, password or database: they are part of the URL."""
    given = {name: _one(url.query[name]) for name in _LOGIN if name in url.query}
    return replace(
        url,
        username=given.get("user") or url.username,
        password=given.get("password", url.password),
        database=given.get("dbname") or url.database,
        query={name: value for name, value in url.query.items() if name not in _LOGIN},
    )


def connection_of(url: DatabaseURL) -> Connection:
    """Return the connection that a URL of libpq, Prisma or JDBC describes.

    Raises:
        LedgerUnavailable: A parameter is not known, or its value cannot be used.
    """
    given = {name: _one(value) for name, value in url.query.items()}
    left = set(given) - _IN_DSN - _WITHOUT_EFFECT - set(_SCHEMAS) - {"host", "port"}
    left -= {"ssl", "sslmode", "channel_binding", "application_name", "fallback_application_name"}
    left -= {"connect_timeout", "options", "target_session_attrs", "pgbouncer"}
    if left:
        raise LedgerUnavailable(
            f"the ledger's URL has the parameter {min(left)[:40]!r}, which is not known: "
            "leave it out. A setting of the server is written as options=-c%20name%3Dvalue"
        )
    mode = _mode(given)
    dsn = {name: value for name, value in given.items() if name in _IN_DSN}
    verifies = mode in {"verify-ca", "verify-full"}
    is_system = dsn.get("sslrootcert") == "system"
    if is_system:
        del dsn["sslrootcert"]
    if mode:
        dsn["sslmode"] = mode
    arguments: dict[str, Any] = {
        **_server(url),
        "timeout": _timeout(given.get("connect_timeout", "")),
        "command_timeout": 30,
        "server_settings": _server_settings(given),
    }
    if dsn:
        arguments["dsn"] = f"postgresql://?{urlencode(dsn)}"
    if attributes := given.get("target_session_attrs"):
        arguments["target_session_attrs"] = _choice("target_session_attrs", attributes, _WRITABLE)
    if given.get("pgbouncer") == "true" or _POOLER.search(url.host or ""):
        # Behind a pooler, the next statement may reach another connection of the server.
        arguments["statement_cache_size"] = 0
    return Connection(
        arguments=arguments,
        files={n: dsn[n] for n in ("sslrootcert", "sslcert", "sslkey", "sslcrl") if n in dsn},
        trusts_system=is_system or (verifies and "sslrootcert" not in dsn),
    )


def schema_of(given: Mapping[str, str]) -> str:
    """Return the schema of the tables, from ``options=-csearch_path=NAME`` in the URL, or public.

    Otherwise two roles with different search paths would each use a ledger of their own in the same
    database.
    """
    named = _SEARCH_PATH.search(given.get("options", ""))
    found = named[1] if named else next((given[n] for n in _SCHEMAS if given.get(n)), "")
    return found or _DEFAULT_SCHEMA


def _server_settings(given: Mapping[str, str]) -> dict[str, str]:
    name = given.get("application_name") or given.get("fallback_application_name")
    options = {"options": given["options"]} if given.get("options") else {}
    return options | {
        "synchronous_commit": "on",
        "application_name": name or "prefect-cometapi",
        "search_path": schema_of(given),
    }


def _server(url: DatabaseURL) -> dict[str, Any]:
    """Return the arguments for the addresses and the login; asyncpg has defaults for the others."""
    hosts, listed = _listed(url, "host"), _listed(url, "port")
    if invalid := next((port for port in listed if not re.fullmatch("[0-9]{1,5}", port)), None):
        raise LedgerUnavailable(f"the ledger's URL has port={invalid[:40]!r}: write a number")
    shared = [int(port) for port in listed] or [url.port]
    addresses = [_address(host) for host in hosts] or [(url.host, url.port)]
    ports = [
        port or shared[min(number, len(shared) - 1)] for number, (_, port) in enumerate(addresses)
    ]
    arguments: dict[str, Any] = {
        "user": url.username,
        "password": url.password,
        "database": url.database or None,
        "host": [host for host, _ in addresses] if hosts else url.host,
    }
    if any(ports):
        filled = [port or _DEFAULT_PORT for port in ports]
        arguments["port"] = filled if hosts else filled[0]
    return {name: value for name, value in arguments.items() if value is not None}


def _listed(url: DatabaseURL, name: str) -> list[str]:
    return [one for value in url.query.get(name, ()) for one in value.split(",")]


def _address(host: str) -> tuple[str, int | None]:
    """Return the host and the port of an address; the path of a socket may hold colons."""
    found = re.fullmatch(r"(\[.+\]|[^/:]+)(?::([0-9]{1,5}))?", host)
    if not found:
        return host, None
    return found[1].strip("[]"), int(found[2]) if found[2] else None


def _mode(given: Mapping[str, str]) -> str:
    """Return the TLS mode; asyncpg cannot bind channels, so a URL that requires it gets TLS."""
    written = given.get("sslmode") or given.get("ssl", "")
    mode = _SSL_VALUES.get(written.lower(), written)
    if given.get("sslrootcert") == "system" and mode in {"", "require"}:
        mode = "verify-full"  # as libpq, with which no weaker mode is possible
    if mode:
        _choice("sslmode", mode, _MODES)
    if given.get("channel_binding") != "require" or mode in _MODES[3:]:
        return mode
    if mode == "disable":
        raise LedgerUnavailable(
            "the ledger's URL has channel_binding=require and sslmode=disable, which exclude each "
            "other"
        )
    return "require"


def _timeout(text: str) -> float:
    if not text:
        return _MAX_TIMEOUT
    if not re.fullmatch(r"-?\d{1,6}", text):
        raise LedgerUnavailable(
            f"the ledger's URL has connect_timeout={text[:40]!r}: write whole seconds"
        )
    return float(max(2, int(text))) if int(text) > 0 else _MAX_TIMEOUT


def _choice(name: str, value: str, choices: tuple[str, ...]) -> str:
    if value not in choices:
        raise LedgerUnavailable(
            f"the ledger's URL has {name}={value[:40]!r}: write one of {', '.join(choices)}"
        )
    return value


def _one(values: Sequence[str]) -> str:
    return " ".join(values)
