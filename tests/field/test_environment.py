# SPDX-License-Identifier: Apache-2.0
"""Faults of the environment are one sentence that names the variable."""

import codecs
import os
import ssl
import subprocess
import sys
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trustme

from prefect_cometapi.deployments import cli, prefect_env
from prefect_cometapi.flows import image_to_video
from prefect_cometapi.flows.runtime.ledger_access import open_ledger
from prefect_cometapi.flows.runtime.run_context import RunContext
from prefect_cometapi.runway import ImageToVideoRequest, InvalidEnvironment, http_clients
from prefect_cometapi.runway.environment import check_environment, proxy_fault, read_settings

from ..runway.static_server import static_server

SECRET = "sk-s3cr3ts3cr3t"
SCRIPT = Path(sys.executable).parent / "prefect-cometapi"

pytestmark = [
    pytest.mark.filterwarnings("ignore:Cyclopts application invoked without tokens"),
    pytest.mark.usefixtures("plain_network"),
]


@pytest.fixture
def told(monkeypatch, capsys):
    """Return a function that runs a command which fails, and returns what it prints."""
    monkeypatch.setattr(os, "environ", os.environ.copy())

    def run(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["prefect-cometapi", *words])
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert end.value.code == 1
        printed = capsys.readouterr()
        assert printed.out.strip() == ""
        assert "Traceback" not in printed.err
        return printed.err

    return run


COMMANDS = [
    ("models",),
    ("doctor",),
    ("ledger", "list"),
    ("collect",),
    ("batch", "rows.csv", "--dry-run"),
    ("image-to-video", "https://example.com/cat.jpg", "zoom"),
    ("setup",),
]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_socks_proxy_as_other_programs_write_it(told, monkeypatch, words):
    """`ALL_PROXY=socks://…`, as GNOME writes it, is named by every command, with what to write."""
    monkeypatch.setitem(os.environ, "ALL_PROXY", f"socks://user:{SECRET}@127.0.0.1:9")
    printed = told(*words)
    assert "ALL_PROXY is not the address of a proxy (socks://127.0.0.1:9)" in printed
    assert "write http://host:port, https://host:port or socks5://host:port" in printed
    assert "Money: nothing was charged" in printed
    assert SECRET not in printed


