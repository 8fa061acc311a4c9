# SPDX-License-Identifier: Apache-2.0
"""Kinds of faults, and the plan that assigns faults to requests.

The decision is a pure function of the plan and of the number of the request on its route. A run
with the same plan therefore misbehaves at the same points, whatever else happens around it. Other
modules apply the faults: `middleware.py`, `responses.py` and `sockets.py` here, and `api/app.py`.
"""

import random
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

FaultRoute = Literal["create", "task", "feed", "asset", "models", "tasks", "log", "billing"]

FaultKind = Literal[
    "429",
    "500",
    "502",
    "503",
    "504",
    "524",
    "invalid-request",
    "model-not-found",
    "quota",
    "unauthorized",
    "reset-before",
    "reset-after",
    "silent-after",
    "error-after",
    "html",
    "cloudflare",
    "firewall",
    "redirect",
    "no-id",
    "not-visible",
    "not-visible-200",
    "unknown-status",
    "error-in-200",
    "failed",
    "cancelled",
    "expired",
    "gone",
    "truncated",
    "truncated-silent",
    "html-asset",
    "empty",
    "ignore-range",
    "slow",
    "late-rows",
    "foreign-rows",
    "missing-pages",
    "changing-total",
]

_API: tuple[FaultRoute, ...] = ("create", "task", "feed")
_ACCOUNT: tuple[FaultRoute, ...] = ("models", "tasks", "log", "billing")
_EVERYWHERE: tuple[FaultRoute, ...] = (*_API, "asset", *_ACCOUNT)
_CREATE: tuple[FaultRoute, ...] = ("create",)
_POLLS: tuple[FaultRoute, ...] = ("task", "feed")
_ASSET: tuple[FaultRoute, ...] = ("asset",)
_LISTS: tuple[FaultRoute, ...] = ("tasks", "log")


@dataclass(frozen=True)
class FaultDescription:
    """Description of a kind of fault.

    Attributes:
        routes: Routes on which it can happen.
        meaning: Effect of the fault, and the meaning of `Fault.value`.
    """

    routes: tuple[FaultRoute, ...]
    meaning: str


KINDS: dict[FaultKind, FaultDescription] = {
    "429": FaultDescription(
        _EVERYWHERE,
        "Too many requests. Retry-After is absent, or `value` seconds, or with `date:SECONDS` "
        "an HTTP date that many seconds away.",
    ),
    "500": FaultDescription(_EVERYWHERE, "Internal server error."),
    "502": FaultDescription(_EVERYWHERE, "Bad gateway, as a line of text."),
    "503": FaultDescription(_EVERYWHERE, "Temporarily overloaded."),
    "504": FaultDescription(
        _EVERYWHERE, "Gateway timeout, as a line of text. Nothing was accepted."
    ),
    "524": FaultDescription(_EVERYWHERE, "Cloudflare's timeout. Nothing was accepted."),
    "invalid-request": FaultDescription(
        _API, "500 with the code invalid_request; retries do not help."
    ),
    "model-not-found": FaultDescription(
        _API, "503 with the code model_not_found; retries do not help."
    ),
    "quota": FaultDescription(_API, "403 with the code quota_not_enough."),
    "unauthorized": FaultDescription((*_API, "tasks", "log", "billing"), "401."),
    "reset-before": FaultDescription(_EVERYWHERE, "The connection is reset and nothing was done."),
    "reset-after": FaultDescription(_CREATE, "The job is accepted, then the connection is reset."),
    "silent-after": FaultDescription(
        _EVERYWHERE,
        "The request is processed, then nothing is sent for `value` seconds (30), then the "
        "connection is closed.",
    ),
    "error-after": FaultDescription(
        _CREATE, "The job is accepted; the answer is status `value` (504)."
    ),
    "html": FaultDescription((*_API, *_ACCOUNT), "200 with a web page."),
    "cloudflare": FaultDescription(_EVERYWHERE, "502 with Cloudflare's web page."),
    "firewall": FaultDescription(
        (*_API, *_ACCOUNT), "A firewall's web page, with the status `value` (403)."
    ),
    "redirect": FaultDescription(_EVERYWHERE, "301 to a web page."),
    "no-id": FaultDescription(_CREATE, "The job is accepted; the answer is an empty object."),
    "not-visible": FaultDescription(_POLLS, "400 with the code task_not_exist."),
    "not-visible-200": FaultDescription(_POLLS, "200 with task_not_exist as the status."),
    "unknown-status": FaultDescription(_POLLS, "An unknown status."),
    "error-in-200": FaultDescription((*_API, *_ACCOUNT), "200 with an error inside."),
    "failed": FaultDescription(
        _CREATE, "The job is accepted and will fail, with the failure code `value`."
    ),
    "cancelled": FaultDescription(_CREATE, "The job is accepted and will end cancelled."),
    "expired": FaultDescription(_ASSET, "Status `value` (403), as for an expired signed URL."),
    "gone": FaultDescription(_ASSET, "404."),
    "truncated": FaultDescription(
        (*_ASSET, *_ACCOUNT),
        "The full Content-Length and half of the bytes, then the connection is closed.",
    ),
    "truncated-silent": FaultDescription(
        (*_ASSET, *_ACCOUNT),
        "Half of the file or of the JSON, presented as complete; half a file still opens as a "
        "video.",
    ),
    "html-asset": FaultDescription(_ASSET, "200 with a web page."),
    "empty": FaultDescription(_ASSET, "200 with an empty body."),
    "ignore-range": FaultDescription(_ASSET, "200 with the whole file, whatever Range requests."),
    "slow": FaultDescription(
        _EVERYWHERE, "The answer is sent in pieces, over `value` seconds (5)."
    ),
    "late-rows": FaultDescription(
        _LISTS, "The rows of the last `value` seconds (120) are missing."
    ),
    "foreign-rows": FaultDescription(
        _LISTS, "`value` rows (3) of other clients are added, at the time of the newest row."
    ),
    "missing-pages": FaultDescription(_LISTS, "Each page after the first is empty."),
    "changing-total": FaultDescription(_LISTS, "The total is too large by one."),
}
"""Descriptions of all kinds of faults."""

