# SPDX-License-Identifier: Apache-2.0
"""Events that a run emits about generations and stored videos."""

from typing import Any

from prefect.context import AssetContext
from prefect.events import emit_event

from ...runway.errors import SubmissionUncertain
from ...runway.models.generation import StoredVideo, Submission
from ..runtime.log import best_effort
from .formatting import as_link


@best_effort
async def announce(what: str, submission: Submission, **payload: Any) -> None:
    """Emit the event ``cometapi.generation.<what>``.

    Prefect relates the event to the current run.
    """
    emit_event(
        f"cometapi.generation.{what}",
        resource={
            "prefect.resource.id": f"cometapi.generation.{submission.task_id}",
            "prefect.resource.name": submission.idempotency_key,
        },
        payload={
            "task_id": submission.task_id,
            "idempotency_key": submission.idempotency_key,
            **payload,
        },
    )


@best_effort
async def announce_uncertain(key: str, error: SubmissionUncertain) -> None:
    """Emit ``cometapi.generation.uncertain``, on which an automation can notify a person."""
    emit_event(
        "cometapi.generation.uncertain",
        resource={"prefect.resource.id": f"cometapi.key.{key}", "prefect.resource.name": key},
        payload={"idempotency_key": key, "message": error.message},
    )


def announce_asset(video: StoredVideo, submission: Submission) -> None:
    """Emit Prefect's asset materialization event for a stored video.

    Prefect's own decorator needs the asset key before the task runs, but the name of the video is
    known only afterwards.
    """
    from prefect.assets import Asset, AssetProperties

    name = video.uri.rpartition("/")[2]
    asset = Asset(key=as_link(video.uri).lower(), properties=AssetProperties(name=name))
    emit_event(
        "prefect.asset.materialization.succeeded",
        resource=AssetContext.asset_as_resource(asset),
        related=[AssetContext.related_materialized_by("prefect-cometapi")],
        payload={
            "task_id": submission.task_id,
            "idempotency_key": submission.idempotency_key,
            **video.model_dump(include={"sha256", "size", "width", "height", "duration"}),
        },
    )
