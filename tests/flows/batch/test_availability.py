# SPDX-License-Identifier: Apache-2.0
"""A batch sends nothing while CometAPI is not reached, and continues afterwards."""

import asyncio
import time

import pytest

from prefect_cometapi.flows.batch.availability import Availability
from prefect_cometapi.flows.runtime.log import wait_listener
from prefect_cometapi.runway import (
    AuthenticationError,
    CometAPIError,
    ServiceUnavailable,
    UnexpectedResponse,
)

AWAY = ServiceUnavailable("a page", http_status=403)


class Service:
    """Service that raises one error after another, and then answers."""

    def __init__(self, *errors: CometAPIError) -> None:
        self.errors = list(errors)
        self.asked = 0

    async def ask(self) -> None:
        self.asked += 1
        if self.errors:
            raise self.errors.pop(0)


def availability(service: Service, timeout: float = 60) -> Availability:
    return Availability(service.ask, interval=0.01, timeout=timeout, address="https://cometapi")


async def test_nothing_is_sent_until_the_service_answers():
    """Items wait during a pause, and pass once CometAPI has answered."""
    service = Service(AWAY, UnexpectedResponse("another page"), AWAY)
    pause = availability(service)
    recovering = asyncio.create_task(pause.recover(AWAY, time.monotonic()))
    await asyncio.sleep(0)
    waiting = asyncio.create_task(pause.reached())
    await asyncio.sleep(0)
    assert not waiting.done()
    assert await recovering is None
    await waiting
    assert service.asked == 4


async def test_a_pause_is_shown_with_the_address(monkeypatch):
    """The command line shows what the batch waits for, and where."""
    seen: list[str] = []
    token = wait_listener.set(seen.append)
    try:
        assert await availability(Service(AWAY)).recover(AWAY, time.monotonic()) is None
    finally:
        wait_listener.reset(token)
    assert seen == ["paused, CometAPI is unreachable at https://cometapi"]


async def test_concurrent_failures_share_one_pause():
    """Of five items that fail together, one asks, and its answer counts for all."""
    service = Service(AWAY)
    pause = availability(service)
    now = time.monotonic()
    assert await asyncio.gather(*(pause.recover(AWAY, now) for _ in range(5))) == [None] * 5
    assert service.asked == 2


async def test_a_pause_ends_with_its_reason():
    """After the longest pause, the reason names what answered in CometAPI's place."""
    pause = availability(Service(*[AWAY] * 999), timeout=0.05)
    why = await pause.recover(AWAY, time.monotonic())
    assert why == "CometAPI at https://cometapi accepted nothing for 0.05 s: a page (HTTP 403)"
    await asyncio.wait_for(pause.reached(), 1)


async def test_a_service_that_answers_but_accepts_nothing_is_given_up():
    """An item that fails again and again is given up, although a free request is answered."""
    pause = availability(Service(), timeout=5)
    assert await pause.recover(AWAY, time.monotonic()) is None
    why = await pause.recover(AWAY, time.monotonic() - 6)
    assert why == "CometAPI at https://cometapi accepted nothing for 5 s: a page (HTTP 403)"


async def test_a_refusal_ends_a_pause():
    """CometAPI's own refusal of the API key is an answer, which ends the pause."""
    pause = availability(Service(AWAY, AuthenticationError("no", http_status=401)))
    with pytest.raises(AuthenticationError):
        await pause.recover(AWAY, time.monotonic())
    await asyncio.wait_for(pause.reached(), 1)


async def test_a_service_that_never_answered_is_given_up_sooner(monkeypatch):
    """A wrong base URL stops a batch soon; after one answer, the longer timeout applies."""
    monkeypatch.setattr(f"{Availability.__module__}.FIRST_TIMEOUT", 0.05)
    pause = availability(Service(*[AWAY] * 999), timeout=0.4)
    why = await pause.recover(AWAY, time.monotonic())
    assert why == "CometAPI at https://cometapi accepted nothing for 0.05 s: a page (HTTP 403)"
    pause.note_answer()
    why = await pause.recover(AWAY, time.monotonic())
    assert why == "CometAPI at https://cometapi accepted nothing for 0.4 s: a page (HTTP 403)"
