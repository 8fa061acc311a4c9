# SPDX-License-Identifier: Apache-2.0
"""Poll step: waits until a generation has ended, and records how it ended."""

from prefect import task

from ...runway.api.polling import PollPolicy, wait_until_finished
from ...runway.errors import GenerationCancelled, GenerationFailed, ServiceUnavailable
from ...runway.models.generation import CompletedGeneration, Generation, Status, Submission
from ...runway.settings import CometAPISettings
from ..runtime.caller_arguments import GivenCredentials
from ..runtime.lease import exclusive_lease
from ..runtime.ledger_writes import restoring, write_best_effort, write_in_background
from ..runtime.run_context import run_context
from ..runtime.sync import sync_twin
from ..runtime.task_state import current_state
from ..ui import artifacts
from .adoption import ATTACHED_GRACE
from .common import step_options
from .costs import record_credits
from .durations import cohort_of, duration_stats_of

RETRIED_ERRORS = (ServiceUnavailable,)

MANY = 1_000_000
"""Maximum number of retries of a poll; the deadline of the generation ends them long before."""

POLL = step_options(
    "poll-generation",
    "poll {submission.short_id}",
    *RETRIED_ERRORS,
    retries=MANY,
    share=1,
)


@task(**POLL)
async def apoll_generation(
    submission: Submission, credentials: GivenCredentials = None, *, recheck: bool = False
) -> CompletedGeneration:
    """Wait until a generation has succeeded.

    Prefect retries a poll that the service does not answer, and the wait continues from there. So
    one task run covers the whole wait, with one deadline, whatever answers in the service's place.

    Args:
        submission: Generation to wait for.
        credentials: Credentials with the API key; from the settings by default.
        recheck: Whether to ask the service even if the ledger records the generation as failed
            or cancelled.

    Raises:
        GenerationError: The generation failed, was cancelled, is unknown to the service, or did
            not finish in time.
        AuthenticationError: The service refused the API key for minutes.
    """
    context = run_context(credentials)
    state = current_state()
    unconfirmed = False

    async def on_reply(reply: Generation, before: Generation | None) -> None:
        nonlocal unconfirmed
        state.failures = 0
        if unconfirmed and reply.status is not Status.NOT_FOUND:
            unconfirmed = False
            key = entry.idempotency_key if entry else submission.idempotency_key
            await write_best_effort(
                context, lambda ledger: ledger.confirm_id(key, submission.task_id)
            )
        await artifacts.show_reply(submission, reply, before)

    async with exclusive_lease(context, submission) as entry:
        given_up = entry.failure() if entry else None
        if given_up and not recheck:
            raise given_up
        unconfirmed = entry is not None and not entry.task_id_checked
        if entry and (finished := entry.finished()):
            return finished
        try:
            async with context.open_client() as client:
                finished = await wait_until_finished(
                    client,
                    submission,
                    _policy(submission, context.settings),
                    wait=state.wait,
                    on_reply=on_reply,
                    stats=duration_stats_of(context, submission, entry),
                    cohort=cohort_of(context, submission, entry),
                )
        except (GenerationFailed, GenerationCancelled) as error:
            failure = error
            if given_up is None:
                failed = restoring(submission, entry, lambda to, it: to.mark_failed(it, failure))
                await write_best_effort(context, failed)
                await record_credits(context, submission, failure.credits)
            raise
        ended = restoring(submission, entry, lambda to, it: to.mark_succeeded(it, finished))
        write_in_background(context, ended)
        await record_credits(context, submission, finished.generation.credits)
        return finished


poll_generation = task(**POLL)(sync_twin(apoll_generation.fn))


def _policy(submission: Submission, settings: CometAPISettings) -> PollPolicy:
    """Return the poll interval, the deadline and the grace time for a wait.

    The service may not know a new task id for a while. An older id, or one that was adopted, gets
    a shorter grace time.
    """
    older = submission.fingerprint is None or submission.age() > settings.not_found_grace
    shorter = min(settings.not_found_grace, ATTACHED_GRACE * settings.poll_interval)
    return PollPolicy(
        interval=settings.poll_interval,
        timeout=settings.generation_timeout,
        not_found_grace=shorter if older else settings.not_found_grace,
        refusal_grace=settings.not_found_grace,
    )
