# SPDX-License-Identifier: Apache-2.0
"""Prefect automations for the flow runs of this package.

Most of them apply to flow runs with the tag ``cometapi``, which all deployments of the flows in
this package have. The others react to events about generations. Each automation is identified by
its name, so that it is created once and updated in place.
"""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Literal
from uuid import UUID

from prefect.automations import Automation
from prefect.client.schemas.objects import StateType
from prefect.events import EventTrigger
from prefect.events.actions import ActionTypes, ChangeFlowRunState, RunDeployment, SendNotification
from prefect.events.schemas.automations import Posture

from ..flows.runtime.flow_decorator import TAG

HEARTBEAT_TIMEOUT = timedelta(minutes=9)
"""Time without a heartbeat after which a run counts as crashed.

By default, Prefect sends a heartbeat every three minutes; this is the time of three.
"""

START_TIMEOUT = timedelta(minutes=15)
"""Time after which a pending run that has not started counts as crashed.

A machine may have to boot, and a container image to be pulled, before a run starts.
"""

RESTART_DELAY = timedelta(minutes=10)
"""Time after which a run that crashed repeatedly is restarted."""

_STOPPED_STATES = ("Completed", "Failed", "Cancelled", "Crashed", "Suspended", "Paused")
_WAITING_STATES = ("Scheduled", "Late", "AwaitingConcurrencySlot", "AwaitingRetry")
_CRASHED = {"prefect.flow-run.Crashed"}
_WITH_TAG: dict[str, Any] = {"prefect.resource.id": f"prefect.tag.{TAG}"}
_FLOW_RUNS: dict[str, Any] = {"prefect.resource.id": "prefect.flow-run.*"}


def _flow_run_trigger(
    expect: set[str],
    posture: Literal[Posture.Reactive, Posture.Proactive] = Posture.Reactive,
    threshold: int = 1,
    **options: Any,
) -> EventTrigger:
    return EventTrigger(
        posture=posture,
        expect=expect,
        match=_FLOW_RUNS,
        match_related=_WITH_TAG,
        for_each={"prefect.resource.id"},
        threshold=threshold,
        **options,
    )


def _set_to(state: StateType, message: str) -> ActionTypes:
    return ChangeFlowRunState(name=None, state=state, message=message, force=False)


def _run_deployment(deployment_id: UUID, **templates: str) -> ActionTypes:
    parameters = {
        name: {"__prefect_kind": "jinja", "template": template}
        for name, template in templates.items()
    }
    return RunDeployment(
        source="selected", deployment_id=deployment_id, parameters=parameters, job_variables=None
    )


def mark_silent_runs_crashed(heartbeat_timeout: timedelta = HEARTBEAT_TIMEOUT) -> Automation:
    """Return an automation that marks a run as crashed once its heartbeats stop.

    A process that was killed cannot report its own crash.
    """
    alive = {"prefect.flow-run.heartbeat"}
    return Automation(
        name="cometapi: mark silent runs as crashed",
        description="Sets a run to Crashed when its heartbeats have stopped.",
        trigger=_flow_run_trigger(
            alive | {f"prefect.flow-run.{state}" for state in _STOPPED_STATES},
            posture=Posture.Proactive,
            after=alive,
            within=heartbeat_timeout,
        ),
        actions=[_set_to(StateType.CRASHED, "The run stopped sending heartbeats.")],
    )


def mark_unstarted_runs_crashed(start_timeout: timedelta = START_TIMEOUT) -> Automation:
    """Return an automation that marks a pending run as crashed if it does not start.

    Its worker died after it had claimed the run. No other worker claims the run, because it is no
    longer scheduled, and it occupies a slot of the deployment's concurrency limit. A pending run
    sends no heartbeats, so their absence cannot be used here.
    """
    started = {
        f"prefect.flow-run.{state}" for state in ("Running", *_WAITING_STATES, *_STOPPED_STATES)
    }
    return Automation(
        name="cometapi: mark runs that did not start as crashed",
        description="Sets a run to Crashed when a worker claimed it and it did not start.",
        trigger=_flow_run_trigger(
            started,
            posture=Posture.Proactive,
            after={"prefect.flow-run.Pending"},
            within=start_timeout,
        ),
        actions=[_set_to(StateType.CRASHED, "A worker claimed the run, but it did not start.")],
    )


def restart_crashed_runs(window: timedelta) -> Automation:
    """Return an automation that schedules a run again at once when it crashes.

    It does so for the first crash of a run in a period. Further ones may have a cause that lasts,
    such as a missing image, and are left to the next automation. The run continues the generations
    that it bought before.

    Args:
        window: Length of the period, as ``crash_window`` returns it.
    """
    return Automation(
        name="cometapi: restart crashed runs",
        description="Schedules a crashed run again. Nothing is paid for twice.",
        trigger=_flow_run_trigger(_CRASHED, within=window),
        actions=[_set_to(StateType.SCHEDULED, "Restarted after a crash.")],
    )


