# SPDX-License-Identifier: Apache-2.0
"""Each error names what failed, the generation, what is known about the cost, and what to do."""

import copy
import inspect
import pickle
from datetime import UTC, datetime
from typing import Any

import cloudpickle
import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_cometapi import runway
from prefect_cometapi.runway import (
    AuthenticationError,
    CometAPIError,
    GenerationCancelled,
    GenerationFailed,
    GenerationNotFound,
    GenerationTimeout,
    ImageToVideoRequest,
    InvalidManifest,
    InvalidOutput,
    InvalidRequest,
    OutputExpired,
    QuotaExceeded,
    ServiceUnavailable,
    Submission,
    SubmissionUncertain,
    UnexpectedResponse,
    errors,
)
from prefect_cometapi.runway.api.polling import PollPolicy, wait_until_finished
from prefect_cometapi.runway.batch import errors as batch_errors
from prefect_cometapi.runway.batch.rows import BadRow
from prefect_cometapi.runway.media.inspector import inspect_video
from prefect_cometapi.runway.models.requests import ROUTES

from .media.fetching import download

ALL = [
    value
    for value in (vars(errors) | vars(batch_errors)).values()
    if inspect.isclass(value) and issubclass(value, CometAPIError)
]
REQUEST = ImageToVideoRequest(prompt_image="https://example.com/cat.jpg", model="gen9_ultra")
BRIEF = PollPolicy(interval=0.01, timeout=0.1, not_found_grace=0.03)
FREE, MAYBE = "Money: nothing was charged.", "Money: possibly charged, once."
NO_CALL, PAID = "Money: nothing was charged for this call.", "Money: the generation is paid for"
ACCEPTED = "Money: the generation was accepted, so it may have been charged."
FINISH = "Next: prefect-cometapi finish task-1"


def refused(code: str, message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "comet_api_error", "param": "", "code": code}}


