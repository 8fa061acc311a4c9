# SPDX-License-Identifier: Apache-2.0
"""Validation of a single row: its request, or all of its problems.

A row names the request's fields as the API does (``promptImage``) or as Python does
(``prompt_image``). It also has an ``id`` and, optionally, a ``route``. Text is converted where a
number, a boolean or JSON is expected, and a field without a value, or with NaN, is not set. Blanks
around names and values do not count. Names that begin with
``x_`` or ``_`` are the user's own and are ignored. Any other unknown name makes the row invalid: a
misspelt option would be paid for and have no effect.

No message repeats a value that may be a secret.
"""

import difflib
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from ..models.keys import one_form
from ..models.model_limits import LimitsExceeded
from ..models.requests import ROUTES, GenerationRequest, route_of
from ..models.sources import IS_SOURCE
from ..redact import hide_secrets, scrub
from .strict_json import strict_json

MAX_ID_LENGTH = 200
"""Maximum characters of an id. The rest of an idempotency key is for the batch."""

MAX_NAME_PROBLEMS = 20
"""Maximum number of wrong names that are reported for one row."""

MAX_EXACT = 2**53
"""Maximum float that is certainly the whole number that was written."""

MAX_NUMBER = 2**63 - 1
"""Maximum number in a field or an id; Python refuses to convert far larger ones to text."""

_LEVELS = 5  # of a nested field, in which unset members are left out
_PANDAS_NAME = re.compile(r"Unnamed: \d+")
PLACEHOLDERS = frozenset(
    [
        "nan",
        "NaN",
        "<NA>",
        "NaT",
        "None",
        "#N/A",
        "#NV",
        "#REF!",
        "#NAME?",
        "#VALUE!",
        "#DIV/0!",
        "#NUM!",
        "#NULL!",
        "#ERROR!",
    ]
)

_UNKNOWN_MODEL = "unknown"
"""Model without limits."""

Problem = tuple[str | None, str]
"""Name of the field, or None if it is not about one field, and the problem."""

_FIELDS = {
    route: {str(info.alias) for info in model.model_fields.values()}
    for route, model in ROUTES.items()
}
_SPELLINGS = {"id": "id", "route": "route"} | {
    spelling: str(info.alias)
    for model in ROUTES.values()
    for name, info in model.model_fields.items()
    for spelling in (name, str(info.alias))
}
_STAND_INS = {
    route: {
        str(info.alias): info.examples[0]
        for info in model.model_fields.values()
        if info.is_required() and info.examples
    }
    for route, model in ROUTES.items()
}


def _holds(annotation: Any, kinds: tuple[type, ...]) -> bool:
    """Return True if the type of a field is one of some kinds, or a union with one of them."""
    origin = get_origin(annotation) or annotation
    if isinstance(origin, type) and issubclass(origin, kinds):
        return True
    is_choice = origin in {Union, UnionType, Annotated}
    return is_choice and any(_holds(choice, kinds) for choice in get_args(annotation))


_NESTED = {
    str(info.alias): _holds(info.annotation, (str,))
    for model in ROUTES.values()
    for info in model.model_fields.values()
    if _holds(info.annotation, (BaseModel, list, dict))
}
"""Fields that are lists or objects, as JSON in a text; True for those that may also be a text."""

_MAY_BE_BYTES = {name for name in _SPELLINGS.values() if name in _NESTED} | {
    str(info.alias)
    for model in ROUTES.values()
    for info in model.model_fields.values()
    if any(part is IS_SOURCE for part in info.metadata)
}
"""Fields that are sources or hold some; in any other field, pydantic would take bytes as text."""


@dataclass(frozen=True, slots=True)
class CheckedFields:
    """Result of checking the fields of one row.

    Attributes:
        id: Id of the row, or None if it is missing or invalid.
        request: Request of the row, or None if there are problems.
        problems: All problems; a missing id is not one of them.
    """

    id: str | None
    request: GenerationRequest | None
    problems: list[Problem]


def check_fields(fields: Mapping[Any, Any]) -> CheckedFields:
    """Check the fields of a row, whatever their types; pure."""
    fields = _named(fields)
    problems = check_names(fields)
    given = _given(fields)
    values: dict[str, Any] = {}
    for name, value in given.items():
        try:
            values[name] = _prepared(name, value)
        except ValueError as error:
            problems.append((name, str(error)))
    try:
        route = _route_of(values.get("route"), given)
    except ValueError as error:
        problems.append(("route" if "route" in values else None, str(error)))
        return CheckedFields(values.get("id"), None, problems)
    request, of_request = _read_request(route, values, {name for name, _ in problems if name})
    problems += of_request
    return CheckedFields(values.get("id"), None if problems else request, problems)


