# SPDX-License-Identifier: Apache-2.0
"""Fault profile: all faults of the sandbox at once, on every route."""

from collections import Counter
from collections.abc import Collection
from typing import get_args

from prefect_cometapi.sandbox import Fault, FaultKind, FaultRoute
from prefect_cometapi.sandbox.faults.plan import KINDS

SHARE = 0.3
"""Share of the requests of each route that meet a fault."""

VARIANTS: dict[FaultKind, tuple[str | None, ...]] = {
    "429": (None, "0.2", "date:1"),
    "silent-after": ("0.2", "6"),
    "error-after": ("504", "503", "408"),
    "failed": (None, "SAFETY.INPUT.TEXT"),
    "slow": ("0.4", "6"),
}
"""Variants of the kinds that have several: a delay below and one above the client's read timeout
(`run_storm.READ_TIMEOUT`); a Retry-After that is absent, a number or a date."""

ROUTES: tuple[FaultRoute, ...] = get_args(FaultRoute)


def kinds_of(route: FaultRoute) -> list[FaultKind]:
    """Return every kind of fault that a route has."""
    return [kind for kind, description in KINDS.items() if route in description.routes]


def fault_profile(share: float = SHARE, without: Collection[FaultKind] = ()) -> tuple[Fault, ...]:
    """Return faults for a share of the requests of each route, nearly all kinds equally often.

    A plan tries its faults in turn and takes the first one that applies. A later one is tried less
    often, so it gets a higher rate.
    """
    return tuple(fault for route in ROUTES for fault in _faults_on(route, without, share))


def _faults_on(route: FaultRoute, without: Collection[FaultKind], share: float) -> list[Fault]:
    kinds: list[FaultKind] = [kind for kind in kinds_of(route) if kind not in without]
    faults: list[Fault] = []
    taken = 0.0
    for kind in kinds:
        variants = _variants(kind, route)
        part = share / len(kinds) / len(variants)
        for value in variants:
            rate = part / (1 - taken)
            faults.append(Fault(route=route, kind=kind, rate=rate, value=value))
            taken += part
    return faults


def _variants(kind: FaultKind, route: FaultRoute) -> tuple[str | None, ...]:
    if kind == "slow" and route == "asset":  # A download may take any time.
        return ("0.4",)
    return VARIANTS.get(kind, (None,))


def unused_faults(hits: Counter[tuple[str, str]]) -> list[str]:
    """Return the kinds of faults that no request met, as ``route:kind``."""
    return [
        f"{route}:{kind}" for route in ROUTES for kind in kinds_of(route) if not hits[route, kind]
    ]
