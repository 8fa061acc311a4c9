# SPDX-License-Identifier: Apache-2.0
"""A sandbox starts and stops at once, and imports nothing heavy until then."""

import socket
import subprocess
import sys
import time
from contextlib import suppress

import httpx
import pytest
from pydantic import ValidationError

import prefect_cometapi.sandbox
from prefect_cometapi.sandbox import Sandbox, SandboxConfig

from ..machine import needs_ipv6


def test_a_sandbox_listens_when_it_is_entered(talk):
    """The first request needs no retry."""
    assert talk().client.get("/_sandbox").status_code == 200


def test_a_sandbox_outside_its_block_has_no_url():
    """The URL of a sandbox outside of its block is an error with an explanation."""
    with pytest.raises(RuntimeError, match="inside its `with` block"):
        _ = Sandbox().url


def test_a_taken_port_is_reported(talk):
    """A second sandbox on a port reports that the port is taken."""
    port = httpx.URL(talk().sandbox.url).port
    with pytest.raises(OSError, match="in use"), Sandbox(port=port or 0):
        pass


def test_a_sandbox_stops_at_once_with_connections_open():
    """Idle, silent and slow connections do not delay the stop, and clients notice it."""
    with Sandbox(faults=["task:silent-after", "asset:slow:value=60"]) as sandbox:
        idle = httpx.Client(base_url=sandbox.url, headers={"Authorization": "Bearer any-key"})
        body = {"promptImage": "http://127.0.0.1:9/cat.jpg", "model": "gen3a_turbo"}
        created = idle.post(
            "/runwayml/v1/image_to_video", json=body, headers={"X-Runway-Version": "2024-11-06"}
        )
        sandbox.settle(20)
        path = f"/runwayml/v1/tasks/{created.json()['id']}"
        silent = _ask(sandbox, path)
        while not any(request.fault for request in sandbox.requests):
            idle.get("/_sandbox")
        url = httpx.URL(idle.get(path).json()["output"][0])
        slow = _ask(sandbox, url.raw_path.decode())
        assert slow.recv(1) == b"H"
        started = time.monotonic()
    assert time.monotonic() - started < 0.5
    with suppress(ConnectionResetError):
        assert silent.recv(1) == b""
    silent.close()
    slow.close()
    with pytest.raises(httpx.ConnectError):
        idle.get("/_sandbox")
    idle.close()


def _ask(sandbox, path):
    """Return a connection with a sent request and an unread response."""
    address = httpx.URL(sandbox.url)
    connection = socket.create_connection((address.host, address.port or 0), timeout=5)
    connection.sendall(
        f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer any-key\r\n\r\n".encode()
    )
    return connection


@needs_ipv6
def test_a_sandbox_listens_on_ipv6_too():
    """A sandbox with an IPv6 address has a valid URL."""
    with Sandbox(host="::1") as sandbox:
        assert httpx.get(f"{sandbox.url}/_sandbox").status_code == 200


@pytest.mark.parametrize(
    "wrong", [{"shapes": ()}, {"shapes": ("round",)}, {"faults": ("x",)}, {"render_seconds": -1}]
)
def test_a_wrong_configuration_is_refused(wrong):
    """An invalid configuration is refused before the start."""
    with pytest.raises(ValidationError):
        SandboxConfig(**wrong)


def test_importing_the_package_loads_nothing_heavy():
    """FFmpeg, FastAPI and uvicorn are imported when a sandbox is created, not before."""
    script = (
        "import sys, prefect_cometapi.sandbox as sandbox\n"
        "assert not {'av', 'fastapi', 'uvicorn', 'pydantic'} & set(sys.modules)\n"
        "sandbox.Sandbox\n"
        "assert {'av', 'fastapi', 'uvicorn'} <= set(sys.modules)\n"
        "assert not any('cometapi.runway' in name for name in sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_every_exported_name_is_there():
    """`__all__` matches the available names exactly."""
    for name in prefect_cometapi.sandbox.__all__:
        assert getattr(prefect_cometapi.sandbox, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = prefect_cometapi.sandbox.nothing
