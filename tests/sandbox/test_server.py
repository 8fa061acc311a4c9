# SPDX-License-Identifier: Apache-2.0
"""A sandbox starts at once, stops at once and is light until then."""

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
    """Asking too early is explained."""
    with pytest.raises(RuntimeError, match="inside its `with` block"):
        _ = Sandbox().url


def test_a_taken_port_is_reported(talk):
    """Two sandboxes cannot share a port, and the second says so."""
    port = httpx.URL(talk().sandbox.url).port
    with pytest.raises(OSError, match="in use"), Sandbox(port=port or 0):
        pass


def test_a_sandbox_stops_at_once_with_connections_open():
    """Idle, silent and slow connections do not hold it up, and clients notice its end."""
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
    """A connection on which a request has been sent, and nothing been read."""
    address = httpx.URL(sandbox.url)
    connection = socket.create_connection((address.host, address.port or 0), timeout=5)
    connection.sendall(
        f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer any-key\r\n\r\n".encode()
    )
    return connection


@needs_ipv6
def test_a_sandbox_listens_on_ipv6_too():
    """An IPv6 address gives a URL that clients understand."""
    with Sandbox(host="::1") as sandbox:
        assert httpx.get(f"{sandbox.url}/_sandbox").status_code == 200


@pytest.mark.parametrize(
    "wrong", [{"shapes": ()}, {"shapes": ("round",)}, {"faults": ("x",)}, {"render_seconds": -1}]
)
def test_a_wrong_configuration_is_refused(wrong):
    """What a sandbox cannot do is said before it starts."""
    with pytest.raises(ValidationError):
        SandboxConfig(**wrong)


def test_importing_the_package_loads_nothing_heavy():
    """FFmpeg, FastAPI and uvicorn wait until a sandbox is really wanted."""
    script = (
        "import sys, prefect_cometapi.sandbox as sandbox\n"
        "assert not {'av', 'fastapi', 'uvicorn', 'pydantic'} & set(sys.modules)\n"
        "sandbox.Sandbox\n"
        "assert {'av', 'fastapi', 'uvicorn'} <= set(sys.modules)\n"
        "assert not any('cometapi.runway' in name for name in sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_every_exported_name_is_there():
    """`__all__` promises nothing that cannot be had, and nothing else can be had."""
    for name in prefect_cometapi.sandbox.__all__:
        assert getattr(prefect_cometapi.sandbox, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = prefect_cometapi.sandbox.nothing
