# SPDX-License-Identifier: Apache-2.0
"""A storage location names a folder and has no other effect."""

import asyncio

import pytest

from prefect_cometapi.runway import InvalidManifest, StorageError
from prefect_cometapi.runway.batch.manifest import read_rows
from prefect_cometapi.runway.batch.results import split_location
from prefect_cometapi.runway.storage.factory import open_storage

from ..static_server import static_server

REFERENCES = b'{"version": 1, "templates": {"u": "{{ 7 * 7 }}"}, "refs": {"a.csv": ["{{u}}"]}}'
REPLY = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(REFERENCES) + REFERENCES


async def test_an_address_runs_nobodys_templates():
    """Chained fsspec URLs that run a program from the address behind them are refused."""
    async with static_server(REPLY) as (port, arrived):
        chained = f"reference://a.csv::http://127.0.0.1:{port}/evil.jsonl"
        with pytest.raises(InvalidManifest, match="refers to more than one file system"):
            await asyncio.to_thread(read_rows, chained)
        for what in (open_storage, split_location):
            with pytest.raises(StorageError, match="refers to more than one file system"):
                what(chained)
    assert arrived == []


@pytest.mark.parametrize("place", ["s3://videos/a?sig=canary", "memory://v?sig=canary#x"])
def test_a_storage_whose_address_holds_a_token_is_refused(place):
    """The location is written to the ledger, beside each video and to the UI."""
    with pytest.raises(StorageError, match="must not contain a password or a query") as raised:
        open_storage(place)
    assert "canary" not in str(raised.value)
