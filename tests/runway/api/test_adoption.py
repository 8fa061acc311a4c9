# SPDX-License-Identifier: Apache-2.0
"""Adopted task ids are looked up, recorded under one key, and replaced while unconfirmed."""

from typing import Any, cast

import pytest

from prefect_cometapi.runway import (
    CometAPIError,
    Generation,
    GenerationNotFound,
    IdempotencyKeyConflict,
    RunwayClient,
    ServiceUnavailable,
    State,
    Status,
    UnknownTaskId,
)
from prefect_cometapi.runway.api.adoption import Check, adopt, check_task, require_known
from prefect_cometapi.runway.ledger.purchase import attach
from prefect_cometapi.runway.models.keys import key_of_id

from ..factories import change, intent, put

S = State
ONE, OTHER = "d1931c01-6ac5-40cd-b005-9f07b078bbcd", "3d957031-9a2a-45e2-9dc7-bc8513059c50"
ID_ONLY = intent(route=None, model=None, fingerprint=None, request=None, billed_seconds=None)
KNOWN, UNKNOWN, AWAY = Check(known=True), Check(known=False, why="?"), Check(known=None, why="away")


class Replies:
    """A client with scripted replies, one per request; it records the routes."""

    def __init__(self, *replies: Status | CometAPIError) -> None:
        self.replies = list(replies)
        self.routes: list[str] = []

    async def get(self, task_id: str) -> Generation:
        return self._reply("get", task_id)

    async def feed(self, task_id: str) -> Generation:
        return self._reply("feed", task_id)

    def _reply(self, route: str, task_id: str) -> Generation:
        self.routes.append(route)
        reply = self.replies.pop(0)
        if isinstance(reply, CometAPIError):
            raise reply
        return Generation(task_id=task_id, status=reply)


async def checked(*replies: Status | CometAPIError) -> tuple[Check, list[str]]:
    client = Replies(*replies)
    found = await check_task(cast("RunwayClient", client), ONE, polls=3)
    return found, client.routes


MISSING = Status.NOT_FOUND


@pytest.mark.parametrize("status", sorted(set(Status) - {MISSING}))
async def test_any_state_of_a_generation_confirms_its_id(status):
    """The first answer that knows the id ends the lookup."""
    assert await checked(status) == (KNOWN, ["get"])
    assert await checked(MISSING, status) == (KNOWN, ["get", "feed"])


async def test_an_id_is_unknown_only_after_all_polls():
    """Both routes are polled in turn, and a failed answer of the feed decides nothing."""
    routes = ["get", "feed", "get"]
    found, asked = await checked(MISSING, ServiceUnavailable("busy"), MISSING)
    assert (found.known, asked) == (False, routes)
    found, asked = await checked(GenerationNotFound("no such id"), MISSING, MISSING)
    assert (found, asked) == (Check(known=False, why="no such id"), routes)


async def test_a_service_that_cannot_be_asked_says_nothing_about_the_id():
    """The result is neither known nor unknown, and gives the reason."""
    assert await checked(ServiceUnavailable("busy")) == (Check(known=None, why="busy"), ["get"])


@pytest.mark.parametrize("task_id", [ONE, ONE.upper(), "task_a1b2c3d4e5", "notanid", "task-1"])
def test_an_unchecked_id_must_have_a_documented_form(task_id):
    """A known id is accepted in any form, and an unknown one in none."""
    require_known(task_id, KNOWN)
    with pytest.raises(UnknownTaskId, match="was not recorded"):
        require_known(task_id, UNKNOWN)
    if task_id in {"notanid", "task-1"}:
        with pytest.raises(UnknownTaskId, match="does not have the form"):
            require_known(task_id, AWAY)
    else:
        require_known(task_id, AWAY)


async def given(ledger, task_id: str, check: Check, wish=ID_ONLY, **options: Any):
    async def ask() -> Check:
        return check

    return await adopt(ledger, wish, task_id, ask, **options)


