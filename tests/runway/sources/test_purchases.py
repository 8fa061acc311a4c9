# SPDX-License-Identifier: Apache-2.0
"""Whatever became of the sources of a purchase, nothing is bought for it again."""

from hypothesis import given
from hypothesis import strategies as st

from prefect_cometapi.runway import (
    CometAPIError,
    IdempotencyKeyConflict,
    ImageToVideoRequest,
    InvalidSource,
    SourceUnavailable,
    SourceUnreachable,
    State,
)
from prefect_cometapi.runway.ledger.purchase import Step, next_step
from prefect_cometapi.runway.sources.preparation import PreparedRequest, for_purchase

from ..factories import entry, intent

REQUEST = ImageToVideoRequest(prompt_image="s3://bucket/cat.png")
PROBLEMS = (InvalidSource("a GIF"), SourceUnavailable("gone"), SourceUnreachable("away"))
version = st.sampled_from(["sha256:a", "sha256:b", "etag:c"])
versions = st.fixed_dictionaries({"promptImage": version})
readable = st.builds(
    lambda found: PreparedRequest(REQUEST, found, {"promptImage": "data:image/png;base64,AA=="}),
    versions,
)
read = readable | st.sampled_from(PROBLEMS)
taken = st.sampled_from([state for state in State if not entry(state).is_free()])


def step_for(state: State, bought: dict[str, str], prepared: PreparedRequest):
    """Return the next step for a key with a purchase of these versions."""
    there = entry(
        state,
        task_id=None if state in {State.CLAIMED, State.UNCERTAIN, State.WRITTEN_OFF} else "task-1",
        fingerprint=REQUEST.fingerprint(bought),
        request=REQUEST.redacted(bought),
    )
    wanted = intent(
        fingerprint=REQUEST.fingerprint(prepared.versions),
        request=REQUEST.redacted(prepared.versions),
    )
    assert there.is_of(REQUEST)
    return next_step(there, wanted, is_active=False)


@given(state=taken, bought=versions | st.just({}), now=read)
def test_no_fate_of_a_source_buys_again(state, bought, now):
    """Under a key with a purchase, a source that is gone, broken or replaced sends nothing."""
    prepared = for_purchase(REQUEST, bought, now)
    assert isinstance(prepared, PreparedRequest)
    assert step_for(state, bought, prepared) is not Step.BUY


@given(state=taken, bought=versions | st.just({}), problem=st.sampled_from(PROBLEMS))
def test_a_purchase_is_continued_without_its_source(state, bought, problem):
    """A purchase whose source is gone never looks like another request."""
    prepared = for_purchase(REQUEST, bought, problem)
    assert isinstance(prepared, PreparedRequest)
    assert prepared.problem is problem
    assert not isinstance(step_for(state, bought, prepared), IdempotencyKeyConflict)


@given(state=taken, bought=versions, now=readable)
def test_another_content_is_a_conflict_and_the_same_is_none(state, bought, now):
    """The versions decide, and nothing else."""
    prepared = for_purchase(REQUEST, bought, now)
    assert isinstance(prepared, PreparedRequest)
    conflicts = isinstance(step_for(state, bought, prepared), IdempotencyKeyConflict)
    assert conflicts == (now.versions != bought)


@given(state=taken, now=readable)
def test_an_adopted_generation_cannot_have_changed_sources(state, now):
    """Nothing was known of its sources, so nothing differs."""
    prepared = for_purchase(REQUEST, {}, now)
    assert isinstance(prepared, PreparedRequest)
    assert not isinstance(step_for(state, {}, prepared), IdempotencyKeyConflict)


@given(now=read)
def test_without_a_purchase_the_sources_are_as_they_are(now):
    """A problem ends the submission before the claim, and otherwise it is sent as it was read."""
    result = for_purchase(REQUEST, None, now)
    assert result is now
    assert isinstance(result, PreparedRequest | CometAPIError)
