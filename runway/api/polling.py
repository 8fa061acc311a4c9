# SPDX-License-Identifier: Apache-2.0
"""Polling of a generation: the decision after each reply, and the loop.

The service asks for at least five seconds between two polls of one generation, and for jitter, so
that a batch does not poll in step. A new id may be unknown for a while ("a few seconds" in the
docs, minutes in practice), and so may an id that was known before. In both cases polling continues,
on the feed route and the task route in turn, and neither is a reason to buy again. A success may
arrive before its output; the same grace time applies to it.

A bought generation is waited for until its timeout, whatever stands between here and the service: a
firewall's page, a captive portal, another server. Only the service's own refusal ends a wait, and
only if it is repeated for minutes, since a gateway may refuse a valid API key for a moment.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from enum import StrEnum

from ..errors import (
    CometAPIError,
    GenerationCancelled,
    GenerationError,
    GenerationFailed,
    GenerationNotFound,
    GenerationTimeout,
    InvalidOutput,
    ServiceUnavailable,
)
from ..models.generation import CompletedGeneration, Generation, Status, Submission
from .client import RunwayClient
from .cohort import Cohort, recheck_delay
from .poll_schedule import JITTER, DurationStats, first_delay, next_delay


@dataclass(frozen=True)
class PollPolicy:
    """Polling limits, all in seconds.

    Attributes:
        interval: Minimum time between two polls of one generation.
        timeout: Maximum wait, including the request in flight.
        not_found_grace: Maximum time for which the service may not know the id, or may report a
            success without an output.
        refusal_grace: Maximum time for which the service may refuse to return the state, for
            example because of the API key.
    """

    interval: float = 5.0
    timeout: float = 1800.0
    not_found_grace: float = 120.0
    refusal_grace: float = 120.0


class Route(StrEnum):
    """API route that returns a generation's state."""

    TASK = "task"
    FEED = "feed"


@dataclass
class PollState:
    """State of one wait. It outlives a broken connection, so that the wait can continue.

    Attributes:
        started: Time at which the wait started, or None.
        polls: Number of polls.
        route: Route of the next poll.
        missing_since: Time since when the id or the output has been missing, or None.
        refused_since: Time of the first refusal since the last state, or None.
        last: Latest state.
        problem: Reason why the latest poll returned no state, or an empty text.
        last_poll: Time of the latest poll, or None.
        is_scout: Whether every poll is made when it is due, whatever the cohort shows.
    """

    started: float | None = None
    polls: int = 0
    route: Route = Route.TASK
    missing_since: float | None = None
    refused_since: float | None = None
    last: Generation | None = None
    problem: str = ""
    last_poll: float | None = field(default=None, repr=False)
    is_scout: bool = True


def jittered(seconds: float) -> float:
    """Return a time with random jitter, so that concurrent waits do not stay in step.

    Args:
        seconds: Minimum of the result, in seconds; ``JITTER`` is the share that may be added.
    """
    return seconds * (1.0 + JITTER * random.random())  # noqa: S311 -- not for secrets


def evaluate(
    reply: Generation, elapsed: float, missing_for: float, policy: PollPolicy
) -> Generation | CometAPIError | None:
    """Return the finished generation, its error, or None to keep waiting; pure.

    Args:
        reply: Latest reply.
        elapsed: Seconds waited so far.
        missing_for: Seconds for which the generation, or its output, has been missing without a
            break.
        policy: Polling limits.
    """
    if reply.status is Status.SUCCEEDED and reply.outputs:
        return reply
    if reply.status in {Status.FAILED, Status.CANCELLED}:
        return _end_error(reply)
    if is_missing(reply) and missing_for >= policy.not_found_grace:
        return _missing_error(reply, missing_for)
    if elapsed >= policy.timeout:
        done = reply.status is Status.SUCCEEDED
        return _missing_error(reply, missing_for) if done else timeout_error(reply, policy)
    return None


def _end_error(reply: Generation) -> GenerationError:
    """Return the error of a generation that failed or was cancelled."""
    word = f" (status {reply.raw_status!r})" if reply.is_vague else ""
    error: GenerationError
    if reply.status is Status.FAILED:
        reason = reply.failure or "CometAPI gave no reason"
        error = GenerationFailed(f"the generation failed: {reason}{word}", code=reply.failure_code)
    else:
        message = f"the generation was cancelled upstream{word}"
        error = GenerationCancelled(message, code=reply.failure_code)
    error.credits = reply.credits
    if reply.is_vague:
        error.money, error.advice = UNKNOWN_END, RECHECK_HINT
    return error


UNKNOWN_STATE = "accepted, so it is charged if it succeeds or has succeeded."
"""Knowledge about the money after a status that is not known here."""

UNKNOWN_END = (
    "accepted, then ended; the reply does not say whether the generation failed at Runway or the "
    "service gave up, so it may have been charged."
)
"""Knowledge about the money after a vague end."""

RECHECK_HINT = (
    "ask once more with prefect-cometapi finish {task_id}; another attempt needs a new "
    "idempotency key."
)
"""Next step after a vague end."""


