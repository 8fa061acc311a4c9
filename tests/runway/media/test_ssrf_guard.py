# SPDX-License-Identifier: Apache-2.0
"""An untrusted address can lead only to the public internet."""

import asyncio
import socket
from ipaddress import IPv4Address, IPv4Network, IPv6Address
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError

from prefect_cometapi.runway import CometAPISettings, DownloadInterrupted, InvalidOutput
from prefect_cometapi.runway.http_clients import NetworkTransport
from prefect_cometapi.runway.media.download import AssetClients
from prefect_cometapi.runway.media.ssrf_guard import (
    PublicAddresses,
    Resolve,
    is_fake,
    is_nat64,
    is_public,
)

from ...machine import needs_ipv6
from .fetching import BODY, digest, download

INSIDE = {
    "this machine": ["127.0.0.1", "127.8.8.8", "::1", "0.0.0.0", "::"],
    "a private network": ["10.0.0.1", "172.16.0.1", "192.168.1.1", "fd00::1", "fec0::1"],
    "a neighbour": ["169.254.1.1", "fe80::1", "fe80::1%eth0"],
    "a provider's inside (CGNAT)": ["100.64.0.1", "100.127.255.255"],
    "a cloud's metadata": [
        "169.254.169.254",
        "169.254.170.2",
        "100.100.100.200",
        "168.63.129.16",
        "192.0.0.192",
        "fd00:ec2::254",
    ],
    "many at once": ["224.0.0.1", "239.255.255.250", "255.255.255.255", "ff02::1", "ff0e::1"],
    "IPv4 in disguise": [
        "::ffff:127.0.0.1",
        "::ffff:168.63.129.16",
        "::127.0.0.1",
        "64:ff9b::a9fe:a9fe",
        "64:ff9b::a00:1%eth0",
        "64:ff9b::",
        "64:ff9b:1::a00:1",
        "64:ff9b:1:a00:0:100:808:808",  # 10.0.0.1 after 48 bits
        "64:ff9b:1:a:0:1:808:808",  # 10.0.0.1 after 56 bits
        "64:ff9b:1:0:a:0:100:0",  # 10.0.0.1 after 64 bits
        "64:ff9b:1::",
        "2002:7f00:1::",
        "2002:a9fe:a9fe::1",
        "2001:0:4136:e378:8000:63bf:3fff:fdd2",
        "2001:0:a00:1:0:0:f7f7:f7f7",  # a private server in Teredo
        "2001:0:808:808:0:0:f5ff:fffe",  # a private client in Teredo
        "2606:4700::5efe:a00:1",
        "2606:4700::200:5efe:7f00:1",
        "fe80::5efe:808:808",
    ],
    "nobody": [
        "192.0.2.1",
        "198.51.100.1",
        "203.0.113.1",
        "198.18.0.1",
        "240.0.0.1",
        "2001:db8::1",
    ],
    "no address": ["", "localhost", "8.8.8", "08.8.8.8", "1.1.1.1 ", "0x7f000001", "2130706433"],
}
PUBLIC = ["1.1.1.1", "8.8.8.8", "104.16.0.1", "2606:4700::1111", "2a00:1450:4001::1"]
PUBLIC += ["::ffff:8.8.8.8", "::8.8.8.8", "64:ff9b::808:808", "64:ff9b::6810:1", "2002:808:808::1"]
PUBLIC += ["64:ff9b:1::808:808", "64:ff9b:1:1::6810:1", "64:ff9b:1:808:8:800::"]
PUBLIC += ["2001:0:4136:e378:8000:63bf:f7f7:f7f7", "2606:4700::5efe:808:808"]


@pytest.mark.parametrize(
    "address", [one for ones in INSIDE.values() for one in ones], ids=lambda one: one or "empty"
)
def test_what_is_not_the_internet_is_not_asked(address):
    """Every kind of internal address is refused, in each of its forms."""
    assert not is_public(address)


@pytest.mark.parametrize("address", PUBLIC)
def test_the_internet_is_asked(address):
    """Public addresses, as CDNs have them, are allowed."""
    assert is_public(address)


@given(st.integers(0, 2**32 - 1).map(IPv4Address))
@example(IPv4Address("10.0.0.1"))
@example(IPv4Address("8.8.8.8"))
@example(IPv4Address("169.254.169.254"))
def test_an_address_is_judged_by_the_one_that_it_carries(address):
    """Every IPv6 form of an IPv4 address is as public as that one."""
    number = int(address)
    for disguise in (
        number,  # ::a.b.c.d
        0xFFFF << 32 | number,  # mapped
        0x64FF9B << 96 | number,  # NAT64
        0x2002 << 112 | number << 80,  # 6to4
        0x2001 << 112 | number ^ 0xFFFFFFFF,  # Teredo
        0x26064700 << 96 | 0x5EFE << 32 | number,  # ISATAP
    ):
        assert is_public(str(IPv6Address(disguise))) == is_public(str(address))


