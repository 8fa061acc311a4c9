# SPDX-License-Identifier: Apache-2.0
"""Flows whose record in Prefect holds no pictures and no catalogues.

Prefect stores the parameters of a run as they were given, so a data URI in a plain dict would be
kept whole in its database (and refused above 512 kB), and so would be a list of many requests.
Here they are stored shortened; the run itself gets the original.
"""

import inspect
import json
import logging
from collections.abc import Callable
from itertools import accumulate
from typing import Any, ParamSpec, TypeVar, get_type_hints

from prefect import Flow
from prefect.serializers import CompressedSerializer, JSONSerializer, Serializer
from pydantic.fields import FieldInfo

from ...runway.redact import HideSecrets, shortened
from .hooks import leave_to_collect

# Prefect logs parameters that do not validate, whole.
logging.getLogger("prefect.flows").addFilter(HideSecrets())

P = ParamSpec("P")
R = TypeVar("R")


LONGEST = 400_000
"""Characters of stored parameters; Prefect's server refuses more than 512 kB."""


def _beginning(value: Any) -> Any:
    """Of a list the items that there is room for, and how many there were."""
    if not isinstance(value, list):
        return value
    items: list[Any] = value
    sizes = accumulate(len(json.dumps(item)) for item in items)
    kept = sum(1 for size in sizes if size <= LONGEST // 2)
    rest = len(items) - kept
    more = [f"... and {rest:,} more, which Prefect does not store"] if rest else []
    return [*items[:kept], *more]


class RecordedFlow(Flow[P, R]):
    """A Prefect flow that stores data URIs among its parameters shortened."""

    def serialize_parameters(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """The parameters as they are stored."""
        stored = shortened(super().serialize_parameters(parameters), urls=False)
        if len(json.dumps(stored)) <= LONGEST:
            return stored
        return {name: _beginning(value) for name, value in stored.items()}

    def with_options(self, *args: Any, **kwargs: Any) -> Flow[P, R]:
        """A copy with other options, which stores data URIs shortened too."""
        copy = super().with_options(*args, **kwargs)
        copy.__class__ = RecordedFlow  # Prefect makes the copy a plain Flow
        return copy


RESULTS: "Serializer[Any]" = CompressedSerializer(
    serializer=JSONSerializer(), compressionlib="zlib"
)
"""Prefect's default, LZMA, takes 98 MB of memory for however little."""


def recorded_flow(name: str) -> Callable[[Callable[P, R]], Flow[P, R]]:
    """Make a function a flow whose result is kept, as compressed JSON.

    A kept result means that a retried parent flow does not run a finished subflow again. Plain
    JSON will not do: Prefect 3.8 takes a flow's result that reads ``{"data": …}``, as every model's
    does, for a record of an older format and gives back a dict.
    """

    def decorate(function: Callable[P, R]) -> Flow[P, R]:
        function.__doc__ = with_arguments(function)
        return RecordedFlow(
            function,
            name=name,
            persist_result=True,
            result_serializer=RESULTS,
            on_cancellation=[leave_to_collect],
            on_crashed=[leave_to_collect],
        )

    return decorate


def with_arguments(function: Callable[..., Any]) -> str:
    """A function's docstring with the descriptions of its annotated parameters.

    Prefect shows them in the UI's form, but takes them from the docstring alone.
    """
    hints = get_type_hints(function, include_extras=True)
    lines = [
        f"    {name}: {detail.description}"
        for name, hint in hints.items()
        for detail in getattr(hint, "__metadata__", ())
        if isinstance(detail, FieldInfo)
    ]
    return "\n".join([inspect.cleandoc(function.__doc__ or ""), "", "Args:", *lines])