HTML = {"content-type": "text/html"}
CREATES = [
    (
        (
            503,
            refused("model_not_found", "No available channel for model gen9_ultra (distributor)"),
        ),
        InvalidRequest,
        "No available channel for model gen9_ultra",
        FREE,
        "Next: correct the request",
    ),
    (
        (401, refused("", "Invalid token")),
        AuthenticationError,
        "rejected the API key: Invalid token",
        NO_CALL,
        "Next: set COMETAPI_KEY",
    ),
    (
        (403, refused("quota_not_enough", "user quota is not enough")),
        QuotaExceeded,
        "balance is too low: user quota is not enough",
        FREE,
        "Next: top up the account",
    ),
    (
        (200, b"<html>All models</html>", HTML),
        SubmissionUncertain,
        "https://api.cometapi.com does not respond like CometAPI (text/html, '<html>All models",
        MAYBE,
        "look in CometAPI's console",
    ),
    ((200, b"", HTML), SubmissionUncertain, "text/html, empty", MAYBE, "console"),
    (
        (301, b"", {"location": "https://www.cometapi.com/?t=s3cr3t"}),
        SubmissionUncertain,
        "a redirect to https://www.cometapi.com/?<sha256:",
        MAYBE,
        "look in CometAPI's console",
    ),
    (
        (404, refused("", "Invalid URL (POST /v1/runwayml/v1/image_to_video)")),
        UnexpectedResponse,
        "https://api.cometapi.com does not respond like CometAPI: Invalid URL",
        NO_CALL,
        "Next: check COMETAPI_BASE_URL",
    ),
    (
        (429, refused("", "slow down"), {"retry-after": "3"}),
        ServiceUnavailable,
        "is unavailable: slow down (HTTP 429)",
        NO_CALL,
        "Next: wait and run it again",
    ),
    (
        httpx.ConnectError("refused"),
        ServiceUnavailable,
        "ConnectError: refused",
        NO_CALL,
        "Next: wait",
    ),
    (
        (503, refused("", "overloaded")),
        ServiceUnavailable,
        "overloaded (HTTP 503)",
        NO_CALL,
        "Next: wait",
    ),
    (
        httpx.ReadTimeout(""),
        SubmissionUncertain,
        "ReadTimeout: no detail",
        MAYBE,
        "prefect-cometapi ledger resubmit sku-17",
    ),
    (
        httpx.ReadError("reset"),
        SubmissionUncertain,
        "ReadError: reset",
        MAYBE,
        "look in CometAPI's console",
    ),
    (
        (500, refused("", "Internal error")),
        SubmissionUncertain,
        "Internal error (HTTP 500)",
        MAYBE,
        "console",
    ),
    (
        (502, b"error code: 502", {"content-type": "text/plain"}),
        SubmissionUncertain,
        "text/plain, 'error code: 502' (HTTP 502)",
        MAYBE,
        "console",
    ),
    ((504, b""), SubmissionUncertain, "no content type, empty (HTTP 504)", MAYBE, "console"),
    ((524, b""), SubmissionUncertain, "(HTTP 524)", MAYBE, "console"),
    ({}, SubmissionUncertain, "success but returned no task id (HTTP 200)", MAYBE, "console"),
]
POLLS = [
    (
        (400, {"code": "task_not_exist", "message": "", "data": None}),
        GenerationNotFound,
        "does not know the generation",
        ACCEPTED,
        "then: prefect-cometapi finish task-1",
    ),
    (
        {
            "id": "task-1",
            "status": "FAILED",
            "failure": "moderated",
            "failureCode": "SAFETY.INPUT.TEXT",
        },
        GenerationFailed,
        "failed: moderated (SAFETY.INPUT.TEXT)",
        "Money: accepted, then failed",
        "Next: content moderation refused it, so the same request is refused again: change",
    ),
    (
        {"id": "task-1", "status": "FAILURE"},
        GenerationFailed,
        "CometAPI gave no reason",
        "Money: accepted",
        "new idempotency key",
    ),
    (
        {"id": "task-1", "status": "CANCELLED"},
        GenerationCancelled,
        "was cancelled upstream",
        ACCEPTED,
        "needs a new idempotency key",
    ),
    (
        {"status": "RUNNING"},
        GenerationTimeout,
        "within 0.1 s; last known state: running",
        "Money: accepted and still running upstream",
        FINISH,
    ),
    (
        {"id": "task-1", "status": "SUCCEEDED", "at": 1},
        InvalidOutput,
        "returned no output for 0 s; the reply has the fields id, status, at",
        PAID,
        FINISH,
    ),
]
OUTPUTS = [
    ((200, b"<html>", HTML), InvalidOutput, "not an MP4 or WebM file; it begins with b'<html>'"),
    ((200, b""), InvalidOutput, "the output is empty"),
    ((200, b"GIF89a......"), InvalidOutput, "the output is not an MP4 or WebM"),
    ((403, b"<Error>"), OutputExpired, "the URL of the output is no longer valid (HTTP 403)"),
]


@pytest.mark.parametrize(
    ("answer", "error", "happened", "money", "following"),
    CREATES,
    ids=[repr(row[0])[:40] for row in CREATES],
)
async def test_a_submission_that_goes_wrong_is_explained(
    answers, client_of, answer, error, happened, money, following
):
    """The error of a failed submission says what happened, what it cost and what to do."""
    client = await client_of(answers(answer))
    with pytest.raises(error) as caught:
        await client.create(REQUEST)
    assert type(caught.value) is error
    told = str(caught.value.with_context(idempotency_key="sku-17")).splitlines()
    assert happened in told[0]
    assert told[1] == "Generation: idempotency key sku-17."
    assert told[2].startswith(money)
    assert told[3].startswith("Next: ")
    assert following in told[3]
    assert "s3cr3t" not in str(caught.value)


