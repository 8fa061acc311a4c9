# SPDX-License-Identifier: Apache-2.0
"""Rule for one more submission after an unknown outcome: not while the first may still arrive.

A submission without an answer is not a submission that was refused. The service, or a gateway
before it, may accept it minutes later, and a second one is then a second charge. So it must be old
enough before the user decides that it never arrived.
"""

from datetime import datetime, timedelta

from .entry import Entry, State

ARRIVAL_WINDOW = timedelta(minutes=15)
"""Longest time after which a submission can still be accepted.

The request itself ends after 120 s here (``client.TOTAL_TIMEOUT``). Data that the peer has not
acknowledged is sent again after that: by Linux for about 100 s once a connection is closed
(``tcp_orphan_retries``). A gateway in between may then hold the request for its own timeout, which
is some minutes. The window is twice the sum.
"""


def outcome_is_unknown(entry: Entry) -> bool:
    """Return True if the latest submission may have been accepted unnoticed; pure.

    A task id that the service never confirmed is not an answer either.
    """
    if entry.state in {State.UNCERTAIN, State.LOST}:
        return True
    return entry.state in {State.SUBMITTED, State.ABANDONED} and not entry.task_id_checked


def sent_at(entry: Entry, now: datetime) -> datetime:
    """Return when the latest submission was sent, at the latest; pure.

    A row of an older version has no such time; it was sent before its state changed last. A time
    in the future, from a clock that is ahead, counts as now.
    """
    return min(entry.claimed_at or entry.changed_at, now)


def may_arrive_until(entry: Entry, now: datetime) -> datetime | None:
    """Return until when the latest submission can still be accepted; pure.

    None where that time is over, or where the outcome is known.
    """
    until = sent_at(entry, now) + ARRIVAL_WINDOW
    return until if outcome_is_unknown(entry) and now < until else None
