# SPDX-License-Identifier: Apache-2.0
"""The API key is sent only to the configured service and appears in no log."""

import asyncio
import logging
import traceback
from contextlib import asynccontextmanager

import pytest

from prefect_cometapi.runway import CometAPIError, InvalidManifest, InvalidOutput
from prefect_cometapi.runway.batch.manifest import read_rows
from prefect_cometapi.runway.media.download import AssetClients
from prefect_cometapi.runway.media.download import download as download_with

from ..media.fetching import BODY, digest, download
from ..static_server import static_server

SIGNED = "Signature=canary-of-the-address"


@asynccontextmanager
async def listener(reply: bytes):
    """Answer every request with one reply; yield the address and the requests."""
    async with static_server(reply) as (port, arrived):
        yield f"http://127.0.0.1:{port}", arrived


def found(body: bytes, head: str = "200 OK") -> bytes:
    return f"HTTP/1.1 {head}\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_no_redirect_takes_it_along(client_of, request_, api_key, status):
    """A redirect of a service or proxy is not followed, for purchases and for polls."""
    async with listener(found(b'{"id": "t"}')) as (other, arrived):
        head = f"{status} Elsewhere\r\nlocation: {other}/runwayml/v1/tasks/t"
        async with listener(found(b"", head)) as (service, at_home):
            client = await client_of(service)
            for call in (client.create(request_), client.get("t"), client.feed("t")):
                with pytest.raises(CometAPIError):
                    await call
    assert arrived == []
    assert len(at_home) == 3
    assert all(f"Bearer {api_key}".encode() in head for head in at_home)


@pytest.mark.parametrize("name", ["HTTP_PROXY", "ALL_PROXY"])
async def test_no_proxy_reads_it_on_the_way_to_this_machine(
    client_of, request_, api_key, monkeypatch, name
):
    """A plain http request to this machine does not go through a proxy of the environment."""
    for each in ("NO_PROXY", "no_proxy", "http_proxy", "all_proxy"):
        monkeypatch.delenv(each, raising=False)
    reply = found(b'{"id": "t", "status": "RUNNING"}')
    async with listener(reply) as (proxy, on_the_way), listener(reply) as (service, at_home):
        monkeypatch.setenv(name, proxy)
        client = await client_of(service)
        assert await client.create(request_) == "t"
        await client.get("t")
    assert on_the_way == []
    assert [f"Bearer {api_key}".encode() in head for head in at_home] == [True, True]


async def test_who_serves_the_video_does_not_get_it(api_key, tmp_path, monkeypatch):
    """A video is downloaded without the API key and without cookies."""
    monkeypatch.setenv("COMETAPI_KEY", api_key)
    reply = found(BODY, f"200 OK\r\nset-cookie: a={api_key}; Path=/")
    async with listener(reply) as (host, arrived), AssetClients() as clients:
        for _ in range(2):
            address = f"{host}/o.mp4?{SIGNED}"
            sha256 = await download_with(
                clients, address, tmp_path / "o.mp4", trusted={"127.0.0.1"}
            )
            assert sha256 == digest(BODY)
    assert len(arrived) == 2
    for head in arrived:
        assert api_key.encode() not in head
        assert b"cookie" not in head.lower()


async def test_no_log_tells_it_however_much_is_logged(
    client_of, request_, api_key, tmp_path, caplog
):
    """The API key is in no log of an HTTP client, asyncio or this package, even at DEBUG."""
    caplog.set_level(logging.DEBUG)
    for name in ("httpx", "httpcore", "aiohttp", "asyncio"):
        caplog.set_level(logging.DEBUG, logger=name)
    repeated = f'{{"error": {{"message": "who is {api_key}? see https://h/?{SIGNED}"}}}}'.encode()
    head = f"302 Elsewhere\r\nlocation: https://10.0.0.1/o?{SIGNED}"
    async with (
        listener(found(repeated, "401 No\r\ncontent-type: application/json")) as (service, _),
        listener(found(b"", head)) as (host, _),
    ):
        client = await client_of(service)
        for call in (client.create(request_), client.get("t")):
            with pytest.raises(CometAPIError) as raised:
                await call
            logging.getLogger().error("failed", exc_info=raised.value)
            logging.getLogger().error("".join(traceback.format_exception(raised.value)))
        with pytest.raises(InvalidOutput) as refused:
            await download(f"{host}/o?{SIGNED}", tmp_path / "o", trusted={"127.0.0.1"})
        logging.getLogger().error("failed", exc_info=refused.value)
    assert "httpcore" in {record.name.partition(".")[0] for record in caplog.records}
    for secret in (api_key, "canary-of-the-address"):
        assert secret not in caplog.text


async def test_no_log_tells_the_signature_of_a_manifests_address(caplog):
    """Neither a log nor a traceback shows the signature of a manifest's URL."""
    caplog.set_level(logging.DEBUG)
    row = b'{"id": "sku-1", "promptImage": "https://h/1.jpg"}'
    head = "200 OK\r\nconnection: close"
    async with (
        listener(found(row, head)) as (host, _),
        listener(b"nonsense\r\n\r\n") as (broken, _),
    ):
        read = await asyncio.to_thread(read_rows, f"{host}/m.jsonl?{SIGNED}")
        with pytest.raises(InvalidManifest) as raised:
            await asyncio.to_thread(read_rows, f"{broken}/m.jsonl?{SIGNED}")
        logging.getLogger().error("failed", exc_info=raised.value)
    assert [row.fields["id"] for row in read] == ["sku-1"]
    assert "httpx" in {record.name for record in caplog.records}
    assert "Traceback" in caplog.text
    assert "canary-of-the-address" not in caplog.text
