# SPDX-License-Identifier: Apache-2.0
"""Submit step: buys a generation with one POST, or finds the one that its key already has."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from prefect import task
from prefect.runtime import task_run
from pydantic import ValidationError

from ...runway.errors import (
    CometAPIError,
    InvalidRequest,
    LedgerUnavailable,
    ServiceUnavailable,
    SourceUnreachable,
    SubmissionUncertain,
)
from ...runway.ledger.budget import seconds_of
from ...runway.ledger.entry import Entry, Intent
from ...runway.ledger.figures import Tally
from ...runway.models.generation import Submission
from ...runway.models.keys import check_task_id
from ...runway.models.requests import GenerationRequest, as_request
from ...runway.sources.preparation import PreparedRequest
from ..runtime import assets, log
from ..runtime.caller_arguments import GivenCredentials, GivenStorage
from ..runtime.identity import lasting_run_id
from ..runtime.ledger_check import check_ledger
from ..runtime.multi_worker_check import check_sharing
from ..runtime.run_context import RunContext, run_context
from ..runtime.sync import sync_twin
from ..runtime.task_state import current_state
from ..ui import events, metrics
from .adoption import adopt_id, key_for
from .common import failures_of, step_options
from .reconcile import reconcile_quietly
from .sources import prepare_sources

if TYPE_CHECKING:
    from ...runway.ledger.purchase import Check

LOOKS_WITHIN_DELAY = 4
"""Number of looks at the account within the time in which CometAPI may still add a task to it."""

RETRIED_ERRORS = (ServiceUnavailable, LedgerUnavailable, SourceUnreachable, SubmissionUncertain)


def _submission_name() -> str:
    """Return the name of a submission's task run; the request may be a dict."""
    with suppress(ValidationError):
        request = as_request(task_run.parameters["request"])
        return f"submit {request.route} {request.model}"
    return "submit"


SUBMIT = step_options("submit-generation", _submission_name, *RETRIED_ERRORS, retries=5)


@task(**SUBMIT)
async def asubmit_generation(
    request: GenerationRequest | Mapping[str, Any],
    credentials: GivenCredentials = None,
    idempotency_key: str | None = None,
    *,
    storage: GivenStorage = None,
    task_id: str | None = None,
    variation: int = 1,
) -> Submission:
    """Buy a generation with one POST, or return the one that its idempotency key already has.

    The task is retried only if it is certain that nothing was bought, or if the user allows an
    uncertain request to be sent again or to be looked up in the account.

    Args:
        request: Request to submit; a mapping is validated as a request.
        credentials: Credentials with the API key, or the name of their block; from the settings by
            default.
        idempotency_key: Makes two calls the same purchase. The default is derived from the
            outermost run and the request. It is required where no run keeps its id across
            retries: outside your flows and tasks, and in a thread without Prefect's context.
        storage: Location for the videos, or its block, in case another run has to finish it.
        task_id: Id of a generation that was bought elsewhere; then nothing is bought.
        variation: Number of this video among several for the same request in one run.

    Raises:
        NotSubmitted: The request was refused or could not be recorded, or a source of it could not
            be read; nothing was bought.
        SubmissionUncertain: The generation was possibly charged, now or in an earlier attempt.
        ServiceUnavailable: Nothing was bought, and no retries are left.
    """
    # Unlike the parameters of a flow, those of a task are not validated by Prefect.
    request = as_request(request)
    task_id = None if task_id is None else check_task_id(task_id)
    context = run_context(credentials, storage)
    key = await key_for(context, request, idempotency_key, task_id=task_id, variation=variation)
    with failures_of(key):
        if task_id is None:
            await check_sharing(context, stores=False)
            await check_ledger(context)
        prepared = await prepare_sources(context, request, key, adopts=task_id is not None)
        intent = await context.intent(key, request, prepared.versions)
        try:
            if task_id is not None:
                entry, is_new = await adopt_id(context, intent, task_id), False
            else:
                entry, is_new = await _buy(context, prepared, intent)
        except InvalidRequest as error:
            await _name_sold_models(context, request, error)
            raise
        except SubmissionUncertain as error:
            # An automation may notify a person, which one event of a submission is enough for.
            if not (error.may_reconcile and current_state().failures):
                await events.announce_uncertain(key, error)
            raise
    submission = entry.submission()
    await _report(context, submission, intent, is_new=is_new)
    await assets.depend_on_sources(request)
    return submission


