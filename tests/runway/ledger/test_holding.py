# SPDX-License-Identifier: Apache-2.0
"""A run keeps its lease from purchase to delivery, with as few queries as possible."""

import pytest

from prefect_cometapi.runway import GenerationFailed, State
from prefect_cometapi.runway.ledger.owners import holder_name
from prefect_cometapi.runway.ledger.purchase import acquire_exclusive, hold_lease

from ..factories import Service, buy, distant_holder, finished, put, video

S = State
RUN = "nightly"


@pytest.fixture
def statements(ledger, monkeypatch):
    """Record the statements sent to the ledger's database."""
    counted = []
    asked = ledger.database.asked

    async def counting(statement):
        counted.append(type(statement).__name__)
        return await asked(statement)

    monkeypatch.setattr(ledger.database, "asked", counting)
    return counted


async def test_nobody_gets_between_the_purchase_and_the_delivery(ledger):
    """The change that records the id also acquires the lease."""
    async with hold_lease(ledger, "sku-17", RUN):
        bought = await buy(ledger, Service(), run=RUN)
        assert bought.holder == holder_name(RUN)
        assert await ledger.acquire("sku-17", distant_holder()) is None
        async with acquire_exclusive(ledger, "sku-17", RUN) as entry:
            assert entry
            assert (entry.task_id, entry.holder) == (bought.task_id, bought.holder)
        assert await ledger.acquire("sku-17", distant_holder()) is None
    assert (await ledger.get("sku-17")).holder is None


async def test_a_submission_alone_keeps_nothing(ledger):
    """The next run, such as a collector, does not have to wait for a lease to expire."""
    assert (await buy(ledger, Service(), run=RUN)).holder is None
    assert await ledger.acquire("sku-17", distant_holder())


async def test_a_whole_generation_takes_four_statements(ledger, statements):
    """The four statements are the changes to claimed, submitted, succeeded and stored."""
    await ledger.history.check_once()  # a process checks once for an older copy
    statements.clear()
    async with hold_lease(ledger, "sku-17", RUN):
        submission = (await buy(ledger, Service(), run=RUN)).submission()
        async with acquire_exclusive(ledger, "sku-17", RUN):
            async with acquire_exclusive(ledger, "sku-17", RUN) as entry:
                assert entry
                assert entry.finished() is None
                await ledger.finished(submission, finished())
            async with acquire_exclusive(ledger, "sku-17", RUN) as entry:
                assert entry
                assert entry.finished()
                await ledger.stored(entry, "task-1", "/videos", [video()])
    assert statements == ["Insert", "Update", "Update", "Update"]
    assert (await ledger.get("sku-17")).holder is None


async def test_a_failed_run_leaves_its_last_words(ledger):
    """The error is recorded in the ledger, and the lease is released."""

    async def fails():
        async with hold_lease(ledger, "sku-17", RUN):
            await buy(ledger, Service(), run=RUN)
            raise GenerationFailed("it was moderated")

    with pytest.raises(GenerationFailed):
        await fails()
    entry = await ledger.get("sku-17")
    assert (entry.holder, entry.note) == (None, "it was moderated")


async def test_what_another_run_holds_is_left_to_it(ledger):
    """Failing to acquire a lease does not disturb its owner."""
    other = distant_holder()
    await put(ledger, S.SUBMITTED, task_id="task-1")
    await ledger.acquire("sku-17", other)
    async with hold_lease(ledger, "sku-17", RUN):
        assert (await buy(ledger, Service(), run=RUN)).holder == other
    assert (await ledger.get("sku-17")).holder == other


async def test_what_is_known_of_a_generation_is_forgotten_with_it(ledger):
    """A later run reads the entry again, because it may have changed."""
    async with hold_lease(ledger, "sku-17", RUN):
        await buy(ledger, Service(), run=RUN)
        assert ledger.last_seen("sku-17").state is S.SUBMITTED
    assert ledger.last_seen("sku-17") is None
