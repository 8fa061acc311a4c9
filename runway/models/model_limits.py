# SPDX-License-Identifier: Apache-2.0
"""Table of the known models: their routes, fields and limits, from models.json.

The table is a data file, so that everything that depends on it reads the same figures: the check of
a request in Python, the JSON schema with which Prefect's server rejects an invalid run before it is
created, the checks of the sandbox, and the table in the README. Each fact names its source and the
date on which it was read there. A model without an entry is not refused: only the form of its
request is checked, and the service decides.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import cache
from importlib.resources import files
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, field_validator

from .prices import Price

Makes = Literal["video", "picture"]
Position = Literal["first", "last"]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Source(_Record):
    """Source of a fact, and the date on which it was read there."""

    seller: Literal["CometAPI", "Runway"]
    title: str
    url: str
    date: str


class FieldLimits(_Record):
    """Limits of one field of a model.

    Attributes:
        values: Allowed values; empty if any value within the other limits is allowed.
        min: Smallest number.
        max: Largest number.
        max_length: Maximum length of a text, in the unit of ``unit``.
        unit: Unit of ``max_length``. Runway counts UTF-16 code units, in which an emoji counts two.
        min_items: Minimum number of items in a list.
        max_items: Maximum number of items in a list.
        positions: Positions that an image may have; empty if the field takes only one source.
        default: Value that the service uses if the field is not set, where that matters here.
        type: Type of a field that the sandbox does not know otherwise.
        source: Name of the source, if it is not that of the model.
    """

    values: tuple[int | str, ...] = ()
    min: int = 0
    max: int | None = None
    max_length: int | None = None
    unit: Literal["characters", "utf16"] = "utf16"
    min_items: int = 0
    max_items: int | None = None
    positions: tuple[Position, ...] = ()
    default: int | None = None
    type: Literal["text", "whole", "flag"] | None = None
    source: str | None = None


class ModelPrice(_Record):
    """Published price of a model, in USD."""

    amount: float
    per: Literal["generation", "second"]
    source: str

    def price(self) -> Price:
        """Return the price in the form of the settings."""
        return Price(self.amount, per_second=self.per == "second")


class ModelLimits(_Record):
    """Documented fields and limits of one model.

    Attributes:
        route: Route that the model belongs to.
        source: Name of the source of its facts.
        required: Fields that a request must set, by the API's names.
        fields: Limits of each field that the model has, by the API's names.
        price: Published price, if one is known.
    """

    route: str
    source: str
    required: frozenset[str]
    fields: Mapping[str, FieldLimits]
    price: ModelPrice | None = None

    @property
    def durations(self) -> tuple[int, ...]:
        """Allowed seconds of video; empty if the request does not set them."""
        limits = self.fields.get("duration")
        if limits is None:
            return ()
        listed = tuple(value for value in limits.values if isinstance(value, int))
        return listed or tuple(range(limits.min, (limits.max or limits.min) + 1))

    @property
    def ratios(self) -> tuple[str, ...]:
        """Allowed ratios; empty if the model has no closed list."""
        limits = self.fields.get("ratio", FieldLimits())
        return tuple(value for value in limits.values if isinstance(value, str))

    @property
    def default_duration(self) -> int | None:
        """Seconds of video if the request sets none, or None if that is not documented."""
        return self.fields.get("duration", FieldLimits()).default


class RouteFacts(_Record):
    """Facts about a route.

    Attributes:
        request: Name of the class of its requests.
        makes: Kind of file that it makes.
        known_by: Field by which a request without a route is recognised.
    """

    request: str
    makes: Makes
    known_by: str


class ModelTable(_Record):
    """Content of models.json."""

    about: str
    sources: Mapping[str, Source]
    routes: Mapping[str, RouteFacts]
    models: Mapping[str, ModelLimits]

    @field_validator("models")
    @classmethod
    def _name_known_fields(cls, models: Mapping[str, ModelLimits]) -> Mapping[str, ModelLimits]:
        for name, limits in models.items():
            if unknown := limits.required - limits.fields.keys():
                raise ValueError(f"{name} requires fields that it does not list: {unknown}")
        return models


@cache
def model_table() -> ModelTable:
    """Return the table of known models and routes."""
    return ModelTable.model_validate_json((files("prefect_cometapi") / "models.json").read_bytes())


def known_models(route: str | None = None) -> Mapping[str, ModelLimits]:
    """Return the known models of a route, or of all routes, by their ids."""
    models = model_table().models
    return {name: it for name, it in models.items() if route is None or it.route == route}


def source_of(limits: ModelLimits, field: str | None = None) -> Source:
    """Return the source of a model's facts, or of those of one of its fields."""
    own = limits.fields[field].source if field else None
    return model_table().sources[own or limits.source]


