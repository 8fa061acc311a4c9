# SPDX-License-Identifier: Apache-2.0
"""Events that a run emits about generations and stored videos."""

from typing import Any

from prefect.context import AssetContext
from prefect.events import emit_event

from ...runway.errors import SubmissionUncertain
from ...runway.models.generation import StoredVideo, Submission
from ..runtime.log import harmless
from .formatting import as_link


@harmless
async def announce(what: str, submission: Submission, **payload: Any) -> None:
    """Emit ``cometapi.generation.<what>``, related to the run that it happened in."""
    emit_event(
        f"cometapi.generation.{what}",
        resource={
            "prefect.resource.id": f"cometapi.generation.{submission.task_id}",
            "prefect.resource.name": submission.key,
        },
        payload={"task_id": submission.task_id, "key": submission.key, **payload},
    )


@harmless
async def announce_uncertain(key: str, error: SubmissionUncertain) -> None:
    """Emit ``cometapi.generation.uncertain``; an automation may tell somebody."""
    emit_event(
        "cometapi.generation.uncertain",
        resource={"prefect.resource.id": f"cometapi.key.{key}", "prefect.resource.name": key},
        payload={"key": key, "what": error.what},
    )


def announce_asset(video: StoredVideo, submission: Submission) -> None:
    """Emit Prefect's asset materialization for a stored video.

    Prefect's own decorator wants the asset's key before the task runs; a video gets its name later.
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
            "key": submission.key,
            **video.model_dump(include={"sha256", "size", "width", "height", "duration"}),
        },
    )