@given(st.integers(0, 2**32 - 1).map(IPv4Address), st.integers(0, 2**64 - 1))
@example(IPv4Address("10.0.0.1"), 0)
def test_no_position_in_a_local_nat64_leads_inside(address, rest):
    """The prefix of a local NAT64 has 48, 56, 64 or 96 bits, and whatever follows is ignored."""
    if is_public(str(address)) or address in IPv4Network("0.0.0.0/8"):
        return
    number, prefix = int(address), 0x64FF9B0001 << 80
    low = rest & 0xFF_FFFF
    for form in (
        number >> 16 << 64 | (number & 0xFFFF) << 40 | low,
        number >> 24 << 64 | (number & 0xFF_FFFF) << 32 | low,
        number << 24 | low,
        rest >> 32 << 32 | number,
    ):
        assert not is_public(str(IPv6Address(prefix | form)))


@given(st.integers(0, 2**32 - 1).map(IPv4Address) | st.integers(0, 2**128 - 1).map(IPv6Address))
def test_nothing_private_is_public(address):
    """Addresses that Python knows to be special are refused."""
    special = (
        address.is_private
        or address.is_loopback
        or address.is_link_local
        or address.is_multicast
        or address.is_unspecified
    )
    assert not (special and is_public(str(address)))


def names(*addresses: str):
    """Make every host name resolve to these addresses."""

    async def resolved(_host: str, _port: int) -> list[str]:
        return list(addresses)

    return resolved


async def ask(url: str, find: Resolve, seconds: float = 9.0) -> httpx.Response:
    """Send a request through a transport that connects to public addresses only."""
    transport = NetworkTransport(PublicAddresses(find))
    extensions = {"timeout": {"connect": seconds, "read": seconds}}
    try:
        return await transport.handle_async_request(
            httpx.Request("GET", url, extensions=extensions)
        )
    finally:
        await transport.aclose()


@pytest.fixture
async def asked(monkeypatch) -> list[str]:
    """Record the addresses of all connections; each is refused, as by a closed port."""
    addresses: list[str] = []

    async def refuse(_socket: socket.socket, address: tuple[str, int]) -> None:
        addresses.append(address[0])
        raise ConnectionRefusedError(111, f"{address[0]} refused")

    monkeypatch.setattr(asyncio.get_running_loop(), "sock_connect", refuse)
    return addresses


async def test_a_name_that_leads_inside_is_refused_and_not_connected_to(asked):
    """The error names the address and the setting that would allow it."""
    with pytest.raises(InvalidOutput, match=r"169\.254.*COMETAPI_ALLOWED_ASSET_HOSTS"):
        await ask("https://evil.com/", names("169.254.169.254", "10.0.0.1"))
    assert asked == []


async def test_the_connection_goes_to_the_address_that_was_looked_at(asked):
    """The connection uses the checked address, because the name may change its meaning."""
    with pytest.raises(httpx.ConnectError):
        await ask("https://rebinding.com/", names("127.0.0.1", "1.1.1.1"))
    assert asked == ["1.1.1.1"]


async def test_the_next_address_is_tried_where_one_does_not_answer(asked):
    """If none of the addresses answers, the connection is broken."""
    with pytest.raises(httpx.ConnectError, match=r"8\.8\.8\.8 refused"):
        await ask("https://cdn.com/", names("1.1.1.1", "8.8.8.8"))
    assert {"1.1.1.1", "8.8.8.8"} == set(asked)


async def test_a_name_behind_nat64_is_connected_to(asked):
    """A network without IPv4 gives each CDN such an address."""
    with pytest.raises(httpx.ConnectError):
        await ask("https://cdn.com/", names("64:ff9b::a00:1", "64:ff9b::6810:1"))
    assert asked == ["64:ff9b::6810:1"]


@pytest.mark.parametrize("host", ["2130706433", "127.1", "0177.0.0.1", "10.0.0.1", "[::1]"])
async def test_a_number_that_no_resolver_sees_is_not_connected_to(host, asked):
    """A host that looks like an address is checked too, although it is not resolved."""
    with pytest.raises((InvalidOutput, httpx.InvalidURL), match=r"non-public|IPv4 address"):
        await ask(f"https://{host}/", names("1.1.1.1"))
    assert asked == []


async def test_an_invented_address_is_named_as_such():
    """A VPN that invents addresses is the cause, not the host."""
    with pytest.raises(InvalidOutput, match=r"198\.18\.0\.7, which a VPN or proxy made up"):
        await ask("https://cdn.com/", names("198.18.0.7"))


def test_an_invented_address_and_nat64_are_recognized():
    """A text that is not an address is neither."""
    assert [is_fake(each) for each in ("198.19.255.255", "198.20.0.0", "x")] == [True, False, False]
    assert is_nat64("64:ff9b::1")
    assert is_nat64("64:ff9b:1:ffff::1")
    assert not is_nat64("8.8.8.8")


async def test_a_name_without_an_address_is_a_break():
    """A name that does not resolve may do so again in a moment."""
    with pytest.raises(httpx.ConnectError, match=r"cdn\.com cannot be resolved: it has no address"):
        await ask("https://cdn.com/", names())


