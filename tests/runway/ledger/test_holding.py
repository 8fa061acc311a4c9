# SPDX-License-Identifier: Apache-2.0
"""A run keeps its lease from purchase to delivery, with as few queries as possible."""

import pytest

from prefect_cometapi.runway import GenerationFailed, State
from prefect_cometapi.runway.ledger.owners import owner_name

from ..factories import Service, buy, distant_owner, finished, put, video

S = State
RUN = "nightly"


@pytest.fixture
def statements(ledger, monkeypatch):
    """Record the statements sent to the ledger's database."""
    counted = []
    asked = ledger.database.execute_timed

    async def counting(statement, lock=None):
        counted.append(statement.text.split()[0])
        return await asked(statement, lock)

    monkeypatch.setattr(ledger.database, "execute_timed", counting)
    return counted


async def test_nobody_gets_between_the_purchase_and_the_delivery(ledger):
    """The change that records the id also acquires the lease."""
    async with ledger.leases.hold("sku-17", RUN):
        bought = await buy(ledger, Service(), run=RUN)
        assert bought.owner == owner_name(RUN)
        assert await ledger.leases.acquire("sku-17", distant_owner()) is None
        async with ledger.leases.hold_exclusively("sku-17", RUN) as entry:
            assert entry
            assert (entry.task_id, entry.owner) == (bought.task_id, bought.owner)
        assert await ledger.leases.acquire("sku-17", distant_owner()) is None
    assert (await ledger.get("sku-17")).owner is None


async def test_a_submission_alone_keeps_nothing(ledger):
    """The next run, such as a collector, does not have to wait for a lease to expire."""
    assert (await buy(ledger, Service(), run=RUN)).owner is None
    assert await ledger.leases.acquire("sku-17", distant_owner())


async def test_a_whole_generation_takes_four_statements(ledger, statements):
    """The four statements are the changes to claimed, submitted, succeeded and stored."""
    await ledger.history.check_once()  # a process checks once for an older copy
    statements.clear()
    async with ledger.leases.hold("sku-17", RUN):
        submission = (await buy(ledger, Service(), run=RUN)).submission()
        async with ledger.leases.hold_exclusively("sku-17", RUN):
            async with ledger.leases.hold_exclusively("sku-17", RUN) as entry:
                assert entry
                assert entry.finished() is None
                await ledger.mark_succeeded(submission, finished())
            async with ledger.leases.hold_exclusively("sku-17", RUN) as entry:
                assert entry
                assert entry.finished()
                await ledger.mark_stored(entry, "task-1", "/videos", [video()])
    assert statements == ["INSERT", "UPDATE", "UPDATE", "UPDATE"]
    assert (await ledger.get("sku-17")).owner is None


async def test_a_failed_run_leaves_its_last_words(ledger):
    """The error is recorded in the ledger, and the lease is released."""

    async def fails():
        async with ledger.leases.hold("sku-17", RUN):
            await buy(ledger, Service(), run=RUN)
            raise GenerationFailed("it was moderated")

    with pytest.raises(GenerationFailed):
        await fails()
    entry = await ledger.get("sku-17")
    assert (entry.owner, entry.note) == (None, "it was moderated")


async def test_what_another_run_holds_is_left_to_it(ledger):
    """Failing to acquire a lease does not disturb its owner."""
    other = distant_owner()
    await put(ledger, S.SUBMITTED, task_id="task-1")
    await ledger.leases.acquire("sku-17", other)
    async with ledger.leases.hold("sku-17", RUN):
        assert (await buy(ledger, Service(), run=RUN)).owner == other
    assert (await ledger.get("sku-17")).owner == other


async def test_what_is_known_of_a_generation_is_forgotten_with_it(ledger):
    """A later run reads the entry again, because it may have changed."""
    async with ledger.leases.hold("sku-17", RUN):
        await buy(ledger, Service(), run=RUN)
        assert ledger.leases.held.entry("sku-17").state is S.SUBMITTED
    assert ledger.leases.held.entry("sku-17") is None
