# SPDX-License-Identifier: Apache-2.0
"""URLs of ledgers as providers hand them out."""

import asyncio
import os
import shutil
import time
from contextlib import asynccontextmanager, suppress

import asyncpg
import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st

from prefect_cometapi.blocks import GenerationLedger
from prefect_cometapi.runway import Ledger, LedgerUnavailable
from prefect_cometapi.runway.ledger.database_errors import describe, is_transient
from prefect_cometapi.runway.ledger.database_url import DatabaseURL, parse_url
from prefect_cometapi.runway.ledger.libpq import Connection, connection_of
from prefect_cometapi.runway.ledger.open_database import ledger_url

LOGIN = "postgres.ref:pa%40ss@aws-0-eu.pooler.supabase.com:6543/postgres"


def read(url: str) -> Connection:
    return connection_of(parse_url(ledger_url(url)))


@pytest.mark.parametrize(
    ("url", "expected", "mode"),
    [
        ("postgres://u:p@ec2-1.compute.amazonaws.com:5432/d1", {}, None),  # Heroku
        ("postgresql://u:p@ep-x-pooler.neon.tech/neondb?sslmode=require", {}, "require"),
        ("psql 'postgresql://u:p@ep-x.neon.tech/neondb?channel_binding=require'", {}, "require"),
        ("'postgresql://u:p@ep-x.neon.tech/d?sslmode=require&channel_binding=require'", {}, "requ"),
        (f"postgresql://{LOGIN}?pgbouncer=true&connection_limit=1", {}, None),  # Supabase, Prisma
        ("postgres+asyncpg://u:p@h/d?ssl=require", {}, "require"),
        (
            "jdbc:postgresql://h:5432/d?user=u&password=p&ssl=true",
            {"user": "u", "password": "p", "host": "h", "port": 5432, "database": "d"},
            "require",
        ),
        ("postgresql://u@h/d?ssl=no-verify", {}, "require"),
        ("postgresql://u@h/d?ssl=false", {}, "disable"),
        (
            "postgresql:///d?host=/cloudsql/a:b:c&user=u&password=p",
            {"user": "u", "password": "p", "host": ["/cloudsql/a:b:c"], "database": "d"},
            None,
        ),
        ("postgresql://u@h/d?sslmode=prefer&channel_binding=prefer", {}, "prefer"),
        ("postgresql://u@h/d?sslmode=prefer&channel_binding=require", {}, "require"),
        ("postgresql://u@h/d?sslmode=verify-full&channel_binding=require", {}, "verify-full"),
        ("postgresql://u@h/d?sslrootcert=system", {}, "verify-full"),
    ],
)
def test_a_url_as_a_provider_shows_it(url, expected, mode):
    """The URL of a provider's console works as it is, with the TLS that it asks for."""
    found = read(url)
    assert {name: found.arguments[name] for name in expected} == expected
    dsn = found.arguments.get("dsn", "")
    assert (f"sslmode={mode}" in dsn) if mode else "sslmode" not in dsn
    assert ledger_url(ledger_url(url)) == ledger_url(url)


def test_every_parameter_of_libpq_has_its_effect():
    """Names, timeouts and options arrive at the server, and what has no effect is left out."""
    found = read(
        "postgresql://u:p@h/d?application_name=videos&connect_timeout=5&keepalives=1"
        "&options=-c%20search_path%3Dcomet%20-c%20statement_timeout%3D5s&gssencmode=disable"
        "&target_session_attrs=read-write&sslcert=/c.crt&sslkey=/c.key&sslrootcert=/r.crt"
        "&sslmode=verify-ca&ssl_min_protocol_version=TLSv1.2&client_encoding=utf8"
    )
    assert found.arguments["timeout"] == 5.0
    assert found.arguments["target_session_attrs"] == "read-write"
    assert found.arguments["server_settings"] == {
        "options": "-c search_path=comet -c statement_timeout=5s",
        "synchronous_commit": "on",
        "application_name": "videos",
        "search_path": "comet",
    }
    assert found.files == {"sslrootcert": "/r.crt", "sslcert": "/c.crt", "sslkey": "/c.key"}
    assert "ssl_min_protocol_version=TLSv1.2" in found.arguments["dsn"]
    assert not found.trusts_system
    assert (found.arguments["host"], found.arguments["database"]) == ("h", "d")


@pytest.mark.parametrize(
    ("query", "timeout"), [("", 10.0), ("connect_timeout=0", 10.0), ("connect_timeout=1", 2.0)]
)
def test_a_timeout_is_never_infinite(query, timeout):
    """Libpq has 0 for an infinite timeout, with which a run would hang."""
    assert read(f"postgresql://u@h/d?{query}").arguments["timeout"] == timeout


