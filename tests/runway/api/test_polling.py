# SPDX-License-Identifier: Apache-2.0
"""Polling waits for a generation through every shape of reply, and never beyond its deadline."""

import asyncio
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import get_args

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_cometapi.runway import (
    AssetURL,
    AuthenticationError,
    CometAPIError,
    Generation,
    GenerationCancelled,
    GenerationError,
    GenerationFailed,
    GenerationNotFound,
    GenerationTimeout,
    InvalidOutput,
    ServiceUnavailable,
    Status,
    Submission,
    UnexpectedResponse,
)
from prefect_cometapi.runway.api.poll_schedule import JITTER
from prefect_cometapi.runway.api.polling import (
    PollPolicy,
    PollState,
    Route,
    evaluate,
    failed_poll,
    is_missing,
    jittered,
    next_route,
    wait_until_finished,
)
from prefect_cometapi.sandbox import ReplyShape

QUICK = PollPolicy(interval=0.01, timeout=20.0, not_found_grace=10.0)
SHAPES = get_args(ReplyShape)
DONE = {"id": "task-1", "status": "SUCCEEDED", "output": ["https://example.com/o.mp4"]}
RUNNING = {"id": "task-1", "status": "RUNNING", "progress": 0.5}
OWN = {"type": "comet_api_error", "message": "Invalid token", "code": ""}
UNKNOWN = (400, {"code": "task_not_exist", "message": "task_not_exist", "data": None})
TASK, FEED = "/runwayml/v1/tasks/task-1", "/runway/feed"

seconds = st.floats(0, 1e5)
policies = st.builds(PollPolicy, st.floats(0.001, 300), st.floats(0.001, 1e5), st.floats(0, 1e5))
generations = st.builds(
    lambda status, count: Generation(
        task_id="a",
        status=status,
        outputs=tuple(AssetURL(f"https://h/{n}") for n in range(count)),
    ),
    st.sampled_from(Status),
    st.integers(0, 2),
)


async def submit(service, client, request) -> Submission:
    task_id = await client.create(request)
    return Submission(idempotency_key="sku-17", task_id=task_id, submitted_at=datetime.now(UTC))


@given(reply=generations, elapsed=seconds, missing_for=seconds, policy=policies)
def test_every_reply_comes_to_an_end_an_error_or_more_waiting(reply, elapsed, missing_for, policy):
    """A success needs an output, a failure needs its word, and no wait passes the deadline."""
    result = evaluate(reply, elapsed, missing_for, policy)
    if isinstance(result, Generation):
        assert result is reply
        assert result.status is Status.SUCCEEDED
        assert result.outputs
    elif result is None:
        assert elapsed < policy.timeout
        assert not (is_missing(reply) and missing_for >= policy.not_found_grace)
        assert reply.status not in {Status.FAILED, Status.CANCELLED}
    assert isinstance(result, GenerationFailed) == (reply.status is Status.FAILED)
    assert isinstance(result, GenerationCancelled) == (reply.status is Status.CANCELLED)
    if isinstance(result, GenerationTimeout):
        assert elapsed >= policy.timeout


@given(reply=generations, missing_for=seconds, policy=policies)
def test_patience_with_what_is_missing_ends_with_the_grace_time(reply, missing_for, policy):
    """An unknown id or a missing output is waited for during the grace time, then reported."""
    result = evaluate(reply, 0.0, missing_for, policy)
    over = is_missing(reply) and missing_for >= policy.not_found_grace
    assert isinstance(result, GenerationNotFound | InvalidOutput) == over
    if over:
        expected = InvalidOutput if reply.status is Status.SUCCEEDED else GenerationNotFound
        assert type(result) is expected


@given(interval=seconds)
def test_jitter_only_ever_adds(interval):
    """Jitter spreads the polls of a batch and never shortens an interval."""
    assert interval <= jittered(interval) <= interval * (1 + JITTER) + 1e-6


def test_jitter_differs_from_call_to_call():
    """Jitter is different in every call."""
    assert len({jittered(5.0) for _ in range(20)}) > 10
    assert max(jittered(5.0) for _ in range(200)) <= 5.0 * (1 + JITTER)


@given(reply=generations, route=st.sampled_from(Route))
def test_both_routes_are_asked_in_turn_while_the_id_is_unknown(reply, route):
    """The route that knows the id first is used from then on."""
    following = next_route(reply, route)
    assert (following is not route) == (reply.status is Status.NOT_FOUND)


