# SPDX-License-Identifier: Apache-2.0
"""Events that a run emits about generations."""

from typing import Any

from prefect.events import emit_event

from ...runway.errors import SubmissionUncertain
from ...runway.ledger.entry import Intent
from ...runway.models.generation import Submission
from ..runtime.log import best_effort


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
            "route": submission.route,
            "model": submission.model,
            **payload,
        },
    )


def billing_of(intent: Intent | None) -> dict[str, Any]:
    """Return what is known of the billed seconds and the cost of a generation, for an event."""
    if intent is None:
        return {"seconds": None, "cost": None, "currency": None, "cost_source": None}
    return {
        "seconds": intent.billed_seconds,
        "cost": intent.cost,
        "currency": intent.currency,
        "cost_source": intent.cost_source,
    }


@best_effort
async def announce_uncertain(key: str, error: SubmissionUncertain) -> None:
    """Emit ``cometapi.generation.uncertain``, on which an automation can notify a person."""
    emit_event(
        "cometapi.generation.uncertain",
        resource={"prefect.resource.id": f"cometapi.key.{key}", "prefect.resource.name": key},
        payload={"idempotency_key": key, "message": error.message},
    )
