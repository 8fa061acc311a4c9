# SPDX-License-Identifier: Apache-2.0
"""Models that CometAPI's public catalogue lists, and the decisions that are based on it."""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict

from ..redact import scrub
from .account import read_number
from .prices import Price

_ROUTE = re.compile(r"runwayml/v1/([a-z][a-z0-9_]{2,40})")


class CatalogueModel(BaseModel):
    """Model in CometAPI's catalogue.

    Attributes:
        id: Id to send as ``model``.
        name: Name for people.
        provider: Company that made the model.
        per_request: Price of one generation in US dollars, if the catalogue has one.
        per_second: Price of one second of video in US dollars, if the catalogue has one.
        routes: Runway routes that the catalogue names for it, such as ``image_to_video``.
        is_runway: True if the provider or an endpoint is Runway's.
    """

    model_config = ConfigDict(frozen=True)

    id: str
    name: str = ""
    provider: str = ""
    per_request: float | None = None
    per_second: float | None = None
    routes: tuple[str, ...] = ()
    is_runway: bool = False

    @property
    def price(self) -> Price | None:
        """Price of a generation or of its seconds, or None if the catalogue has none."""
        if self.per_second:
            return Price(self.per_second, per_second=True)
        return Price(self.per_request) if self.per_request else None


class CatalogueReply(BaseModel):
    """Catalogue as CometAPI returned it.

    Attributes:
        models: Models of the catalogue; empty if it is unknown.
        is_complete: True only if the whole catalogue arrived. Only then does the absence of a model
            mean that CometAPI does not sell it.
        problem: Reason why the catalogue is unknown or incomplete.
    """

    model_config = ConfigDict(frozen=True)

    models: tuple[CatalogueModel, ...] = ()
    is_complete: bool = False
    problem: str | None = None

    def find(self, model: str) -> CatalogueModel | None:
        """Return the model with this id, or None."""
        return next((known for known in self.models if known.id == model), None)

    def is_sold(self, model: str) -> bool | None:
        """Return whether CometAPI sells a model, or None if that is unknown."""
        if self.find(model):
            return True
        return False if self.is_complete else None

    def sold_for(self, route: str) -> tuple[str, ...]:
        """Return the ids of the models that the catalogue names for a Runway route."""
        return tuple(sorted(model.id for model in self.models if route in model.routes))

    def prices(self) -> dict[str, Price]:
        """Return the prices of the models that have one."""
        return {model.id: model.price for model in self.models if model.price}

    @property
    def runway_models(self) -> tuple[CatalogueModel, ...]:
        """Models of Runway or with a Runway route, by id."""
        return tuple(
            sorted((model for model in self.models if model.is_runway), key=lambda model: model.id)
        )


def read_catalogue(body: Mapping[str, Any]) -> CatalogueReply:
    """Return the catalogue in a reply of ``GET /api/models``; pure.

    A row that cannot be read makes the catalogue incomplete. So does a page that is full, because
    the route has no documented way to ask for the next one.
    """
    rows = body.get("data")
    if not isinstance(rows, list):
        return CatalogueReply(problem="the reply has no list of models")
    models = [model for row in rows if (model := _read_model(row))]
    page_size, total = read_number(body.get("page_size")), read_number(body.get("total"))
    problem = None
    if not models:
        problem = "the list of models is empty"
    elif len(models) < len(rows):
        problem = f"{len(rows) - len(models)} of {len(rows)} models cannot be read"
    elif (total and total > len(rows)) or (not total and page_size and len(rows) >= page_size):
        problem = f"CometAPI returned {len(rows)} models and may have more"
    return CatalogueReply(models=tuple(models), is_complete=problem is None, problem=problem)


def _read_model(row: Any) -> CatalogueModel | None:
    if not isinstance(row, dict):
        return None
    model_id = row.get("id")
    if not isinstance(model_id, str) or not re.fullmatch(r"[\x21-\x7e]{1,100}", model_id):
        return None
    pricing = row.get("pricing")
    prices: Mapping[str, Any] = pricing if isinstance(pricing, dict) else {}
    terms = " ".join(_terms(row.get("endpoints"))).lower()
    made_by = f"{row.get('provider')} {row.get('provider_code')}".lower()
    return CatalogueModel(
        id=model_id,
        name=scrub(_text(row.get("name")), limit=80),
        provider=scrub(_text(row.get("provider")), limit=80),
        per_request=_price(prices.get("per_request")),
        per_second=_price(prices.get("per_second")),
        routes=tuple(sorted(set(_ROUTE.findall(terms)))),
        is_runway="runway" in made_by or "runway" in terms,
    )


def _terms(endpoints: Any) -> Iterable[str]:
    """Return every text in the endpoints, which are JSON inside a string or JSON."""
    if isinstance(endpoints, str):
        try:
            endpoints = json.loads(endpoints)
        except (ValueError, RecursionError):
            return [endpoints]
    if isinstance(endpoints, dict):
        endpoints = [*endpoints, *endpoints.values()]
    if isinstance(endpoints, list):
        # One more level at most: {"name": {"path": …, "method": …}}
        inner = [value for item in endpoints for value in _values(item)]
        return [text for text in inner if isinstance(text, str)]
    return [endpoints] if isinstance(endpoints, str) else []


def _values(item: Any) -> list[Any]:
    return list(item.values()) if isinstance(item, dict) else [item]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _price(value: Any) -> float | None:
    price = read_number(value)
    return price if price and price > 0 else None
