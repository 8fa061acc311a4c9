# SPDX-License-Identifier: Apache-2.0
"""OpenAPI document as one self-contained HTML page, without scripts, fonts or a CDN."""

import json
from collections.abc import Iterator
from html import escape
from typing import Any

from ..faults.plan import KINDS

Schema = dict[str, Any]

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; --accent: #7c5cff; }
* { box-sizing: border-box; }
body { font: 16px/1.55 system-ui, sans-serif; max-width: 60rem; margin: auto; padding: 2rem 1rem; }
h1 { font-size: 1.7rem; margin: 0; } h2 { margin: 2.5rem 0 .5rem; font-size: 1.15rem; }
h3 { margin: 1.2rem 0 .4rem; font-size: .95rem; }
code, pre { font: .875em/1.5 ui-monospace, monospace; overflow-wrap: anywhere; }
pre { white-space: pre-wrap; background: var(--soft); border-radius: .5rem; padding: .8rem 1rem; }
details { border: 1px solid var(--line); border-radius: .6rem; margin: .6rem 0; padding: 0 1rem; }
details[open] { padding-bottom: 1rem; }
summary { cursor: pointer; padding: .7rem 0; }
summary span { opacity: .7; margin-left: .6rem; }
.method { display: inline-block; min-width: 3.6rem; text-align: center; border-radius: .3rem;
  padding: 0 .4rem; margin-right: .5rem; color: #fff; background: #3a7d44; font-weight: 600; }
.method.post { background: var(--accent); } .method.head { background: #777; }
.table { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
th, td { text-align: left; vertical-align: top; padding: .35rem .8rem .35rem 0;
  border-bottom: 1px solid var(--line); }
a { color: var(--accent); }
"""


def docs_page(openapi: Schema) -> str:
    """Return the documentation as an HTML page.

    Args:
        openapi: OpenAPI document as JSON.
    """
    info = openapi["info"]
    return "".join(
        [
            "<!doctype html><html lang=en><head><meta charset=utf-8>",
            "<meta name=viewport content='width=device-width, initial-scale=1'>",
            f"<link rel=icon href='data:,'><title>{escape(info['title'])}</title>",
            f"<style>{_STYLE}</style></head><body>",
            f"<h1>{escape(info['title'])}</h1>",
            f"<p>{_prose(info.get('summary', ''))}</p><p>{_prose(info.get('description', ''))}</p>",
            "<p><a href='/openapi.json'>openapi.json</a> · ",
            "<a href='/_sandbox'>what it has seen so far</a></p>",
            *_operations(openapi),
            "<h2>What can go wrong</h2>",
            _table("", ["route", "kind", "what happens"], list(_faults())),
            "<h2>Objects</h2>",
            *_objects(openapi),
            "</body></html>",
        ]
    )


def _faults() -> Iterator[list[str]]:
    for kind, fault in KINDS.items():
        yield [", ".join(fault.routes), f"<code>{kind}</code>", _prose(fault.meaning)]


def _operations(openapi: Schema) -> Iterator[str]:
    heading = None
    for path, operations in openapi["paths"].items():
        for method, operation in operations.items():
            tag = operation["tags"][0]
            if tag != heading:
                heading = tag
                yield f"<h2>{escape(tag)}</h2>"
            yield _operation(path, method, operation)


def _operation(path: str, method: str, operation: Schema) -> str:
    return "".join(
        [
            f"<details><summary><code class='method {method}'>{method.upper()}</code>",
            f"<code>{escape(path)}</code>",
            f"<span>{_prose(operation.get('description', ''))}</span></summary>",
            _parameters(operation.get("parameters", [])),
            _body(operation.get("requestBody")),
            _responses(operation["responses"]),
            "</details>",
        ]
    )


def _parameters(parameters: list[Schema]) -> str:
    rows = [
        [
            f"<code>{escape(parameter['name'])}</code>",
            escape(parameter["in"]),
            _kind(parameter["schema"]),
            "yes" if parameter.get("required") else "",
        ]
        for parameter in parameters
    ]
    return _table("Parameters", ["name", "in", "type", "required"], rows)


def _body(body: Schema | None) -> str:
    if body is None:
        return ""
    content = body["content"]["application/json"]
    examples = "".join(
        f"<h3>{_prose(example['summary'])}</h3><pre>{_json(example['value'])}</pre>"
        for example in content.get("examples", {}).values()
    )
    return f"<h3>Body</h3><p>{_kind(content['schema'])}</p>{examples}"


def _responses(responses: Schema) -> str:
    rows = [
        [
            f"<code>{escape(status)}</code>",
            _prose(response["description"]),
            "<br>".join(
                f"{_kind(content.get('schema', {}))} <code>{escape(media)}</code>"
                for media, content in response.get("content", {}).items()
            ),
        ]
        for status, response in responses.items()
    ]
    return _table("Answers", ["status", "meaning", "content"], rows)


def _objects(openapi: Schema) -> Iterator[str]:
    for name, schema in openapi["components"]["schemas"].items():
        required = schema.get("required", [])
        rows = [
            [
                f"<code>{escape(field)}</code>",
                _kind(rules),
                "yes" if field in required else "",
                _limits(rules),
            ]
            for field, rules in schema.get("properties", {}).items()
        ]
        table = _table("", ["field", "type", "required", "rules"], rows)
        yield (
            f"<details id='{escape(name)}' open><summary><code>{escape(name)}</code>"
            f"<span>{_prose(schema.get('description', ''))}</span></summary>{table}</details>"
        )


def _kind(schema: Schema) -> str:
    """Return the type that a schema describes, as a word or a link."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rpartition("/")[2])
        return f"<a href='#{name}'>{name}</a>"
    for choice in ("anyOf", "oneOf", "allOf"):
        if choice in schema:
            return " or ".join(_kind(one) for one in schema[choice])
    if schema.get("type") == "array":
        return f"list of {_kind(schema.get('items', {}))}"
    return escape(schema.get("type", "anything"))


def _limits(schema: Schema) -> str:
    """Return the description, the limits and the default of a field."""
    parts = [_prose(schema["description"])] if "description" in schema else []
    for word in ("enum", "const", "minimum", "maximum", "minLength", "maxLength", "maxItems"):
        if word in schema:
            value = schema[word]
            listed = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
            parts.append(f"{word} <code>{escape(listed)}</code>")
    if "pattern" in schema:
        parts.append(f"pattern <code>{escape(schema['pattern'])}</code>")
    if schema.get("default") is not None:
        parts.append(f"default <code>{_json(schema['default'])}</code>")
    return "<br>".join(parts)


def _table(heading: str, columns: list[str], rows: list[list[str]]) -> str:
    if not rows:
        return ""
    head = "".join(f"<th>{column}</th>" for column in columns)
    lines = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    title = f"<h3>{heading}</h3>" if heading else ""
    return f"{title}<div class=table><table><tr>{head}</tr>{lines}</table></div>"


def _prose(text: str) -> str:
    """Escape a text, and mark the parts between backquotes as code."""
    pieces = escape(text).split("`")
    return "".join(
        f"<code>{piece}</code>" if place % 2 else piece for place, piece in enumerate(pieces)
    )


def _json(value: Any) -> str:
    return escape(json.dumps(value, indent=2, ensure_ascii=False))
