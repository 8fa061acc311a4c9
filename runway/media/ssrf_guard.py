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
from collections.abc import Awaitable, Callable
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)

from ..errors import InvalidOutput

Resolve = Callable[[str, int], Awaitable[list[str]]]
"""Function that returns the addresses of a host, in the order in which to try them."""

_NOT_OUTSIDE = tuple(
    ip_network(network)
    for network in (
        "168.63.129.16/32",  # Azure's metadata and DNS, although the address is public
        "192.0.0.0/24",  # IETF protocol assignments, and Oracle's metadata
        "192.88.99.0/24",  # 6to4 relays
        "fec0::/10",  # site-local, deprecated
    )
)
_FAKE = ip_network("198.18.0.0/15")
_NOBODY = ip_network("0.0.0.0/8")
_NAT64, _LOCAL_NAT64 = ip_network("64:ff9b::/96"), ip_network("64:ff9b:1::/48")
_COMPATIBLE, _TEREDO = ip_network("::/96"), ip_network("2001::/32")
_ISATAP = {0x0000_5EFE, 0x0200_5EFE}
_LAST = (1 << 32) - 1


def is_public(address: str) -> bool:
    """Return True for an IP address that is public on the internet; pure.

    An address that carries another one is judged by the one inside, since its packets go there.
    """
    try:
        ip = ip_address(address)
    except ValueError:
        return False
    if isinstance(ip, IPv4Address):
        return _is_outside(ip)
    if ip.scope_id:
        return False
    carried = _carried(ip)
    if carried is not None:
        # Nobody has an address that begins with zero: there is none at this position.
        inner = [each for each in carried if each not in _NOBODY]
        return bool(inner) and all(map(_is_outside, inner))
    number = int(ip)
    is_isatap = number >> 32 & _LAST in _ISATAP
    return _is_outside(ip) and (not is_isatap or _is_outside(IPv4Address(number & _LAST)))


def _is_outside(ip: IPv4Address | IPv6Address) -> bool:
    held_back = ip.is_multicast or ip.is_reserved or any(ip in net for net in _NOT_OUTSIDE)
    return ip.is_global and not held_back


def _carried(ip: IPv6Address) -> list[IPv4Address] | None:
    """Return the IPv4 addresses in an IPv6 address that stands for them, or None for any other.

    A local NAT64 cuts its prefix after 48, 56, 64 or 96 bits (RFC 6052), which cannot be seen, so
    the addresses at all four positions are returned.
    """
    number = int(ip)
    last = IPv4Address(number & _LAST)
    if ip.ipv4_mapped or ip in _NAT64 or ip in _COMPATIBLE:
        return [last]
    if ip.sixtofour:
        return [ip.sixtofour]
    if ip in _TEREDO:
        return [IPv4Address(number >> 64 & _LAST), IPv4Address(number & _LAST ^ _LAST)]
    if ip in _LOCAL_NAT64:
        # The eight bits after the first half are always empty, and belong to no address.
        joined = number >> 64 << 56 | number & ((1 << 56) - 1)
        return [last, *(IPv4Address(joined >> shift & _LAST) for shift in (40, 32, 24))]
    return None


def is_fake(address: str) -> bool:
    """Return True for an address that a VPN or proxy invents for each name (fake-IP DNS); pure."""
    return _is_in(address, _FAKE)


def is_nat64(address: str) -> bool:
    """Return True for an IPv4 address behind NAT64, as a network without IPv4 has; pure."""
    return _is_in(address, _NAT64, _LOCAL_NAT64)


def _is_in(address: str, *networks: IPv4Network | IPv6Network) -> bool:
    try:
        return any(ip_address(address) in network for network in networks)
    except ValueError:
        return False


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
    origin = ", which a VPN or proxy made up (fake-IP DNS)" if is_fake(address) else ""
    return InvalidOutput(
        f"the host {host} of the output has the non-public address {address}{origin}; if this is "
        "intended, add the host to COMETAPI_ALLOWED_ASSET_HOSTS"
    )


async def resolve(host: str, port: int) -> list[str]:
    """Return the addresses to which this machine resolves a host.

    Raises:
        OSError: The host has no address.
    """
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(where[0]) for *_rest, where in found))


class PublicAddresses:
    """Guard of a transport, which allows public addresses only.

    Args:
        find: Returns the addresses of a host.
    """

    def __init__(self, find: Resolve = resolve) -> None:
        self._find = find

    async def resolve(self, host: str, port: int) -> list[str]:
        """Return the public addresses of a host.

        Raises:
            InvalidOutput: The host has addresses, and none of them is public.
            OSError: The host is unknown.
        """
        found = await self._find(host, port)
        public = [address for address in found if is_public(address)]
        if found and not public:
            raise _inside(host, found[0])
        return public

    def check(self, address: str) -> None:
        """Reject an address that is not public, or a host that is not an IP address.

        Raises:
            InvalidOutput: It is not a public address.
        """
        if not is_public(address):
            raise _inside(address, address)