@pytest.mark.parametrize(
    ("query", "schema"),
    [
        ("", "public"),
        ("schema=comet", "comet"),
        ("currentSchema=comet", "comet"),
        ("options=-csearch_path%3Dcomet", "comet"),
        ("options=--search_path%3Dcomet&schema=other", "comet"),
    ],
)
def test_the_schema_that_a_url_names(query, schema):
    """Prisma, JDBC and libpq name the schema in different ways."""
    settings = read(f"postgresql://u@h/d?{query}").arguments["server_settings"]
    assert settings["search_path"] == schema


def test_a_pooler_gets_no_prepared_statements():
    """Behind a pooler of transactions, a prepared statement may be on another connection."""
    for url in (f"postgresql://{LOGIN}", "postgresql://u@h/d?pgbouncer=true"):
        assert read(url).arguments["statement_cache_size"] == 0
    assert "statement_cache_size" not in read("postgresql://u@h/d").arguments


def test_several_hosts():
    """A URL may name a primary and its standbys, with one port or several."""
    found = read("postgresql://u:p@a:1,b,[::1]:2/d?target_session_attrs=primary&sslmode=require")
    assert found.arguments["host"] == ["a", "b", "::1"]
    assert found.arguments["port"] == [1, 5432, 2]
    assert found.arguments["target_session_attrs"] == "primary"
    assert read("postgresql://u@a,b/d").arguments["host"] == ["a", "b"]
    assert read("postgresql://u@a:1,b/d").arguments["port"] == [1, 5432]
    listed = read("postgresql://u@/d?host=a,b:3,/run/pg&port=1,2,4").arguments
    assert (listed["host"], listed["port"]) == (["a", "b", "/run/pg"], [1, 3, 4])
    assert read("postgresql://u@[::1]:5433/d").arguments["host"] == "::1"
    assert ledger_url("postgresql://u@[::1]:5433/d") == "postgresql://u@[::1]:5433/d"


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("postgresql://u:s3cr3t@h/d?frobnicate=s3cr3t", "has the parameter 'frobnicate', which is"),
        ("postgresql://u@h/d?sslmode=on", "has sslmode='on': write one of disable, allow, prefer"),
        ("postgresql://u@h/d?host=a&port=x", "has port='x': write a number"),
        ("postgresql://u@h/d?connect_timeout=5s", "has connect_timeout='5s': write whole seconds"),
        (
            "postgresql://u@h/d?target_session_attrs=standby",
            "write one of any, read-write, primary",
        ),
        ("postgresql://u@h/d?sslmode=disable&channel_binding=require", "which exclude each other"),
        (
            "postgresql://postgres:[YOUR-PASSWORD]@db.x.supabase.co/postgres",
            "in place of the passw",
        ),
        ("postgresql://u:s3cr3t@h:port/d", "with %40 for an @ in the password, %2F for a / and"),
        ("host=h dbname=d user=u", "is not a valid database URL: write sqlite"),
    ],
)
def test_what_is_not_translated_is_named(url, problem):
    """A parameter that has no translation is named, in the variable and in the block."""
    with pytest.raises(LedgerUnavailable) as caught:
        ledger_url(url)
    assert problem in caught.value.message
    assert "s3cr3t" not in str(caught.value)
    with pytest.raises(ValueError, match="ledger's URL"):
        GenerationLedger.model_validate({"url": url})


words = st.none() | st.text(min_size=1)


@given(user=st.text(min_size=1), password=words, database=words, query=st.text())
def test_a_url_is_written_as_it_is_read(user, password, database, query):
    """No character in a password or a name changes which database a URL means."""
    url = DatabaseURL("postgresql", user, password, "h", 5432, database, {"options": [query]})
    assert parse_url(url.text) == url
    hidden = DatabaseURL("postgresql", user, password and "***", "h", 5432, database)
    assert url.redacted == hidden.redacted == hidden.text


@given(st.dictionaries(st.sampled_from(["sslmode", "options", "x", "user", "host"]), st.text()))
def test_any_query_is_translated_or_named(query):
    """Every query gives a connection or an error of this package."""
    url = DatabaseURL(
        "postgresql", username="u", host="h", query={n: [v] for n, v in query.items()}
    )
    with suppress(LedgerUnavailable):
        assert connection_of(url).arguments["user"] == "u"


async def fails(url: str) -> str:
    """Return the error of a ledger, which does not wait for what will not pass."""
    ledger = Ledger(url, retry_timeout=30)
    started = time.monotonic()
    with pytest.raises(LedgerUnavailable) as caught:
        await ledger.entries(limit=1)
    assert time.monotonic() - started < 10
    return caught.value.message