async def test_an_unconfirmed_id_is_replaced_and_a_confirmed_one_stays(ledger):
    """An unconfirmed id gives a warning, and adopting it again confirms it."""
    warned: list[str] = []
    await put(ledger, S.UNCERTAIN, attempts=1)
    first = await given(ledger, ONE, AWAY, warn=warned.append)
    assert (first.task_id, first.task_id_checked) == (ONE, False)
    assert "recorded without a check: away" in warned[0]
    second = await given(ledger, OTHER, AWAY)
    assert (second.task_id, second.attempts) == (OTHER, 1)
    third = await given(ledger, OTHER, KNOWN)
    assert (third.claim, third.task_id_checked) == (second.claim, True)
    with pytest.raises(IdempotencyKeyConflict, match="task id was"):
        await given(ledger, ONE, KNOWN)
    assert await given(ledger, OTHER, UNKNOWN) == third  # no further lookup is made


async def test_an_id_without_its_request_is_replaced_together_with_one(ledger):
    """An unconfirmed id says nothing about the request, so any id and request may replace it."""
    await attach(ledger, ID_ONLY, ONE, checked=False)
    made = await given(ledger, OTHER, KNOWN, wish=intent())
    assert (made.task_id, made.fingerprint) == (OTHER, intent().fingerprint)


async def test_an_id_that_is_unknown_changes_nothing(ledger):
    """An unknown id adds no row and changes none."""
    with pytest.raises(UnknownTaskId):
        await given(ledger, ONE, UNKNOWN)
    assert await ledger.entries() == []
    before = await put(ledger, S.UNCERTAIN)
    with pytest.raises(UnknownTaskId):
        await given(ledger, ONE, UNKNOWN)
    assert await ledger.get(before.idempotency_key) == before


@pytest.mark.parametrize("state", [S.SUBMITTED, S.STORED, S.FAILED, S.RESUBMIT_ALLOWED])
async def test_an_id_of_another_key_is_refused_in_any_state(ledger, state):
    """An id of another key is refused, even under a key that was chosen for an id alone."""
    await put(ledger, state, key="first", task_id=ONE)
    await attach(ledger, ID_ONLY.model_copy(update={"idempotency_key": "alone"}), OTHER)
    for task_id, key in ((ONE, "first"), (OTHER, "alone")):
        with pytest.raises(IdempotencyKeyConflict, match=f"belongs to the idempotency key '{key}'"):
            await given(ledger, task_id, KNOWN)
    assert await ledger.get("sku-17") is None


@pytest.mark.parametrize(("finished", "left"), [(False, S.ABANDONED), (True, S.FAILED)])
async def test_an_id_that_was_finished_alone_is_handed_to_its_key(ledger, finished, left):
    """The purchase of an id counts once, and collectors ignore the other row."""
    alone = await attach(
        ledger, ID_ONLY.model_copy(update={"idempotency_key": key_of_id(ONE)}), ONE
    )
    if finished:
        await change(ledger, alone.idempotency_key, S.FAILED, seen=alone)
    await put(ledger, S.UNCERTAIN, charges=1, attempts=1)
    made = await given(ledger, ONE, KNOWN, wish=intent())
    other = await ledger.get(alone.idempotency_key)
    assert (made.charges, made.state, other.charges, other.state) == (1, S.SUBMITTED, 0, left)


async def test_a_confirmed_id_is_neither_replaced_nor_withdrawn_nor_forgotten(ledger):
    """A poll that confirms an id wins over a decision that is under way."""
    seen = await attach(ledger, ID_ONLY, ONE, checked=False)
    await ledger.confirm_id(seen.idempotency_key, ONE)
    assert await ledger.mark_adopted(seen, "other", OTHER, {}, checked=True) is None
    assert await ledger.withdraw_id(seen) is None
    await ledger.forget(seen)
    assert (await ledger.get(seen.idempotency_key)).task_id == ONE


async def test_an_unconfirmed_id_is_withdrawn_or_forgotten(ledger):
    """An id is forgotten only if it has neither a request nor a submission."""
    seen = await attach(ledger, intent(), ONE, checked=False)
    await ledger.forget(seen)
    withdrawn = await ledger.withdraw_id(seen)
    assert (withdrawn.state, withdrawn.task_id, withdrawn.task_id_checked) == (
        S.UNCERTAIN,
        None,
        True,
    )
    alone = await attach(
        ledger, ID_ONLY.model_copy(update={"idempotency_key": "alone"}), OTHER, checked=False
    )
    await ledger.forget(alone)
    assert await ledger.get("alone") is None
