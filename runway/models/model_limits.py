# SPDX-License-Identifier: Apache-2.0
"""Limits from CometAPI's docs for the models that they document.

The same table checks a request in Python and, as JSON schema, in Prefect's server, which rejects an
invalid run before it is created.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

RATIOS = (
    "1280:720",
    "720:1280",
    "1104:832",
    "832:1104",
    "960:960",
    "1584:672",
    "1280:768",
    "768:1280",
)


@dataclass(frozen=True)
class Limits:
    """Documented limits of one model."""

    prompt_length: int
    seed: int
    durations: tuple[int, ...] = ()
    ratios: tuple[str, ...] = ()
    references: int | None = None
    default_duration: int | None = None


IMAGE_TO_VIDEO_MODELS = {
    "gen3a_turbo": Limits(
        prompt_length=512,
        seed=999_999_999,
        durations=(5, 10),
        ratios=RATIOS,
        default_duration=5,
    )
}
VIDEO_TO_VIDEO_MODELS = {"gen4_aleph": Limits(prompt_length=1000, seed=4_294_967_295, references=1)}


class LimitsExceeded(ValueError):
    """Request that exceeds documented limits; ``problems`` has each as "field: allowed values"."""

    def __init__(self, problems: list[str], model: str) -> None:
        super().__init__(f"{'; '.join(problems)} (model {model})")
        self.problems = problems


def exceeded(fields: Mapping[str, Any], limits: Limits) -> list[str]:
    """Return each documented limit that the requested fields exceed, and what is allowed; pure."""
    prompt, seed, ratio = fields.get("prompt_text", ""), fields.get("seed"), fields.get("ratio")
    duration, references = fields.get("duration"), fields.get("references", ())
    problems: list[str] = []
    if len(prompt) > limits.prompt_length:
        problems.append(f"promptText: at most {limits.prompt_length} characters, got {len(prompt)}")
    if seed is not None and seed > limits.seed:
        problems.append(f"seed: 0 to {limits.seed}, got {seed}")
    if duration is not None and duration not in limits.durations:
        allowed = " or ".join(map(str, limits.durations))
        problems.append(f"duration: {allowed} seconds, got {duration}")
    if ratio is not None and limits.ratios and ratio not in limits.ratios:
        problems.append(f"ratio: one of {', '.join(limits.ratios)}, got {ratio}")
    if limits.references is not None and len(references) > limits.references:
        problems.append(f"references: at most {limits.references}, got {len(references)}")
    return problems


def limits_schema(documented: dict[str, Limits]) -> Any:
    """Return a function that adds the limits of each model to a JSON schema.

    With this schema, Prefect's server rejects an invalid run before it is created.
    """

    def add(schema: dict[str, Any]) -> None:
        schema["allOf"] = [
            {
                "if": {"properties": {"model": {"const": model}}},
                "then": {"properties": _limited_properties(limits)},
            }
            for model, limits in documented.items()
        ]

    return add


def _limited_properties(limits: Limits) -> dict[str, Any]:
    properties: dict[str, Any] = {
        "promptText": {"maxLength": limits.prompt_length},
        "seed": {"maximum": limits.seed},
    }
    if limits.durations:
        properties["duration"] = {"enum": [*limits.durations, None]}
    if limits.ratios:
        properties["ratio"] = {"enum": [*limits.ratios, None]}
    if limits.references is not None:
        properties["references"] = {"maxItems": limits.references}
    return properties
