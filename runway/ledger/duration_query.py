# SPDX-License-Identifier: Apache-2.0
"""SQL for the durations of succeeded generations."""

from typing import Any

from sqlalchemy import Select, select

from .entry import GenerationKind, State
from .schema import generations

_table = generations.c


def durations_of(kind: GenerationKind, limit: int) -> Select[*tuple[Any, ...]]:
    """Return a query for times and polls of the newest succeeded generations of a kind."""
    query = (
        select(_table.submitted_at, _table.finished_at, _table.polls)
        .where(
            _table.base_url == kind.base_url,
            _table.route == kind.route,
            _table.model == kind.model,
            _table.state.in_([str(State.SUCCEEDED), str(State.STORED)]),
            _table.submitted_at.is_not(None),
            _table.finished_at.is_not(None),
        )
        .order_by(_table.submitted_at.desc())
        .limit(limit)
    )
    if kind.seconds is not None:
        query = query.where(_table.billed_seconds == kind.seconds)
    return query