class LimitsExceeded(ValueError):
    """Request that exceeds documented limits; ``problems`` has each as "field: allowed values"."""

    def __init__(self, problems: list[str], model: str) -> None:
        super().__init__(f"{'; '.join(problems)} (model {model})")
        self.problems = problems


def exceeded(fields: Mapping[str, Any], limits: ModelLimits) -> list[str]:
    """Return each limit of a model that a request exceeds, and what is allowed; pure.

    Args:
        fields: Fields that are set, by the API's names.
        limits: Limits of the model.
    """
    missing = [
        f"{name}: is missing" for name in limits.fields if name in limits.required - {*fields}
    ]
    foreign = [
        f"{name}: is not a field of this model"
        for name in fields
        if name not in limits.fields and name not in {"model", "extra"}
    ]
    problems = [
        f"{name}: {problem}"
        for name, its in limits.fields.items()
        if name in fields and (problem := _problem_of(name, fields[name], its))
    ]
    return [*missing, *problems, *foreign]


def _problem_of(name: str, value: Any, limits: FieldLimits) -> str | None:
    unit = " seconds" if name == "duration" else ""
    if limits.values:
        some = len(limits.values) > 2
        listed = (
            ", ".join(map(str, limits.values)) if some else " or ".join(map(str, limits.values))
        )
        allowed = f"one of {listed}" if some else f"{listed}{unit}"
        return None if value in limits.values else f"{allowed}, got {value}"
    if isinstance(value, str):
        return _length_problem(value, limits)
    if isinstance(value, list):
        return _list_problem(value, limits)
    if isinstance(value, int) and limits.max is not None and not limits.min <= value <= limits.max:
        return f"{limits.min} to {limits.max}{unit}, got {value}"
    return None


def _length_problem(text: str, limits: FieldLimits) -> str | None:
    counted = utf16_length(text) if limits.unit == "utf16" else len(text)
    if limits.max_length is None or counted <= limits.max_length:
        return None
    how = "" if counted == len(text) else " in UTF-16, which Runway counts"
    return f"at most {limits.max_length} characters, got {counted}{how}"


def _list_problem(items: list[Any], limits: FieldLimits) -> str | None:
    if items and isinstance(items[0], dict) and "position" in items[0]:
        if not limits.positions:
            return "one image, as a text"
        if {item["position"] for item in items} - {*limits.positions}:
            return f"only images in the position {' or '.join(limits.positions)}"
    if limits.max_items is not None and len(items) > limits.max_items:
        return f"at most {limits.max_items}, got {len(items)}"
    if len(items) < limits.min_items:
        return f"at least {limits.min_items}, got {len(items)}"
    return None


def utf16_length(text: str) -> int:
    """Return the length of a text in UTF-16 code units."""
    return len(text.encode("utf-16-le", "surrogatepass")) // 2


