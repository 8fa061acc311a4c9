# SPDX-License-Identifier: Apache-2.0
"""Everything that can go wrong, at once and on every route."""

from collections import Counter
from collections.abc import Collection
from typing import get_args

from prefect_cometapi.sandbox import Fault, FaultKind, FaultRoute
from prefect_cometapi.sandbox.faults.plan import KINDS

SHARE = 0.3
"""Of each route's requests, how many are struck."""

VARIANTS: dict[FaultKind, tuple[str | None, ...]] = {
    "429": (None, "0.2", "date:1"),
    "silent-after": ("0.2", "6"),
    "error-after": ("504", "503", "408"),
    "failed": (None, "SAFETY.INPUT.TEXT"),
    "slow": ("0.4", "6"),
}
"""Kinds that come in more than one way: an early end, and one that only the client's patience has
(`playing.PATIENCE`); a Retry-After that is absent, a number or a date."""

ROUTES: tuple[FaultRoute, ...] = get_args(FaultRoute)


def kinds_of(route: FaultRoute) -> list[FaultKind]:
    """Every kind of fault that a route knows."""
    return [kind for kind, about in KINDS.items() if route in about.routes]


def weather(share: float = SHARE, without: Collection[FaultKind] = ()) -> tuple[Fault, ...]:
    """Faults that strike a share of each route's requests, every kind equally often but some.

    A plan asks its faults in turn and takes the first that strikes, so a later one, which is asked
    less often, gets a higher rate.
    """
    return tuple(fault for route in ROUTES for fault in _on(route, without, share))


def _on(route: FaultRoute, without: Collection[FaultKind], share: float) -> list[Fault]:
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
    if kind == "slow" and route == "asset":  # a download may take as long as it likes
        return ("0.4",)
    return VARIANTS.get(kind, (None,))


def unseen(struck: Counter[tuple[str, str]]) -> list[str]:
    """The kinds that never struck, as ``route:kind``."""
    return [
        f"{route}:{kind}" for route in ROUTES for kind in kinds_of(route) if not struck[route, kind]
    ]