@asynccontextmanager
async def server(answer: bytes):
    """Answer the first message of a PostgreSQL client with these bytes."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(8)
        writer.write(answer)
        await reader.read(4096)
        writer.close()

    running = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with running:
        yield f"postgresql://u:p@127.0.0.1:{running.sockets[0].getsockname()[1]}/d"


async def test_a_server_without_tls_is_told_at_once():
    """A server that refuses TLS is not asked again for 30 seconds."""
    async with server(b"N") as url:
        told = await fails(f"{url}?sslmode=require")
    assert "rejected SSL upgrade; the server has no TLS, which the sslmode of the URL" in told


async def test_a_host_or_a_file_that_is_not_there_is_told_at_once(tmp_path):
    """An unknown host, and certificates that do not exist, are named without retries."""
    assert "check the host in its URL" in await fails("postgresql://u@nowhere.invalid/d")
    told = await fails(f"postgresql://u@h/d?sslmode=verify-full&sslrootcert={tmp_path}/no.crt")
    assert told == f"the ledger's URL has sslrootcert={tmp_path}/no.crt, which is not a file"


async def test_a_value_that_the_driver_does_not_know_is_told_at_once():
    """A misspelt version of TLS does not pass by itself."""
    url = "postgresql://u@127.0.0.1:1/d?sslmode=require&ssl_min_protocol_version=TLSv9"
    assert "ClientConfigurationError" in await fails(url)


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (
            asyncpg.ProtocolViolationError("unsupported startup parameter: search_path"),
            "direct URL",
        ),
        (
            asyncpg.InvalidPasswordError('password authentication failed for user "u"'),
            "password in",
        ),
        (asyncpg.InvalidCatalogNameError('database "d" does not exist'), "create it, or correct"),
        (asyncpg.InvalidAuthorizationSpecificationError("…, no encryption"), "add sslmode=require"),
    ],
)
def test_what_does_not_pass_by_itself_has_advice(error, advice):
    """A wrong password or database is not retried, and the error says what to change."""
    assert not is_transient(error)
    assert advice in describe(error)


@pytest.mark.heavy
async def test_a_real_server_with_the_urls_of_providers(postgres, monkeypatch, tmp_path):
    """The URLs work on a real server, without and with TLS, and what is wrong is told at once."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    url = postgres.create_database()
    host = url.partition("@")[2]
    by_name = host.replace("127.0.0.1", "localhost")
    postgres.execute("CREATE USER u PASSWORD 'right'")
    authority, home = trustme.CA(), postgres._data
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    certificate = authority.issue_cert("localhost")
    certificate.private_key_pem.write_to_path(home / "server.key")
    (home / "server.crt").write_bytes(b"".join(p.bytes() for p in certificate.cert_chain_pems))
    for name in ("server.key", "server.crt"):
        (home / name).chmod(0o600)
        if os.geteuid() == 0:
            shutil.chown(home / name, "postgres")
    rules = (home / "pg_hba.conf").read_text()
    (home / "pg_hba.conf").write_text("host all u all scram-sha-256\nhost all all all trust\n")

    async def works(given: str) -> None:
        ledger = Ledger(given, retry_timeout=30)
        assert await ledger.entries(limit=1) == []
        await ledger.database.close()

    try:
        postgres.execute("ALTER SYSTEM SET ssl = off")
        postgres.restart()
        await works(
            f"postgres://postgres@{host}?sslmode=prefer&application_name=x&connect_timeout=5"
            "&options=-c%20statement_timeout%3D5s&target_session_attrs=read-write&keepalives=1"
        )
        await works(f"postgres://postgres@127.0.0.1:1,{host}?pgbouncer=true&connection_limit=1")
        await works(f"jdbc:postgresql://{host}?user=postgres&ssl=false&currentSchema=public")
        assert "check the user and the password" in await fails(f"postgresql://u:wrong@{host}")
        nowhere = f"postgresql://postgres@{host.partition('/')[0]}/nowhere"
        assert 'database "nowhere" does not exist; create it' in await fails(nowhere)
        assert "has no TLS" in await fails(f"postgresql://postgres@{host}?channel_binding=require")
        postgres.execute("ALTER SYSTEM SET ssl = on")
        postgres.restart()
        tls = f"postgresql://postgres@{by_name}?channel_binding=require"
        await works(f"{tls}&sslmode=require")
        await works(f"{tls}&sslmode=verify-full&sslrootcert={tmp_path}/ca.pem")
        told = await fails(f"{tls}&sslmode=verify-full")
        assert "CERTIFICATE_VERIFY_FAILED" in told
        assert "name the provider's certificate: sslrootcert=FILE" in told
    finally:
        (home / "pg_hba.conf").write_text(rules)
        postgres.execute("ALTER SYSTEM SET ssl = off")
        postgres.restart()
