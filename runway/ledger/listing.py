# SPDX-License-Identifier: Apache-2.0
"""SQL for the list of entries, newest first, as cheap in a large ledger as in a small one."""

from collections.abc import Iterator, Sequence
from datetime import datetime

from .entry import State
from .schema import UNKNOWN_STATE
from .statement import Sql, join
from .table import entries_where

_NEWEST = " ORDER BY created_at DESC"


def listing(
    *,
    states: Sequence[State] = (),
    since: datetime | None = None,
    flow_run_id: str | None = None,
    limit: int | None = None,
    with_unknown_states: bool = False,
) -> Sql:
    """Return a query for the entries that match all given filters, newest first.

    Each state is a query of its own, which reads its newest rows from the index of states and
    times. One query for several states would read all of their rows to sort them.

    Args:
        states: States of the entries; empty for all states.
        since: Earliest creation time.
        flow_run_id: Flow run of the entries.
        limit: Maximum number of entries.
        with_unknown_states: True to add rows whose state is none of the known ones.
    """
    filters = list(_filters(since, flow_run_id))
    newest = Sql(_NEWEST)
    if limit is not None:
        newest += Sql(" LIMIT :limit", {"limit": limit})
    wanted = [f"state = '{state}'" for state in dict.fromkeys(states)]
    if wanted and with_unknown_states:
        wanted.append(UNKNOWN_STATE)
    if not wanted:
        return entries_where(*filters) + newest
    each = [
        Sql("SELECT * FROM (") + entries_where(Sql(state), *filters) + newest + ") AS newest"
        for state in wanted
    ]
    return each[0] if len(each) == 1 else join(" UNION ALL ", each) + newest


def _filters(since: datetime | None, flow_run_id: str | None) -> Iterator[Sql]:
    if since:
        yield Sql("created_at >= :since", {"since": since})
    if flow_run_id:
        yield Sql("flow_run_id = :flow_run_id", {"flow_run_id": flow_run_id})
