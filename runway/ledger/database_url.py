# SPDX-License-Identifier: Apache-2.0
"""URLs of ledgers: their parts, and what is checked about them; pure."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qsl, quote, unquote, urlencode

from ..errors import LedgerUnavailable

_URL = re.compile(
    r"""(?P<backend>\w+)(?:\+\w+)?://
    (?:(?P<username>[^:/?]*)(?::(?P<password>[^@]*))?@)?
    (?:\[(?P<ipv6>[^/?\]]+)\]|(?P<host>[^/:?]+))?(?::(?P<port>\d+))?
    (?:/(?P<database>[^?]*))?(?:\?(?P<query>.*))?""",
    re.VERBOSE,
)
_SEVERAL_HOSTS = re.compile(r"(postgresql[^:]*://(?:[^@/?]*@)?)([^@/?,]+(?:,[^@/?,]+)+)(.*)")


@dataclass(frozen=True)
class DatabaseURL:
    """Parts of a database URL.

    Attributes:
        backend: Kind of the database, such as postgresql.
        username: User, or None.
        password: Password, or None.
        host: Host, or None.
        port: Port, or None.
        database: Name of the database, or the path of a file, or None.
        query: Values of each parameter.
    """

    backend: str
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    host: str | None = None
    port: int | None = None
    database: str | None = None
    query: Mapping[str, Sequence[str]] = field(default_factory=dict[str, Sequence[str]], repr=False)

    @property
    def text(self) -> str:
        """URL with its password."""
        query = urlencode(self.query, doseq=True)
        return self._text(self.password) + (f"?{query}" if query else "")

    @property
    def redacted(self) -> str:
        """URL without its password and its query."""
        return self._text(None if self.password is None else "***")

    def _text(self, password: str | None) -> str:
        login = quote(self.username or "", safe="")
        login += "" if password is None else f":{quote(password, safe='*')}"
        host = f"[{self.host}]" if self.host and ":" in self.host else self.host or ""
        port = "" if self.port is None else f":{self.port}"
        path = "" if self.database is None else f"/{quote(self.database)}"
        return f"{self.backend}://{login}{'@' if login else ''}{host}{port}{path}"


_HARMLESS = re.compile(r"[\w./~-]{1,200}")
_SQLITE_SUFFIXES = (".db", ".sqlite", ".sqlite3")


def parse_url(text: str) -> DatabaseURL:
    """Return the parts of a database URL.

    Raises:
        ValueError: The text is not a URL.
    """
    found = _URL.fullmatch(text)
    if not found:
        raise ValueError("the text is not a database URL")
    query: dict[str, list[str]] = {}
    for name, value in parse_qsl(found["query"] or "", keep_blank_values=True):
        query.setdefault(name, []).append(value)
    parts = {name: found[name] for name in ("username", "password", "database")}
    return DatabaseURL(
        backend=found["backend"],
        host=found["ipv6"] or found["host"],
        port=int(found["port"]) if found["port"] else None,
        query=query,
        **{name: unquote(part) for name, part in parts.items() if part is not None},
    )


def read_url(url: str) -> DatabaseURL:
    """Return the parts of a ledger's URL; those of a file have its absolute path.

    Raises:
        LedgerUnavailable: The URL is not valid for a ledger.
    """
    text = _plain(url)
    if "[YOUR-PASSWORD]" in text:  # as Supabase shows it
        raise _invalid("the ledger's URL has [YOUR-PASSWORD] in place of the password")
    try:
        parsed = parse_url(text)
    except ValueError:
        raise _not_a_url(text) from None
    if parsed.backend == "sqlite":
        path = Path(parsed.database or "")
        if not path.is_absolute() or path.name.startswith(":"):
            raise _invalid(
                "the ledger's file needs an absolute path (sqlite:////folder/ledger.db): a worker "
                "runs flows in a temporary folder, and a database in memory is lost with its "
                "process"
            )
        return DatabaseURL("sqlite", host="", database=str(path))
    if parsed.backend == "postgresql":
        return parsed
    raise _invalid(f"a ledger must be in SQLite or PostgreSQL, not in {parsed.backend}")


def _not_a_url(text: str) -> LedgerUnavailable:
    """Return the error for a text that is not a URL; it shows the text only if that has no secret.

    A word or a path has none. Anything else may have a password in it.
    """
    shown = bool(_HARMLESS.fullmatch(text))
    if shown and ("/" in text or text.endswith(_SQLITE_SUFFIXES)):
        path = quote(str(Path(text).expanduser().absolute()))
        return _invalid(
            f"the ledger's URL is the path {text!r}, and not a database URL: for that file, write "
            f"sqlite:///{path}"
        )
    what = f"is {text!r}, which is not a database URL" if shown else "is not a valid database URL"
    return _invalid(
        f"the ledger's URL {what}: write sqlite:////folder/ledger.db or "
        "postgresql://user:password@host/database, with %40 for an @ in the password, %2F for a / "
        "and %3F for a ?"
    )


def _invalid(what: str) -> LedgerUnavailable:
    error = LedgerUnavailable(what)
    error.advice = "correct COMETAPI_LEDGER_URL."
    return error


def _plain(url: str) -> str:
    """Return a URL without what providers write around it; several hosts are in its query.

    Neon shows a command ``psql 'postgresql://…'``, Java has the prefix ``jdbc:``, and Heroku the
    scheme ``postgres:``.
    """
    text = re.sub(r"^psql\s+", "", url.strip()).strip("'\"")
    text = re.sub("^(jdbc:)?postgres(ql)?(?=[+:])", "postgresql", text)
    found = _SEVERAL_HOSTS.fullmatch(text)
    if not found:
        return text
    start, hosts, rest = found.groups()
    ports = (host if re.search(r":\d+$", host) else f"{host}:5432" for host in hosts.split(","))
    query = "&".join(f"host={quote(host, safe=':[]')}" for host in ports)
    return f"{start}{rest}{'&' if '?' in rest else '?'}{query}"