@pytest.mark.parametrize("shape", SHAPES)
async def test_every_shape_of_reply_leads_to_the_output(sandbox, client_of, request_, shape):
    """A video's address is found from the submission on, in every shape of reply."""
    service = sandbox(shapes=(shape,), render_seconds=0.05)
    client = await client_of(service.url)
    submission = await submit(service, client, request_)
    finished = await wait_until_finished(client, submission, QUICK)
    assert finished.generation.outputs[0].reveal()
    assert finished.polls == sum(request.route in {"task", "feed"} for request in service.requests)
    assert 0.0 < finished.waited < 20
    assert len(service.accepted) == 1


@pytest.mark.parametrize("polls", [1, 4])
async def test_an_id_that_is_not_known_yet_is_waited_for(sandbox, client_of, request_, polls):
    """Both routes are polled in turn, without a second submission."""
    service = sandbox(not_visible_polls=polls)
    client = await client_of(service.url)
    submission = await submit(service, client, request_)
    finished = await wait_until_finished(client, submission, QUICK)
    routes = [request.route for request in service.requests][1:]
    assert routes[: polls + 1] == ["task", "feed", "task", "feed", "task"][: polls + 1]
    assert finished.generation.status is Status.SUCCEEDED
    assert len(service.accepted) == 1


async def test_an_unknown_word_is_waited_out(sandbox, client_of, request_):
    """A new upstream state is treated as unfinished."""
    service = sandbox("task:unknown-status:times=3")
    client = await client_of(service.url)
    submission = await submit(service, client, request_)
    finished = await wait_until_finished(client, submission, QUICK)
    assert finished.polls >= 4


@pytest.mark.parametrize("shape", SHAPES)
async def test_a_failure_comes_with_its_code(sandbox, client_of, request_, shape):
    """Every shape of reply gives the code of a failure, and the id in any case."""
    service = sandbox("create:failed:value=SAFETY.INPUT.TEXT", shapes=(shape,))
    client = await client_of(service.url)
    submission = await submit(service, client, request_)
    with pytest.raises(GenerationFailed, match="content moderation") as caught:
        await wait_until_finished(client, submission, QUICK)
    assert (caught.value.idempotency_key, caught.value.task_id) == ("sku-17", submission.task_id)
    if shape not in {"flat", "integer_code"}:
        assert caught.value.failure_code == "SAFETY.INPUT.TEXT"


@pytest.mark.parametrize("shape", ["bare", "wrapped", "nested"])
async def test_a_cancellation_upstream_is_told_as_such(sandbox, client_of, request_, shape):
    """A cancelled generation is not reported as failed."""
    service = sandbox("create:cancelled", shapes=(shape,))
    client = await client_of(service.url)
    submission = await submit(service, client, request_)
    with pytest.raises(GenerationCancelled) as caught:
        await wait_until_finished(client, submission, QUICK)
    assert caught.value.task_id == submission.task_id


async def test_an_id_that_stays_unknown_is_given_up_after_the_grace_time(
    answers, client_of, submitted
):
    """The wait does not end before the grace time, and nothing is bought again."""
    script = answers(UNKNOWN)
    policy = PollPolicy(interval=0.01, timeout=20, not_found_grace=0.1)
    with pytest.raises(GenerationNotFound) as caught:
        await wait_until_finished(await client_of(script), submitted(), policy)
    assert caught.value.code == "task_not_exist"
    assert script.times[-1] - script.times[0] >= 0.09
    assert {request.url.path for request in script.requests} == {TASK, FEED}


async def test_a_moment_of_not_knowing_is_forgotten(answers, client_of, submitted):
    """Only an uninterrupted grace time counts, because replicas lag now and then."""
    script = answers(*[UNKNOWN, RUNNING] * 10, DONE)
    policy = PollPolicy(interval=0.01, timeout=20, not_found_grace=0.05)
    finished = await wait_until_finished(await client_of(script), submitted(), policy)
    assert finished.polls == 21


async def test_a_generation_keeps_its_deadline(sandbox, client_of, request_):
    """A timeout reports the state as last read; the generation continues upstream."""
    service = sandbox(render_seconds=60)
    client = await client_of(service.url)
    submission = await submit(service, client, request_)
    began = time.monotonic()
    with pytest.raises(GenerationTimeout, match=r"within 0.2 s; last known state: pending"):
        await wait_until_finished(client, submission, PollPolicy(0.02, 0.2, 0.1))
    assert 0.15 < time.monotonic() - began < 2


