# SPDX-License-Identifier: Apache-2.0
"""Write docs/cli.md and docs/api.md from the code; a test compares them.

Run it with ``python docs/reference.py [FOLDER]`` after a change of a command, a public name or a
docstring.
"""

import inspect
import re
import sys
from collections.abc import Iterable, Iterator
from enum import Enum
from pathlib import Path
from typing import Any

import griffe
from prefect import Flow, Task
from prefect.blocks.core import Block
from pydantic import BaseModel
from pydantic_core import PydanticUndefined
from pydantic_settings import BaseSettings

import prefect_cometapi
from prefect_cometapi import CometAPIError, GenerationRequest
from prefect_cometapi.deployments.cli import app
from prefect_cometapi.runway.plain_help import plain_signature, plain_type

DOCS = Path(__file__).parent
NESTED, OUTER = r"(?:[^\[\]]|\[[^\[\]]*\])*", r", (?![^\[]*\])"
"""Patterns of the arguments of a type, and of the commas between them."""

INTERNAL = ("_", "model_", "settings_")
"""Prefixes of members that pydantic calls."""

NOTE = "<!-- python docs/reference.py writes this page -->\n"
CLI_HEAD = f"""# Command line

{NOTE}
The settings of all commands are [variables and `.env`](settings.md). A command exits with 0 if it
did what it was asked for, with 1 if it failed, and with 2 where this page says so.

"""
API_HEAD = f"""# API reference

{NOTE}
Every name on this page is imported from `prefect_cometapi`. The loggers, the modules below the
packages and all other names may change in any version.

"""


def cli_page() -> str:
    """Return the reference of the command line, from the help of its commands."""
    text = app.generate_docs(output_format="markdown")
    _title, _, commands = text.partition("## Table of Contents\n")
    contents, _, rest = commands.partition("**Commands**:")
    _list, _, sections = rest.partition("\n## ")
    return f"{CLI_HEAD}{contents.strip()}\n\n## {sections.strip()}\n"


def api_page() -> str:
    """Return the reference of the public names, from their docstrings."""
    parts = [API_HEAD.rstrip()]
    for title, names in _groups().items():
        if not names:
            continue
        parts.append(f"## {title}")
        parts += _errors(names) if title == "Errors" else [_entry(name) for name in names]
    return "\n\n".join(parts) + "\n"


def _groups() -> dict[str, list[str]]:
    """Return the public names by section; an async twin is described with its sync one."""
    groups: dict[str, list[str]] = {
        "Flows": [],
        "Tasks": [],
        "Functions": [],
        "Blocks": [],
        "Settings": [],
        "Requests": [],
        "Results and other types": [],
        "Errors": [],
    }
    for name in sorted(prefect_cometapi.__all__):
        if name != "__version__" and name[1:] not in prefect_cometapi.__all__:
            groups[_group(getattr(prefect_cometapi, name))].append(name)
    return groups


def _group(thing: Any) -> str:
    if isinstance(thing, Flow):
        return "Flows"
    if isinstance(thing, Task):
        return "Tasks"
    if not isinstance(thing, type):
        return "Functions"
    for base, title in (
        (Block, "Blocks"),
        (BaseSettings, "Settings"),
        (CometAPIError, "Errors"),
        (GenerationRequest, "Requests"),
    ):
        if issubclass(thing, base):
            return title
    return "Results and other types"


def _errors(names: list[str]) -> Iterator[str]:
    """Yield the tree of errors, and those with attributes of their own."""
    tree = (inspect.getdoc(inspect.getmodule(CometAPIError.__init__)) or "").split("::\n\n")[1]
    lines = [line.removeprefix("    ") for line in tree.splitlines()]
    shown = "\n".join(line for line in lines if re.match("CometAPIError|[├│└ ]", line))
    yield "[Troubleshooting](troubleshooting.md) says what each one means, and what to do."
    yield f"```text\n{shown.rstrip()}\n```"
    for name in names:
        error = getattr(prefect_cometapi, name)
        if _attributes(error):
            yield f"### {name}"
            yield from _described(error)


def _entry(name: str) -> str:
    thing = getattr(prefect_cometapi, name)
    parts = [f"### {name}", *_signature(name, thing), *_described(thing)]
    if isinstance(thing, type):
        parts += _members(thing)
    return "\n\n".join(parts)


def _signature(name: str, thing: Any) -> Iterator[str]:
    """Yield the signature of a function, with the name of its async twin."""
    if isinstance(thing, type):
        if bases := [base.__name__ for base in thing.__bases__ if base.__name__ in _public()]:
            yield f"A kind of [{bases[0]}](#{bases[0].lower()})."
        return
    signature = plain_signature(inspect.signature(thing))
    lines = [f"    {_parameter(each)}," for each in signature.parameters.values()]
    starred = next(
        (at for at, each in enumerate(signature.parameters.values()) if each.kind.value == 3), None
    )
    if starred is not None:
        lines.insert(starred, "    *,")
    head = "\n".join([f"{name}(", *lines, f") -> {_type(signature.return_annotation)}"])
    yield f"```text\n{head}\n```"
    if f"a{name}" in _public():
        yield f"Async: `await a{name}(…)`."