@pytest.mark.parametrize("name", ["HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "all_proxy"])
@pytest.mark.parametrize(
    "value",
    [
        "ht tp://[x",
        "http://",
        "http://proxy:99999",
        "proxy:port",
        "socks4://h:1",
        "ftp://h",
        "://",
        " ",
        "h ",
    ],
)
def test_garbage_as_a_proxy(name, value):
    """Anything that is not the address of a proxy is named by its variable."""
    assert proxy_fault({name: value}).startswith(f"{name} is not the address of a proxy")


@pytest.mark.parametrize(
    "value", ["", "proxy", "proxy:3128", "http://u:p@proxy:3128/", "socks5h://[::1]:9"]
)
def test_a_proxy_as_it_should_be(value):
    """Every form that works passes the check."""
    assert proxy_fault({"HTTPS_PROXY": value}) == ""


@pytest.mark.parametrize("name", ["NO_PROXY", "no_proxy"])
def test_garbage_in_the_list_of_hosts_without_proxy(monkeypatch, name):
    """A host that is not one in NO_PROXY breaks every client of httpx, so it is named."""
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setenv(name, "localhost,[::1")
    with pytest.raises(InvalidEnvironment, match=f"{name} is not a list of host names"):
        check_environment()


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
@pytest.mark.parametrize(
    "content",
    ["COMETAPI_KEY=sk-a\n".encode("utf-16"), "COMETAPI_KEY=sk-a\n# clé\n".encode("cp1252")],
)
def test_a_dotenv_file_in_another_encoding(told, words, content):
    """A `.env` that PowerShell or an old editor wrote is named, with how to save it."""
    Path(".env").write_bytes(content)
    printed = told(*words)
    assert f"{Path('.env').absolute()} is not in UTF-8: save it as UTF-8" in printed


def test_a_dotenv_file_with_a_mark_or_without_rights(monkeypatch):
    """A `.env` with a byte order mark is read; one that may not be read is named."""
    Path(".env").write_bytes(codecs.BOM_UTF8 + b"COMETAPI_CURRENCY=EUR\n")
    assert read_settings().currency == "EUR"

    def refuse(*_args, **_kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(InvalidEnvironment, match=r"\.env cannot be read: Permission denied"):
        read_settings()


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("PRICES", "gen3a_turbo=0.32", 'write JSON such as {"gen3a_turbo": 0.256}, or the word'),
        ("PRICES", "[1]", "valid dictionary"),
        ("PRICES", '{"gen3a_turbo": "cheap"}', 'write 0.256 for a generation, or "0.05/s"'),
        ("POLL_INTERVAL", "5s", "valid number"),
        ("MAX_IN_FLIGHT", "many", "valid integer"),
        ("ON_UNCERTAIN", "retry", "'stop', 'resubmit' or 'reconcile'"),
        ("CURRENCY", "€", "pattern"),
        ("RUNWAY_VERSION", "2024 11", "pattern"),
        ("BASE_URL", "api.cometapi.com", "must be the root URL"),
        ("ALLOWED_ASSET_HOSTS", "https://cdn", "is not a host name"),
    ],
)
def test_any_setting_with_a_wrong_value(told, monkeypatch, name, value, problem):
    """A wrong value is named by its variable, on the command line and in a flow."""
    monkeypatch.setitem(os.environ, f"COMETAPI_{name}", value)
    printed = told("ledger", "list")
    assert f"COMETAPI_{name}" in printed
    assert problem in printed
    with pytest.raises(InvalidEnvironment) as caught:
        RunContext()
    assert f"COMETAPI_{name}" in caught.value.message
    assert problem in caught.value.message


def test_a_wrong_setting_is_found_before_a_server_starts(told, monkeypatch):
    """A command that needs Prefect does not start a server only to refuse a setting."""
    monkeypatch.setitem(os.environ, "COMETAPI_POLL_INTERVAL", "often")
    monkeypatch.setattr("prefect.client.orchestration.get_client", None)
    assert "COMETAPI_POLL_INTERVAL" in told("collect")


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (f'"{SECRET}"', "has quotes around it; leave them out"),
        (f"'{SECRET}", "has quotes around it"),
        (f"\N{LEFT DOUBLE QUOTATION MARK}{SECRET}\N{RIGHT DOUBLE QUOTATION MARK}", "has quotes"),
        (f"Bearer {SECRET}", "begins with the word Bearer; leave that out"),
        (f"bearer:{SECRET}", "begins with the word Bearer"),
        (f"{SECRET}\n{SECRET}", "has a blank or a line break in it"),
        (f"{SECRET} {SECRET}", "has a blank or a line break in it"),
        (f"{SECRET}\N{EN DASH}", "letters beyond ASCII or invisible ones"),
        (f"{SECRET}\N{ZERO WIDTH SPACE}", "letters beyond ASCII or invisible ones"),
        ("${COMETAPI_SECRET}", "this is the name of a variable, and not the"),
        ("$COMETAPI_SECRET", "this is the name of a variable"),
        ("%COMETAPI_SECRET%", "this is the name of a variable"),
        ("********", "this is a masked"),
    ],
)
@pytest.mark.parametrize("name", ["COMETAPI_KEY", "COMETAPI_ACCESS_TOKEN"])
def test_a_key_with_something_around_it(told, monkeypatch, name, value, problem):
    """Quotes, `Bearer` or a line break around the key are named, and the key is not shown."""
    monkeypatch.setitem(os.environ, name, value)
    printed = told("doctor")
    assert f"{name}: " in printed
    assert problem in printed
    assert SECRET not in printed


def test_a_key_between_blanks_works(monkeypatch):
    """A line end after the key, as a mounted secret has it, does not count."""
    monkeypatch.setenv("COMETAPI_KEY", f" {SECRET}\r\n")
    key = read_settings().key
    assert key is not None
    assert key.get_secret_value() == SECRET