async def test_the_deadline_ends_a_poll_that_stays_silent(client_of, submitted):
    """A connection that stays open without an answer does not block the run."""
    asked = asyncio.Event()

    async def silence(reader, writer):
        asked.set()
        await reader.read()
        writer.close()

    server = await asyncio.start_server(silence, "127.0.0.1")
    async with server:
        client = await client_of(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        began = time.monotonic()
        with pytest.raises(GenerationTimeout, match="no reply had a state") as caught:
            await wait_until_finished(client, submitted(), PollPolicy(0.05, 0.2, 0.1))
        assert asked.is_set()
        assert 0.15 < time.monotonic() - began < 2
        assert caught.value.task_id == "task-1"


async def test_no_two_polls_come_closer_than_the_interval(answers, client_of, submitted):
    """The interval is the one that the service asks for and that a user can set."""
    script = answers(*[RUNNING] * 8, DONE)
    policy = PollPolicy(interval=0.1, timeout=20, not_found_grace=1)
    submission = submitted()
    began = time.monotonic()
    await wait_until_finished(await client_of(script), submission, policy)
    gaps = [after - before for before, after in zip([began, *script.times], script.times)]  # noqa: B905
    assert len(gaps) == 9
    assert min(gaps) >= 0.09  # measured slightly after the decision to poll


async def test_a_poll_after_the_deadline_still_keeps_the_interval(answers, client_of, submitted):
    """The last poll respects the interval and is made even after the deadline."""
    script = answers(RUNNING, DONE)
    wait = PollState(started=time.monotonic() - 100, last_poll=time.monotonic())
    began = time.monotonic()
    policy = PollPolicy(interval=0.05, timeout=1, not_found_grace=1)
    with pytest.raises(GenerationTimeout):
        await wait_until_finished(await client_of(script), submitted(), policy, wait=wait)
    assert script.times[0] - began >= 0.0499
    assert len(script.requests) == 1


async def test_a_finished_generation_is_fetched_although_its_deadline_is_over(
    sandbox, client_of, request_
):
    """A generation that is attached after its deadline still gives what was paid for."""
    service = sandbox()
    client = await client_of(service.url)
    submission = await submit(service, client, request_)
    await asyncio.to_thread(service.settle, 20)
    wait = PollState(started=time.monotonic() - 100)
    policy = PollPolicy(interval=0.5, timeout=1, not_found_grace=1)
    finished = await wait_until_finished(client, submission, policy, wait=wait)
    assert finished.generation.status is Status.SUCCEEDED


async def test_a_wait_goes_on_where_it_broke(answers, client_of, submitted):
    """A failed poll raises an error that names the generation, and the next call continues."""
    script = answers(RUNNING, (429, {}, {"retry-after": "2"}), httpx.ReadError("reset"), DONE)
    client, wait = await client_of(script), PollState()
    for retry_after in (2.0, None):
        with pytest.raises(ServiceUnavailable) as caught:
            await wait_until_finished(client, submitted(), QUICK, wait=wait)
        assert caught.value.retry_after == retry_after
        assert (caught.value.idempotency_key, caught.value.task_id) == ("sku-17", "task-1")
    finished = await wait_until_finished(client, submitted(), QUICK, wait=wait)
    assert finished.polls == 4
    assert wait.last is not None
    assert [later - earlier >= 0.0099 for earlier, later in zip(script.times, script.times[1:])]  # noqa: B905


async def test_no_answer_at_the_deadline_is_a_timeout(answers, client_of, submitted):
    """A timeout is not reported as an error that may be retried."""
    wait = PollState(started=time.monotonic() - 100)
    policy = PollPolicy(interval=0.01, timeout=1, not_found_grace=1)
    with pytest.raises(GenerationTimeout) as caught:
        await wait_until_finished(
            await client_of(answers((503, b"busy"))), submitted(), policy, wait=wait
        )
    assert caught.value.task_id == "task-1"
    assert isinstance(caught.value.__cause__, ServiceUnavailable)


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ((401, {"error": OWN}), AuthenticationError),
        ((403, {"error": {**OWN, "code": "permission_denied"}}), AuthenticationError),
        ((403, {"error": {**OWN, "code": "quota_not_enough"}}), GenerationNotFound),
        ((400, {"error": {**OWN, "code": "invalid_request"}}), GenerationNotFound),
        ((404, {"error": {**OWN, "message": "Invalid URL (GET /v1)"}}), UnexpectedResponse),
    ],
)
async def test_a_refusal_ends_a_wait_only_if_it_is_repeated(
    answers, client_of, submitted, answer, error
):
    """The service's refusal counts once it has lasted for its grace time, and names key and id."""
    client, wait = await client_of(answers(answer, RUNNING, answer)), PollState()
    policy = replace(QUICK, refusal_grace=0.05)

    async def poll() -> CometAPIError:
        with pytest.raises(CometAPIError) as caught:
            await wait_until_finished(client, submitted(), policy, wait=wait)
        assert (caught.value.idempotency_key, caught.value.task_id) == ("sku-17", "task-1")
        return caught.value

    assert "asked again until it refuses for 0.05 s" in str(await poll())
    first = await poll()  # after a state in between, which begins the grace time anew
    assert isinstance(first, ServiceUnavailable)
    assert (first.http_status, wait.last and wait.last.status) == (answer[0], Status.RUNNING)
    seen: list[CometAPIError] = [first]
    while isinstance(seen[-1], ServiceUnavailable):
        seen.append(await poll())
    assert isinstance(seen[-1], error)
    assert len(seen) > 1