def check_names(names: Iterable[object]) -> list[Problem]:
    """Return the problems with the names of fields or columns; pure."""
    problems: list[Problem] = []
    seen: set[str] = set()
    for name in names:
        if len(problems) == MAX_NAME_PROBLEMS:
            problems.append((None, "has more invalid fields"))
            break
        known = _known(name)
        if known in seen:
            problems.append((shown_name(name), f"{known} is given twice"))
        elif known:
            seen.add(known)
        elif not is_own(name):
            problems.append((shown_name(name), _unknown(name)))
    return problems


def is_own(name: object) -> bool:
    """Return True if a field is the user's own and therefore ignored; pure."""
    return isinstance(name, str) and name.strip().startswith(("x_", "_"))


def is_known(name: str) -> bool:
    """Return True for the name of a field or of an own column; pure."""
    return _known(name) is not None or is_own(name)


def is_nameless(name: object) -> bool:
    """Return True for a column without a name, or with the one that pandas makes for it; pure."""
    return isinstance(name, str) and (not name.strip() or bool(_PANDAS_NAME.fullmatch(name)))


def is_unset(value: object) -> bool:
    """Return True for a value that stands for none: None, NaN, and NaT and NA of pandas; pure.

    pandas is not imported for it.
    """
    if value is None or type(value).__name__ in {"NaTType", "NAType"}:
        return True
    if isinstance(value, Decimal):
        return value.is_nan()
    return isinstance(value, float) and math.isnan(value)


def shown_name(name: object) -> str:
    """Return a field's name, safe to show, whatever its type; pure."""
    return repr(scrub(name, 60))[1:-1] or "''" if isinstance(name, str) else type(name).__name__


def check_id(value: object) -> str:
    """Return an id as text, in its one Unicode form; pure.

    Raises:
        ValueError: It is neither a text nor a whole number, or it is not safe to show.
    """
    if isinstance(value, float) and value.is_integer() and abs(value) <= MAX_EXACT:
        value = int(value)  # a column of numbers with a gap is one of floats in pandas
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) <= MAX_NUMBER:
        return str(value)
    if isinstance(value, str):
        return _checked_text(one_form(value))
    raise ValueError("must be text or a whole number")


def _checked_text(value: str) -> str:
    if value != value.strip() or not value.isprintable() or not 0 < len(value) <= MAX_ID_LENGTH:
        raise ValueError(
            f"must have 1 to {MAX_ID_LENGTH} printable characters and no surrounding blanks"
        )
    if hide_secrets(value) != value:
        raise ValueError(
            "must not contain an API key, a token or a data URI, because it is shown in many places"
        )
    return value


def _unknown(name: object) -> str:
    near = _nearest(name[:40].lower()) if isinstance(name, str) else None
    meant = f"did you mean {near}?" if near else "your own fields must begin with x_ or _"
    return f"is not a field of a request; {meant}"


@lru_cache(maxsize=256)
def _nearest(name: str) -> str | None:
    spellings = {spelling.lower(): spelling for spelling in _SPELLINGS}
    close = difflib.get_close_matches(name, spellings, n=1, cutoff=0.7)
    return spellings[close[0]] if close else None


def _given(fields: Mapping[Any, Any]) -> dict[str, Any]:
    """Return the values that are set, by the API's names; the first of two spellings wins."""
    given: dict[str, Any] = {}
    for name, value in fields.items():
        value = _plain(value)  # noqa: PLW2901
        if (known := _known(name)) and not is_unset(value):
            given.setdefault(known, value)
    return given


def _known(name: object) -> str | None:
    return _SPELLINGS.get(name.strip()) if isinstance(name, str) else None


def _named(fields: Mapping[Any, Any]) -> Mapping[Any, Any]:
    """Return the fields without columns that have neither a name nor a value, and without an index.

    pandas names them ``Unnamed: 7`` when it reads the empty columns of a spreadsheet, and
    ``Unnamed: 0`` when it reads the index that it wrote itself.
    """
    if not any(is_nameless(name) for name in fields):
        return fields
    return {
        name: value
        for name, value in fields.items()
        if not is_nameless(name)
        or not (is_unset(value) or (name == "Unnamed: 0" and isinstance(value, int)))
    }


def _plain(value: Any) -> Any:
    """Return a scalar or an array of NumPy as a value of Python, and text without its margins."""
    if type(value).__module__.partition(".")[0] == "numpy" and hasattr(value, "tolist"):
        value = value.tolist()
    return value.strip() if isinstance(value, str) else value