def is_missing(reply: Generation) -> bool:
    """Return True if the id is unknown to the service, or a success has no output."""
    done_without_output = reply.status is Status.SUCCEEDED and not reply.outputs
    return done_without_output or reply.status is Status.NOT_FOUND


def missing_since(
    reply: Generation, before: Generation | None, since: float | None, now: float
) -> float | None:
    """Return the time since when the id or the output has been missing, or None; pure.

    An unknown id and a success without an output are two conditions, each with its own start.

    Args:
        reply: Latest reply.
        before: Reply before it, or None.
        since: Time since when the reply before was missing, or None.
        now: Time of the latest reply. Both times are seconds of the monotonic clock.
    """
    if not is_missing(reply):
        return None
    continues = since is not None and before is not None and before.status is reply.status
    return since if continues else now


def next_route(reply: Generation, route: Route) -> Route:
    """Return the route of the next poll, alternating while the id is unknown; pure."""
    if reply.status is not Status.NOT_FOUND:
        return route
    return Route.FEED if route is Route.TASK else Route.TASK


def timeout_error(
    reply: Generation | None, policy: PollPolicy, problem: str = ""
) -> GenerationTimeout:
    """Return the error of a generation that did not finish in time.

    Args:
        reply: Latest reply with a state, or None.
        policy: Polling limits.
        problem: Reason why the latest poll returned no state, or an empty text.
    """
    state = f"last known state: {reply.status}" if reply else "no reply had a state"
    if reply and reply.unknown_status:
        state += f", which CometAPI calls {reply.unknown_status!r}, a word that is not known here"
    if reply and reply.unread:
        state += f"; {reply.unread}"
    if problem:
        state += f"; the last poll returned no state: {problem}"
    error = GenerationTimeout(f"the generation did not finish within {policy.timeout:g} s; {state}")
    if reply and reply.unknown_status:
        error.money = UNKNOWN_STATE
    return error


def _missing_error(reply: Generation, missing_for: float) -> CometAPIError:
    if reply.status is Status.SUCCEEDED:
        unread = f"; {reply.unread}" if reply.unread else ""
        return InvalidOutput(
            f"CometAPI reports success but has returned no output for {missing_for:.0f} s{unread}"
        )
    return GenerationNotFound(
        f"CometAPI does not know the generation after {missing_for:.0f} s", code=reply.raw_status
    )


def failed_poll(error: CometAPIError, refused_for: float, policy: PollPolicy) -> CometAPIError:
    """Return the error with which a poll without a state ends; pure.

    A refusal that is not repeated for long enough is unavailability: the next poll may be accepted.

    Args:
        error: Error of the poll.
        refused_for: Seconds since the first refusal after the last state.
        policy: Polling limits.
    """
    if refused_for >= policy.refusal_grace:
        return error
    return as_outage(
        error, f"CometAPI is asked again until it refuses for {policy.refusal_grace:g} s"
    )


def as_outage(error: CometAPIError, note: str) -> ServiceUnavailable:
    """Return the refusal of a request about a bought generation as unavailability; pure.

    Args:
        error: Error of the request.
        note: Next step, for the message.
    """
    if isinstance(error, ServiceUnavailable):
        return error
    outage = ServiceUnavailable(
        f"{error.message}; the generation is bought, so {note}",
        code=error.code,
        http_status=error.http_status,
        retry_after=error.retry_after,
    )
    outage.with_context(task_id=error.task_id, request_id=error.request_id)
    return outage


async def wait_until_finished(
    client: RunwayClient,
    submission: Submission,
    policy: PollPolicy,
    *,
    wait: PollState | None = None,
    on_reply: Callable[[Generation, Generation | None], Awaitable[None]] | None = None,
    stats: Callable[[], DurationStats | None] = lambda: None,
    cohort: Cohort | None = None,
) -> CompletedGeneration:
    """Poll a generation until it succeeds.

    Args:
        client: Client to poll with.
        submission: Generation to poll.
        policy: Polling limits.
        wait: State of an earlier wait to continue, after a call that used it raised an error.
        on_reply: Awaited with each reply and the one before it.
        stats: Returns the duration statistics of the same kind of generation, once they are known.
        cohort: Generations of the same kind that the run waits for together.

    Raises:
        GenerationFailed: The generation failed.
        GenerationCancelled: The generation was cancelled upstream.
        GenerationNotFound: The service did not know the id for the whole grace time.
        GenerationTimeout: The generation did not finish within the deadline.
        InvalidOutput: It succeeded, but no output was named within the grace time.
        ServiceUnavailable: The poll returned no state; the wait can continue with the same
            ``wait``.
        CometAPIError: The service refused to return the state for the whole grace time.
    """
    wait, cohort = wait or PollState(), cohort or Cohort()
    if wait.started is None:
        wait.started = time.monotonic()
        wait.is_scout = cohort.join()
        await _sleep_until_first(submission, wait, policy, stats)
    while True:
        await _keep_interval(submission, wait, policy, stats())
        await _wait_for_cohort(submission, wait, policy, stats, cohort)
        before, unobserved = wait.last, _unobserved(submission, wait)
        reply = await _ask_within(client, submission, wait, policy)
        if on_reply:
            await on_reply(reply, before)
        now = time.monotonic()
        wait.missing_since = missing_since(reply, before, wait.missing_since, now)
        missing_for = now - (wait.missing_since or now)
        result = evaluate(reply, now - wait.started, missing_for, policy)
        if isinstance(result, CometAPIError):
            raise result.with_context(**submission.ids)
        if result:
            waited = round(submission.age(), 3)
            cohort.add_end(waited, unobserved, policy.interval)
            return CompletedGeneration(generation=result, polls=wait.polls, waited=waited)
        wait.route = next_route(reply, wait.route)


