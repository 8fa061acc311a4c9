# SPDX-License-Identifier: Apache-2.0
"""Report of CometAPI about an account: its tasks, its charges and its balance.

Each list says whether it is complete. An incomplete list is never evidence that something is
absent.
"""

from collections.abc import Iterable
from datetime import UTC, datetime
from math import isfinite
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AwareDatetime, BaseModel, BeforeValidator, ConfigDict

from ..redact import scrub
from .keys import is_task_id

QUOTA_PER_USD = 500_000
"""Units of CometAPI's quota in one US dollar (``QUOTA_PER_UNIT`` of its command line)."""

UNLIMITED_USD = 100_000_000
"""Limit in US dollars from which an API key has no limit of its own."""

PLATFORMS = ("runwayml", "runway")
"""Platforms under which CometAPI may list generations of Runway."""

_FIRST_MILLISECONDS = 100_000_000_000
"""Smallest number that is read as milliseconds; as seconds it is in the year 5138."""

_CONSUME, _REFUND = 2, 6


def read_number(value: Any) -> float | None:
    """Return a number that an untrusted reply gives, or None if it is not a finite number."""
    if isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if isfinite(number) else None


def read_time(value: Any) -> datetime | None:
    """Return a time that an untrusted reply gives in seconds or milliseconds; None if unknown."""
    if isinstance(value, datetime):
        return value
    number = read_number(value)
    if number is None or number <= 0:
        return None
    try:
        return datetime.fromtimestamp(number / (1000 if number >= _FIRST_MILLISECONDS else 1), UTC)
    except (OverflowError, OSError, ValueError):
        return None


def read_cost(quota: Any) -> float | None:
    """Return the US dollars of a quota, or None if it is not a number from 0."""
    number = read_number(quota)
    return None if number is None or number < 0 else number / QUOTA_PER_USD


def _read_text(value: Any) -> str:
    return scrub(value, limit=200) if isinstance(value, str) else ""


def _check_task_id(task_id: str) -> str:
    if not is_task_id(task_id):
        raise ValueError("not a task id")
    return task_id


Text = Annotated[str, BeforeValidator(_read_text)]
Time = Annotated[AwareDatetime | None, BeforeValidator(read_time)]
Cost = Annotated[float | None, BeforeValidator(read_cost)]


class _Row(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True)


class AccountTask(BaseModel):
    """Task in the account's own list; a field that CometAPI does not tell is empty or None.

    Attributes:
        task_id: Task id.
        platform: Platform, such as ``runwayml``.
        action: Action, such as ``IMAGE_TO_VIDEO``.
        status: Status in the gateway's words, such as ``SUCCESS``.
        model: Model.
        submitted_at: Time at which the task was submitted, with the precision of a second.
        finished_at: Time at which it ended.
        cost: Charge in US dollars.
    """

    model_config = ConfigDict(frozen=True)

    task_id: str
    platform: str = ""
    action: str = ""
    status: str = ""
    model: str = ""
    submitted_at: AwareDatetime | None = None
    finished_at: AwareDatetime | None = None
    cost: float | None = None


class TaskRow(_Row):
    """Row of ``GET /api/task/self``."""

    task_id: Annotated[str, AfterValidator(_check_task_id)]
    platform: Text = ""
    action: Text = ""
    status: Text = ""
    model_name: Text = ""
    created_at: Time = None
    submit_time: Time = None
    finish_time: Time = None
    quota: Cost = None

    def task(self) -> AccountTask:
        """Return the row as a task."""
        return AccountTask(
            task_id=self.task_id,
            platform=self.platform,
            action=self.action,
            status=self.status,
            model=self.model_name,
            submitted_at=self.submit_time or self.created_at,
            finished_at=self.finish_time,
            cost=self.quota,
        )


class AccountCharge(BaseModel):
    """Charge or refund in the account's usage log.

    Attributes:
        kind: ``charge`` or ``refund``.
        model: Model.
        cost: US dollars, always from 0.
        created_at: Time of the row.
        request_id: ``X-Cometapi-Request-Id`` of the call, where the row has it.
        content: Description in CometAPI's words.
    """

    model_config = ConfigDict(frozen=True)

    kind: Literal["charge", "refund"]
    model: str = ""
    cost: float | None = None
    created_at: AwareDatetime | None = None
    request_id: str = ""
    content: str = ""


class ChargeRow(_Row):
    """Row of ``GET /api/log/self``."""

    type: int
    model_name: Text = ""
    created_at: Time = None
    quota: Annotated[float | None, BeforeValidator(read_number)] = None
    request_id: Text = ""
    content: Text = ""

    def charge(self) -> AccountCharge | None:
        """Return the row as a charge or a refund, or None if it is neither."""
        if self.type not in {_CONSUME, _REFUND}:
            return None
        return AccountCharge(
            kind="refund" if self.type == _REFUND else "charge",
            model=self.model_name,
            cost=None if self.quota is None else abs(self.quota) / QUOTA_PER_USD,
            created_at=self.created_at,
            request_id=self.request_id,
            content=self.content,
        )


class _Listed(BaseModel):
    model_config = ConfigDict(frozen=True)

    is_complete: bool
    asked_at: AwareDatetime
    problem: str | None = None


class AccountTasks(_Listed):
    """Tasks of the account in one period.

    Attributes:
        tasks: Tasks that CometAPI listed, without duplicates.
        is_complete: True only if every page arrived and they fit together. Only then does the
            absence of a task mean something.
        asked_at: Time just before the first page was requested.
        problem: Reason why the list is incomplete.
    """

    tasks: tuple[AccountTask, ...] = ()


class AccountCharges(_Listed):
    """Charges and refunds of the account in one period, with the attributes of AccountTasks."""

    charges: tuple[AccountCharge, ...] = ()


class AccountBalance(BaseModel):
    """Balance of an API key.

    Attributes:
        usd: Balance in US dollars; None if it is unknown or the API key has no limit.
        is_unlimited: True if CometAPI reports that the API key has no limit.
        problem: Reason why the balance is unknown.
    """

    model_config = ConfigDict(frozen=True)

    usd: float | None = None
    is_unlimited: bool = False
    problem: str | None = None

    def covers(self, estimate: float | None) -> bool:
        """Return False only if a known balance is below a known estimate; pure."""
        return estimate is None or self.usd is None or estimate <= self.usd


class TokenCheck(BaseModel):
    """Answer of CometAPI to an access token; ``is_accepted`` is None if it is unknown."""

    model_config = ConfigDict(frozen=True)

    is_accepted: bool | None
    problem: str | None = None


def within(moment: datetime | None, start: datetime, end: datetime) -> bool:
    """Return False only if a known time is outside a period, compared in whole seconds; pure."""
    return moment is None or int(start.timestamp()) <= int(moment.timestamp()) <= end.timestamp()


def distinct_tasks(tasks: Iterable[AccountTask]) -> tuple[AccountTask, ...]:
    """Return the tasks without those whose task id occurred before; pure."""
    return tuple({task.task_id: task for task in reversed(list(tasks))}.values())[::-1]
