# SPDX-License-Identifier: Apache-2.0
"""SQL for the durations of succeeded generations."""

from .entry import GenerationKind
from .schema import DELIVERED, GENERATIONS
from .statement import Sql


def durations_of(kind: GenerationKind, limit: int) -> Sql:
    """Return a query for times and polls of the newest succeeded generations of a kind."""
    same_length = "" if kind.seconds is None else "AND billed_seconds = :seconds "
    return Sql(
        f"SELECT submitted_at, finished_at, polls FROM {GENERATIONS} "
        f"WHERE base_url = :base_url AND route = :route AND model = :model {same_length}"
        f"AND {DELIVERED} AND submitted_at IS NOT NULL AND finished_at IS NOT NULL "
        "ORDER BY submitted_at DESC LIMIT :limit",
        {
            "base_url": kind.base_url,
            "route": kind.route,
            "model": kind.model,
            "limit": limit,
            **({} if kind.seconds is None else {"seconds": kind.seconds}),
        },
    )
