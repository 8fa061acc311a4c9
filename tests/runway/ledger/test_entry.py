# SPDX-License-Identifier: Apache-2.0
"""An entry describes a purchase, and no change of its state lets money be spent twice."""

from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_cometapi.runway import (
    Entry,
    GenerationCancelled,
    GenerationFailed,
    ImageToVideoRequest,
    State,
    Status,
    SubmissionUncertain,
)
from prefect_cometapi.runway.ledger.entry import ALLOWED_PREDECESSORS, UNFINISHED, key_conflict
from prefect_cometapi.runway.models.generation import AssetURL

from ..factories import BASE, MOMENT, SIGNED, entry, intent, video

S = State
ENDS = {S.SUCCEEDED, S.STORED, S.FAILED, S.CANCELLED}
BOUGHT = {S.SUBMITTED, S.SUCCEEDED, S.STORED, S.FAILED, S.CANCELLED, S.ABANDONED}
FREE = {S.REJECTED, S.RESUBMIT_ALLOWED}
AFTER = {state: {next_ for next_ in S if state in ALLOWED_PREDECESSORS[next_]} for state in S}
DRAWN = [
    (S.CLAIMED, S.SUBMITTED),
    (S.SUBMITTED, S.SUCCEEDED),
    (S.SUCCEEDED, S.STORED),
    (S.SUBMITTED, S.FAILED),
    (S.SUBMITTED, S.CANCELLED),
    (S.SUBMITTED, S.ABANDONED),
    (S.CLAIMED, S.REJECTED),
    (S.CLAIMED, S.UNCERTAIN),
    (S.UNCERTAIN, S.SUBMITTED),
    (S.UNCERTAIN, S.WRITTEN_OFF),
    (S.UNCERTAIN, S.RESUBMIT_ALLOWED),
]
"""The transitions drawn in the docstring of the module."""

fingerprints = st.sampled_from([None, "a" * 64, "b" * 64])
bodies = st.none() | st.dictionaries(st.sampled_from("abc"), st.integers(0, 2))
wishes = st.builds(
    lambda base, fingerprint, body, route: intent(
        base_url=base, fingerprint=fingerprint, request=body, route=route
    ),
    st.sampled_from([BASE, "https://other.example.com"]),
    fingerprints,
    bodies,
    st.sampled_from(["image_to_video", "video_to_video"]),
)
ids = st.sampled_from([None, "task-1", "task-2"])


def reached_from(states: set[State], without: set[State]) -> set[State]:
    """Return every state that can be reached without passing through the given ones."""
    found, edge = set(states), set(states)
    while edge:
        edge = {next_ for state in edge for next_ in AFTER[state] - without} - found
        found |= edge
    return found


@pytest.mark.parametrize(("before", "after"), DRAWN)
def test_every_change_of_the_picture_may_happen(before, after):
    """A generation can be bought, fail, be stored and be decided by the user."""
    assert after in AFTER[before]


def test_every_change_that_may_happen_is_one_of_these():
    """No transition is added by accident; each line lists the successors of a state."""
    open_ = {S.SUBMITTED, S.RESUBMIT_ALLOWED, S.WRITTEN_OFF} | ENDS
    assert {
        S.CLAIMED: {S.SUBMITTED, S.REJECTED, S.UNCERTAIN} | ENDS,
        S.SUBMITTED: {S.SUBMITTED, S.ABANDONED} | ENDS,
        S.SUCCEEDED: {S.ABANDONED} | ENDS,
        S.STORED: {S.STORED},
        S.FAILED: {S.FAILED, S.RESUBMIT_ALLOWED, S.SUCCEEDED, S.STORED},
        S.CANCELLED: {S.CANCELLED, S.RESUBMIT_ALLOWED, S.SUCCEEDED, S.STORED},
        S.REJECTED: {S.CLAIMED, S.SUBMITTED},
        S.UNCERTAIN: {S.CLAIMED} | open_,
        S.WRITTEN_OFF: open_,
        S.RESUBMIT_ALLOWED: {S.CLAIMED, S.SUBMITTED, S.RESUBMIT_ALLOWED},
        S.ABANDONED: {S.SUBMITTED, S.ABANDONED} | ENDS,
    } == AFTER


