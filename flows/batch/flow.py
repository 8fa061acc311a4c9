# SPDX-License-Identifier: Apache-2.0
"""Batch flow: from a list or a manifest to stored videos and a gallery."""

import asyncio
from contextlib import nullcontext
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from ...runway.batch.errors import BatchFailed
from ...runway.batch.models import BatchResult
from ...runway.batch.outcomes import invalid, next_step
from ...runway.batch.rows import batch_keys, batch_prefix
from ...runway.ledger.budget import Budget
from ...runway.models.keys import check_key
from ..parameters import Credentials, Location
from ..runtime.caller_arguments import path_as_text
from ..runtime.flow_decorator import recorded_flow, sync_flow
from ..runtime.garbage_collection import rarer_collections
from ..runtime.identity import check_starts
from ..runtime.ledger_check import check_ledger, leave_mark
from ..runtime.multi_worker_check import check_sharing
from ..runtime.run_context import new_context
from ..steps.delivery import check_storage
from .artifacts import show_batch
from .balance import check_balance
from .cancellation import cancel_shards
from .plan import Reading, check_output, check_prices, check_rows_of, make_plan, spending_of
from .progress import BatchProgress
from .report import Report, completed, report_location
from .resources import concurrency_limits, shared_resources
from .runner import BatchRun
from .shard_checks import check_shards
from .shards import ShardedRun
from .task_runs import TaskRuns, task_runs_of


def _check_key(key: str) -> str:
    batch_keys(key)
    return check_key(key)


Requests = Annotated[
    str | list[Any],
    BeforeValidator(path_as_text),
    Field(
        description="Manifest (.jsonl, .csv or .parquet, or a folder of them; a path or an fsspec "
        "URL) with a request and an id in each row, or a list of requests."
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
    BeforeValidator(path_as_text),
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
ManifestFormat = Annotated[
    Literal["csv", "jsonl", "parquet"] | None,
    Field(description="Format of the manifest, if neither its name nor its content says it."),
]
ManifestEncoding = Annotated[
    str | None,
    Field(
        description="Encoding of the manifest's text, such as windows-1252, if it is not UTF-8 and "
        "has no byte order mark."
    ),
]


Shards = Annotated[
    Annotated[int, Field(ge=1, le=1000)],
    Field(
        description="Number of flow runs that share the batch, on any workers. They need a "
        "deployment of the flow generate-batch-shard."
    ),
]
ShardDeployment = Annotated[
    str | None,
    Field(
        description="Name of the deployment that runs the shards. By default it is the only one of "
        "the flow generate-batch-shard."
    ),
]


@recorded_flow("generate-batch", on_cancellation=[cancel_shards])
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
    manifest_format: ManifestFormat = None,
    manifest_encoding: ManifestEncoding = None,
    shards: Shards = 1,
    shard_deployment: ShardDeployment = None,
) -> BatchResult:
    """Make many videos in one run, or in several. An item that fails does not stop the others.

    Raises:
        InvalidManifest: No row is valid, or one is not and `strict` is set; nothing was bought.
        QuotaExceeded: The balance does not cover the estimated cost; nothing was bought.
        BatchFailed: No video was made, or more items failed than allowed.
        CometAPIError: The batch could not start; nothing was bought.
    """
    context = new_context(credentials, storage)
    settings = context.settings
    check_starts(settings.max_run_attempts)
    reading = Reading(manifest_format, manifest_encoding)
    plan = await asyncio.to_thread(make_plan, requests, idempotency_key, reading)
    check_rows_of(plan, strict=strict)
    prices, prefix = await context.prices(), batch_prefix(plan.idempotency_key)
    budget = Budget(prefix, prices, max_spend, max_seconds, context.currency)
    check_prices(plan, budget)
    check_output(requests, output)
    most = max_in_flight or settings.max_in_flight
    deployment = None
    if shards > 1:
        deployment = await check_shards(context, shards, most, shard_deployment)
    await check_storage(context)
    output_location = await report_location(context, plan.idempotency_key, output)
    progress = BatchProgress(budget, spending_of(plan, budget))
    async with shared_resources(context, budget, progress) as shared:
        await check_sharing(shared)
        await check_ledger(shared)
        if not ignore_balance:
            await check_balance(shared, plan, budget)
        failures = 0 if fail_fast else max_failures
        task_runs = task_runs_of(len(plan.items), settings)
        run: BatchRun | ShardedRun
        if deployment:
            run = ShardedRun(shared, progress, budget, deployment, shards, most, failures)
        else:
            limits = await concurrency_limits(settings, most, settings.submissions_per_second)
            run = BatchRun(shared, progress, budget, limits, failures, task_runs)
        is_large = task_runs is not TaskRuns.PER_STEP
        async with Report(
            plan.idempotency_key, progress, run.count_spent, *output_location
        ) as report:
            with rarer_collections() if is_large else nullcontext():
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
    _check_success(result, run.stopped)
    return completed(result.sentence(), result.succeeded, len(result.results), result)


generate_batch = sync_flow(agenerate_batch)


def _check_success(result: BatchResult, stopped: str | None) -> None:
    """Check that a batch made a video and was not stopped.

    Raises:
        BatchFailed: It was stopped, or made no video.
    """
    if stopped or not result.succeeded:
        sentence = result.sentence()
        error = BatchFailed(f"{sentence}; {stopped}" if stopped else sentence, result)
        error.advice = next_step(result.results)
        raise error
