# SPDX-License-Identifier: Apache-2.0
"""Each item reports its own outcome, and decides whether the batch continues."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_cometapi.runway import (
    AuthenticationError,
    CometAPIError,
    GenerationFailed,
    GenerationResult,
    IdempotencyKeyConflict,
    ImageToVideoRequest,
    InvalidRequest,
    InvalidSource,
    Provenance,
    ProvenanceMissing,
    QuotaExceeded,
    ServiceUnavailable,
    SourceUnavailable,
    SourceUnreachable,
    Status,
    SubmissionUncertain,
)
from prefect_cometapi.runway.batch.models import BatchItem, BatchResult, Outcome
from prefect_cometapi.runway.batch.outcomes import (
    Again,
    FollowUp,
    again,
    corrections,
    ended,
    follow_up,
    invalid,
    next_step,
    not_bought,
    reason_to_stop,
    running,
    stored,
    unusable,
    waiting,
)
from prefect_cometapi.runway.batch.rows import BadRow
from prefect_cometapi.runway.ledger.figures import Spending

from ..factories import MOMENT, video

ITEM = BatchItem(
    id="sku-17",
    idempotency_key="catalogue/sku-17",
    request=ImageToVideoRequest(
        prompt_image="https://example.com/cat.jpg?sig=secret", prompt_text="slow zoom"
    ),
)


@pytest.mark.parametrize(
    ("provenance", "row"),
    [
        (None, (None, None)),
        (Provenance(found=False), (False, None)),
        (Provenance(found=True, signer="RUNWAY AI, INC."), (True, "RUNWAY AI, INC.")),
    ],
    ids=str,
)
def test_a_stored_item_says_whether_its_file_is_signed(provenance, row):
    """The output manifest has a column for the C2PA manifest and one for its signer."""
    made = video().model_copy(update={"provenance": provenance})
    result = GenerationResult(
        idempotency_key=ITEM.idempotency_key,
        task_id="t",
        status=Status.SUCCEEDED,
        videos=(made,),
        polls=1,
        waited=1.0,
        submitted_at=MOMENT,
    )
    item = stored(ITEM, result)
    assert (item.c2pa, item.c2pa_signer) == row


def test_a_withheld_file_waits_for_the_user():
    """Another run with the same settings changes nothing, and the next step names the setting."""
    error = ProvenanceMissing("no manifest").with_context(task_id="t")
    results = [ended(ITEM, error)]
    assert again(results) is Again.NOTHING
    assert "COMETAPI_REQUIRE_PROVENANCE=false" in next_step(results)


def test_an_item_says_what_it_asks_for_from_the_start():
    """An item has its key, route, model and prompt, but not its source, which may be signed."""
    asked = waiting(ITEM)
    assert (asked.id, asked.idempotency_key, asked.outcome) == (
        "sku-17",
        "catalogue/sku-17",
        Outcome.WAITING,
    )
    assert (asked.route, asked.model, asked.prompt) == (
        "image_to_video",
        "gen3a_turbo",
        "slow zoom",
    )
    assert "secret" not in asked.model_dump_json()
    assert running(ITEM) == asked.model_copy(update={"outcome": Outcome.RUNNING})


def test_a_stored_item_has_the_facts_of_its_video():
    """The item also has its polls, waiting time and billed seconds."""
    result = GenerationResult(
        idempotency_key=ITEM.idempotency_key,
        task_id="task-1",
        status=Status.SUCCEEDED,
        videos=(video("a", 5.04),),
        polls=3,
        waited=61.5,
        submitted_at=MOMENT,
    )
    item = stored(ITEM, result)
    assert item.outcome is Outcome.STORED
    assert (item.task_id, item.polls, item.waited) == ("task-1", 3, 61.5)
    assert (item.uri, item.sha256) == (result.videos[0].uri, result.videos[0].sha256)
    assert item.billed_seconds == 5.0
    assert (item.duration, item.submitted_at) == (5.04, MOMENT)


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (InvalidRequest("no"), Outcome.FAILED),
        (GenerationFailed("moderated").with_context(task_id="task-1"), Outcome.FAILED),
        (SubmissionUncertain("no answer"), Outcome.UNCERTAIN),
        (RuntimeError("nobody has thought of this"), Outcome.FAILED),
    ],
)
def test_an_item_without_a_video_says_why(error, outcome):
    """The item has the kind and message of its error; an uncertain one is possibly charged."""
    item = ended(ITEM, error)
    assert (item.outcome, item.error) == (outcome, type(error).__name__)
    assert item.message
    assert item.task_id == getattr(error, "task_id", None)
    assert (item.billed_seconds is not None) == (outcome is Outcome.UNCERTAIN)


def test_secrets_of_an_unknown_error_are_hidden():
    """An unknown error may quote an address, so it is redacted."""
    item = ended(ITEM, RuntimeError("GET https://cdn.example.com/a.mp4?_jwt=topsecret failed"))
    assert "topsecret" not in (item.message or "")


def test_an_account_that_cannot_buy_stops_the_batch():
    """Without credit or a valid API key, all further requests would be refused as well."""
    for error in (QuotaExceeded("no balance"), AuthenticationError("wrong key")):
        assert "the account cannot buy more" in (reason_to_stop(error, 1, None) or "")


@pytest.mark.parametrize("error", [InvalidRequest("no"), SubmissionUncertain("?"), ValueError()])
def test_failures_stop_the_batch_only_beyond_what_the_user_allows(error: CometAPIError):
    """Failures stop a batch only beyond the user's limit."""
    assert reason_to_stop(error, 10**6, None) is None
    assert reason_to_stop(error, 3, 3) is None
    assert "4 items failed, but at most 3 may fail" in (reason_to_stop(error, 4, 3) or "")
    assert reason_to_stop(error, 1, 0)


