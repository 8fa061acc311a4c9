# SPDX-License-Identifier: Apache-2.0
"""Network faults cost time, but never money and never a complete video."""

import asyncio
import json
from contextlib import suppress
from urllib.parse import urlsplit

import httpx
import pytest

from prefect_cometapi.runway import ServiceUnavailable, Status, SubmissionUncertain
from prefect_cometapi.runway.api import client as wire
from prefect_cometapi.runway.errors import NotSubmitted
from prefect_cometapi.runway.media import download as downloads
from prefect_cometapi.runway.media.download import download

from ..network import NO_FAULTS, NetworkFaults, network
from .media.fetching import AssetClients, digest

CREATE = {
    "slices of one byte": NetworkFaults(piece=1),
    "slow": NetworkFaults(delay=0.02, piece=64),
    "no connection stays": NetworkFaults(reset_up=0),
    "cut in the request's head": NetworkFaults(reset_up=40),
    "cut in the request's body": NetworkFaults(reset_up=500),
    "cut before the reply": NetworkFaults(reset_down=0),
    "cut in the reply's head": NetworkFaults(reset_down=20),
    "cut before the reply's last byte": NetworkFaults(reset_down=190),
    "silence after half of the request": NetworkFaults(drop_up=300),
    "silence instead of the reply": NetworkFaults(drop_down=0),
    "silence in the reply": NetworkFaults(drop_down=100),
    "each reply twice": NetworkFaults(twice=True),
}


def place(url: str) -> str:
    return urlsplit(url).netloc


@pytest.mark.parametrize("faults", CREATE.values(), ids=CREATE)
async def test_a_purchase_is_never_taken_for_less_than_it_may_be(
    faults, sandbox, request_, client_of, monkeypatch
):
    """A purchase has an id, certainly was not accepted, or is reported as uncertain."""
    monkeypatch.setattr(wire, "TIMEOUT", httpx.Timeout(1.0))
    monkeypatch.setattr(wire, "TOTAL_TIMEOUT", 3.0)
    service = sandbox()
    async with network(place(service.url), faults) as proxy:
        client = await client_of(proxy.url)
        try:
            task_id = await client.create(request_)
        except SubmissionUncertain:
            assert len(service.accepted) <= 1
        except (NotSubmitted, ServiceUnavailable):
            assert service.accepted == []
        else:
            assert [job.task_id for job in service.accepted] == [task_id]
    assert proxy.connections == 1


@pytest.mark.parametrize("faults", CREATE.values(), ids=CREATE)
@pytest.mark.heavy
async def test_a_poll_succeeds_once_the_network_recovers(
    faults, sandbox, request_, client_of, monkeypatch
):
    """Each failed poll may be retried, and the next answer is the right one."""
    monkeypatch.setattr(wire, "TIMEOUT", httpx.Timeout(1.0))
    service = sandbox(render_seconds=60)
    async with network(place(service.url)) as proxy:
        client = await client_of(proxy.url)
        task_id = await client.create(request_)
        proxy.faults = faults
        states: list[Status] = []
        while not states:
            try:
                states.append((await client.get(task_id)).status)
            except ServiceUnavailable:
                proxy.faults = NO_FAULTS
        assert states[0] in {Status.PENDING, Status.RUNNING}


async def test_a_reply_that_comes_twice_is_not_taken_for_the_next_one(client_of):
    """A duplicated reply on a kept connection is not read as the answer to the next request."""
    told = {
        "done": {"id": "done", "status": "SUCCEEDED", "output": ["https://h/o"]},
        "new": {"id": "new", "status": "PENDING"},
    }

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while head := await reader.readuntil(b"\r\n\r\n"):
                task_id = head.split()[1].decode().rpartition("/")[2]
                body = json.dumps(told[task_id])
                writer.write(
                    f"HTTP/1.1 200 OK\r\ncontent-length: {len(body)}\r\n\r\n{body}".encode()
                )

    service = await asyncio.start_server(serve, "127.0.0.1", 0)
    address = f"127.0.0.1:{service.sockets[0].getsockname()[1]}"
    async with service, network(address, NetworkFaults(twice=True)) as proxy:
        client = await client_of(proxy.url)
        answered = 0
        for task_id in ("done", "new") * 5:
            with suppress(ServiceUnavailable):  # polling again is free
                state = (await client.get(task_id)).status
                assert (state is Status.SUCCEEDED) == (task_id == "done")
                answered += 1
    assert answered


DOWNLOADS = {
    "slices": NetworkFaults(piece=997),
    "slow": NetworkFaults(delay=0.001, piece=4096),
    "cut at once": NetworkFaults(reset_down=0, limit=2),
    "cut in the head": NetworkFaults(reset_down=60, limit=2),
    "cut in the middle": NetworkFaults(reset_down=9_000, limit=3),
    "silence in the middle": NetworkFaults(drop_down=9_000, limit=1),
}


@pytest.mark.parametrize("faults", DOWNLOADS.values(), ids=DOWNLOADS)
async def test_a_video_arrives_whole_over_any_connection(
    faults, sandbox, request_, client_of, tmp_path, no_waiting, monkeypatch
):
    """The downloaded file equals that of the service, to the last byte."""
    service = sandbox()
    async with network(place(service.url)) as proxy:
        client = await client_of(proxy.url)
        task_id = await client.create(request_)
        service.settle(60)
        generation = await client.get(task_id)
        address = generation.outputs[0].reveal() or ""
        async with httpx.AsyncClient() as plain:
            whole = (await plain.get(address)).content
        async with AssetClients() as clients:
            monkeypatch.setattr(downloads, "TIMEOUT", httpx.Timeout(1.0))
            proxy.faults = faults
            proxy.connections = 0
            sha256 = await download(clients, address, tmp_path / "o.mp4", trusted={"127.0.0.1"})
        assert sha256 == digest(whole)
        assert (tmp_path / "o.mp4").read_bytes() == whole


async def test_an_unknown_host_name_is_reported_and_nothing_was_bought(client_of, request_):
    """A failed name lookup is reported as retryable, because it may be temporary."""
    client = await client_of("https://nowhere.invalid")
    with pytest.raises(ServiceUnavailable, match="nothing was charged"):
        await client.create(request_)
