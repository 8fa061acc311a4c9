# SPDX-License-Identifier: Apache-2.0
"""A doctor that finds what a paid run would stumble over, and says how to mend it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_cometapi.deployments.doctor import SKEW, Health, clock_finding

pytestmark = pytest.mark.server


def told(shell, *words: str, **env: str) -> tuple[int, str]:
    """Exit status and output of the command."""
    done = shell("doctor", *words, **env)
    assert "Traceback" not in done.stderr
    return done.returncode, " ".join(done.stdout.split())


def test_a_good_machine_gets_a_good_report(shell, tmp_path):
    """Key, clock, storage, ledger and server are looked at; nothing is bought or left behind."""
    _, report = told(shell)
    for good in ("CometAPI", "clock", "storage", "ledger", "Prefect"):
        assert f"✓ {good}" in report
    assert shell.sandbox.accepted == []
    assert list((tmp_path / "videos").glob("*")) in ([], [tmp_path / "videos" / ".incoming"])


@pytest.mark.parametrize(
    ("env", "found", "mend"),
    [
        ({"COMETAPI_KEY": ""}, "✗ CometAPI there is no API key", "set COMETAPI_KEY"),
        ({"COMETAPI_BASE_URL": "http://127.0.0.1:9"}, "✗ CometAPI", "see that this machine"),
        ({"COMETAPI_STORAGE": "/proc/videos"}, "✗ storage", "set COMETAPI_STORAGE"),
        ({"COMETAPI_LEDGER_URL": "mysql://host/db"}, "✗ ledger", "correct COMETAPI_LEDGER_URL"),
        ({"COMETAPI_LEDGER_URL": "generation-ledger/none"}, "✗ ledger", "COMETAPI_LEDGER_URL"),
        ({"PREFECT_API_URL": "http://127.0.0.1:9/api"}, "✗ Prefect", "correct PREFECT_API_URL"),
    ],
)
def test_what_is_wrong_is_told_with_what_mends_it(shell, env, found, mend):
    """Each finding has its remedy, and the exit status is 1."""
    status, report = told(shell, **env)
    assert status == 1
    assert found in report
    assert mend in report


def test_a_refused_key_is_told(shell):
    """The service's refusal is the finding; the key itself is not shown."""
    shell.sandbox.add_fault("task:unauthorized")
    status, report = told(shell)
    assert status == 1
    assert "✗ CometAPI" in report
    assert "sk-canary" not in report


def test_a_pool_that_is_not_there_is_told(shell):
    """It names the command that makes it."""
    _, report = told(shell, "--pool", "nowhere")
    assert "there is no work pool nowhere prefect-cometapi setup makes it" in report


@given(st.floats(-1e6, 1e6))
def test_a_clock_that_is_off_is_told(ahead):
    """Beyond half a minute signed addresses and leases go wrong."""
    found = clock_finding(ahead)
    assert (found.health is Health.BAD) == (abs(ahead) > SKEW)
    if found.health is Health.BAD:
        assert ("ahead of" in found.told) == (ahead > 0)
