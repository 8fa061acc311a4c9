# SPDX-License-Identifier: Apache-2.0
"""A real S3 server process, for tests."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import httpx

from .cluster import free_port
from .waiting import kill, until

KEY_ID, SECRET = "AKIAEXAMPLE", "canary-of-s3"
START = 60.0
"""Seconds within which the server has to answer."""


@contextmanager
def s3_server() -> Iterator[str]:
    """Start a server, yield its address and stop it afterwards."""
    port = free_port()
    server = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(server, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        url = f"http://127.0.0.1:{port}"
        until(lambda: _answers(url), "the S3 server", START)
        yield url
    finally:
        kill(process)


def environment(url: str) -> dict[str, str]:
    """Return the environment variables that point every S3 client to a server."""
    return {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": KEY_ID,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
    }


def _answers(url: str) -> bool:
    with suppress(httpx.TransportError):
        httpx.get(url)
        return True
    return False
