# SPDX-License-Identifier: Apache-2.0
"""The command `doctor` finds problems of a paid run in advance, and names their fixes."""

import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.settings import PREFECT_API_URL, temporary_settings

from prefect_cometapi.deployments.commands import doctor
from prefect_cometapi.deployments.commands.doctor import (
    SKEW,
    balance_finding,
    clock_finding,
)
from prefect_cometapi.deployments.findings import Health
from prefect_cometapi.runway import CometAPISettings, StorageError
from prefect_cometapi.runway.media import inspector
from prefect_cometapi.runway.models.account import AccountBalance

pytestmark = pytest.mark.server

POOL = "of-doctor"


@pytest.fixture
def told(clean_server, command, capsys):
    """Run the command; return its exit status and its output on one line."""

    def run(*words: str) -> tuple[int, str]:
        status = command("doctor", *words)
        return status, " ".join(capsys.readouterr().out.split())

    return run


async def workers(*names: str) -> None:
    """Create a pool with heartbeats of these workers."""
    async with get_client() as client:
        await client.create_work_pool(WorkPoolCreate(name=POOL, type="process"))
        for name in names:
            await client.send_worker_heartbeat(POOL, name, heartbeat_interval_seconds=30)


def test_a_good_machine_gets_a_good_report(shell, tmp_path):
    """Key, clock, storage, ledger and server are checked, and nothing is bought or left behind."""
    done = shell("doctor")
    for good in ("CometAPI", "clock", "storage", "ledger", "Prefect"):
        assert f"✓ {good}" in done.stdout
    assert done.returncode == 0, done.stdout
    assert shell.sandbox.accepted == []
    assert list((tmp_path / "videos").glob("*")) in ([], [tmp_path / "videos" / ".incoming"])


@pytest.mark.parametrize(
    ("setting", "value", "found", "fix"),
    [
        ("KEY", "", "✗ CometAPI there is no API key", "set COMETAPI_KEY"),
        ("BASE_URL", "http://127.0.0.1:9", "✗ CometAPI", "check the network of this machine"),
        ("STORAGE", "/proc/videos", "✗ storage", "set COMETAPI_STORAGE"),
        ("STORAGE", "s3-bucket/none", "✗ storage", "set COMETAPI_STORAGE"),
        ("LEDGER_URL", "mysql://host/db", "✗ ledger", "correct COMETAPI_LEDGER_URL"),
        ("LEDGER_URL", "generation-ledger/none", "✗ ledger", "correct COMETAPI_LEDGER_URL"),
    ],
)
def test_each_problem_is_reported_with_its_fix(told, monkeypatch, setting, value, found, fix):
    """Each problem is printed with its fix, and the exit status is 1."""
    monkeypatch.setenv(f"COMETAPI_{setting}", value)
    status, report = told()
    assert status == 1
    assert found in report
    assert fix in report


def test_an_unreachable_server_is_reported(told):
    """An unreachable server is reported without a stack trace, with the setting of its address."""
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
        status, report = told()
    assert status == 1
    assert "✗ Prefect the server does not answer: ConnectError" in report
    assert "correct PREFECT_API_URL" in report


def test_without_a_server_it_says_what_is_missing(told):
    """Without a server, the command says that runs work and schedules do not."""
    with temporary_settings({PREFECT_API_URL: None}):
        status, report = told()
    assert status == 0
    assert "! Prefect PREFECT_API_URL is not set" in report


@pytest.mark.parametrize(
    ("fault", "found"),
    [
        ("task:unauthorized", "✗ CometAPI"),
        ("task:html", "✗ CometAPI"),
        ("task:429", "! CometAPI"),
    ],
)
def test_the_reply_of_the_service_is_reported(told, sandbox, fault, found):
    """A refused key, a wrong address and a busy service are reported without the API key."""
    sandbox.add_fault(f"{fault}:times=20")
    status, report = told()
    assert status == ("✗" in found)
    assert found in report
    assert "sk-canary" not in report


@pytest.mark.parametrize(
    ("fault", "token", "found", "is_failure"),
    [
        ("", None, "✓ balance", False),
        ("", None, "✓ catalogue 7 models with Runway's routes", False),
        ("", "sandbox-access-token", "✓ access token CometAPI lists the account's tasks", False),
        ("", "at-wrong-wrong", "✗ access token rejected: HTTP 401", True),
        ("tasks:500", "sandbox-access-token", "! access token unknown: HTTP 500", False),
        ("billing:html", None, "! balance unknown: /v1/dashboard/billing/subscription", False),
        ("models:500", None, "! catalogue unknown or incomplete: HTTP 500", False),
    ],
)
def test_the_account_is_reported(told, sandbox, monkeypatch, fault, token, found, is_failure):
    """Balance, access token and catalogue are checked; what does not answer is a warning."""
    if token:
        monkeypatch.setenv("COMETAPI_ACCESS_TOKEN", token)
    if fault:
        sandbox.add_fault(fault)
    status, report = told()
    assert found in report
    assert status == is_failure
    assert "at-wrong" not in report


