# SPDX-License-Identifier: Apache-2.0
"""The next step of a key depends only on its entry, and is never a purchase when in doubt."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_cometapi.runway import IdempotencyKeyConflict, State, SubmissionUncertain
from prefect_cometapi.runway.ledger.purchase import Step, next_step

from ..factories import entry, intent

S = State
OTHER = intent(fingerprint="b" * 64, request={"duration": 10})
FREE = {S.REJECTED, S.RESUBMIT_ALLOWED}
BOUGHT = {S.SUBMITTED, S.SUCCEEDED, S.STORED, S.FAILED, S.CANCELLED, S.ABANDONED}
states = st.sampled_from(State)
truth = st.booleans()
ids = st.sampled_from([None, "task-1", "task-2"])


def kept(state: State, id_of_entry: str | None):
    """Make an entry as a ledger may have it: a bought one has an id, an open one has none."""
    return entry(state, task_id=(id_of_entry or "task-1") if state in BOUGHT else None)


def run_of(resubmit: object) -> str | None:
    """Return the run that may send the request again, if the user allows it."""
    return "r" if resubmit else None


@pytest.mark.parametrize(
    ("state", "living", "resubmit", "expected"),
    [
        *[(state, living, resubmit, Step.ATTACH)
          for state in sorted(BOUGHT) for living in (0, 1) for resubmit in (0, 1)],
        *[(state, living, resubmit, Step.BUY)
          for state in sorted(FREE) for living in (0, 1) for resubmit in (0, 1)],
        *[(S.CLAIMED, True, resubmit, Step.WAIT) for resubmit in (0, 1)],
        *[(S.CLAIMED, False, resubmit, Step.RESOLVE_DEAD_CLAIM) for resubmit in (0, 1)],
        *[(S.UNCERTAIN, living, True, Step.BUY) for living in (0, 1)],
        *[(S.UNCERTAIN, living, False, SubmissionUncertain) for living in (0, 1)],
        *[(S.WRITTEN_OFF, living, resubmit, SubmissionUncertain)
          for living in (0, 1) for resubmit in (0, 1)],
    ],
)  # fmt: skip
def test_the_same_request_again(state, living, resubmit, expected):
    """A bought request is attached, a free key is bought, and all else is left to the user."""
    step = next_step(kept(state, None), intent(), is_active=living, resubmit_as=run_of(resubmit))
    assert step is expected or type(step) is expected


@pytest.mark.parametrize("living", [True, False])
@pytest.mark.parametrize(
    ("state", "known", "expected"),
    [
        *[(state, None, Step.ADOPT) for state in sorted({*FREE, S.UNCERTAIN, S.WRITTEN_OFF})],
        *[(state, "task-1", Step.ATTACH) for state in sorted(BOUGHT)],
        *[(state, "task-2", IdempotencyKeyConflict) for state in sorted(BOUGHT)],
    ],
)
def test_an_id_that_is_attached(state, known, living, expected):
    """An id is adopted if the key has none, found if it is the same, and refused otherwise."""
    step = next_step(kept(state, known), intent(), is_active=living, task_id="task-1")
    assert step is expected or type(step) is expected


@pytest.mark.parametrize(
    ("living", "expected"), [(True, Step.WAIT), (False, Step.RESOLVE_DEAD_CLAIM)]
)
def test_an_id_is_not_attached_to_a_key_that_is_just_being_submitted(living, expected):
    """The outcome of the current submission is awaited first."""
    assert next_step(entry(S.CLAIMED), intent(), is_active=living, task_id="task-1") is expected


@given(resubmit=truth, living=truth)
def test_a_key_that_nobody_used_is_bought_or_attached(resubmit, living):
    """An unused key needs no decision."""
    assert next_step(None, intent(), is_active=living, resubmit_as=run_of(resubmit)) is Step.BUY
    adopted = next_step(
        None, intent(), is_active=living, resubmit_as=run_of(resubmit), task_id="task-1"
    )
    assert adopted is Step.ADOPT


@given(state=states, living=truth, resubmit=truth, task_id=ids, known=ids)
def test_another_request_is_told_before_anything_else_is_done(
    state, living, resubmit, task_id, known
):
    """No run waits for, attaches to or pays for a request other than its own."""
    there = kept(state, known)
    step = next_step(there, OTHER, is_active=living, resubmit_as=run_of(resubmit), task_id=task_id)
    if state in FREE:
        assert step is (Step.ADOPT if task_id else Step.BUY)
    else:
        assert isinstance(step, IdempotencyKeyConflict)
        assert (step.idempotency_key, step.task_id) == ("sku-17", there.task_id)
        assert "duration was 5, is 10" in step.message


@given(state=states, living=truth, resubmit=truth, task_id=ids, known=ids, same=truth, odd=truth)
def test_nothing_is_bought_over_an_id_or_against_a_doubt(
    state, living, resubmit, task_id, known, same, odd
):
    """A purchase needs a free key, or the user's permission after an unknown outcome."""
    there = entry(state, task_id=known) if odd else kept(state, known)
    wish = intent() if same else OTHER
    step = next_step(there, wish, is_active=living, resubmit_as=run_of(resubmit), task_id=task_id)
    if step is Step.BUY:
        assert task_id is None
        assert state in FREE or (state is S.UNCERTAIN and resubmit and there.task_id is None)
    if step is Step.ADOPT:
        assert task_id is not None
        assert state in FREE or there.task_id is None
    if step is Step.ATTACH:
        assert there.task_id
        assert task_id in {None, there.task_id}
    if step in {Step.WAIT, Step.RESOLVE_DEAD_CLAIM}:
        assert state is S.CLAIMED
        assert living == (step is Step.WAIT)


@given(state=states, living=truth, resubmit=truth, task_id=ids, known=ids)
def test_the_decision_is_the_same_each_time(state, living, resubmit, task_id, known):
    """The decision depends only on its arguments."""
    there = kept(state, known)

    def decided():
        step = next_step(
            there, intent(), is_active=living, resubmit_as=run_of(resubmit), task_id=task_id
        )
        return step if isinstance(step, Step) else (type(step), step.message)

    assert decided() == decided()


@pytest.mark.parametrize("state", [S.UNCERTAIN, S.WRITTEN_OFF])
def test_a_doubt_is_told_with_what_happened(state):
    """The error has the message of the attempt that left the outcome uncertain."""
    told = next_step(entry(state, note="the line went dead"), intent(), is_active=False)
    assert isinstance(told, SubmissionUncertain)
    assert "the line went dead" in told.message
    assert told.idempotency_key == "sku-17"


@given(before=st.lists(st.sampled_from("abc")), run=st.sampled_from("abc"), living=truth)
def test_a_run_sends_it_again_once_after_an_unknown_outcome(before, run, living):
    """The ledger records which runs have used their permission."""
    there = entry(S.UNCERTAIN, resubmitted_by=tuple(before), note="no answer")
    step = next_step(there, intent(), is_active=living, resubmit_as=run)
    if run in before:
        assert isinstance(step, SubmissionUncertain)
        assert not step.may_resubmit
    else:
        assert step is Step.BUY