def restart_runs_that_stay_crashed(delay: timedelta = RESTART_DELAY) -> Automation:
    """Return an automation that schedules a run again that has been crashed for a while.

    A restart counts only once a worker claims the run or the run is late. A worker may report a
    crash twice, and a server with SQLite may then set a restarted run to Scheduled without a start
    time (seen with Prefect 3.9.1 in 2 of 6 such crashes). No worker would ever claim it.
    """
    began = {
        f"prefect.flow-run.{state}"
        for state in ("Pending", "Running", *_WAITING_STATES)
        if state != "Scheduled"
    }
    return Automation(
        name="cometapi: restart runs that stay crashed",
        description="Schedules a run that crashed repeatedly again, after a delay.",
        trigger=_flow_run_trigger(
            began | {f"prefect.flow-run.{state}" for state in _STOPPED_STATES},
            posture=Posture.Proactive,
            after=_CRASHED,
            within=delay,
        ),
        actions=[_set_to(StateType.SCHEDULED, "Restarted after repeated crashes.")],
    )


def fail_runs_that_keep_crashing(attempts: int, window: timedelta) -> Automation:
    """Return an automation that sets a run to Failed when it crashes too often.

    A flow counts its own starts, but only once it runs. This automation also stops a run whose
    process ends before that, such as with a wrong interpreter.

    Args:
        attempts: Number of reported crashes in a period. A worker may report one crash twice.
        window: Length of the period, as ``crash_window`` returns it.
    """
    return Automation(
        name="cometapi: fail runs that keep crashing",
        description=f"Sets a run to Failed when {attempts} of its crashes were reported.",
        trigger=_flow_run_trigger(_CRASHED, threshold=attempts, within=window),
        actions=[
            _set_to(
                StateType.FAILED,
                f"The run crashed {attempts} times and is not restarted again. Nothing more is "
                "bought; the flow collect stores what was bought before. Find the reason in the "
                "log of the run or of its worker, correct it, and retry the run.",
            )
        ],
    )


def crash_window(attempts: int) -> timedelta:
    """Return the period in which the crashes of a run are counted; pure.

    Each restart may wait for its delay, and then for the time after which a run that did not start
    counts as crashed; twice that leaves room for the worker.
    """
    return attempts * 2 * (RESTART_DELAY + START_TIMEOUT)


def notify_on_failure(block_id: UUID) -> Automation:
    """Return an automation that sends a notification when a run has failed."""
    return Automation(
        name="cometapi: notify on failure",
        description="Sends a notification when a run has failed.",
        trigger=_flow_run_trigger({"prefect.flow-run.Failed"}),
        actions=[
            SendNotification(
                block_document_id=block_id,
                subject="{{ flow_run.name }} failed",
                body="{{ flow_run.state.message }}\n{{ flow_run|ui_url or 'Run ' ~ flow_run.id }}",
            )
        ],
    )


def notify_on_uncertain(block_id: UUID) -> Automation:
    """Return an automation that sends a notification about a possibly charged generation."""
    return Automation(
        name="cometapi: notify on uncertain submission",
        description="Sends a notification when a submission was sent and got no clear answer.",
        trigger=EventTrigger(
            posture=Posture.Reactive,
            expect={"cometapi.generation.uncertain"},
            threshold=1,
        ),
        actions=[
            SendNotification(
                block_document_id=block_id,
                subject="Possibly charged: {{ event.payload.idempotency_key }}",
                body="{{ event.payload.message }}\nNext: prefect-cometapi ledger list "
                "--state uncertain",
            )
        ],
    )


def run_for_each_video(deployment_id: UUID, name: str) -> Automation:
    """Return an automation that runs a deployment with the ``uri`` of each stored video."""
    return Automation(
        name=f"cometapi: run {name} for each stored video",
        description=f"Runs {name} with the location of the video as its parameter uri.",
        trigger=EventTrigger(
            posture=Posture.Reactive,
            expect={"cometapi.generation.stored"},
            threshold=1,
        ),
        actions=[_run_deployment(deployment_id, uri="{{ event.payload.uri }}")],
    )


def differ(wanted: Automation, existing: Automation) -> bool:
    """Return True if an automation has to be updated; its id and labels are not compared."""
    kept = ("name", "description", "trigger", "actions")
    return any(_comparable(wanted, name) != _comparable(existing, name) for name in kept)


def _comparable(automation: Automation, name: str) -> Any:
    return _sorted(automation.model_dump(mode="json", include={name})[name])


def _sorted(value: Any) -> Any:
    """Return a value with sorted lists and without ids, for a comparison.

    The order of these lists has no meaning, and the ids come from the server.
    """
    if isinstance(value, dict):
        items: dict[str, Any] = value
        return {name: _sorted(one) for name, one in items.items() if name != "id"}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return sorted((_sorted(one) for one in value), key=str)
    return value