def test_what_is_bought_is_never_bought_again_unless_the_user_says_so():
    """After an id, a new submission always requires a release by the user."""
    assert S.CLAIMED not in reached_from(BOUGHT, without={S.RESUBMIT_ALLOWED})
    assert S.CLAIMED in reached_from(BOUGHT, without=set())


def test_what_is_bought_and_goes_on_cannot_be_released():
    """Only a generation that failed upstream can make room for another submission."""
    going_on = {S.SUBMITTED, S.SUCCEEDED, S.STORED, S.ABANDONED}
    found = reached_from(going_on, without={S.FAILED, S.CANCELLED})
    assert found & {*FREE, S.CLAIMED, S.UNCERTAIN, S.WRITTEN_OFF} == set()


def test_what_may_have_been_bought_is_never_taken_for_rejected():
    """After an uncertain outcome, no later change says that nothing was sent."""
    assert S.REJECTED not in reached_from({S.UNCERTAIN, S.WRITTEN_OFF}, without={S.CLAIMED})


def test_what_was_given_up_is_sent_again_only_after_a_release():
    """A lost submission is not repeated automatically."""
    assert S.CLAIMED not in reached_from({S.WRITTEN_OFF}, without={S.RESUBMIT_ALLOWED})


def test_what_is_stored_stays_stored():
    """A late message from upstream does not undo a delivered video."""
    assert AFTER[S.STORED] == {S.STORED}


@given(walk=st.lists(st.sampled_from(State), max_size=40))
def test_submissions_of_one_key_are_counted_by_their_causes(walk):
    """Each further claim follows a rejection, an uncertain outcome or a release."""
    state, causes, claims = S.CLAIMED, 0, 0
    for wanted in walk:
        if state not in ALLOWED_PREDECESSORS[wanted]:
            continue
        claims += wanted is S.CLAIMED
        causes += state in {*FREE, S.UNCERTAIN} and wanted is S.CLAIMED
        state = wanted
    assert claims == causes


def test_what_is_unfinished_is_bought_and_not_delivered():
    """The collector finishes these generations later."""
    assert set(UNFINISHED) == BOUGHT - {S.STORED, S.FAILED, S.CANCELLED, S.ABANDONED}


@given(wish=wishes, state=st.sampled_from(State), task_id=ids)
def test_the_same_request_agrees_with_its_own_entry(wish, state, task_id):
    """A repeated run finds its generation, whatever its state."""
    known = entry(state, task_id=task_id, **wish.model_dump(exclude={"idempotency_key"}))
    assert key_conflict(known, wish, task_id) is None


@given(wish=wishes, other=wishes, state=st.sampled_from(sorted(FREE)), task_id=ids)
def test_a_free_key_agrees_with_every_request(wish, other, state, task_id):
    """A free key has no purchase, so it may be used for any request."""
    known = entry(state, task_id=task_id, **wish.model_dump(exclude={"idempotency_key"}))
    assert key_conflict(known, other, "task-3") is None


@given(wish=wishes, other=wishes, state=st.sampled_from(sorted(set(S) - FREE)))
def test_another_request_under_a_taken_key_is_refused(wish, other, state):
    """Another service or body means another video, so the conflict is an error."""
    known = entry(state, **wish.model_dump(exclude={"idempotency_key"}))
    clash = key_conflict(known, other)
    same_body = None in {wish.fingerprint, other.fingerprint} or (
        wish.fingerprint == other.fingerprint
    )
    assert (clash is None) == (same_body and wish.base_url == other.base_url)


