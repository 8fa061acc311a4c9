# SPDX-License-Identifier: Apache-2.0
"""Resources and limits that all items of a batch share."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

from ...runway.ledger.budget import Budget
from ...runway.media.download import AssetClients
from ...runway.settings import CometAPISettings
from ..runtime.run_context import RunContext
from .concurrency import ConcurrencyLimits, limit_across_processes
from .progress import BatchProgress


@asynccontextmanager
async def shared_resources(
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


async def concurrency_limits(
    settings: CometAPISettings, in_flight: int, per_second: float | None
) -> ConcurrencyLimits:
    """Return the limits of a batch, or of one of its shards.

    Args:
        settings: Settings of the run.
        in_flight: Maximum number of generations in flight.
        per_second: Maximum submissions per second, or None for no limit.
    """
    reconciles = settings.on_uncertain == "reconcile"
    return ConcurrencyLimits(
        in_flight,
        settings.max_concurrent_downloads,
        per_second,
        await limit_across_processes(in_flight),
        apart=2 * settings.clock_slack + 1 if reconciles else None,
    )
