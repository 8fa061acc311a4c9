# SPDX-License-Identifier: Apache-2.0
"""Durations of earlier generations of a kind determine the time of the first poll."""

import asyncio
from collections.abc import Callable
from copy import copy
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from prefect_cometapi.flows import image_to_video
from prefect_cometapi.flows.runtime.ledger_access import open_ledger
from prefect_cometapi.flows.runtime.run_context import RunContext
from prefect_cometapi.flows.steps import durations
from prefect_cometapi.flows.steps.durations import cohort_of, duration_stats_of
from prefect_cometapi.runway import Entry, ImageToVideoRequest, State, Submission
from prefect_cometapi.runway.api.poll_schedule import DurationStats
from prefect_cometapi.runway.ledger.entry import Intent
from prefect_cometapi.sandbox import Sandbox

IMAGE: Any = {"promptImage": "https://example.com/cat.jpg", "promptText": "slow zoom"}
TOOK = 3.0


async def seen_before(base_url: str, count: int = 20, took: float = TOOK) -> Entry:
    """Record N finished generations of this kind and return the newest entry."""
    ledger = await open_ledger()
    request = ImageToVideoRequest.model_validate(IMAGE)
    newest = None
    for number in range(count):
        intent = Intent(
            idempotency_key=f"before-{number}",
            base_url=base_url,
            route=request.route,
            model=request.model,
            billed_seconds=request.billed_seconds(),
        )
        submitted = datetime.now(UTC) - timedelta(minutes=count - number)
        newest = await ledger._insert(
            intent,
            State.STORED,
            uuid4().hex,
            task_id=f"task-{number}",
            submitted_at=submitted,
            finished_at=submitted + timedelta(seconds=took + number / 100),
            polls=10,
        )
    assert newest
    return newest


async def known(look: Callable[[], DurationStats | None]) -> DurationStats:
    """Return the duration statistics as soon as the ledger has answered."""
    async with asyncio.timeout(30):
        while (found := look()) is None:  # noqa: ASYNC110 -- another thread brings it
            await asyncio.sleep(0.01)
    return found


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch):
    monkeypatch.setattr(durations, "_known", {})


async def test_the_ledger_is_asked_without_waiting_for_it(sandbox):
    """Duration statistics are unknown at first, and available after the ledger has answered."""
    entry = await seen_before(sandbox.url)
    look = duration_stats_of(RunContext(), entry.submission(), entry)
    stats = await known(look)
    assert stats.typical == pytest.approx(TOOK, abs=0.3)


@pytest.mark.parametrize("count", [0, 3])
async def test_too_few_teach_nothing(sandbox, count):
    """Too few earlier generations give a fixed interval."""
    entry = await seen_before(sandbox.url, count) if count else None
    submission = Submission(
        idempotency_key="k",
        task_id="t",
        submitted_at=datetime.now(UTC),
        route="image_to_video",
        model="gen3a_turbo",
    )
    look = duration_stats_of(RunContext(), submission, entry)
    ledger = await open_ledger()
    await ledger.entries()  # The earlier query has been answered by then.
    assert look() is None


async def test_an_id_without_a_request_has_no_kind(sandbox):
    """An adopted id without a request has no kind, so no statistics apply to it."""
    await seen_before(sandbox.url)
    submission = Submission(idempotency_key="k", task_id="t", submitted_at=datetime.now(UTC))
    assert duration_stats_of(RunContext(), submission, None)() is None


async def test_the_generations_of_a_run_are_one_cohort_for_each_kind(sandbox):
    """All contexts of a run share it; an adopted id, whose age is not known, has none."""
    adopted = await seen_before(sandbox.url)
    bought = adopted.model_copy(update={"claimed_at": adopted.submitted_at})
    longer = bought.model_copy(update={"billed_seconds": 10})
    context, other = RunContext(), RunContext()
    cohort = cohort_of(context, bought.submission(), bought)
    assert cohort is not None
    assert cohort_of(copy(context), bought.submission(), bought) is cohort
    assert cohort_of(context.derive(None, "elsewhere"), bought.submission(), bought) is cohort
    assert cohort_of(context, longer.submission(), longer) is not cohort
    assert cohort_of(other, bought.submission(), bought) is not cohort
    assert cohort_of(context, adopted.submission(), adopted) is None
    assert cohort_of(context, bought.submission(), None) is None
    no_request = bought.model_copy(update={"route": None})
    assert cohort_of(context, no_request.submission(), no_request) is None


async def test_many_of_a_kind_ask_once(sandbox, monkeypatch):
    """A batch of a thousand items queries the ledger once in half a minute."""
    entry = await seen_before(sandbox.url)
    asked = []
    monkeypatch.setattr(
        durations, "write_in_background", lambda _context, change: asked.append(change)
    )
    for _ in range(100):
        duration_stats_of(RunContext(), entry.submission(), entry)()
    assert len(asked) == 1


@pytest.mark.server
@pytest.mark.heavy
def test_what_is_known_saves_polls(prefect_server, sandbox, monkeypatch):
    """A generation of a known kind is polled less while it is young."""
    with Sandbox(render_seconds=TOOK) as slow:
        monkeypatch.setenv("COMETAPI_BASE_URL", slow.url)
        monkeypatch.setenv("COMETAPI_POLL_INTERVAL", "0.2")
        cold = image_to_video(IMAGE, idempotency_key="cold")
        asyncio.run(seen_before(slow.url))
        durations._known.clear()
        warm = image_to_video(IMAGE, idempotency_key="warm")
    assert 2 * warm.polls <= cold.polls
