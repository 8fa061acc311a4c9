# SPDX-License-Identifier: Apache-2.0
"""The ledger keeps CometAPI's id of each submission."""

import pytest

from prefect_cometapi.runway import (
    GenerationFailed,
    InvalidRequest,
    State,
    SubmissionUncertain,
)
from prefect_cometapi.runway.ledger.purchase import buy_once

from ..factories import intent, put


async def buy_with(ledger, answer, request_id, **options):
    """Buy with a POST that has this answer, an id or an error, and this request id."""

    async def post(check):
        check()
        if isinstance(answer, Exception):
            raise answer
        return answer

    return await buy_once(
        ledger, intent(), post, run="run", request_id=lambda: request_id, **options
    )


@pytest.mark.parametrize("request_id", ["req-1", None])
async def test_the_id_of_a_purchase_is_kept(ledger, request_id):
    """The id is in the entry, and in the submission that the steps pass on."""
    entry = await buy_with(ledger, "task-1", request_id)
    there = await ledger.get("sku-17")
    assert entry.request_id == there.request_id == request_id
    assert there.submission().request_id == request_id
    assert there.submission().ids["request_id"] == request_id


async def test_the_id_of_an_uncertain_submission_is_kept_and_named(ledger):
    """Whoever asks for the key later reads the id in the error."""
    with pytest.raises(SubmissionUncertain):
        await buy_with(ledger, SubmissionUncertain("no answer"), "req-1")
    assert (await ledger.get("sku-17")).request_id == "req-1"
    with pytest.raises(SubmissionUncertain, match="CometAPI's request id is req-1"):
        await buy_with(ledger, "task-1", "req-2")


async def test_a_refusal_after_an_uncertain_submission_leaves_its_id(ledger):
    """The uncertain submission is the one that support has to find."""
    for answer, request_id in (
        (SubmissionUncertain("no answer"), "req-1"),
        (InvalidRequest("no"), "req-2"),
    ):
        with pytest.raises((SubmissionUncertain, InvalidRequest)):
            await buy_with(ledger, answer, request_id, resubmit_as="run")
    entry = await ledger.get("sku-17")
    assert (entry.state, entry.request_id) == (State.UNCERTAIN, "req-1")


async def test_a_new_claim_forgets_the_id_of_a_refusal(ledger):
    """The id of the latest submission counts."""
    with pytest.raises(InvalidRequest):
        await buy_with(ledger, InvalidRequest("no"), "req-1")
    entry = await ledger.get("sku-17")
    assert (entry.state, entry.request_id) == (State.REJECTED, "req-1")
    assert (await buy_with(ledger, "task-1", None)).request_id is None


async def test_an_id_that_belongs_to_another_request_names_its_call(ledger):
    """A task id of another request makes the submission uncertain, with the id of its call."""
    await put(ledger, State.SUBMITTED, key="other", task_id="task-1", fingerprint="b" * 64)
    with pytest.raises(SubmissionUncertain, match="CometAPI's request id is req-1"):
        await buy_with(ledger, "task-1", "req-1")
    assert (await ledger.get("sku-17")).request_id == "req-1"


async def test_the_error_of_a_failed_generation_names_the_id(ledger):
    """The generation's own error has the id of the call that bought it."""
    entry = await buy_with(ledger, "task-1", "req-1")
    await ledger.mark_failed(entry.submission(), GenerationFailed("moderated"))
    failure = (await ledger.get("sku-17")).failure()
    assert failure.request_id == "req-1"
    assert "task id task-1" in str(failure)
