# SPDX-License-Identifier: Apache-2.0
"""Networks that give names other addresses than their own: NAT64, fake-IP DNS, portals."""

import pytest

from prefect_cometapi.deployments.commands import doctor
from prefect_cometapi.deployments.commands.doctor import network_finding
from prefect_cometapi.deployments.findings import Finding, Health, passed
from prefect_cometapi.runway import CometAPISettings
from prefect_cometapi.runway.media import ssrf_guard


@pytest.mark.parametrize(
    ("service", "public", "health", "says"),
    [
        (["1.1.1.1"], ["8.8.8.8"], Health.PASSED, "public addresses"),
        (["198.18.0.3"], ["198.18.0.4"], Health.WARNING, "fake-IP"),
        (["1.1.1.1"], ["198.19.0.4"], Health.WARNING, "fake-IP"),
        (["64:ff9b::101:101"], ["64:ff9b::808:808"], Health.WARNING, "NAT64"),
        (["1.1.1.1"], ["8.8.8.8", "64:ff9b:1::808:808"], Health.WARNING, "NAT64"),
        (["1.1.1.1"], ["10.0.0.1"], Health.WARNING, "non-public address 10.0.0.1"),
        (["1.1.1.1"], ["64:ff9b::a00:1"], Health.WARNING, "non-public address"),
        ([], [], Health.WARNING, "cannot be resolved"),
    ],
)
def test_the_doctor_warns_of_addresses_that_cost_a_paid_video(service, public, health, says):
    """A person paid for a video that the VPN of the machine made unreachable."""
    found = network_finding(service, public)
    assert found.health is health
    assert says in found.message
    assert bool(found.fix) is (health is Health.WARNING)


@pytest.mark.parametrize(
    ("proxy", "addresses", "says"),
    [
        ("http://proxy:3128", [], "through a proxy"),
        (None, ["127.0.0.1"], "the service is in this network"),
        (None, ["198.18.0.1"], "fake-IP"),
        (None, ["8.8.8.8"], "public addresses"),
        (None, None, "cannot be resolved"),
    ],
)
async def test_the_doctor_asks_the_resolver_of_the_machine(monkeypatch, proxy, addresses, says):
    """A person set a proxy, which resolves names by itself; a local service needs no internet."""

    async def resolve(_host: str, _port: int) -> list[str]:
        if addresses is None:
            raise OSError("unknown")
        return addresses

    for name in ("ALL_PROXY", "all_proxy", "HTTPS_PROXY", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    if proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy)
    monkeypatch.setattr(ssrf_guard, "resolve", resolve)
    assert says in (await doctor._network("https://api.cometapi.com")).message


async def test_the_reports_of_the_doctor_include_the_network(sandbox, monkeypatch):
    """A person ran `doctor` behind a VPN before the first purchase, and was warned."""

    async def resolve(_host: str, _port: int) -> list[str]:
        return ["198.18.0.1"]

    monkeypatch.setattr(ssrf_guard, "resolve", resolve)
    for name in ("_key", "_clock", "_storage", "_ledger"):
        monkeypatch.setattr(doctor, name, _nothing)
    for name in ("_account", "_prefect"):
        monkeypatch.setattr(doctor, name, _no_findings)
    monkeypatch.setattr(doctor, "_decoder", _nothing)
    settings = CometAPISettings()
    found = await doctor.run_checks(settings, None, "pool")
    assert [each.check for each in found if each.health is Health.WARNING] == ["network"]


async def _nothing(*_args: object) -> Finding:
    return passed("x", "")


async def _no_findings(*_args: object) -> list[Finding]:
    return []
