# SPDX-License-Identifier: Apache-2.0
"""Name of the service that sold a generation, from its base URL; pure."""

from ..redact import host_of, is_loopback

_COMETAPI = ("cometapi.com", ".cometapi.com")
SANDBOX = "sandbox"


def service_name(base_url: str) -> str:
    """Return ``CometAPI``, ``sandbox`` for a service on this machine, or the host.

    Args:
        base_url: Root of the service.
    """
    host = host_of(base_url)
    if host == _COMETAPI[0] or host.endswith(_COMETAPI[1]):
        return "CometAPI"
    return SANDBOX if is_loopback(base_url) else host
