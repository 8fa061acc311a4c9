# SPDX-License-Identifier: Apache-2.0
"""Rows of a batch, all of them validated before anything is bought."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import Field

from ..models.generation import FrozenModel
from ..models.keys import MAX_KEY_LENGTH, check_key
from ..models.requests import GenerationRequest
from .models import BatchItem
from .row_validation import MAX_ID_LENGTH, CheckedFields, Problem, check_fields, shown_name

KeyOf = Callable[[str | None, GenerationRequest, int], str]
"""Function that returns an item's idempotency key. Its arguments are the item's id or None, its
request, and its position, from 1, among the equal requests that have no id."""

Unit = Literal["line", "row"]

_FLOAT = re.compile(r"\A(-?\d+)\.0\Z")
"""Id of a column of whole numbers after pandas has read a gap in it; 7.0 and 7 are one purchase."""


@dataclass(frozen=True, slots=True)
class Row:
    """Row of a batch before its validation.

    Attributes:
        number: Position of the row, from 1.
        fields: Values by the names that the row uses.
        problem: Reason why the row cannot be read at all, or an empty text.
        unit: Unit of ``number``.
        needs_id: True if the row must have an id; otherwise its number is its id.
    """

    number: int
    fields: Mapping[Any, Any] = field(default_factory=dict[Any, Any], repr=False)
    problem: str = ""
    unit: Unit = "row"
    needs_id: bool = True


class BadRow(FrozenModel):
    """One problem of a row, which may have several."""

    row: int = Field(description="Position of the row, from 1.")
    unit: Unit = Field(default="row", description="Unit of `row`.")
    id: str | None = Field(default=None, description="Id of the row, if it has a valid one.")
    field: str | None = Field(
        default=None, description="Name of the field, if the problem is about one field."
    )
    problem: str = Field(description="Problem in one sentence.")

    @property
    def what(self) -> str:
        """Problem, with the name of the field."""
        return f"{self.field}: {self.problem}" if self.field else self.problem

    @property
    def name(self) -> str:
        """Position of the row, and its id."""
        return f"{self.unit} {self.row}" + (f" (id {self.id})" if self.id else "")

    def __str__(self) -> str:
        return f"{self.name}: {self.what}"


def batch_prefix(batch_key: str) -> str:
    """Return the prefix of all idempotency keys of a batch; no other batch has a key with it."""
    return f"{batch_key}/"


def batch_keys(batch_key: str) -> KeyOf:
    """Return a function that makes idempotency keys with the batch's own key as prefix.

    The prefix is followed by the id, or by a hash of the request. The first slash of a key ends the
    batch's own key, so an id may contain slashes and a batch key may not: otherwise, batch ``a``
    with id ``b/1`` and batch ``a/b`` with id ``1`` would share a key.

    Raises:
        ValueError: The batch key is not a valid key, contains a slash, or leaves no room for an id.
    """
    if "/" in batch_key:
        raise ValueError("the idempotency key of a batch must not contain a slash")
    batch_key = check_key(batch_key)
    room = MAX_KEY_LENGTH - MAX_ID_LENGTH - 1
    if len(batch_key) > room:
        raise ValueError(f"the idempotency key of a batch may have at most {room} characters")

    def key_of(id_: str | None, request: GenerationRequest, variation: int) -> str:
        part = _FLOAT.sub(r"\1", id_) if id_ else request.fingerprint()[:16]
        key = f"{batch_prefix(batch_key)}{part}"
        return key if variation == 1 else f"{key}-variation-{variation}"

    return key_of


def rows_of(requests: Iterable[object]) -> list[Row]:
    """Return the rows of requests given in Python; pure.

    Each one is a request, a mapping of its fields, or a mapping with a ``request``. Without an
    ``id``, the position, from 1, is the id.
    """
    return [_row_of(number, given) for number, given in enumerate(requests, 1)]


def check_rows(rows: Iterable[Row], key_of: KeyOf) -> tuple[list[BatchItem], list[BadRow]]:
    """Return the items of the valid rows, and all problems of the others; pure.

    Each row is in exactly one of the two lists. No content of a row makes this function raise.

    Args:
        rows: All rows of the batch, in order.
        key_of: Returns the idempotency key of an item, as ``batch_keys`` does.
    """
    items: list[BatchItem] = []
    bad: list[BadRow] = []
    seen = _Seen(key_of)
    for row in rows:
        id_, item, problems = seen.check(row)
        if item:
            items.append(item)
        bad += [
            BadRow(row=row.number, unit=row.unit, id=id_, field=name, problem=problem)
            for name, problem in problems
        ]
    return items, bad


class _Seen:
    """Ids, keys and positions among equal requests that earlier rows have taken."""

    def __init__(self, key_of: KeyOf) -> None:
        self.key_of = key_of
        self.ids: dict[str, Row] = {}
        self.keys: dict[str, Row] = {}
        self.variations: Counter[str] = Counter()

    def check(self, row: Row) -> tuple[str | None, BatchItem | None, list[Problem]]:
        """Return the id of a row, its item, and its problems, in the context of earlier rows."""
        if row.problem:
            return None, None, [(None, row.problem)]
        found = check_fields(row.fields)
        id_, problems = self._identify(row, found)
        if not found.request:
            return id_, None, problems
        # A row that is rejected for its id counts too, so that the other rows have the same keys
        # with and without it.
        variation = 1 if found.id else self._variation(found.request)
        if problems or not id_:
            return id_, None, problems
        key = self.key_of(found.id, found.request, variation)
        if problem := self._claim(key, row):
            return id_, None, [("id", problem)]
        return id_, BatchItem(id=id_, idempotency_key=key, request=found.request), []

    def _identify(self, row: Row, found: CheckedFields) -> tuple[str | None, list[Problem]]:
        problems, id_ = list(found.problems), found.id
        if not id_ and "id" not in {name for name, _ in problems}:
            if row.needs_id:
                problems.append(("id", "is missing"))
            else:
                id_ = str(row.number)
        if id_ and (first := self.ids.get(id_)):
            problems.append(("id", f"is also the id of {first.unit} {first.number}"))
        elif id_:
            self.ids[id_] = row
        return id_, problems

    def _variation(self, request: GenerationRequest) -> int:
        fingerprint = request.fingerprint()
        self.variations[fingerprint] += 1
        return self.variations[fingerprint]

    def _claim(self, key: str, row: Row) -> str | None:
        try:
            check_key(key)
        except ValueError as error:
            return f"results in an invalid idempotency key: {error}"
        if first := self.keys.get(key):
            return f"results in the same idempotency key as {first.unit} {first.number}"
        self.keys[key] = row
        return None


def _row_of(number: int, given: object) -> Row:
    fields = _fields_of(given)
    if fields is None:
        return _no_row(number, "is neither a request nor a mapping of its fields")
    if "request" not in fields:
        return Row(number, fields, needs_id=False)
    inner = _fields_of(fields["request"])
    if inner is None:
        return _no_row(
            number, "has a request that is neither a request nor a mapping of its fields"
        )
    outer = {name: value for name, value in fields.items() if name != "request"}
    if twice := [name for name in outer if name in inner]:
        return _no_row(number, f"has {shown_name(twice[0])} both in its request and next to it")
    return Row(number, {**outer, **inner}, needs_id=False)


def _no_row(number: int, problem: str) -> Row:
    return Row(number, problem=problem, needs_id=False)


def _fields_of(given: object) -> Mapping[Any, Any] | None:
    if isinstance(given, GenerationRequest):
        return {"route": given.route, **given.fields()}
    return given if isinstance(given, Mapping) else None