def _public() -> set[str]:
    return set(prefect_cometapi.__all__)


def _parameter(parameter: inspect.Parameter) -> str:
    default = "" if parameter.default is parameter.empty else f" = {parameter.default!r}"
    return f"{parameter.name}: {_type(parameter.annotation)}{default}"


def _type(hint: Any) -> str:
    """Return a type as its class names, without modules and metadata."""
    text = hint if isinstance(hint, str) else inspect.formatannotation(plain_type(hint))
    text = re.sub(r"\b(?:[A-Za-z_]\w*\.)+(?=[A-Za-z_])", "", text).replace("NoneType", "None")
    text = re.sub(rf"Optional\[({NESTED})\]", r"\1 | None", text)
    return re.sub(rf"Union\[({NESTED})\]", lambda of: re.sub(OUTER, " | ", of[1]), text)


def _described(thing: Any) -> Iterator[str]:
    """Yield the parts of a docstring as Markdown."""
    text = inspect.getdoc(thing.fn if isinstance(thing, Task) else thing) or ""
    is_model = isinstance(thing, type) and issubclass(thing, BaseModel)
    for section in griffe.Docstring(text).parse("google", warnings=False):
        kind, value = section.kind.value, section.value
        if kind == "text":
            yield _code(value)
        elif kind == "examples":
            yield "\n\n".join(_code(part) for _, part in value)
        elif kind == "admonition":
            yield _code(value.description)
        elif kind == "raises":
            rows = ((f"`{_type(str(each.annotation))}`", each.description) for each in value)
            yield _table(("raises", "if"), rows)
        elif kind in {"parameters", "attributes"} and not is_model:
            title = kind.removesuffix("s")
            yield _table(
                (title, "meaning"), ((f"`{each.name}`", each.description) for each in value)
            )


def _members(kind: type) -> Iterator[str]:
    """Yield the fields of a model, the values of an enum, and the methods of a class."""
    if issubclass(kind, Enum):
        yield "Values: " + ", ".join(f"`{member.value}`" for member in kind) + "."
        return
    if issubclass(kind, BaseModel):
        yield from _fields(kind)
    methods = [
        (f"`{name}{'' if isinstance(member, property) else '()'}`", _summary(member))
        for name, member in vars(kind).items()
        if not name.startswith(INTERNAL) and _is_method(member) and _summary(member)
    ]
    if methods and not issubclass(kind, GenerationRequest):
        yield _table(("member", "meaning"), methods)


def _is_method(member: Any) -> bool:
    return inspect.isfunction(member) or isinstance(member, classmethod | property)


def _summary(member: Any) -> str:
    return (inspect.getdoc(member) or "").partition("\n\n")[0]


def _fields(model: type[BaseModel]) -> Iterator[str]:
    """Yield the table of a model's fields, with the API's names where they differ."""
    own = {n: field for n, field in model.model_fields.items() if not _is_inherited(model, n)}
    documented = _attributes(model)
    rows = [
        (
            f"`{name}`" if field.alias in {None, name} else f"`{name}`, `{field.alias}`",
            f"`{_type(field.annotation)}`".replace(" | ", "` or `"),
            _default(field),
            field.description or documented.get(name, ""),
        )
        for name, field in own.items()
    ]
    if rows:
        yield _table(("field", "type", "default", "meaning"), rows)


def _is_inherited(model: type[BaseModel], name: str) -> bool:
    return issubclass(model, Block) and name in Block.model_fields


def _attributes(model: type) -> dict[str, str]:
    """Return the descriptions of a class's attributes in its docstring."""
    sections = griffe.Docstring(inspect.getdoc(model) or "").parse("google", warnings=False)
    return {
        each.name: each.description
        for section in sections
        if section.kind.value == "attributes"
        for each in section.value
    }


def _default(field: Any) -> str:
    if field.default_factory is not None:
        return "`{}`" if field.default_factory is dict else "`()`"
    if field.default is PydanticUndefined:
        return "required"
    default = field.default.value if isinstance(field.default, Enum) else field.default
    return f"`{default!r}`"


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *(tuple(map(_cell, row)) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(text: str) -> str:
    return re.sub(r"\s+", " ", _code(text)).replace("|", "\\|").strip()


def _code(text: str) -> str:
    """Return reStructuredText's code spans as those of Markdown."""
    return text.replace("``", "`") if "```" not in text else text


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if sys.argv[1:] else DOCS
    (folder / "cli.md").write_text(cli_page(), encoding="utf-8")
    (folder / "api.md").write_text(api_page(), encoding="utf-8")
