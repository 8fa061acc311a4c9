# SPDX-License-Identifier: Apache-2.0
"""Hook that cancels the shards of a batch whose run is cancelled.

The shards are runs of their own, which would otherwise continue to buy.
"""

from logging import Logger, LoggerAdapter
from typing import Any
from uuid import UUID

from prefect import Flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.logging.loggers import flow_run_logger

from ..runtime.sync import run_sync
from .shard_runs import UNAVAILABLE, cancel_run, is_active, is_batch_tag, runs_of_batch

_WHY = "The run of the batch was cancelled."


def cancel_shards(flow: Flow[Any, Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Cancel the active runs of the shards of a batch of which a run is cancelled."""
    _ = state
    log = flow_run_logger(flow_run, flow)
    try:
        run_sync(_cancel(flow_run.id, log))
    except UNAVAILABLE as error:
        log.warning(
            "The shards of this batch were not cancelled (%s) and may continue to buy. Cancel "
            "them in Prefect",
            type(error).__name__,
        )


async def _cancel(run_id: UUID, log: "Logger | LoggerAdapter[Any]") -> None:
    async with get_client() as client:
        tags = [tag for tag in (await client.read_flow_run(run_id)).tags if is_batch_tag(tag)]
    # All of them are read before the first changes, since a change could move others between pages.
    runs = [run for tag in tags for run in await runs_of_batch(tag)]
    for run in runs:
        if not (is_active(run) or run.state_type is StateType.CRASHED):
            continue
        try:
            is_cancelled = await cancel_run(run, _WHY)
        except UNAVAILABLE:
            is_cancelled = False
        if is_cancelled:
            log.warning("Shard %s is cancelled, too", run.name)
        else:
            log.warning(
                "Shard %s could not be cancelled and may continue to buy. Cancel it in Prefect",
                run.name,
            )
