# SPDX-License-Identifier: Apache-2.0
"""Hook that cancels the shards of a batch whose run is cancelled.

The shards are runs of their own, which would otherwise continue to buy.
"""

from typing import Any

from prefect import Flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterParentFlowRunId
from prefect.client.schemas.objects import FlowRun, State
from prefect.logging.loggers import flow_run_logger
from prefect.states import Cancelling


def cancel_shards(flow: Flow[Any, Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Cancel the active runs of shards that a cancelled run of a batch has started."""
    _ = state
    started = FlowRunFilterParentFlowRunId(any_=[flow_run.id])
    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs(flow_run_filter=FlowRunFilter(parent_flow_run_id=started))
        for run in runs:
            if run.deployment_id and run.state and not run.state.is_final():
                why = "The run of the batch was cancelled."
                client.set_flow_run_state(run.id, Cancelling(message=why))
                flow_run_logger(flow_run, flow).warning("Shard %s is cancelled, too", run.name)
