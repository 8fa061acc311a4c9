# SPDX-License-Identifier: Apache-2.0
"""Models and routes that the sandbox serves, read from models.json.

The file holds facts from the docs and no code, and the client reads it, too. So a wrong figure in
it is wrong on both sides, but the two sides apply the figures with code of their own: a client that
does not send a required field, or counts a prompt wrongly, is noticed here.
"""

import json
from importlib.resources import files
from typing import Any

_TABLE: dict[str, Any] = json.loads(
    (files("prefect_cometapi") / "models.json").read_text(encoding="utf-8")
)

ROUTES: tuple[str, ...] = tuple(_TABLE["routes"])
"""Names of the routes that create jobs."""

PICTURES: frozenset[str] = frozenset(
    route for route, its in _TABLE["routes"].items() if its["makes"] == "picture"
)
"""Routes whose jobs end with a picture."""


def models_of(route: str) -> dict[str, dict[str, Any]]:
    """Return the models of a route, each with its required fields and the limits of its fields."""
    return {name: its for name, its in _TABLE["models"].items() if its["route"] == route}