def test_each_balance_has_its_finding():
    """An empty account is a warning, and a key without a limit is not."""
    empty = balance_finding(AccountBalance(usd=0))
    assert (empty.health, empty.message) == (Health.WARNING, "0.00 USD")
    assert "top up" in empty.fix
    assert balance_finding(AccountBalance(is_unlimited=True)).health is Health.PASSED
    assert balance_finding(AccountBalance(usd=1)).health is Health.PASSED


def test_another_service_is_not_taken_for_cometapi(told, monkeypatch):
    """A 404 in another service's JSON does not count as an answer about the API key."""

    class Elsewhere(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(404)
            self.send_header("content-type", "application/json")
            self.end_headers()
            self.wfile.write(b'{"detail": "Not Found"}')

        do_HEAD = do_GET  # noqa: N815

    with ThreadingHTTPServer(("127.0.0.1", 0), Elsewhere) as server:
        Thread(target=server.serve_forever).start()
        url = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setenv("COMETAPI_BASE_URL", url)
        status, report = told()
        server.shutdown()
    assert status == 1
    assert f"✗ CometAPI {url} does not respond like CometAPI" in report
    assert "correct COMETAPI_BASE_URL" in report


def test_a_clock_that_is_off_is_found(told, monkeypatch):
    """The local clock is compared with the date in the service's replies."""
    monkeypatch.setattr(doctor, "time", lambda: time.time() + 100)
    status, report = told()
    assert status == 1
    assert "s ahead of CometAPI's clock Fix: enable NTP" in report


def test_a_missing_pool_is_reported(told):
    """A missing pool is reported with the command that creates it."""
    _, report = told("--pool", "nowhere")
    assert "there is no work pool nowhere Fix: prefect-cometapi setup --pool nowhere" in report


@pytest.mark.parametrize(
    ("reached", "found"),
    [
        ([], "✓ decoder confined"),
        (
            ["files", "network"],
            "! decoder not confined: a malicious video could reach files, network",
        ),
        (StorageError("it ended with 3"), "✗ decoder it ended with 3"),
    ],
    ids=["confined", "free", "broken"],
)
def test_a_decoder_that_is_not_confined_is_reported(told, monkeypatch, reached, found):
    """The report says what an untrusted video in the decoder could reach."""

    def reaches():
        if isinstance(reached, Exception):
            raise reached
        return reached

    monkeypatch.setattr(inspector, "decoder_reaches", reaches)
    status, report = told()
    assert found in report
    assert status == ("✗" in found)


async def test_a_pool_without_workers_is_reported(clean_server, sandbox):
    """A pool without workers is reported with the command that starts one."""
    await workers()
    found = await doctor.run_checks(CometAPISettings(), None, POOL)
    assert found[-1].health is Health.FAILED
    assert found[-1].fix == f"prefect worker start --pool {POOL}"


async def test_one_worker_needs_nothing_shared(clean_server, sandbox):
    """A single worker may use a ledger and a folder of its own."""
    await workers("first")
    found = await doctor.run_checks(CometAPISettings(), None, POOL)
    assert (found[-1].health, found[-1].message) == (
        Health.PASSED,
        f"one worker is online in the pool {POOL}",
    )


async def test_workers_without_shared_locations_are_reported(clean_server, sandbox):
    """Several workers with separate ledgers and folders are reported with the settings to share."""
    await workers("first", "second")
    found = await doctor.run_checks(CometAPISettings(), None, POOL)
    assert found[-1].health is Health.WARNING
    assert "COMETAPI_LEDGER_URL=postgresql://" in found[-1].fix
    assert "COMETAPI_STORAGE=s3://" in found[-1].fix


@pytest.mark.heavy
async def test_several_workers_with_shared_places_are_well(
    clean_server, sandbox, postgres, monkeypatch
):
    """Several workers with one PostgreSQL and one object store pass the check."""
    monkeypatch.setenv("COMETAPI_LEDGER_URL", postgres.create_database())
    await workers("first", "second")
    found = await doctor.run_checks(CometAPISettings(), "memory://videos", POOL)
    assert found[-1].message == "2 workers are online, with a shared ledger and storage"


@given(st.floats(-1e6, 1e6))
def test_a_wrong_clock_is_reported(ahead):
    """A clock that is off by more than half a minute is reported."""
    found = clock_finding(ahead)
    assert (found.health is Health.FAILED) == (abs(ahead) > SKEW)
    if found.health is Health.FAILED:
        assert ("ahead of" in found.message) == (ahead > 0)
