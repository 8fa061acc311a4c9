# SPDX-License-Identifier: Apache-2.0
"""Protection against SSRF: untrusted URLs reach public addresses only.

The URL of an output comes from a service that received it from another one. Its author must not be
able to make a worker send requests into its own network: to a database, a neighbouring machine, a
cloud's metadata service. So each name is resolved here, and an address that is not public is
rejected. The connection goes to the very address that was checked, so a name that resolves
differently a moment later gains nothing. Behind a proxy, the proxy resolves names and decides.
"""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from ipaddress import IPv6Address, ip_address, ip_network
from time import monotonic
from typing import Any

import httpcore
import httpx

from ..errors import InvalidOutput

Resolve = Callable[[str, int], Awaitable[list[str]]]
"""Function that returns the addresses of a host, in the order in which to try them."""

_NOT_OUTSIDE = tuple(
    ip_network(network)
    for network in (
        "168.63.129.16/32",  # Azure's metadata and DNS, although the address is public
        "192.0.0.0/24",  # IETF protocol assignments, and Oracle's metadata
        "192.88.99.0/24",  # 6to4 relays
        "::/96",  # IPv4-compatible IPv6, deprecated
        "::ffff:0:0/96",  # IPv4-mapped IPv6
        "64:ff9b::/96",  # IPv4 behind NAT64
        "64:ff9b:1::/48",  # IPv4 behind a local NAT64
        "2001::/32",  # IPv4 in Teredo
        "2002::/16",  # IPv4 in 6to4
        "fec0::/10",  # site-local, deprecated
    )
)


def is_public(address: str) -> bool:
    """Return True for an IP address that is public on the internet; pure.

    Forms that embed another address are rejected, since they may lead anywhere.
    """
    try:
        ip = ip_address(address)
    except ValueError:
        return False
    if isinstance(ip, IPv6Address) and ip.scope_id:
        return False
    held_back = ip.is_multicast or ip.is_reserved or any(ip in net for net in _NOT_OUTSIDE)
    return ip.is_global and not held_back


def check_literal(host: str) -> None:
    """Reject a host that is written as an IP address which is not public.

    Raises:
        InvalidOutput: The host is such an address.
    """
    try:
        ip_address(host)
    except ValueError:
        return
    if not is_public(host):
        raise _inside(host, host)


def _inside(host: str, address: str) -> InvalidOutput:
    return InvalidOutput(
        f"the host {host} of the output has the non-public address {address}; if this is intended, "
        "add the host to COMETAPI_ALLOWED_ASSET_HOSTS"
    )


async def resolve(host: str, port: int) -> list[str]:
    """Return the addresses to which this machine resolves a host.

    Raises:
        OSError: The host has no address.
    """
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(where[0]) for *_rest, where in found))


class PublicOnlyBackend(httpcore.AsyncNetworkBackend):
    """Network backend that connects to public addresses only.

    Args:
        resolve: Returns the addresses of a host.
        network: Backend that makes the connections.
    """

    def __init__(
        self, resolve: Resolve = resolve, network: httpcore.AsyncNetworkBackend | None = None
    ) -> None:
        self._resolve = resolve
        plain: Any = httpcore.AnyIOBackend  # a different class if anyio is not installed
        self._network: httpcore.AsyncNetworkBackend = network or plain()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 -- httpcore's own interface
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect to the first public address of a host that answers, all within the timeout.

        Raises:
            InvalidOutput: The host has no public address.
            httpcore.ConnectError: The host is unknown, or none of its addresses answers.
            httpcore.ConnectTimeout: The host was not resolved, or no address answered, in time.
        """
        end = None if timeout is None else monotonic() + timeout
        async with _in_time(host, timeout):
            addresses = await self._public_addresses(host, port)
        problem: Exception | None = None
        for number, address in enumerate(addresses):
            left = None if end is None else max(0.0, end - monotonic())
            share = left and left / (len(addresses) - number)
            try:
                return await self._network.connect_tcp(
                    address, port, share, local_address, socket_options
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                problem = error
        raise problem or httpcore.ConnectError(f"{host} has no address")

    async def _public_addresses(self, host: str, port: int) -> list[str]:
        try:
            found = await self._resolve(host, port)
        except OSError as error:
            raise httpcore.ConnectError(
                f"the host name {host} cannot be resolved: {error}"
            ) from error
        public = [address for address in found if is_public(address)]
        if found and not public:
            raise _inside(host, found[0])
        return public


@asynccontextmanager
async def _in_time(host: str, seconds: float | None) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise httpcore.ConnectTimeout(f"the host name {host} was not resolved in time") from None


def keep_outside(http: httpx.AsyncClient) -> None:
    """Make a client connect to public addresses only, except through a proxy of the environment.

    httpx has no argument for the network backend of its own transport, and a custom transport would
    ignore the proxies of the environment. So the backend is replaced inside httpcore.
    """
    transport = http._transport  # noqa: SLF001 -- held by tests/runway/media/test_ssrf_guard.py
    if isinstance(transport, httpx.AsyncHTTPTransport):
        pool: Any = transport._pool  # noqa: SLF001
        pool._network_backend = PublicOnlyBackend()  # noqa: SLF001