async def test_a_name_that_takes_too_long_is_a_break():
    """A resolver that does not answer blocks no run."""

    async def never(_host: str, _port: int) -> list[str]:
        await asyncio.Event().wait()
        return []

    with pytest.raises(httpx.ConnectTimeout):
        await ask("https://cdn.com/", never, seconds=0.01)


async def test_the_resolution_and_all_connections_share_one_timeout(monkeypatch):
    """A resolver and addresses that do not answer take one timeout together."""

    async def never(_socket: socket.socket, _address: Any) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(asyncio.get_running_loop(), "sock_connect", never)
    async with asyncio.timeout(5.0):
        with pytest.raises(httpx.ConnectTimeout):
            await ask("https://cdn.com/", names("1.1.1.1", "8.8.8.8", "9.9.9.9"), seconds=0.02)


async def test_a_public_address_is_taken_as_it_is(tmp_path, answers):
    """A public IP address in a URL is allowed, because some storages have no name."""
    script = answers((200, BODY))
    assert await download("https://1.1.1.1/o", tmp_path / "o", transport=script) == digest(BODY)


async def test_a_name_that_nobody_knows_breaks_the_download(tmp_path):
    """The error may be retried; it has the name but no query."""
    with pytest.raises(DownloadInterrupted, match=r"nowhere\.invalid cannot be resolved") as raised:
        await download("https://nowhere.invalid/o.mp4?_jwt=s3cr3t", tmp_path / "o.mp4")
    assert "s3cr3t" not in str(raised.value)


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "localhost", "2130706433", "0x7f.1"),
        pytest.param("[::1]", marks=needs_ipv6),
        "[::ffff:127.0.0.1]",
    ],
)
async def test_no_way_to_write_this_machine_is_asked(host, tmp_path):
    """A real resolver and socket are used, and nothing arrives at the port."""
    family = socket.AF_INET6 if host == "[::1]" else socket.AF_INET
    with socket.socket(family) as listener:
        listener.bind(("::1" if host == "[::1]" else "127.0.0.1", 0))
        listener.listen()
        listener.settimeout(0)
        address = f"https://{host}:{listener.getsockname()[1]}/o.mp4"
        with pytest.raises((InvalidOutput, DownloadInterrupted)):
            await download(address, tmp_path / "o.mp4")
        with pytest.raises(BlockingIOError):
            listener.accept()


async def test_every_hop_of_a_redirect_is_looked_at(tmp_path, answers):
    """A redirect from a valid address is checked as well."""
    script = answers((302, b"", {"location": "https://169.254.169.254/latest/meta-data"}))
    with pytest.raises(InvalidOutput, match="non-public address 169"):
        await download("https://cdn.example.com/o", tmp_path / "o.mp4", transport=script)
    assert len(script.requests) == 1


async def test_a_host_that_the_user_names_is_asked(sandbox, tmp_path):
    """A trusted host, such as an object store in a private network, may use plain http."""
    address = f"http://localhost:{urlsplit(sandbox().url).port}/openapi.json"
    with pytest.raises(InvalidOutput, match="is not https"):
        await download(address, tmp_path / "o.mp4")
    with pytest.raises(InvalidOutput, match="is not https"):
        await download(address, tmp_path / "o.mp4", trusted={"127.0.0.1"})
    assert await download(address, tmp_path / "o.mp4", trusted={"localhost"})


@pytest.mark.usefixtures("plain_network")
async def test_a_clients_own_connections_are_watched():
    """Only the transport for trusted URLs connects to this machine."""
    request = httpx.Request("GET", "https://localhost:1/")
    async with AssetClients() as clients:
        with pytest.raises(InvalidOutput, match="non-public address"):
            await clients.outside.handle_async_request(request)
        with pytest.raises(httpx.ConnectError):
            await clients.trusted.handle_async_request(request)


async def test_a_proxy_of_the_environment_is_used_all_the_same(monkeypatch):
    """The proxy may be on this machine or a private network, and it decides what it connects to."""
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    async with AssetClients() as clients:
        with pytest.raises(httpx.ConnectError, match=r"127\.0\.0\.1:1"):
            await clients.outside.handle_async_request(
                httpx.Request("GET", "https://cdn.example.com/")
            )


@pytest.mark.parametrize(
    ("written", "read"),
    [("", set()), ("cdn.internal", {"cdn.internal"}), (" A.b , 10.0.0.1,", {"a.b", "10.0.0.1"})],
)
def test_hosts_are_written_with_commas(monkeypatch, written, read):
    """Hosts are separated by commas, in any case and with blanks."""
    monkeypatch.setenv("COMETAPI_ALLOWED_ASSET_HOSTS", written)
    assert CometAPISettings().allowed_asset_hosts == read


@pytest.mark.parametrize("written", ["https://a.b", "a.b:9000", "a.b/c", "*", "a b"])
def test_what_is_no_name_is_refused(monkeypatch, written):
    """A name that could never match is refused at once."""
    monkeypatch.setenv("COMETAPI_ALLOWED_ASSET_HOSTS", written)
    with pytest.raises(ValidationError, match="write bare names"):
        CometAPISettings()
