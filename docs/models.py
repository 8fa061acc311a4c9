# SPDX-License-Identifier: Apache-2.0
"""Print the README's table of models from models.json; a test compares the two."""

from prefect_cometapi.runway.models.model_limits import (
    FieldLimits,
    ModelLimits,
    known_models,
    model_table,
    source_of,
)

HEAD = "| model | route | required | limits | price in USD | source |"


def rows() -> list[str]:
    """Return the lines of the table."""
    listed = [_row(model, limits) for model, limits in known_models().items()]
    return [HEAD, "| --- " * 6 + "|", *listed]


def _row(model: str, limits: ModelLimits) -> str:
    source = source_of(limits)
    rules = [rule for name, its in limits.fields.items() if (rule := _rule(name, its))]
    cells = [
        f"`{model}`",
        f"`{limits.route}`",
        ", ".join(f"`{name}`" for name in limits.fields if name in limits.required),
        "; ".join(rules),
        _price(limits),
        f"[{source.seller}]({source.url}), {source.date}",
    ]
    return f"| {' | '.join(cells)} |"


def _rule(name: str, limits: FieldLimits) -> str:
    if limits.values:
        shown = ", ".join(map(str, limits.values))
    elif limits.max is not None and name != "seed":
        shown = f"{limits.min}–{limits.max}"  # noqa: RUF001 -- a range of numbers
    elif limits.max_length is not None:
        shown = f"{limits.max_length} {'characters' if limits.unit == 'characters' else 'UTF-16'}"
    elif limits.max_items is not None:
        shown = f"at most {limits.max_items}"
    else:
        return ""
    return f"`{name}` {shown}"


def _price(limits: ModelLimits) -> str:
    if not limits.price:
        return ""
    source = model_table().sources[limits.price.source]
    return f"{limits.price.price()} ({source.seller}, {source.date})"


if __name__ == "__main__":
    print("\n".join(rows()))