async def _sleep_until_first(
    submission: Submission,
    wait: PollState,
    policy: PollPolicy,
    stats: Callable[[], DurationStats | None],
) -> None:
    """Sleep until the first poll is due; the statistics may become known in the meantime."""
    chance = random.random()  # noqa: S311 -- not for secrets
    end = (wait.started or 0.0) + policy.timeout
    for _ in range(2):  # the statistics may become known during the first sleep
        soonest = first_delay(submission.age(), policy.interval, None, chance)
        delay = first_delay(submission.age(), policy.interval, stats(), chance)
        await asyncio.sleep(max(soonest, min(delay, end - time.monotonic())))


async def _keep_interval(
    submission: Submission, wait: PollState, policy: PollPolicy, stats: DurationStats | None
) -> None:
    """Sleep until the next poll is due or the deadline passes, but at least for the interval."""
    if wait.last_poll is None:
        return
    now = time.monotonic()
    age = max(0.0, submission.age() - (now - wait.last_poll))
    delay = max(
        next_delay(age, policy.interval, stats, random.random()),  # noqa: S311
        first_delay(age, policy.interval, stats),  # if the statistics have just become known
    )
    end = (wait.started or 0.0) + policy.timeout
    due = min(wait.last_poll + delay, max(end, wait.last_poll + policy.interval))
    await asyncio.sleep(due - now)


async def _wait_for_cohort(
    submission: Submission,
    wait: PollState,
    policy: PollPolicy,
    stats: Callable[[], DurationStats | None],
    cohort: Cohort,
) -> None:
    """Sleep while the cohort shows that the due poll can wait, until the deadline at most."""
    if wait.is_scout or wait.missing_since is not None or wait.refused_since is not None:
        return  # the state has to be confirmed, whatever the others show
    end = (wait.started or 0.0) + policy.timeout
    while (
        stats() is None
        and (left := end - time.monotonic()) > 0
        and cohort.can_wait(submission.age(), _unobserved(submission, wait), policy.interval)
    ):
        chance = random.random()  # noqa: S311 -- not for secrets
        await asyncio.sleep(min(recheck_delay(policy.interval, chance), left))


def _unobserved(submission: Submission, wait: PollState) -> float:
    """Return the seconds since the last poll, or since the submission."""
    if wait.last_poll is None:
        return submission.age()
    return time.monotonic() - wait.last_poll


async def _ask_within(
    client: RunwayClient, submission: Submission, wait: PollState, policy: PollPolicy
) -> Generation:
    """Poll once, until the deadline at most; after it, one last poll may take one interval."""
    end = (wait.started or 0.0) + policy.timeout
    which = submission.ids
    ask = client.get if wait.route is Route.TASK else client.feed
    wait.last_poll = time.monotonic()
    wait.polls += 1
    try:
        async with asyncio.timeout(max(end - wait.last_poll, policy.interval)):
            wait.last = await ask(submission.task_id)
    except TimeoutError as error:
        problem = wait.problem or "no answer"  # a reply before says more than its absence
        raise timeout_error(wait.last, policy, problem).with_context(**which) from error
    except CometAPIError as error:
        is_outage = isinstance(error, ServiceUnavailable)
        if wait.route is Route.TASK or is_outage:
            ended = _without_state(error, wait, policy).with_context(**which)
            raise ended from None if ended is error else error
        wait.last = Generation(  # the docs guarantee nothing about the feed: the task route decides
            task_id=submission.task_id, status=Status.NOT_FOUND, raw_status=error.code
        )
    else:
        wait.refused_since = None
    wait.problem = ""
    return wait.last


def _without_state(error: CometAPIError, wait: PollState, policy: PollPolicy) -> CometAPIError:
    """Note that a poll returned no state, and return the error with which it ends."""
    now = time.monotonic()
    wait.route = Route.TASK
    wait.problem = error.summary()
    if not isinstance(error, ServiceUnavailable) and wait.refused_since is None:
        wait.refused_since = now
    ended = failed_poll(error, now - (wait.refused_since or now), policy)
    is_late = wait.started is not None and now >= wait.started + policy.timeout
    if is_late and isinstance(ended, ServiceUnavailable):
        return timeout_error(wait.last, policy, wait.problem)
    return ended
