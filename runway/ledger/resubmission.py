# SPDX-License-Identifier: Apache-2.0
"""Rule for a resubmission after an unknown outcome: not while the first one may still arrive.

A submission without an answer was not necessarily refused. The service, or a gateway in front of
it, may accept it minutes later, and a second submission is then a second charge. So the first one
must be old enough before the user decides that it never arrived.
"""

from datetime import datetime, timedelta

from .entry import Entry, State

ARRIVAL_WINDOW = timedelta(minutes=15)
"""Longest time after which a submission can still be accepted.

The client ends the request after 120 s (``client.TOTAL_TIMEOUT``). After that, the operating system
still retransmits data that the peer has not acknowledged: Linux for about 100 s once the connection
is closed (``tcp_orphan_retries``). A gateway in between may then hold the request for its own
timeout, which is some minutes. The window is twice the sum.
"""


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
    until = sent_at(entry, now) + ARRIVAL_WINDOW
    return until if outcome_is_unknown(entry) and now < until else None
