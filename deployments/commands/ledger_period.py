# SPDX-License-Identifier: Apache-2.0
"""Options of the ledger commands that name a time."""

import re
from datetime import UTC, datetime, timedelta
from typing import Any

_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def since_time(text: str, now: datetime | None = None) -> datetime:
    """Parse a span before now (90m, 12h, 3d, 2w), or an ISO date or time (default: UTC); pure.

    Raises:
        ValueError: The text has neither form.
    """
    if found := re.fullmatch(r"(\d{1,5})\s*([mhdw])", text.strip()):
        ago = timedelta(**{_UNITS[found[2]]: int(found[1])})
        return (now or datetime.now(UTC)) - ago
    try:
        time = datetime.fromisoformat(text.strip())
    except ValueError:
        raise ValueError("write 90m, 12h, 3d, 2w, or a date such as 2026-11-21") from None
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def check_time(_type: Any, text: str | None) -> None:
    """Validate an option that names a time, for cyclopts."""
    if text is not None:
        since_time(text)