@asynccontextmanager
async def company_server(authority: trustme.CA):
    """Serve one manifest under a certificate of a company."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    async with static_server(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}", context) as (
        port,
        _,
    ):
        yield f"https://localhost:{port}"


@pytest.mark.parametrize("name", ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
async def test_a_company_certificate_in_any_variable(monkeypatch, tmp_path, name):
    """The certificate of a company is read from the variables of requests and curl, too."""
    import httpx

    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "company.pem")
    async with company_server(authority) as url:
        async with httpx.AsyncClient(verify=http_clients.tls_context()) as http:
            with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
                await http.get(url)
        monkeypatch.setenv(name, str(tmp_path / "company.pem"))
        http_clients.tls_context.cache_clear()
        async with httpx.AsyncClient(verify=http_clients.tls_context()) as http:
            assert (await http.get(url)).json() == {}


@pytest.mark.parametrize("name", http_clients.CERTIFICATE_VARIABLES)
def test_certificates_that_are_not_there(told, monkeypatch, tmp_path, name):
    """A path that does not exist, or is not a certificate, is named with its variable."""
    monkeypatch.setenv(name, "/nowhere/company.pem")
    printed = told("models")
    assert f"{name} names the certificates /nowhere/company.pem, which cannot be read" in printed
    (tmp_path / "company.pem").write_text("no certificate")
    monkeypatch.setenv(name, str(tmp_path / "company.pem"))
    http_clients.tls_context.cache_clear()
    with pytest.raises(InvalidEnvironment, match=f"{name} names the certificates"):
        check_environment()


def test_a_folder_of_certificates(monkeypatch, tmp_path):
    """REQUESTS_CA_BUNDLE may be a folder, as for requests."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path))
    assert isinstance(http_clients.tls_context(), ssl.SSLContext)


@pytest.mark.parametrize("name", ["a?b", "a#b", "a%41b", "a %b", "100%", "é+ü&=;"])
async def test_a_prefect_home_with_odd_characters(monkeypatch, tmp_path, name):
    """The ledger is in Prefect's home, whatever characters its path has."""
    from prefect.settings import PREFECT_HOME, temporary_settings

    monkeypatch.delenv("COMETAPI_LEDGER_URL")
    home = tmp_path / name
    with temporary_settings({PREFECT_HOME: home}):
        ledger = await open_ledger()
    assert ledger.database.file == home / "cometapi-ledger.db"
    await ledger.entries(limit=1)
    await ledger.database.close()
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == [name]
    assert (home / "cometapi-ledger.db").exists()


@pytest.mark.parametrize(
    ("home", "version", "url"),
    [
        ("/a/b%41?c", "2.1.9", "sqlite+aiosqlite:////a/b%2541%3Fc/prefect.db"),
        ("/a/b%41?c", "2.0.50", None),
        ("/a/b", "2.1.9", None),
    ],
)
def test_prefects_own_database_is_in_its_home(monkeypatch, home, version, url):
    """A command starts Prefect's server with the database in the home, which Prefect misses."""
    monkeypatch.setattr(os, "environ", {"PREFECT_HOME": home})
    monkeypatch.setattr(prefect_env, "version", lambda _name: version)
    prefect_env.quieten_prefect()
    assert os.environ.get("PREFECT_SERVER_DATABASE_CONNECTION_URL") == url


@pytest.mark.server
def test_a_wrong_proxy_in_a_flow(prefect_server, sandbox, monkeypatch):
    """A flow on a machine with a wrong variable fails with its name, and sends nothing."""
    monkeypatch.setenv("CURL_CA_BUNDLE", "/nowhere/company.pem")
    http_clients.tls_context.cache_clear()
    with pytest.raises(InvalidEnvironment, match="CURL_CA_BUNDLE names the certificates"):
        image_to_video(ImageToVideoRequest(prompt_image="https://example.com/cat.jpg"))
    assert sandbox.requests == []


def test_help_in_a_broken_environment():
    """`--help` works whatever the environment is, and the command itself has no stack trace."""
    env = {**os.environ, "ALL_PROXY": "socks://127.0.0.1:9"}

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        words_ = [SCRIPT, *words]
        return subprocess.run(words_, env=env, capture_output=True, text=True, check=False)

    assert run("batch", "--help").returncode == 0
    done = run("collect")
    assert done.returncode == 1
    assert done.stderr.startswith("InvalidEnvironment: ALL_PROXY is not the address of a proxy")
