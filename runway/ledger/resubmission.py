# SPDX-License-Identifier: Apache-2.0
"""Rule for a resubmission after an unknown outcome: not while the first one may still arrive.

A submission without an answer was not necessarily refused. The service, or a gateway in front of
it, may accept it minutes later, and a second submission is then a second charge. So the first one
must be old enough before the user decides that it never arrived.
"""

from datetime import UTC, datetime, timedelta
from typing import Any

from .entry import Entry, State

ARRIVAL_WINDOW = timedelta(minutes=15)
"""Longest time after which a submission can still be accepted.

The client ends the request after 120 s (``client.TOTAL_TIMEOUT``). After that, the operating system
still retransmits data that the peer has not acknowledged: Linux for about 100 s once the connection
is closed (``tcp_orphan_retries``). A gateway in between may then hold the request for its own
timeout, which is some minutes. The window is twice the sum.
"""


def last_arrival(sent: datetime) -> datetime:
    """Return the time after which a submission that was sent at a time cannot be accepted."""
    return sent + ARRIVAL_WINDOW


def outcome_is_unknown(entry: Entry) -> bool:
    """Return True if the latest submission may have been accepted without our knowledge; pure.

    A task id that the service never confirmed is not an answer either.
    """
    if entry.state in {State.UNCERTAIN, State.WRITTEN_OFF}:
        return True
    return entry.state in {State.SUBMITTED, State.ABANDONED} and not entry.task_id_checked


def sent_at(entry: Entry, now: datetime) -> datetime:
    """Return the latest time at which the latest submission can have been sent; pure.

    A row that was adopted or rebuilt does not record this time; it was sent before its last state
    change. A time in the future, from a clock that is ahead, counts as now.
    """
    return min(entry.claimed_at or entry.changed_at, now)


def may_arrive_until(entry: Entry, now: datetime) -> datetime | None:
    """Return the time until which the latest submission can still be accepted; pure.

    The result is None if that time is over, or if the outcome is known.
    """
    until = last_arrival(sent_at(entry, now))
    return until if outcome_is_unknown(entry) and now < until else None


def claim_times(seen: Entry | None = None) -> dict[str, Any]:
    """Return the columns of a new claim that contain its time.

    Args:
        seen: Entry that is claimed again, or None. An earlier submission of it without an answer
            stays unresolved.
    """
    now = datetime.now(UTC)
    earlier = seen.unresolved_since if seen else None
    return {"claimed_at": now, "unresolved_since": min(earlier or now, now)}


def earlier_unresolved(entry: Entry) -> datetime | None:
    """Return the time of the earliest submission without an answer before the latest claim; pure.

    The result is None if there is none, so that only the latest submission was unresolved.
    """
    since, latest = entry.unresolved_since, entry.claimed_at
    return since if since and latest and since < latest else None
