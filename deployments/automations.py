# SPDX-License-Identifier: Apache-2.0
"""Prefect automations for the flow runs of this package.

Most of them apply to runs with the tag ``cometapi``, which each deployment in prefect.yaml has; the
others react to events about generations. Each automation is identified by its name, so that it is
created once and updated in place.
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

TAG = "cometapi"

SILENT_AFTER = timedelta(minutes=9)
"""Time without a heartbeat after which a run counts as crashed.

It is the time of three heartbeats, which Prefect sends every three minutes by default.
"""

UNBEGUN_AFTER = timedelta(minutes=15)
"""Time after which a pending run that has not begun counts as crashed.

A container may have to be pulled, and a machine to be started, before a run begins.
"""

_ENDS = ("Completed", "Failed", "Cancelled", "Crashed", "Suspended", "Paused")
_WAITS = ("Scheduled", "Late", "AwaitingConcurrencySlot", "AwaitingRetry")
_OURS: dict[str, Any] = {"prefect.resource.id": f"prefect.tag.{TAG}"}
_RUNS: dict[str, Any] = {"prefect.resource.id": "prefect.flow-run.*"}


def _each_of_our_runs(
    expect: set[str],
    posture: Literal[Posture.Reactive, Posture.Proactive] = Posture.Reactive,
    **more: Any,
) -> EventTrigger:
    return EventTrigger(
        posture=posture,
        expect=expect,
        match=_RUNS,
        match_related=_OURS,
        for_each={"prefect.resource.id"},
        threshold=1,
        **more,
    )


def _set_to(state: StateType, message: str) -> ActionTypes:
    return ChangeFlowRunState(name=None, state=state, message=message, force=False)


def _run(deployment_id: UUID, **templates: str) -> ActionTypes:
    parameters = {
        name: {"__prefect_kind": "jinja", "template": template}
        for name, template in templates.items()
    }
    return RunDeployment(
        source="selected", deployment_id=deployment_id, parameters=parameters, job_variables=None
    )


def silent_runs_crash(silent_after: timedelta = SILENT_AFTER) -> Automation:
    """Return an automation that marks a run as crashed once its heartbeats stop.

    Its process is gone, and nothing else reports the crash.
    """
    alive = {"prefect.flow-run.heartbeat"}
    return Automation(
        name="cometapi: a silent run has crashed",
        description="A run that sends no heartbeat any more is set to Crashed.",
        trigger=_each_of_our_runs(
            alive | {f"prefect.flow-run.{state}" for state in _ENDS},
            posture=Posture.Proactive,
            after=alive,
            within=silent_after,
        ),
        actions=[_set_to(StateType.CRASHED, "No heartbeat came from its process any more.")],
    )


def unbegun_runs_crash(unbegun_after: timedelta = UNBEGUN_AFTER) -> Automation:
    """Return an automation that marks a pending run as crashed if it does not begin.

    The worker took the run and died before the run began. No other worker takes it, because it is
    no longer scheduled, and it keeps a slot of the deployment's concurrency limit. It does not send
    heartbeats yet, so their absence proves nothing.
    """
    begun = {f"prefect.flow-run.{state}" for state in ("Running", *_WAITS, *_ENDS)}
    return Automation(
        name="cometapi: a run that never began has crashed",
        description="A run that was taken by a worker and does not begin is set to Crashed.",
        trigger=_each_of_our_runs(
            begun,
            posture=Posture.Proactive,
            after={"prefect.flow-run.Pending"},
            within=unbegun_after,
        ),
        actions=[_set_to(StateType.CRASHED, "It was taken by a worker, and never began.")],
    )


def crashed_runs_start_again() -> Automation:
    """Return an automation that schedules a crashed run again.

    The run finds what it bought before, and gives up after a limited number of starts.
    """
    return Automation(
        name="cometapi: a crashed run starts again",
        description="A crashed run is scheduled again; nothing is paid for twice.",
        trigger=_each_of_our_runs({"prefect.flow-run.Crashed"}),
        actions=[_set_to(StateType.SCHEDULED, "Starts again.")],
    )


def failures_are_told(block_id: UUID) -> Automation:
    """Return an automation that reports a failed run through a notification block."""
    return Automation(
        name="cometapi: a failure is told",
        description="Sends a notification when a run failed.",
        trigger=_each_of_our_runs({"prefect.flow-run.Failed"}),
        actions=[
            SendNotification(
                block_document_id=block_id,
                subject="{{ flow_run.name }} failed",
                body="{{ flow_run.state.message }}\n{{ flow_run|ui_url or 'Run ' ~ flow_run.id }}",
            )
        ],
    )


def uncertain_ones_are_told(block_id: UUID) -> Automation:
    """Return an automation that reports a possibly charged generation and the next command."""
    return Automation(
        name="cometapi: an uncertain one is told",
        description="Sends a notification when a submission ended without an answer.",
        trigger=EventTrigger(
            posture=Posture.Reactive,
            expect={"cometapi.generation.uncertain"},
            threshold=1,
        ),
        actions=[
            SendNotification(
                block_document_id=block_id,
                subject="Possibly charged: {{ event.payload.key }}",
                body="{{ event.payload.what }}\nNext: prefect-cometapi ledger list "
                "--state uncertain",
            )
        ],
    )


def each_clip_runs(deployment_id: UUID, name: str) -> Automation:
    """Return an automation that runs a deployment with the ``uri`` of each stored clip."""
    return Automation(
        name=f"cometapi: a stored clip runs {name}",
        description=f"Runs {name} with the clip's address as its parameter uri.",
        trigger=EventTrigger(
            posture=Posture.Reactive,
            expect={"cometapi.generation.stored"},
            threshold=1,
        ),
        actions=[_run(deployment_id, uri="{{ event.payload.uri }}")],
    )


def differ(wanted: Automation, there: Automation) -> bool:
    """Return True if an automation differs from the wanted one in more than its id and labels."""
    kept = ("name", "description", "trigger", "actions")
    return any(_plain(wanted, name) != _plain(there, name) for name in kept)


def _plain(automation: Automation, name: str) -> Any:
    return _sorted(automation.model_dump(mode="json", include={name})[name])


def _sorted(value: Any) -> Any:
    """Sort the lists in a value, as their order has no meaning, and drop the server's ids."""
    if isinstance(value, dict):
        items: dict[str, Any] = value
        return {name: _sorted(one) for name, one in items.items() if name != "id"}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return sorted((_sorted(one) for one in value), key=str)
    return value