@pytest.mark.parametrize(
    ("answer", "error", "happened", "money", "following"),
    POLLS,
    ids=[row[1].__name__ for row in POLLS],
)
async def test_a_generation_that_goes_wrong_is_explained(
    answers, client_of, answer, error, happened, money, following
):
    """The error of a failed generation also names its id, so that it can be attached again."""
    client = await client_of(answers(answer))
    submission = Submission(
        idempotency_key="sku-17", task_id="task-1", submitted_at=datetime.now(UTC)
    )
    with pytest.raises(error) as caught:
        await wait_until_finished(client, submission, BRIEF)
    assert type(caught.value) is error
    told = str(caught.value).splitlines()
    assert happened in told[0]
    assert told[1] == "Generation: idempotency key sku-17, task id task-1."
    assert told[2].startswith(money)
    assert following in told[3]


@pytest.mark.parametrize(("answer", "error", "happened"), OUTPUTS)
async def test_an_output_that_goes_wrong_is_explained(answers, tmp_path, answer, error, happened):
    """The video is paid for, and the error says how to get it."""

    async def fetch() -> None:
        await download("https://cdn.example.com/o", tmp_path / "o", transport=answers(answer))
        inspect_video(tmp_path / "o")

    with pytest.raises(error) as caught:
        await fetch()
    told = str(caught.value.with_context(idempotency_key="sku-17", task_id="task-1")).splitlines()
    assert happened in told[0]
    assert told[2].startswith(PAID)
    assert told[3] == FINISH


@pytest.mark.parametrize("error_type", ALL)
@given(
    message=st.text(),
    code=st.sampled_from(["", "odd", "SAFETY.INPUT.TEXT", "ASSET.INVALID"]),
    status=st.none() | st.integers(400, 599),
    after=st.none() | st.floats(0, 60),
    ids=st.dictionaries(st.sampled_from(["idempotency_key", "task_id", "request_id"]), st.text()),
    later=st.dictionaries(st.sampled_from(["money", "advice", "credits"]), st.just("of the call")),
)
def test_an_error_survives_the_way_to_another_process(
    error_type, message, code, status, after, ids, later
):
    """Prefect pickles errors, and Dask and Ray do with cloudpickle; nothing of them is lost."""
    error = error_type(message, code=code, http_status=status, retry_after=after)
    error.with_context(**ids)
    for name, value in later.items():
        setattr(error, name, value)
    ways = pickle.loads(pickle.dumps(error)), cloudpickle.loads(cloudpickle.dumps(error))
    for again in (*ways, copy.copy(error)):
        assert type(again) is error_type
        assert again.args == error.args
        assert vars(again) == vars(error)
        assert (str(again), repr(again)) == (str(error), repr(error))


@pytest.mark.parametrize("error_type", ALL)
def test_an_error_fits_one_line_where_it_is_quoted(error_type):
    """The repr of an error names its type and what happened, without the advice."""
    error = error_type("it broke", code="odd", http_status=503).with_context(
        idempotency_key="sku-17"
    )
    assert repr(error) == f"{error_type.__name__}('it broke (odd, HTTP 503)')"


@pytest.mark.parametrize("error_type", [leaf for leaf in ALL if not leaf.__subclasses__()])
def test_every_error_that_is_raised_says_what_it_costs_and_what_to_do(error_type):
    """Every error says what is known about the cost."""
    told = str(error_type("it broke"))
    assert "\nMoney: " in told
    assert "\nNext: " in told
    assert "{" not in told


@pytest.mark.parametrize(
    "error_type", [errors.AuthenticationError, errors.UnexpectedResponse, ServiceUnavailable]
)
def test_trouble_while_waiting_tells_how_to_go_on(error_type):
    """The advice names the id once a generation is bought, and no id before that."""
    assert "finish" not in str(error_type("no"))
    assert "(then: prefect-cometapi finish t-1)" in str(
        error_type("no").with_context(task_id="t-1")
    )