def _prepared(name: str, value: Any) -> Any:
    if isinstance(value, str) and value in PLACEHOLDERS:
        raise ValueError(
            f"is {value}, as spreadsheets and data frames write a missing value; leave it empty"
        )
    if name == "id":
        return check_id(value)
    if name in _NESTED:
        is_json = isinstance(value, str) and (not _NESTED[name] or value.lstrip()[:1] == "[")
        value = _without_nulls(strict_json(value) if is_json else value)
    if isinstance(value, int) and abs(value) > MAX_NUMBER:
        raise ValueError("is too large")
    if not _is_unicode(value, bytes_too=name in _MAY_BE_BYTES):
        raise ValueError("must be text in valid Unicode (UTF-8)")
    return value


def _without_nulls(value: Any, levels: int = _LEVELS) -> Any:
    """Return a nested field without unset members, which Parquet adds to every row."""
    value = _plain(value)
    if isinstance(value, list) and levels:
        return [_without_nulls(item, levels - 1) for item in value]
    if isinstance(value, dict) and levels:
        set_ = {name: item for name, item in value.items() if not is_unset(item)}
        return {name: _without_nulls(item, levels - 1) for name, item in set_.items()}
    return value


def _is_unicode(value: Any, *, bytes_too: bool) -> bool:
    """Return True if all text in a value can be sent, and all bytes in it if they are a source."""
    left = [value]
    while left:
        item = left.pop()
        if isinstance(item, dict):
            left += [*item.keys(), *item.values()]
        elif isinstance(item, list | tuple):
            left += item
        elif isinstance(item, bytes | bytearray | memoryview) and not bytes_too:
            return False
        elif isinstance(item, str) and not item.isascii():
            try:
                item.encode()
            except UnicodeEncodeError:
                return False
    return True


def _route_of(named: Any, given: Mapping[str, Any]) -> str:
    if named is not None:
        return route_of(given, named if isinstance(named, str) else "")
    return route_of(given)


def _read_request(
    route: str, values: Mapping[str, Any], named: set[str]
) -> tuple[GenerationRequest | None, list[Problem]]:
    """Return the request of a route, and the problems of fields that were not reported yet."""
    body = {name: value for name, value in values.items() if name in _FIELDS[route]}
    foreign = values.keys() - body.keys() - {"id", "route"}
    problems: list[Problem] = [(name, f"is not a field of {route}") for name in sorted(foreign)]
    if "model" in named:
        body["model"] = _UNKNOWN_MODEL  # so that the limits of the default model do not apply
    request, of_request = _validate(route, body)
    problems += [problem for problem in of_request if problem[0] not in named]
    return request, problems


def _validate(
    route: str, body: Mapping[str, Any]
) -> tuple[GenerationRequest | None, list[Problem]]:
    """Return the request of a body, or all of its problems."""
    try:
        return ROUTES[route].model_validate(body), []
    except ValidationError as error:
        details = error.errors(include_url=False, include_input=False)
    invalid = {str(detail["loc"][0]) for detail in details if detail["loc"]}
    problems = [problem for detail in details for problem in _problems_of(detail)]
    if invalid and "model" not in invalid:
        valid = {name: value for name, value in body.items() if name not in invalid}
        found = _exceeded_limits(route, valid)
        problems += [problem for problem in found if problem[0] not in invalid]
    return None, problems


def _exceeded_limits(route: str, valid: Mapping[str, Any]) -> list[Problem]:
    """Return the limits that the valid fields of a body exceed, although other fields are invalid.

    pydantic checks the limits of a model only if every field is valid. So the valid fields are
    checked a second time, with stand-ins for the required ones.
    """
    return _validate(route, {**_STAND_INS[route], **valid})[1]


def _problems_of(detail: ErrorDetails) -> list[Problem]:
    cause = detail.get("ctx", {}).get("error")
    if isinstance(cause, LimitsExceeded):
        parts = [problem.partition(": ") for problem in cause.problems]
        return [(name, scrub(problem)) for name, _, problem in parts]
    name = ".".join(
        shown_name(part) if isinstance(part, str) else str(part) for part in detail["loc"]
    )
    return [(name, _in_words(scrub(detail["msg"])))]


def _in_words(message: str) -> str:
    for theirs, ours in (
        ("Value error, ", ""),
        ("Field required", "is missing"),
        ("Extra inputs are not permitted", "is not a field here"),
        ("Input should be", "must be"),
    ):
        if message.startswith(theirs):
            return ours + message.removeprefix(theirs)
    return message[:1].lower() + message[1:]