def test_each_bad_row_is_one_result_with_all_its_problems():
    """Rows with the same id are reported one by one, each with all its problems."""
    rows = [
        BadRow(row=3, unit="line", id="a", field="duration", problem="5 or 10 seconds, got 7"),
        BadRow(row=3, unit="line", id="a", field="ratio", problem="write width:height"),
        BadRow(row=7, unit="line", problem="is not a JSON object"),
        BadRow(row=9, unit="line", id="a", field="id", problem="stands in line 3 already"),
    ]
    found = invalid(rows)
    assert [item.id for item in found] == ["line 3 (a)", "line 7", "line 9 (a)"]
    assert {item.outcome for item in found} == {Outcome.INVALID}
    assert found[0].message == "duration: 5 or 10 seconds, got 7; ratio: write width:height"
    assert found[1].message == "is not a JSON object"


def test_an_item_with_an_unusable_source_is_invalid_before_it_is_bought():
    """A dry run reports it like a row that cannot be used."""
    found = unusable(ITEM, SourceUnavailable("cat.png cannot be read"))
    assert (found.outcome, found.error) == (Outcome.INVALID, "SourceUnavailable")
    assert found.message == "cat.png cannot be read"


@pytest.mark.parametrize("error", [SourceUnavailable, SourceUnreachable, InvalidSource])
def test_another_run_buys_an_item_whose_source_was_not_usable(error):
    """Nothing was bought, so the key is free."""
    assert again([ended(ITEM, error("?"))]) is Again.BUYS


def test_a_result_counts_its_items():
    """The summary sentence is also the message of the run's state."""
    results = (
        waiting(ITEM).model_copy(update={"outcome": Outcome.STORED}),
        not_bought(ITEM, "too dear"),
        ended(ITEM, InvalidRequest("no")),
        ended(ITEM, SubmissionUncertain("?")),
        *invalid([BadRow(row=1, problem="empty")]),
    )
    result = BatchResult(
        idempotency_key="catalogue", results=results, spending=Spending(seconds=5.0)
    )
    assert (result.succeeded, result.failed, result.uncertain, result.not_bought) == (1, 2, 1, 1)
    assert result.sentence() == "1 stored, 1 failed, 1 uncertain, 1 not bought, 1 invalid"
    assert result.model_dump()["succeeded"] == 1
    assert BatchResult.model_validate_json(result.model_dump_json()) == result


