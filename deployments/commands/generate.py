# SPDX-License-Identifier: Apache-2.0
"""Commands that buy one generation: one for each route, made from the class of its requests.

The arguments and options are the fields of the request. A source is written as in a request. A
field that holds objects of other kinds is given as JSON.
"""

import inspect
import json
import re
from collections.abc import Callable
from functools import partial
from types import UnionType
from typing import Annotated, Any, NamedTuple, Union, get_args, get_origin

from cyclopts import Parameter
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from ...runway.errors import InvalidRequest
from ...runway.models.model_limits import described_limits, known_models
from ...runway.models.requests import GenerationRequest
from ...runway.models.sources import IS_SOURCE
from ...runway.redact import scrub
from ..source_arguments import as_source, is_video

_FORMS = "URL, local file, s3:// address or TYPE/BLOCK/FILE"
_TAGGED = re.compile(r"([A-Za-z][A-Za-z0-9_]{2,15})=(.+)", re.DOTALL)

Convert = Callable[[Any], Any]


class _Option(NamedTuple):
    """Option of a command, and the field of the request that it sets."""

    field: str
    parameter: inspect.Parameter
    convert: Convert


def command_of(
    kind: type[GenerationRequest],
    common: Callable[..., Any],
    run: Callable[..., None],
) -> Callable[..., None]:
    """Return the function of the command that buys a generation of one route.

    Args:
        kind: Class of the route's requests.
        common: Function with the options that all routes share.
        run: Function that makes the generation; it receives the request and the common options.
    """
    options = [_option(name, info, kind) for name, info in kind.model_fields.items()]
    options.sort(key=lambda option: _position(option.field, kind))
    shared = inspect.signature(common).parameters.values()
    parameters = [*(option.parameter for option in options), *shared]

    def command(*arguments: Any, **named: Any) -> None:
        bound = inspect.Signature(parameters).bind(*arguments, **named)
        bound.apply_defaults()
        given = bound.arguments
        fields = {
            option.field: option.convert(value)
            for option in options
            if (value := given.pop(option.parameter.name)) not in (None, ())
        }
        run(kind.model_validate(fields), **given)

    command.__name__ = kind.route
    command.__doc__ = f"{kind.summary}. Buys one generation."
    command.__signature__ = inspect.Signature(parameters)
    command.__annotations__ = {it.name: it.annotation for it in parameters}
    return command


def _position(field: str, kind: type[GenerationRequest]) -> int:
    if field in kind.arguments:
        return kind.arguments.index(field)
    return len(kind.arguments) + (field == "extra")


def _option(name: str, info: FieldInfo, kind: type[GenerationRequest]) -> _Option:
    is_argument = name in kind.arguments
    title = (info.title or name.replace("_", " ").capitalize()) if is_argument else name
    type_, note, convert = _type_of(name, info)
    several = type_ == tuple[str, ...]
    option_name = title.lower().replace(" ", "_").removesuffix("s" if several else "")
    sentence = (info.description or "").partition(". ")[0].removesuffix(".")
    empty = inspect.Parameter.empty
    required = is_argument and info.is_required()
    default: Any = () if several else None if info.is_required() else info.default
    kinds = inspect.Parameter
    return _Option(
        name,
        inspect.Parameter(
            option_name,
            kinds.POSITIONAL_OR_KEYWORD if is_argument else kinds.KEYWORD_ONLY,
            default=empty if required else default,
            annotation=Annotated[
                type_ if required or several or default is not None else Union[type_, None],  # noqa: UP007
                Parameter(
                    help=f"{note or sentence}.{_known(name, info, kind)}",
                    negative=None if type_ is bool else "",
                ),
            ],
        ),
        convert,
    )


def _known(name: str, info: FieldInfo, kind: type[GenerationRequest]) -> str:
    """Return what is known of a field for the models of a route, as sentences."""
    known = known_models(kind.route)
    if name == "model":
        return f" Known: {', '.join(known)}."
    return described_limits(info.alias or name, known)


def _type_of(name: str, info: FieldInfo) -> tuple[Any, str, Convert]:
    """Return the type of an option, its help if it is not the field's own, and its conversion."""
    found = _parts(info.annotation)
    if IS_SOURCE in [*info.metadata, *found]:
        return str, f"{info.title or name}: {_FORMS}", as_source
    models = [it for it in found if isinstance(it, type) and issubclass(it, BaseModel)]
    is_list = list in found
    shape = {*models[0].model_fields} if models else set[str]()
    if is_list and "uri" in shape and shape <= {"type", "uri", "tag"}:
        tagged = "tag" in shape
        note = f"{name.removesuffix('s').replace('_', ' ').capitalize()}: {_FORMS}"
        note += ", also as TAG=FILE; may be repeated" if tagged else "; may be repeated"
        return tuple[str, ...], note, lambda given: [_image(it, tagged=tagged) for it in given]
    if shape == {"type", "uri"}:
        return str, f"{info.title or name.capitalize()}: {_FORMS}", _typed
    if models or is_list or dict in found:
        sentence = (info.description or "").partition(". ")[0].removesuffix(".")
        return str, f"{sentence}; as JSON", partial(_parsed, f"--{name.replace('_', '-')}")
    return next(it for it in found if it in {int, bool, str}), "", lambda value: value


def _parsed(option: str, given: str) -> Any:
    try:
        return json.loads(given)
    except ValueError as error:
        raise InvalidRequest(f"{option} is not valid JSON: {scrub(str(error))}") from None


def _parts(annotation: Any) -> list[Any]:
    """Return the types and the metadata within an annotation."""
    origin = get_origin(annotation)
    if origin is Annotated:
        inner, *metadata = get_args(annotation)
        return [*metadata, *_parts(inner)]
    if origin in {Union, UnionType}:
        return [part for choice in get_args(annotation) for part in _parts(choice)]
    if origin is not None:
        return [origin, *(part for inner in get_args(annotation)[:1] for part in _parts(inner))]
    return [annotation]


def _image(given: str, *, tagged: bool) -> dict[str, str]:
    if tagged and (found := _TAGGED.fullmatch(given)):
        return {"tag": found[1], "uri": as_source(found[2])}
    return {"uri": as_source(given)}


def _typed(given: str) -> dict[str, str]:
    """Return a source with its kind."""
    uri = as_source(given)
    return {"type": "video" if is_video(uri) else "image", "uri": uri}
