# SPDX-License-Identifier: Apache-2.0
"""Batch flow: from a list or a manifest to stored videos and a gallery."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Annotated, Any, cast

from prefect.states import Completed
from pydantic import AfterValidator, Field

from ...runway.batch.errors import BatchFailed
from ...runway.batch.models import BatchResult
from ...runway.batch.outcomes import invalid
from ...runway.batch.rows import batch_keys, batch_prefix
from ...runway.ledger.budget import Budget
from ...runway.media.download import AssetClients
from ...runway.settings import CometAPISettings
from ..parameters import Credentials, Location
from ..runtime.flow_decorator import recorded_flow, sync_flow
from ..runtime.identity import check_starts
from ..runtime.ledger_check import check_ledger, leave_mark
from ..runtime.multi_worker_check import warn_where_apart
from ..runtime.run_context import RunContext
from ..steps.delivery import check_storage
from .artifacts import show_batch
from .balance import check_balance
from .concurrency import ConcurrencyLimits, limit_across_processes
from .plan import check_output, check_prices, check_rows_of, make_plan, spending_of
from .progress import BatchProgress
from .report import Report, report_place
from .runner import BatchRun


def _check_key(key: str) -> str:
    batch_keys(key)
    return key


Requests = Annotated[
    str | list[Any],
    Field(
        description="Manifest (.jsonl, .csv or .parquet; a path or an fsspec URL) with a request "
        "and an id in each row, or a list of requests."
    ),
]
BatchKey = Annotated[
    Annotated[str, AfterValidator(_check_key)] | None,
    Field(
        description="Prefix of the items' idempotency keys. By default it is derived from the "
        "location of the manifest, so that another run buys only what is missing. For a list it is "
        "derived from the run."
    ),
]
Output = Annotated[
    str | None,
    Field(
        description="Location for the outcome of each item (.jsonl or .parquet). Default: beside "
        "the videos."
    ),
]
MaxInFlight = Annotated[
    Annotated[int, Field(ge=1)] | None,
    Field(
        description="Maximum number of generations in flight at CometAPI. Default: "
        "COMETAPI_MAX_IN_FLIGHT."
    ),
]
MaxSpend = Annotated[
    Annotated[float, Field(ge=0)] | None,
    Field(
        description="Maximum cost of all runs with the same batch key together, at the prices in "
        "COMETAPI_PRICES."
    ),
]
MaxSeconds = Annotated[
    Annotated[float, Field(ge=0)] | None,
    Field(
        description="Maximum seconds of video that all runs with the same batch key buy together."
    ),
]
Strict = Annotated[bool, Field(description="Whether to buy nothing if any row is not valid.")]
FailFast = Annotated[bool, Field(description="Whether to stop buying after the first failure.")]
MaxFailures = Annotated[
    Annotated[int, Field(ge=0)] | None,
    Field(description="Number of items that may fail before the batch stops buying."),
]

IgnoreBalance = Annotated[
    bool,
    Field(
        description="Whether to start even if the account's balance does not cover the estimated "
        "cost. The balance is in US dollars, so the prices should be, too."
    ),
]


@recorded_flow("generate-batch")
async def agenerate_batch(
    requests: Requests,
    *,
    credentials: Credentials = None,
    storage: Location = None,
    idempotency_key: BatchKey = None,
    output: Output = None,
    max_in_flight: MaxInFlight = None,
    max_spend: MaxSpend = None,
    max_seconds: MaxSeconds = None,
    strict: Strict = False,
    fail_fast: FailFast = False,
    max_failures: MaxFailures = None,
    ignore_balance: IgnoreBalance = False,
) -> BatchResult:
    """Make many videos in one run. An item that fails does not stop the others.

    Raises:
        InvalidManifest: No row is valid, or one is not and `strict` is set; nothing was bought.
        QuotaExceeded: The balance does not cover the estimated cost; nothing was bought.
        BatchFailed: No video was made, or more items failed than allowed.
        CometAPIError: The batch could not start; nothing was bought.
    """
    context = RunContext(credentials, storage)
    settings = context.settings
    check_starts(settings.max_run_attempts)
    plan = await asyncio.to_thread(make_plan, requests, idempotency_key)
    check_rows_of(plan, strict=strict)
    prices, prefix = await context.prices(), batch_prefix(plan.idempotency_key)
    budget = Budget(prefix, prices, max_spend, max_seconds, context.currency)
    check_prices(plan, budget)
    check_output(requests, output)
    await check_storage(context)
    output_place = await report_place(context, plan.idempotency_key, output)
    progress = BatchProgress(budget, spending_of(plan, budget))
    async with _shared_resources(context, budget, progress) as shared:
        await warn_where_apart(shared)
        await check_ledger(shared)
        if not ignore_balance:
            await check_balance(shared, plan, budget)
        run = BatchRun(
            context=shared,
            progress=progress,
            budget=budget,
            concurrency=await _concurrency_limits(settings, max_in_flight),
            max_failures=0 if fail_fast else max_failures,
            one_task_run=len(plan.items) > settings.max_items_with_step_tasks,
        )
        async with Report(plan.idempotency_key, progress, run.count_spent, *output_place) as report:
            await run.run(plan.items, invalid(plan.bad))
    result = BatchResult(
        idempotency_key=plan.idempotency_key,
        results=progress.results(),
        spending=progress.spending(),
        output=report.output,
        gallery=report.gallery,
        seconds=round(progress.snapshot().seconds, 3),
    )
    await leave_mark(context)
    await show_batch(result, context.storage_name)
    return _as_state(result, run.stopped)


generate_batch = sync_flow(agenerate_batch)


@asynccontextmanager
async def _shared_resources(
    context: RunContext, budget: Budget, progress: BatchProgress
) -> AsyncIterator[RunContext]:
    """Let all steps of the batch use the same clients, budget and tally."""
    async with context.credentials.get_client() as client, AssetClients() as assets:
        shared = replace(
            context,
            opened_ledger=await context.ledger(),
            client=client,
            assets=assets,
            budget=budget if budget.is_limited else None,
            tally=progress.tally,
        )
        with shared.active():
            yield shared


async def _concurrency_limits(
    settings: CometAPISettings, max_in_flight: int | None
) -> ConcurrencyLimits:
    reconciles = settings.on_uncertain == "reconcile"
    return ConcurrencyLimits(
        max_in_flight or settings.max_in_flight,
        settings.max_concurrent_downloads,
        settings.submissions_per_second,
        await limit_across_processes(),
        apart=2 * settings.clock_slack + 1 if reconciles else None,
    )


def _as_state(result: BatchResult, stopped: str | None) -> BatchResult:
    """Return the result as a Prefect state with the number of stored videos.

    Raises:
        BatchFailed: The batch was stopped, or no video was made.
    """
    sentence = result.sentence()
    if stopped or not result.succeeded:
        raise BatchFailed(f"{sentence}; {stopped}" if stopped else sentence, result)
    whole = result.succeeded == len(result.results)
    state = Completed(name="Completed" if whole else "PartlyStored", message=sentence, data=result)
    return cast("BatchResult", state)