_NUMBERS = {
    "silent-after": float,
    "slow": float,
    "error-after": int,
    "firewall": int,
    "expired": int,
    "late-rows": float,
    "foreign-rows": int,
}
_FORM = "ROUTE:KIND or ROUTE:KIND:times=N,after=N,rate=P,value=TEXT"


class Fault(BaseModel):
    """Fault to inject, and the requests that it hits.

    Attributes:
        route: ``create`` (the POSTs that buy), ``task`` (GET a task), ``feed`` (POST /runway/feed),
            ``asset`` (download a clip), ``models`` (the catalogue), ``tasks`` and ``log`` (lists of
            the account) or ``billing`` (the balance).
        kind: Kind of fault; each kind is limited to some routes.
        times: Number of requests of the route that it hits.
        after: Number of requests of the route that it leaves alone first.
        rate: Instead of `times`: chance, from 0 to 1, that it hits a request.
        value: Option that some kinds accept; see `KINDS`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    route: FaultRoute
    kind: FaultKind
    times: int = Field(default=1, ge=1, le=10_000)
    after: int = Field(default=0, ge=0)
    rate: float | None = Field(default=None, ge=0, le=1)
    value: str | None = None

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        routes = KINDS[self.kind].routes
        if self.route not in routes:
            raise ValueError(f"{self.kind} happens on {' or '.join(routes)}, not on {self.route}")
        if self.rate is not None and "times" in self.model_fields_set:
            raise ValueError("rate and times exclude each other")
        self._check_value()
        return self

    def _check_value(self) -> None:
        if self.value is None:
            return
        if self.kind == "429":
            self.seconds_of_retry_after()
        elif self.kind in _NUMBERS:
            _NUMBERS[self.kind](self.value)
        elif self.kind != "failed":
            raise ValueError(f"{self.kind} takes no value")

    def seconds_of_retry_after(self) -> float | None:
        """Return the seconds for Retry-After, or ``None`` if the header has to be absent."""
        return None if self.value is None else float(self.value.removeprefix("date:"))

    def number(self, default: float) -> float:
        """Return `value` as a number, or `default` if it is not set."""
        return default if self.value is None else float(self.value)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse a fault from one word of a command line, such as ``create:429:times=2,value=3``.

        Raises:
            ValueError: The text is not a valid fault. The message quotes it and says what was
                expected.
        """
        route, _, rest = text.partition(":")
        kind, _, options = rest.partition(":")
        given: dict[str, Any] = {"route": route, "kind": kind}
        for option in filter(None, options.split(",")):
            name, equals, value = option.partition("=")
            if not equals or name not in {"times", "after", "rate", "value"}:
                raise ValueError(f"Fault {text!r}: {option!r} is not an option. Expected {_FORM}.")
            given[name] = value
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            raise ValueError(f"Fault {text!r}: {_reasons(error)}. Expected {_FORM}.") from None


def _reasons(error: ValidationError) -> str:
    return "; ".join(
        " ".join([*map(str, problem["loc"]), problem["msg"].removeprefix("Value error, ")])
        for problem in error.errors()
    )


def as_faults(faults: Iterable[Fault | str]) -> tuple[Fault, ...]:
    """Convert faults, given as objects or as short strings, to objects."""
    return tuple(fault if isinstance(fault, Fault) else Fault.parse(fault) for fault in faults)


class FaultPlan:
    """Assignment of faults to requests.

    Faults with a count take their requests first: each gets the earliest free ones that follow its
    `after`. For example, ``create:429:times=2`` and ``create:reset-after`` give two 429s and then a
    reset. On the remaining requests, each fault with a rate has its chance, in the order given.

    Args:
        faults: Faults to assign.
        seed: Seed that makes the chances repeatable.
    """

    def __init__(self, faults: Iterable[Fault], seed: int = 0) -> None:
        self.faults = tuple(faults)
        self.seed = seed
        self._assigned: dict[tuple[FaultRoute, int], Fault] = {}
        for fault in self.faults:
            if fault.rate is None:
                self._assign(fault)

    def _assign(self, fault: Fault) -> None:
        number, left = fault.after, fault.times
        while left:
            if (fault.route, number) not in self._assigned:
                self._assigned[fault.route, number] = fault
                left -= 1
            number += 1

    def decide(self, route: FaultRoute, number: int) -> Fault | None:
        """Return the fault of the request with this number (from 0) on its route, if any."""
        if fault := self._assigned.get((route, number)):
            return fault
        for index, fault in enumerate(self.faults):
            if (
                fault.rate is not None
                and fault.route == route
                and number >= fault.after
                and _chance(self.seed, route, number, index) < fault.rate
            ):
                return fault
        return None

    def adding(self, fault: Fault, already_received: int) -> "FaultPlan":
        """Return a plan with one more fault, which counts from the next request of its route."""
        later = Fault.model_validate(
            fault.model_dump(exclude_unset=True) | {"after": fault.after + already_received}
        )
        return FaultPlan([*self.faults, later], self.seed)


def _chance(seed: int, route: FaultRoute, number: int, index: int) -> float:
    """Return a number in [0, 1) that depends on the arguments alone."""
    return random.Random(f"{seed}:{route}:{number}:{index}").random()  # noqa: S311 - no secrets