def test_a_conflict_names_the_fields_that_differ():
    """The error names only the differing fields, so that a typo is easy to find."""
    other = intent(
        fingerprint="b" * 64,
        route="video_to_video",
        request={"promptText": "slow zoom", "duration": 10, "seed": 7},
    )
    clash = key_conflict(entry(S.SUBMITTED, task_id="task-1"), other)
    assert clash
    assert "route was 'image_to_video', is 'video_to_video'" in clash.message
    assert "duration was 5, is 10" in clash.message
    assert "seed was None, is 7" in clash.message
    assert "promptText" not in clash.message
    assert "base URL" not in clash.message


def test_a_conflict_that_no_field_shows_is_told_by_the_hashes():
    """Two shortened pictures may look equal."""
    clash = key_conflict(entry(S.SUBMITTED), intent(fingerprint="b" * 64))
    assert clash
    assert "request was 'aaaaaaaaaaaa', is 'bbbbbbbbbbbb'" in clash.message


def test_an_id_does_not_take_the_place_of_another():
    """A key identifies one generation."""
    clash = key_conflict(entry(S.SUBMITTED, task_id="task-1"), intent(), "task-2")
    assert clash
    assert clash.message.endswith("task id was 'task-1', is 'task-2'")


def test_a_request_is_refused_under_the_key_of_an_attached_id():
    """The request of an attached id is unknown, so it is not taken to be this one."""
    known = entry(S.SUBMITTED, task_id="task-1", fingerprint=None, request=None, route=None)
    clash = key_conflict(known, intent())
    assert clash
    assert "request was 'unknown', is 'another'" in clash.message
    assert key_conflict(known, intent(), "task-1") is None
    assert key_conflict(known, intent(fingerprint=None, request=None)) is None


@pytest.mark.parametrize("state", State)
def test_an_entry_with_an_id_is_a_submission(state):
    """The submission has all known fields; its time is that of the submission or of the record."""
    known = entry(state, task_id="task-1")
    assert known.submission().submitted_at == MOMENT
    later = MOMENT + timedelta(seconds=5)
    submission = known.model_copy(update={"submitted_at": later}).submission()
    assert submission.submitted_at == later
    assert (submission.idempotency_key, submission.task_id) == ("sku-17", "task-1")
    assert (submission.route, submission.model) == ("image_to_video", "gen4_turbo")
    assert submission.request == {"promptText": "slow zoom", "duration": 5}
    assert submission.fingerprint == "a" * 64


def test_an_entry_without_an_id_is_none():
    """A submission without an id was possibly charged, and the error names its key."""
    with pytest.raises(SubmissionUncertain, match="has no task id") as caught:
        entry(S.UNCERTAIN).submission()
    assert caught.value.idempotency_key == "sku-17"


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("task_id", [None, "task-1"])
def test_only_a_success_counts_as_finished(state, task_id):
    """Only a success, with its id, polls and time, can be fetched."""
    known = entry(
        state,
        task_id=task_id,
        polls=7,
        submitted_at=MOMENT,
        finished_at=MOMENT + timedelta(seconds=90),
        outputs=(AssetURL(SIGNED),),
    )
    found = known.finished()
    if task_id is None or state not in {S.SUCCEEDED, S.STORED}:
        assert found is None
    else:
        assert found
        assert (found.polls, found.waited) == (7, 90.0)
        assert found.generation.task_id == "task-1"
        assert found.generation.status is Status.SUCCEEDED


def test_the_wait_is_counted_from_the_submission_to_the_end():
    """The wait is zero if a time is unknown or the clocks disagree."""
    later = MOMENT + timedelta(seconds=12.3456)
    assert entry(S.SUBMITTED, submitted_at=MOMENT).waited == 0.0
    assert entry(S.SUCCEEDED, finished_at=later).waited == 0.0
    assert entry(S.SUCCEEDED, submitted_at=MOMENT, finished_at=later).waited == 12.3456
    assert entry(S.SUCCEEDED, submitted_at=later, finished_at=MOMENT).waited == 0.0