@pytest.mark.parametrize(
    "answer",
    [
        (403, b"<title>Just a moment...</title>", {"content-type": "text/html"}),
        (200, b"<html>Log in to the hotel's network", {"content-type": "text/html"}),
        (503, b"<html>busy", {"content-type": "text/html"}),
        (302, b"", {"location": "https://portal.example/"}),
        (200, b"\x1f\x8bgarbage", {"content-encoding": "gzip"}),
        (404, {"detail": "Not Found"}),
        (401, {"error": "who are you?"}),
        (200, {"status": "ok"}),
        (501, b"<html>Unsupported method", {"content-type": "text/html"}),
    ],
    ids=repr,
)
async def test_what_stands_in_between_never_ends_a_wait(answers, client_of, submitted, answer):
    """Whatever answers in the service's place, the wait continues until its deadline."""
    script = answers(*[answer] * 20, RUNNING, *[answer] * 20, DONE)
    client, wait = await client_of(script), PollState()
    policy, failed = PollPolicy(interval=0.001, refusal_grace=0, not_found_grace=0), 0
    while True:
        try:
            await wait_until_finished(client, submitted(), policy, wait=wait)
            break
        except ServiceUnavailable:
            failed += 1
    assert failed == 40


async def test_a_timeout_names_what_stood_in_between(answers, client_of, submitted):
    """The error at the deadline has the last state, and what answered the last poll."""
    script = answers(RUNNING, (403, b"<h1>Blocked</h1>", {"content-type": "text/html"}))
    client, wait = await client_of(script), PollState()
    with pytest.raises(ServiceUnavailable):
        await wait_until_finished(client, submitted(), QUICK, wait=wait)
    wait.started = time.monotonic() - 100
    with pytest.raises(GenerationTimeout) as caught:
        await wait_until_finished(client, submitted(), QUICK, wait=wait)
    assert "last known state: running; the last poll returned no state: " in str(caught.value)
    assert "<h1>Blocked</h1>" in str(caught.value)
    assert "HTTP 403" in str(caught.value)


@given(
    refused_for=seconds,
    grace=seconds,
    kind=st.sampled_from([AuthenticationError, GenerationNotFound, ServiceUnavailable]),
)
def test_a_refusal_counts_only_after_its_grace_time(refused_for, grace, kind):
    """A shorter refusal is unavailability, and keeps its status, code and delay."""
    error = kind("no", code="c", http_status=401, retry_after=3.0)
    ended = failed_poll(error, refused_for, PollPolicy(refusal_grace=grace))
    assert (ended is error) == (kind is ServiceUnavailable or refused_for >= grace)
    assert isinstance(ended, ServiceUnavailable) or ended is error
    assert (ended.code, ended.http_status, ended.retry_after) == ("c", 401, 3.0)


@pytest.mark.parametrize(
    "answer",
    [
        (404, {"error": {**OWN, "message": "Invalid URL (POST /runway/feed)"}}),
        (403, {"error": {**OWN, "code": "permission_denied"}}),
        (400, {"code": "invalid_request", "message": "unknown id", "data": None}),
    ],
    ids=["no such route", "not permitted", "refused"],
)
async def test_a_feed_that_does_not_serve_the_id_does_no_harm(
    answers, client_of, submitted, answer
):
    """The feed is only a fallback, and only the first route decides."""

    def reply(request: httpx.Request):
        return answer if request.url.path == FEED else next(of_task)

    of_task = iter([UNKNOWN, UNKNOWN, DONE])
    finished = await wait_until_finished(await client_of(answers(reply)), submitted(), QUICK)
    assert finished.polls == 5


async def test_a_feed_out_of_order_is_not_asked_again_and_again(answers, client_of, submitted):
    """After a failed poll of the feed, the first route is polled."""

    def reply(request: httpx.Request):
        return (500, b"oops") if request.url.path == FEED else next(of_task)

    of_task = iter([UNKNOWN, DONE])
    client, wait = await client_of(answers(reply)), PollState()
    with pytest.raises(ServiceUnavailable):
        await wait_until_finished(client, submitted(), QUICK, wait=wait)
    finished = await wait_until_finished(client, submitted(), QUICK, wait=wait)
    assert finished.polls == 3