def test_the_error_shows_the_first_bad_rows_and_holds_all_of_them():
    """The message shows five problems, each once, and the attribute holds all bad rows."""
    bad = [
        BadRow(row=n, unit="line", field="seed", problem=f"is wrong {n if n > 6 else ''}".strip())
        for n in range(2, 1009)
    ]
    error = InvalidManifest("rows.csv has bad rows, so nothing was bought", rows=bad)
    assert error.rows == tuple(bad)
    assert str(error).splitlines() == [
        "rows.csv has bad rows, so nothing was bought",
        "  line 2, line 3, line 4 and 2 more: seed: is wrong",
        *(f"  line {n}: seed: is wrong {n}" for n in range(7, 11)),
        "  and 998 more",
        "Money: nothing was charged.",
        "Next: correct the manifest and run it again.",
    ]
    assert pickle.loads(pickle.dumps(error)).rows == error.rows
    few = str(InvalidManifest("no", rows=bad[:3]))
    assert "line 2, line 3, line 4: seed: is wrong" in few
    assert "more" not in few


def test_what_is_known_already_is_not_overwritten():
    """An error keeps the key and the id that were set first."""
    error = CometAPIError("it broke").with_context(task_id="first")
    assert error.with_context(idempotency_key="sku-17", task_id="second").task_id == "first"
    assert error.with_context(idempotency_key="sku-18").idempotency_key == "sku-17"
    assert str(error) == "it broke\nGeneration: idempotency key sku-17, task id first."


def test_nothing_that_is_raised_before_buying_is_a_generation_error():
    """A handler of errors before a purchase never catches errors after it, and vice versa."""
    bought = (errors.GenerationError, errors.DeliveryError)
    assert not any(
        issubclass(error, bought) for error in ALL if issubclass(error, errors.NotSubmitted)
    )
    assert not issubclass(SubmissionUncertain, errors.NotSubmitted)
    assert not issubclass(SubmissionUncertain, ServiceUnavailable)


def test_every_error_is_exported_and_drawn_in_the_tree():
    """The tree in the module's docstring matches the error classes."""
    for error_type in ALL:
        assert error_type.__name__ in (errors.__doc__ or "")
        assert getattr(runway, error_type.__name__) is error_type


def test_the_failure_code_is_the_services_own():
    """The failure code is open-ended and is matched by its prefix."""
    assert GenerationFailed("x", code="SAFETY.OUTPUT.1").failure_code.startswith("SAFETY")
    assert GenerationFailed("x").failure_code == ""


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("SAFETY.INPUT.TEXT", "content moderation refused it"),
        ("INPUT_PREPROCESSING.SAFETY.TEXT", "content moderation refused it"),
        ("ASSET.INVALID", "replace it"),
        ("INTERNAL.BAD_OUTPUT.CODE01", "change the image or the prompt;"),
        ("", "change the image or the prompt;"),
    ],
)
def test_the_advice_for_a_failure_follows_its_code(code, words):
    """A moderated request is changed, an unusable source is replaced; both need a new key."""
    error = GenerationFailed("no", code=code)
    assert words in error.hint()
    assert "new idempotency key" in error.hint()


def test_the_exported_names_are_these_and_all_there():
    """No exported name disappears or is added unnoticed."""
    others = """
        AssetURL BatchResult Character CometAPISettings CompletedGeneration ContentModeration Entry
        FetchedVideo Generation GenerationRequest GenerationResult ItemResult Keyframe
        KeyframeRange Ledger Outcome Performance PositionedImage Provenance Reference RunwayClient
        Spending State Status StoredVideo Submission TaggedImage Verification sign_copy
        verify_provenance
    """
    requests = {request.__name__ for request in ROUTES.values()}
    expected = {*others.split(), *requests, *(error.__name__ for error in ALL)}
    assert set(runway.__all__) == expected
    assert all(hasattr(runway, name) for name in runway.__all__)
