# SPDX-License-Identifier: Apache-2.0
"""SQLite and PostgreSQL give the same answers to the same calls."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from prefect_cometapi.runway import BudgetExceeded, Entry, GenerationFailed, Ledger, State
from prefect_cometapi.runway.ledger.billing import record_billed, unbilled_entries
from prefect_cometapi.runway.ledger.budget import Budget
from prefect_cometapi.runway.ledger.entry import GenerationKind
from prefect_cometapi.runway.ledger.unresolved import (
    known_purchases,
    models_in_use,
    uncertain_entries,
    unresolved_entries,
)
from prefect_cometapi.runway.models.prices import Price

from ..factories import BASE, distant_owner, finished, intent, video

S = State
SENT = datetime.now(UTC).replace(microsecond=123456) - timedelta(hours=1)
ODD = "it's :key and {now}, 猫\0 \ud800 \U0001f408"
OWNER = distant_owner("nightly")
OF_NOW = {
    "created_at",
    "changed_at",
    "submitted_at",
    "finished_at",
    "stored_at",
    "claimed_at",
    "unresolved_since",
}
OF_CHANCE = {"leased_until", "lease_left", "claim"}


def comparable(entry: Entry) -> dict[str, Any]:
    """Return an entry without its chance parts; a time of now only says that it is there."""
    shown = entry.model_dump(mode="json", exclude=OF_CHANCE | OF_NOW)
    times = {name: getattr(entry, name) is not None for name in OF_NOW | {"leased_until"}}
    return shown | times


async def story(ledger: Ledger) -> list[Any]:
    """Return the answers of a ledger to one call of each kind."""
    told: list[Any] = []

    def tell(answer: Any) -> None:
        entries = answer if isinstance(answer, list) else [answer]
        told.append([comparable(e) if isinstance(e, Entry) else e for e in entries])

    prices = {"gen4_turbo": Price(0.1, per_second=True), "veo3": Price(0.7)}
    budget = Budget("b/", prices, max_spend=1.0, max_seconds=60)
    for key in ("b/1", "b/1", "b/2"):
        tell(await ledger.insert_claim(intent(key, cost=0.4), f"c{key}", OWNER, budget=budget))
    with pytest.raises(BudgetExceeded) as refused:
        await ledger.insert_claim(intent("b/3", cost=0.4), "c", OWNER, budget=budget)
    tell(refused.value.message)
    claimed = await ledger.get("b/1")
    assert claimed
    submitted = await ledger.mark_submitted(claimed, "task-1", SENT, OWNER)
    assert submitted
    tell(submitted)
    tell((submitted.submitted_at == SENT, submitted.submitted_at))
    tell(await ledger.mark_submitted(claimed, "task-2", SENT, OWNER))
    tell(await ledger.find_other_request("task-1", claimed))
    held = await ledger.leases.entries_of_run("nightly")
    tell(sorted(held, key=lambda entry: entry.idempotency_key))
    tell(await ledger.leases.acquire("b/1", distant_owner("other")))
    tell(await ledger.mark_succeeded(submitted.submission(), finished()))
    tell(await ledger.mark_stored(submitted, "task-1", "/videos", [video()], price=Price(0.1)))
    second = await ledger.get("b/2")
    assert second
    tell(await ledger.mark_uncertain(second, ODD))
    for query in (uncertain_entries(ledger), unresolved_entries(ledger, BASE)):
        tell(await query)
    seen = await ledger.get("b/2")
    assert seen
    tell(await ledger.mark_claimed(seen, "again", OWNER, {"cost": 0.1, **_cost()}, budget=budget))
    adopted = await ledger.insert_adopted(intent("x", model=None), "cx", "task-9", checked=False)
    assert adopted
    tell(await ledger.confirm_id("x", "task-9"))
    tell(await ledger.mark_failed(adopted.submission(), GenerationFailed(ODD, code="SAFETY")))
    tell(await record_billed(ledger, submitted, 0.25))
    tell(await unbilled_entries(ledger, SENT - timedelta(days=1), 10))
    tell(await known_purchases(ledger, BASE, None, datetime.now(UTC)))
    tell(sorted(await models_in_use(ledger, BASE)))
    tell(await ledger.known_ids(["task-1", "task-9", "nothing"]))
    tell([*(await ledger.get_many(["b/2", "x", "nothing"])).values()])
    newest: dict[str, Any] = {"states": [S.STORED, S.FAILED], "limit": 1}
    later: dict[str, Any] = {"since": SENT}
    for options in ({}, newest, later):
        tell(await ledger.entries(**options, on_corrupted=told.append))
    kind = GenerationKind(BASE, "image_to_video", "gen4_turbo", 5.0)
    tell(await ledger.durations(kind, 10))
    tell((await ledger.spent("b/", prices)).model_dump())
    tell(await ledger.table.insert([submitted.model_copy(update={"idempotency_key": "copy"})]))
    tell((await ledger.history.mark()).serial)
    tell(await ledger.history.claims_since(1))
    return told


def _cost() -> dict[str, Any]:
    return {
        "currency": None,
        "cost_source": None,
        "billed_seconds": 5.0,
        "model": "m",
        "charges": 2,
    }


@pytest.mark.heavy
async def test_both_databases_give_the_same_answers(postgres, tmp_path):
    """A ledger behaves the same wherever it is."""
    answers = []
    for url in (f"sqlite:///{tmp_path}/ledger.db", postgres.create_database()):
        ledger = Ledger(url)
        answers.append(await story(ledger))
        await ledger.database.close()
    assert answers[0] == answers[1]