@pytest.mark.parametrize(
    ("state", "status"),
    [
        (S.SUBMITTED, Status.PENDING),
        (S.ABANDONED, Status.PENDING),
        (S.SUCCEEDED, Status.SUCCEEDED),
        (S.STORED, Status.SUCCEEDED),
        (S.FAILED, Status.FAILED),
        (S.CANCELLED, Status.CANCELLED),
    ],
)
def test_a_result_tells_how_far_it_got(state, status):
    """A flow that does not wait returns the state as last read."""
    result = entry(state, task_id="task-1", polls=2).result()
    assert (result.status, result.videos, result.polls) == (status, (), 2)
    assert (result.idempotency_key, result.task_id, result.submitted_at) == (
        "sku-17",
        "task-1",
        MOMENT,
    )


def test_a_result_has_the_videos_of_the_place_that_is_asked_for():
    """One generation may be stored in several storages, and the result has those of one."""
    known = entry(S.STORED, task_id="task-1", videos={"/a": (video("a"),), "/b": (video("b"),)})
    assert known.result("/b").videos == (video("b"),)
    assert known.result("/c").videos == ()
    assert known.result().videos == ()


@pytest.mark.parametrize("state", State)
def test_an_end_without_a_video_is_an_error_again(state):
    """The error has the reason, the code and the generation; other states raise none."""
    error = entry(state, task_id="task-1", note="no cats", failure_code="SAFETY").failure()
    expected = {S.FAILED: GenerationFailed, S.CANCELLED: GenerationCancelled}.get(state)
    if expected is None:
        assert error is None
    else:
        assert error
        assert type(error) is expected
        assert (error.message, error.code) == ("no cats", "SAFETY")
        assert (error.idempotency_key, error.task_id) == ("sku-17", "task-1")


@pytest.mark.parametrize(("state", "text"), [(S.FAILED, "failed"), (S.CANCELLED, "cancelled")])
def test_an_end_without_a_reason_says_what_happened(state, text):
    """An error always has a message."""
    error = entry(state).failure()
    assert error
    assert text in error.message


def test_an_entry_shows_no_token_of_an_output():
    """The query of a signed URL is hidden, in JSON too."""
    known = entry(S.SUCCEEDED, task_id="task-1", outputs=(AssetURL(SIGNED),))
    for shown in (repr(known), str(known), known.model_dump_json(), str(known.model_dump())):
        assert "topsecret" not in shown
        assert "cdn.example.com/out.mp4" in shown
    again = Entry.model_validate_json(known.model_dump_json())
    assert again.outputs[0].reveal() is None


def test_times_of_an_entry_have_a_zone():
    """A time without a zone would be ambiguous."""
    with pytest.raises(ValueError, match="timezone"):
        entry(S.SUBMITTED, submitted_at=datetime(2026, 11, 21))  # noqa: DTZ001


def test_an_entry_is_of_the_request_whatever_is_at_its_sources_by_now():
    """The versions are those of the purchase, so a stored video is found without reading again."""
    request = ImageToVideoRequest(prompt_image="s3://bucket/cat.png")
    versions = {"promptImage": "etag:1"}
    bought = entry(
        State.SUBMITTED,
        fingerprint=request.fingerprint(versions),
        request=request.redacted(versions),
    )
    assert bought.source_versions == versions
    assert bought.is_of(request)
    assert not bought.is_of(ImageToVideoRequest(prompt_image="s3://bucket/dog.png"))


@pytest.mark.parametrize("request_", [None, {}, {"sources": "of another version"}])
def test_an_entry_without_versions_is_of_a_request_by_its_addresses(request_):
    """An adopted generation was not sent from here, so nothing is known of its sources."""
    request = ImageToVideoRequest(prompt_image="s3://bucket/cat.png")
    adopted = entry(State.SUBMITTED, fingerprint=request.fingerprint(), request=request_)
    assert adopted.source_versions == {}
    assert adopted.is_of(request)
