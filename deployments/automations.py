# SPDX-License-Identifier: Apache-2.0
"""What Prefect does by itself about our runs, as automations.

They hold for runs with the tag ``cometapi``, which each deployment in prefect.yaml has. Each is
known by its name, so that it is made once and changed in place.
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
"""Three of Prefect's heartbeats, which come every three minutes by default."""

UNBEGUN_AFTER = timedelta(minutes=15)
"""A container may have to be pulled, and a machine to be started, before a run begins."""

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
    """A run whose process is gone, with nobody there to say so, counts as crashed."""
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
    """A run that a worker took and did not live to begin counts as crashed.

    Nobody else takes it, since it is not scheduled any more, and it holds a place under the
    deployment's limit. It sends no heartbeat yet, so its silence tells nothing.
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
    """A crashed run is scheduled again; it finds what it bought, and gives up after some starts."""
    return Automation(
        name="cometapi: a crashed run starts again",
        description="A crashed run is scheduled again; nothing is paid for twice.",
        trigger=_each_of_our_runs({"prefect.flow-run.Crashed"}),
        actions=[_set_to(StateType.SCHEDULED, "Starts again.")],
    )


def failures_are_told(block_id: UUID) -> Automation:
    """Somebody hears of a run that failed, through a notification block."""
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
    """Somebody hears of a generation that was perhaps paid for, and of how to decide about it."""
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
                subject="Perhaps paid: {{ event.payload.key }}",
                body="{{ event.payload.what }}\nNext: prefect-cometapi ledger list "
                "--state uncertain",
            )
        ],
    )


def each_clip_runs(deployment_id: UUID, name: str) -> Automation:
    """A deployment runs for each stored clip, with where it is as its parameter ``uri``."""
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
    """Whether an automation does something else than is wanted; its id and labels do not count."""
    kept = ("name", "description", "trigger", "actions")
    return any(_plain(wanted, name) != _plain(there, name) for name in kept)


def _plain(automation: Automation, name: str) -> Any:
    return _sorted(automation.model_dump(mode="json", include={name})[name])


def _sorted(value: Any) -> Any:
    """The same without the order of what has none, and without ids that the server gives."""
    if isinstance(value, dict):
        items: dict[str, Any] = value
        return {name: _sorted(one) for name, one in items.items() if name != "id"}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return sorted((_sorted(one) for one in value), key=str)
    return value