async def test_each_reply_is_shown_with_the_one_before(answers, client_of, submitted):
    """An observer gets each reply together with the previous one, so it sees what changed."""
    seen: list[tuple[Status, Status | None]] = []

    async def watch(reply: Generation, before: Generation | None) -> None:
        seen.append((reply.status, before and before.status))

    script = answers(UNKNOWN, RUNNING, DONE)
    await wait_until_finished(await client_of(script), submitted(), QUICK, on_reply=watch)
    assert seen == [
        (Status.NOT_FOUND, None),
        (Status.RUNNING, Status.NOT_FOUND),
        (Status.SUCCEEDED, Status.RUNNING),
    ]


async def test_an_old_submission_is_asked_for_at_once(answers, client_of):
    """Attaching to an old submission polls at once."""
    old = Submission(
        idempotency_key="k",
        task_id="task-1",
        submitted_at=datetime.now(UTC) - timedelta(seconds=3600),
    )
    began = time.monotonic()
    finished = await wait_until_finished(await client_of(answers(DONE)), old, PollPolicy())
    assert time.monotonic() - began < 2
    assert finished.waited == pytest.approx(3600, abs=5)


async def test_a_cancelled_wait_stops_at_once(answers, client_of, submitted):
    """A cancelled run is not reported as a timeout."""
    waiting = asyncio.create_task(
        wait_until_finished(await client_of(answers(RUNNING)), submitted(), QUICK)
    )
    await asyncio.sleep(0.03)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert not isinstance(asyncio.CancelledError(), CometAPIError)


def test_a_success_without_output_at_the_deadline_is_not_called_running():
    """The message says that the output is missing, because a finished generation is paid."""
    reply = Generation(task_id="t", status=Status.SUCCEEDED)
    error = evaluate(reply, elapsed=60, missing_for=5, policy=PollPolicy(timeout=30))
    assert isinstance(error, InvalidOutput)
    assert "returned no output" in str(error)


@pytest.mark.parametrize(
    ("status", "kind"),
    [(Status.FAILED, GenerationFailed), (Status.CANCELLED, GenerationCancelled)],
)
def test_a_vague_end_names_its_word_and_claims_nothing_about_the_money(status, kind):
    """The message has the service's word, says that it may be charged, and how to ask again."""
    reply = Generation(task_id="task-1", status=status, raw_status="EXPIRED", is_vague=True)
    error = evaluate(reply, 1, 0, QUICK)
    assert isinstance(error, GenerationError)
    assert type(error) is kind
    shown = str(error.with_context(task_id="task-1"))
    assert "(status 'EXPIRED')" in shown
    assert "may have been charged" in shown
    assert "prefect-cometapi finish task-1" in shown
    clear = evaluate(reply.model_copy(update={"is_vague": False}), 1, 0, QUICK)
    assert isinstance(clear, GenerationError)
    assert "EXPIRED" not in str(clear)
    assert clear.money == kind.money


def test_a_timeout_names_an_unknown_status():
    """A wait that ends at its deadline says which word of the service it did not know."""
    reply = Generation(task_id="task-1", status=Status.PENDING, unknown_status="Remixing")
    error = evaluate(reply, QUICK.timeout, 0, QUICK)
    assert isinstance(error, GenerationTimeout)
    assert "which CometAPI calls 'Remixing', a word that is not known here" in str(error)
    reply = reply.model_copy(update={"unread": "the reply has a web address in output.0"})
    error = evaluate(reply, QUICK.timeout, 0, QUICK)
    assert "not known here; the reply has a web address in output.0" in str(error)
    assert "charged if it succeeds or has succeeded" in str(error)


def test_a_success_without_output_names_what_the_reply_has():
    """The error names the fields in which the video may be."""
    reply = Generation(task_id="t", status=Status.SUCCEEDED, unread="the reply has the fields id")
    error = evaluate(reply, 1, QUICK.not_found_grace, QUICK)
    assert isinstance(error, InvalidOutput)
    assert "no output for 10 s; the reply has the fields id" in str(error)


async def test_a_timeout_names_the_id_of_another_reply(answers, client_of, submitted):
    """A reply about another generation is not used, and the error at the deadline names it."""
    client = await client_of(answers({**DONE, "id": "task-2"}))
    wait = PollState(started=time.monotonic() - 100)
    with pytest.raises(GenerationTimeout, match="the reply is about the generation task-2"):
        await wait_until_finished(client, submitted(), QUICK, wait=wait)