@given(
    kind=st.sampled_from(
        [
            AuthenticationError,
            GenerationFailed,
            InvalidRequest,
            QuotaExceeded,
            ServiceUnavailable,
            SubmissionUncertain,
        ]
    ),
    earlier=st.lists(st.sampled_from([ServiceUnavailable("a"), AuthenticationError("b")])),
    task_id=st.none() | st.just("t"),
    is_bought=st.booleans(),
    http_status=st.none() | st.just(401),
)
def test_an_item_is_sent_again_only_if_nothing_was_bought(
    kind, earlier, task_id, is_bought, http_status
):
    """Neither a possible purchase nor a second refusal of the API key is repeated."""
    error = kind("no", http_status=http_status).with_context(task_id=task_id)
    follow = follow_up(error, earlier, is_bought=is_bought)
    if follow is FollowUp.PAUSE_AND_REPEAT:
        assert isinstance(error, ServiceUnavailable | AuthenticationError)
        assert not task_id
        assert not is_bought
        repeated = any(isinstance(one, AuthenticationError) for one in earlier)
        assert isinstance(error, ServiceUnavailable) or not repeated
    is_uncertain = isinstance(error, SubmissionUncertain) and not (is_bought or task_id)
    assert (follow is FollowUp.PAUSE) == is_uncertain


def test_only_the_services_reply_refuses_an_api_key():
    """A key that is missing here is not asked for again."""
    missing, refused = (
        AuthenticationError("there is none"),
        AuthenticationError("", http_status=401),
    )
    assert follow_up(missing, [], is_bought=False) is FollowUp.NONE
    assert follow_up(refused, [], is_bought=False) is FollowUp.PAUSE_AND_REPEAT
    assert follow_up(refused, [refused], is_bought=False) is FollowUp.NONE
    assert follow_up(ValueError(), [], is_bought=False) is FollowUp.NONE


FAILED_ROWS = {
    "moderated": GenerationFailed("no", code="SAFETY.INPUT.TEXT"),
    "failed upstream": GenerationFailed("no", code="INTERNAL.BAD_OUTPUT.CODE01"),
    "refused": InvalidRequest("no", code="invalid_request"),
}


@pytest.mark.parametrize(("word", "error"), FAILED_ROWS.items())
def test_a_failed_row_keeps_its_code_and_has_its_own_advice(word, error):
    """The result names the service's code, and what to change in such a row."""
    item = ended(ITEM, error.with_context(task_id="task-1" if word != "refused" else None))
    assert item.failure_code == error.code
    assert item.problem() == f"{type(error).__name__} ({error.code}): no"
    (sentence,) = corrections([item, item])
    assert sentence.startswith(f"2 {word}: ")


def test_an_invalid_row_has_its_own_advice():
    """A row or a source that cannot be used is corrected, and then the batch is run again."""
    rows = invalid([BadRow(row=4, id="sku-3", problem="duration: 7 seconds")])
    rows.append(unusable(ITEM, InvalidSource("no picture")))
    advice = "2 invalid: correct the row or its source, and run the batch again"
    assert corrections(rows) == [advice]
    assert next_step(rows) == f"{advice}."


def test_the_next_step_of_a_batch_names_only_what_helps():
    """Another run is advised only if it buys or finishes something."""
    moderated, refused = (ended(ITEM, FAILED_ROWS[name]) for name in ("moderated", "refused"))
    assert "run the batch again" not in next_step([moderated])
    assert "use a new id" in next_step([moderated])
    assert next_step([moderated, not_bought(ITEM, "later")]).endswith(
        "run the batch again with the same idempotency key; it buys what is missing."
    )
    assert "refused: correct the request" in next_step([refused])
    assert "--state uncertain" in next_step([ended(ITEM, SubmissionUncertain("?"))])
    conflict = ended(ITEM, IdempotencyKeyConflict("another request"))
    assert next_step([conflict]) == "correct what the messages of the items name."
