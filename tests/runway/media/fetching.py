# SPDX-License-Identifier: Apache-2.0
"""Helpers of the download tests: an output, its address, and a download with its own client."""

import hashlib
from pathlib import Path
from typing import Any

import httpx

from prefect_cometapi.runway.media.download import AssetClients
from prefect_cometapi.runway.media.download import download as download_with

URL = "https://cdn.example.com/o.mp4?_jwt=s3cr3t"
BODY = bytes(range(256)) * 40


def digest(content: bytes) -> str:
    """Return a SHA-256 hash in hex."""
    return hashlib.sha256(content).hexdigest()


async def download(
    url: str, target: Path, *, transport: httpx.AsyncBaseTransport | None = None, **options: Any
) -> str:
    """Download a file with a new client."""
    async with AssetClients(transport) as clients:
        return await download_with(clients, url, target, **options)