submit_generation = task(**SUBMIT)(sync_twin(asubmit_generation.fn))


async def _buy(
    context: RunContext, prepared: PreparedRequest, intent: Intent
) -> tuple[Entry, bool]:
    """Return the entry of a generation, and whether this call bought it."""
    from ...runway.ledger.purchase import buy_once

    posted: list[str] = []
    request_ids: list[str] = []
    resubmits = context.settings.on_uncertain == "resubmit" and prepared.problem is None
    cost = seconds_of(prepared.request), intent.cost
    async with context.open_client() as client:

        async def post(check_lease: "Check") -> str:
            body = prepared.body()
            try:
                with _tallied(context, *cost):
                    posted.append(
                        await client.create(
                            prepared.request,
                            body=body,
                            before_sending=check_lease,
                            on_request_id=request_ids.append,
                        )
                    )
            except SubmissionUncertain:
                await metrics.count_uncertain(intent)
                raise
            return posted[0]

        async def buy() -> Entry:
            return await buy_once(
                await context.ledger(),
                intent,
                post,
                run=context.run,
                resubmit_as=lasting_run_id() if resubmits else None,
                budget=context.budget,
                request_id=lambda: request_ids[-1] if request_ids else None,
                warn=_warn,
            )

        try:
            entry = await buy()
        except SubmissionUncertain as error:
            if not await _is_reconciled(context, intent.idempotency_key, error):
                raise
            request_ids.clear()
            entry = await buy()
    return entry, bool(posted)


def _warn(text: str) -> None:
    log.logger().warning(text)
    log.show_waiting(text)


async def _is_reconciled(context: RunContext, key: str, error: SubmissionUncertain) -> bool:
    """Return True if the account decided about an uncertain submission, and the user allows that.

    Otherwise the error says if another look at the account may help.
    """
    from ...runway.ledger.reconciliation import Action, Verdict

    if context.settings.on_uncertain != "reconcile":
        return False
    results = await reconcile_quietly(context, [key])
    if not results:
        return False
    found = results[0]
    if found.done is not Action.NONE:
        return True
    if found.decision.verdict is Verdict.UNDECIDED and not found.decision.candidates:
        error.may_reconcile = True
        error.retry_after = context.settings.account_delay / LOOKS_WITHIN_DELAY
    return False


async def _name_sold_models(
    context: RunContext, request: GenerationRequest, error: InvalidRequest
) -> None:
    """Add the models of the request's route to an error for a model that CometAPI does not sell."""
    if error.code != "model_not_found":
        return
    sold = (await context.models()).sold_for(request.route)
    if sold:
        error.message += f"; CometAPI's catalogue has for {request.route}: {', '.join(sold)}"


@contextmanager
def _tallied(context: RunContext, seconds: float, cost: float | None) -> Iterator[None]:
    """Add a submission to the tally of the run, unless it is certain that nothing was bought."""
    tally = context.tally or Tally()
    tally.add(seconds, cost)
    try:
        yield
    except CometAPIError as error:
        if not isinstance(error, SubmissionUncertain):
            tally.refund(seconds, cost)
        raise


async def _report(
    context: RunContext, submission: Submission, intent: Intent, *, is_new: bool
) -> None:
    how = "submitted" if is_new else "already bought"
    log.log_progress(
        "Generation %s: %s, key %s", submission.task_id, how, submission.idempotency_key
    )
    if is_new:
        await metrics.count_bought(intent)
    if is_new and not log.is_quiet.get():
        await events.announce(
            "submitted",
            submission,
            **events.billing_of(intent) | {"route": intent.route, "model": intent.model},
            location=context.location,
        )