def limits_schema(route: str, default: str) -> Callable[[dict[str, Any]], None]:
    """Return a function that adds the limits of each model of a route to a JSON schema.

    A JSON schema counts the characters of a text and not its UTF-16 code units, so a few prompts
    with many emoji are refused only when the run starts.

    Args:
        route: Route of the request.
        default: Model of a request that sets none.
    """

    def add(schema: dict[str, Any]) -> None:
        known = known_models(route)
        properties = schema["properties"]
        properties["extra"] = properties.pop("extra")  # a base class declares it; a form ends so
        for name, described in properties.items():
            described["description"] += described_limits(name, known)
        _offer(properties["model"], known)
        own = properties.keys() - {"model", "extra"}
        schema["allOf"] = [
            {
                "if": {
                    "properties": {"model": {"const": model}},
                    **({} if model == default else {"required": ["model"]}),
                },
                "then": {
                    "properties": {
                        name: _schema_of(properties[name], limits, name)
                        for name in properties
                        if name in own
                    },
                    "required": sorted(limits.required),
                },
            }
            for model, limits in known.items()
        ]

    return add


def _offer(model: dict[str, Any], known: Iterable[str]) -> None:
    """Make the schema of the field `model` a list of the known models, or any other name.

    Prefect's form shows a switch between the two. The list has no type, because the form opens the
    first part whose type is that of the value, and only the text can show every value.
    """
    own = {name: model.pop(name) for name in ("type", "minLength", "maxLength")}
    model["anyOf"] = [{"title": "Known models", "enum": [*known]}, {"title": "Name", **own}]


def _schema_of(described: Mapping[str, Any], model: ModelLimits, name: str) -> dict[str, Any]:
    if name not in model.fields:
        return {"type": "null"}
    limits, required = model.fields[name], name in model.required
    kinds = {kind.get("type") for kind in described.get("anyOf", ())}
    if {"string", "array"} <= kinds and not limits.positions:
        return {"type": "string"}
    if limits.values:
        return {"enum": [*limits.values, *([] if required else [None])]}
    schema: dict[str, Any] = {"not": {"type": "null"}} if required else {}
    if limits.max is not None:
        schema |= {"minimum": limits.min, "maximum": limits.max}
    if limits.max_length is not None:
        schema["maxLength"] = limits.max_length
    if limits.min_items:
        schema["minItems"] = limits.min_items
    if limits.max_items is not None:
        schema["maxItems"] = limits.max_items
    if limits.positions:
        position = {"properties": {"position": {"enum": [*limits.positions]}}}
        schema |= {"items": position, "maxItems": len(limits.positions)}
    return schema


def described_limits(name: str, known: Mapping[str, ModelLimits]) -> str:
    """Return the limits of a field in known models, to append to its description; pure.

    Args:
        name: Field by the name of the API.
        known: Known models of a route.
    """
    have = {model: limits for model, limits in known.items() if name in limits.fields}
    if not have or name == "model":
        return ""
    rules: dict[str, list[str]] = {}
    for model, limits in have.items():
        if rule := _rule(limits.fields[name]):
            rules.setdefault(rule, []).append(model)
    sentences = [f"{_join(models)}: {rule}." for rule, models in rules.items()]
    if len(have) < len(known):
        sentences.append(f"Only for {_join(have)}.")
    needs = [model for model, limits in known.items() if name in limits.required]
    if needs and len(needs) < len(known):
        sentences.append(f"Required for {_join(needs)}.")
    return "".join(f" {sentence}" for sentence in sentences)


def _rule(limits: FieldLimits) -> str:
    default = f"; {limits.default} if not set" if limits.default is not None else ""
    if limits.values:
        return f"{', '.join(map(str, limits.values))}{default}"
    if limits.max is not None:
        return f"{limits.min} to {limits.max}{default}"
    if limits.max_length is not None:
        return f"at most {limits.max_length} characters"
    if limits.max_items is not None:
        return (
            f"{limits.min_items} to {limits.max_items}"
            if limits.min_items
            else (f"at most {limits.max_items}")
        )
    return ""


def _join(names: Iterable[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last
