# SPDX-License-Identifier: Apache-2.0
"""JSON schemas that accept a field by its name in Python as well as by the API's name.

Prefect's server checks the parameters of a deployment by the schema before a run exists. A form
shows only the properties of the schema itself, which are the API's names.
"""

from collections.abc import Mapping
from typing import Any

_FOR_PEOPLE = frozenset({"title", "description", "examples", "default"})


def accept_names(schema: dict[str, Any], names: Mapping[str, str]) -> None:
    """Make a schema of an object accept its properties by other names, too.

    A property that is required must be there by one of its names. The error for a missing one
    is the usual one, which a form shows at the field.

    Args:
        schema: Schema to change, with the rules of the models in its ``allOf``.
        names: Other names, by the names of the properties.
    """
    rules: list[dict[str, Any]] = schema.get("allOf", [])
    for rule in rules:
        then = rule["then"]
        then["properties"] |= _renamed(then["properties"], names)
        if conditions := _required(then, names):
            then["allOf"] = conditions
    others = _renamed(schema["properties"], names)
    if not others:
        return
    for name in names.keys() & {*schema.get("required", ())}:
        # A form calls each field optional that the schema does not require by this very name, so
        # the description says it, before anything else.
        described = schema["properties"][name]
        described["description"] = f"Required. {described['description']}"
    # A rule that fails does not count as one that knows the name, so the names are listed apart.
    known = {"properties": dict.fromkeys(others, True)}
    schema["allOf"] = [*rules, {"properties": others}, known, *_required(schema, names)]
    # Unlike additionalProperties, this one sees the names within allOf.
    schema["unevaluatedProperties"] = schema.pop("additionalProperties")


def _renamed(properties: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Return the rules of properties by their other names."""
    return {
        names[name]: {key: value for key, value in rules.items() if key not in _FOR_PEOPLE}
        for name, rules in properties.items()
        if name in names
    }


def _required(schema: dict[str, Any], names: Mapping[str, str]) -> list[dict[str, Any]]:
    """Take the properties with two names out of the required ones, and return their conditions."""
    required: list[str] = schema.pop("required", [])
    schema["required"] = [name for name in required if name not in names]
    return [
        {"if": {"not": {"required": [names[name]]}}, "then": {"required": [name]}}
        for name in required
        if name in names
    ]
