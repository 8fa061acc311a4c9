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
from prefect_cometapi.runway.media.download import download

from ..network import FAIR, Weather, network
from .media.fetching import AssetClients, digest

CREATE = {
    "slices of one byte": Weather(piece=1),
    "slow": Weather(delay=0.02, piece=64),
    "no connection stays": Weather(cut_up=0),
    "cut in the request's head": Weather(cut_up=40),
    "cut in the request's body": Weather(cut_up=500),
    "cut before the reply": Weather(cut_down=0),
    "cut in the reply's head": Weather(cut_down=20),
    "cut before the reply's last byte": Weather(cut_down=190),
    "silence after half of the request": Weather(hole_up=300),
    "silence instead of the reply": Weather(hole_down=0),
    "silence in the reply": Weather(hole_down=100),
    "each reply twice": Weather(twice=True),
}


def place(url: str) -> str:
    return urlsplit(url).netloc


@pytest.mark.parametrize("weather", CREATE.values(), ids=CREATE)
async def test_a_purchase_is_never_taken_for_less_than_it_may_be(
    weather, sandbox, request_, client_of, monkeypatch
):
    """A purchase has an id, certainly was not accepted, or is reported as uncertain."""
    monkeypatch.setattr(wire, "TIMEOUT", httpx.Timeout(1.0))
    monkeypatch.setattr(wire, "TOTAL_TIMEOUT", 3.0)
    service = sandbox()
    async with network(place(service.url), weather) as between:
        client = await client_of(between.url)
        try:
            task_id = await client.create(request_)
        except SubmissionUncertain:
            assert len(service.accepted) <= 1
        except (NotSubmitted, ServiceUnavailable):
            assert service.accepted == []
        else:
            assert [job.task_id for job in service.accepted] == [task_id]
    assert between.connections == 1


@pytest.mark.parametrize("weather", CREATE.values(), ids=CREATE)
async def test_a_poll_goes_on_when_the_weather_clears(
    weather, sandbox, request_, client_of, monkeypatch
):
    """Each failed poll may be retried, and the next answer is the right one."""
    monkeypatch.setattr(wire, "TIMEOUT", httpx.Timeout(1.0))
    service = sandbox(render_seconds=60)
    async with network(place(service.url)) as between:
        client = await client_of(between.url)
        task_id = await client.create(request_)
        between.weather = weather
        states: list[Status] = []
        while not states:
            try:
                states.append((await client.get(task_id)).status)
            except ServiceUnavailable:
                between.weather = FAIR
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
    async with service, network(address, Weather(twice=True)) as between:
        client = await client_of(between.url)
        answered = 0
        for task_id in ("done", "new") * 5:
            with suppress(ServiceUnavailable):  # polling again is free
                state = (await client.get(task_id)).status
                assert (state is Status.SUCCEEDED) == (task_id == "done")
                answered += 1
    assert answered


DOWNLOADS = {
    "slices": Weather(piece=997),
    "slow": Weather(delay=0.001, piece=4096),
    "cut at once": Weather(cut_down=0, spells=2),
    "cut in the head": Weather(cut_down=60, spells=2),
    "cut in the middle": Weather(cut_down=9_000, spells=3),
    "silence in the middle": Weather(hole_down=9_000, spells=1),
}


@pytest.mark.parametrize("weather", DOWNLOADS.values(), ids=DOWNLOADS)
async def test_a_video_arrives_whole_whatever_the_weather(
    weather, sandbox, request_, client_of, tmp_path, no_waiting, monkeypatch
):
    """The downloaded file equals that of the service, to the last byte."""
    service = sandbox()
    async with network(place(service.url)) as between:
        client = await client_of(between.url)
        task_id = await client.create(request_)
        service.settle(60)
        generation = await client.get(task_id)
        address = generation.outputs[0].reveal() or ""
        async with httpx.AsyncClient() as plain:
            whole = (await plain.get(address)).content
        async with AssetClients() as clients:
            clients.trusted.timeout = httpx.Timeout(1.0)
            between.weather = weather
            between.connections = 0
            sha256 = await download(clients, address, tmp_path / "o.mp4", trusted={"127.0.0.1"})
        assert sha256 == digest(whole)
        assert (tmp_path / "o.mp4").read_bytes() == whole


async def test_a_name_that_is_not_known_is_told_and_nothing_was_bought(client_of, request_):
    """A failed name lookup is reported as retryable, because it may be temporary."""
    client = await client_of("https://nowhere.invalid")
    with pytest.raises(ServiceUnavailable, match="nothing was charged"):
        await client.create(request_)
