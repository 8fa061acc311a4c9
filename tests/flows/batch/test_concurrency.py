# SPDX-License-Identifier: Apache-2.0
"""A batch keeps its concurrency and rate limits, and buys in the order of its rows."""

import asyncio
import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate

from prefect_cometapi.flows.batch.concurrency import (
    IN_FLIGHT_LIMIT,
    SUBMISSIONS,
    ConcurrencyLimits,
    RateLimiter,
    limit_across_processes,
    next_send_time,
)


@given(calls=st.lists(st.floats(0, 10), min_size=2, max_size=50), per_second=st.floats(0.01, 1000))
def test_send_times_are_never_closer_than_the_rate_allows(calls, per_second):
    """Turns are never closer than the rate allows, and are given in the order of the requests."""
    times: list[float] = []
    for now in sorted(calls):
        times.append(next_send_time(times[-1] if times else None, now, per_second))
        assert times[-1] >= now
    assert all(b - a >= 1 / per_second - 1e-6 for a, b in pairwise(times))


async def test_a_pace_is_kept_by_all_who_wait():
    """Twenty simultaneous callers wait for their slots."""
    pace, began = RateLimiter(200), time.monotonic()

    async def acquire() -> float:
        await pace.acquire()
        return time.monotonic() - began

    times = await asyncio.gather(*[acquire() for _ in range(20)])
    assert times == sorted(times)
    assert times[-1] >= 19 / 200 - 0.005


async def test_without_a_rate_nobody_waits():
    """Without a rate, no caller waits."""
    async with asyncio.timeout(5):
        await asyncio.gather(*[RateLimiter(None).acquire() for _ in range(1000)])


async def test_slots_are_given_in_order_and_never_too_many():
    """Slots are given in order of arrival, and never more than the limit."""
    concurrency = ConcurrencyLimits(in_flight=3, downloads=1, per_second=None)
    order: list[int] = []
    now = most = 0

    async def item(number: int) -> None:
        nonlocal now, most
        async with concurrency.slot():
            order.append(number)
            now += 1
            most = max(most, now)
            await asyncio.sleep(0)
            now -= 1

    await asyncio.gather(*[item(number) for number in range(20)])
    assert order == list(range(20))
    assert most == 3


async def test_a_slot_that_is_freed_early_is_freed_once():
    """A slot that is freed early is freed once, so the next item begins during the download."""
    concurrency = ConcurrencyLimits(in_flight=1, downloads=1, per_second=None)
    async with concurrency.slot() as first:
        first.release()
        async with asyncio.timeout(5), concurrency.slot():
            first.release()
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.02), concurrency.slot():
                    pass
    async with asyncio.timeout(5), concurrency.slot():
        pass


async def test_a_failed_item_gives_its_slot_back():
    """A failed item releases its slot."""
    concurrency = ConcurrencyLimits(in_flight=1, downloads=1, per_second=None)
    for _ in range(3):
        with pytest.raises(RuntimeError):
            async with asyncio.timeout(5), concurrency.slot():
                raise RuntimeError


@pytest.mark.server
async def test_without_a_global_limit_nothing_is_asked_of_prefect(prefect_server):
    """Without a global limit, a batch does not ask Prefect for slots."""
    assert await limit_across_processes(10) is None


@pytest.fixture
async def three_slots(prefect_server):
    """Create a global limit of three that no other test uses."""
    async with get_client() as client:
        await client.create_global_concurrency_limit(
            GlobalConcurrencyLimitCreate(name=IN_FLIGHT_LIMIT, limit=3, active=True)
        )
        yield
        await client.delete_global_concurrency_limit_by_name(IN_FLIGHT_LIMIT)


@pytest.mark.server
@pytest.mark.heavy
async def test_a_global_limit_holds_across_processes(three_slots, caplog):
    """Two batches, each with ten slots of its own, share the three slots, and log why."""
    name = await limit_across_processes(10)
    assert name == IN_FLIGHT_LIMIT
    assert "prefect-cometapi setup --limit 10" in caplog.text
    caplog.clear()
    await limit_across_processes(3)
    assert not caplog.text
    now = most = 0
    full = asyncio.Event()

    async def item(concurrency: ConcurrencyLimits) -> None:
        nonlocal now, most
        async with concurrency.slot():
            now += 1
            most = max(most, now)
            if now == 3:
                full.set()
            await full.wait()
            now -= 1

    two = [
        ConcurrencyLimits(in_flight=10, downloads=1, per_second=None, limit=name) for _ in range(2)
    ]
    async with asyncio.timeout(120):
        await asyncio.gather(*[item(concurrency) for concurrency in two for _ in range(4)])
    assert most == 3


def test_submissions_that_are_looked_up_follow_one_another():
    """With `COMETAPI_ON_UNCERTAIN=reconcile`, no two submissions of a batch overlap."""
    usual = ConcurrencyLimits(in_flight=10, downloads=1, per_second=None)
    assert (usual.submissions._value, usual.apart) == (SUBMISSIONS, 0.0)
    apart = ConcurrencyLimits(in_flight=10, downloads=1, per_second=None, apart=11.0)
    assert (apart.submissions._value, apart.apart) == (1, 11.0)
