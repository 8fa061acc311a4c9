# SPDX-License-Identifier: Apache-2.0
"""Certificates and proxies of company networks work, and nothing is sent unverified."""

import ssl
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import pytest
import trustme

from prefect_cometapi.runway import DownloadInterrupted, ServiceUnavailable, Status

from ..proxies import http_proxy, socks_proxy
from .media.fetching import BODY, digest, download
from .static_server import static_server

BODY_OF_A_TASK = b'{"id":"t","status":"RUNNING"}'
CREATED = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (
    len(BODY_OF_A_TASK),
    BODY_OF_A_TASK,
)
HOST = "api.cometapi.com"


pytestmark = pytest.mark.usefixtures("plain_network")


@pytest.fixture
def authority():
    return trustme.CA()


@asynccontextmanager
async def service(certificate: trustme.LeafCert, reply: bytes = CREATED):
    """Answer each request over TLS; yield the address and the decrypted requests."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    async with static_server(reply, context) as (port, arrived):
        yield f"localhost:{port}", arrived


def expired(authority: trustme.CA) -> trustme.LeafCert:
    return authority.issue_cert("localhost", not_after=datetime.now(UTC) - timedelta(days=1))


def of_another(authority: trustme.CA) -> trustme.LeafCert:
    return authority.issue_cert("other.example.com")


def good(authority: trustme.CA) -> trustme.LeafCert:
    return authority.issue_cert("localhost", HOST, "cdn.example.com")


@pytest.mark.parametrize(
    ("made", "known", "reason"),
    [
        (good, False, "unable to get local issuer certificate"),
        (expired, True, "certificate has expired"),
        (of_another, True, "Hostname mismatch"),
    ],
)
async def test_nothing_is_sent_to_who_cannot_prove_who_it_is(
    made, known, reason, authority, monkeypatch, tmp_path, client_of, request_, api_key
):
    """Nothing is sent to a service whose certificate is unknown, expired or for another host."""
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    if known:
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    async with service(made(authority)) as (address, arrived):
        client = await client_of(f"https://{address}")
        for call in (client.create(request_), client.get("t")):
            with pytest.raises(ServiceUnavailable, match=reason) as raised:
                await call
            assert "nothing was charged" in str(raised.value)
            assert api_key not in str(raised.value)
        with pytest.raises(DownloadInterrupted, match=reason):
            await download(f"https://{address}/o", tmp_path / "o.mp4", trusted={"localhost"})
    assert arrived == []


async def test_an_authority_of_ones_own_is_trusted_by_the_usual_variable(
    authority, monkeypatch, tmp_path, client_of, request_
):
    """SSL_CERT_FILE works as in httpx and OpenSSL, for the API and for the video."""
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    async with service(good(authority)) as (address, _):
        client = await client_of(f"https://{address}")
        assert await client.create(request_) == "t"
        assert (await client.get("t")).status is Status.RUNNING
    video = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(BODY), BODY)
    async with service(good(authority), video) as (address, _):
        sha256 = await download(f"https://{address}/o", tmp_path / "o", trusted={"localhost"})
    assert sha256 == digest(BODY)


@pytest.mark.parametrize(
    ("proxy", "variable", "scheme"),
    [(http_proxy, "HTTPS_PROXY", "http"), (socks_proxy, "ALL_PROXY", "socks5")],
)
async def test_a_proxy_of_the_environment_is_gone_through(
    proxy, variable, scheme, authority, monkeypatch, tmp_path, client_of, request_, api_key
):
    """A proxy of the environment sees only host names, because its traffic stays encrypted."""
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    video = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(BODY), BODY)
    async with (
        service(good(authority)) as (address, arrived),
        service(good(authority), video) as (cdn, _),
        proxy(address) as to_service,
        proxy(cdn) as to_cdn,
    ):
        monkeypatch.setenv(variable, f"{scheme}://{to_service.address}")
        client = await client_of(f"https://{HOST}")
        assert await client.create(request_) == "t"
        assert (await client.get("t")).status is Status.RUNNING
        assert to_service.asked == [f"{HOST}:443"] * 2
        assert [f"Bearer {api_key}".encode() in head for head in arrived] == [True, True]
        monkeypatch.setenv(variable, f"{scheme}://{to_cdn.address}")
        sha256 = await download("https://cdn.example.com/o", tmp_path / "o")
        assert sha256 == digest(BODY)
        assert to_cdn.asked == ["cdn.example.com:443"]


async def test_no_proxy_is_heeded(authority, monkeypatch, tmp_path, client_of, request_):
    """A service in NO_PROXY is reached directly."""
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("NO_PROXY", "localhost")
    async with service(good(authority)) as (address, _):
        client = await client_of(f"https://{address}")
        assert await client.create(request_) == "t"
        assert (await client.get("t")).status is Status.RUNNING


async def test_a_proxy_that_is_down_is_told_and_nothing_was_bought(
    monkeypatch, client_of, request_
):
    """The submission was not sent, so it may be retried."""
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    client = await client_of(f"https://{HOST}")
    for call in (client.create(request_), client.get("t")):
        with pytest.raises(ServiceUnavailable, match="nothing was charged"):
            await call
