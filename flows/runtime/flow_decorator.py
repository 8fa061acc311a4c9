# SPDX-License-Identifier: Apache-2.0
"""Flow decorator that keeps large parameters out of Prefect's database.

Prefect stores the parameters of a run as they were given, and its server refuses more than 512 kB.
A data URI in a plain dict, or a list of many requests, would be stored in full. The flows in this
package store a shortened copy. The run itself gets the original parameters.
"""

import inspect
import json
import logging
from collections.abc import Callable
from itertools import accumulate
from types import CoroutineType
from typing import Any, ParamSpec, TypeVar, get_type_hints

from prefect import Flow
from prefect.serializers import CompressedSerializer, JSONSerializer, Serializer
from prefect.types.entrypoint import EntrypointType
from pydantic.fields import FieldInfo

from ...runway.redact import RedactingFilter, redact_payload
from .hooks import release_leases
from .sync import sync_twin

# Prefect logs invalid parameters in full, and they may contain secrets.
logging.getLogger("prefect.flows").addFilter(RedactingFilter())

P = ParamSpec("P")
R = TypeVar("R")


LONGEST = 400_000
"""Maximum characters of stored parameters; Prefect's server refuses more than 512 kB."""


def _beginning(value: Any) -> Any:
    """Return the items of a list that fit, followed by a note of how many were left out."""
    if not isinstance(value, list):
        return value
    items: list[Any] = value
    sizes = accumulate(len(json.dumps(item)) for item in items)
    kept = sum(1 for size in sizes if size <= LONGEST // 2)
    rest = len(items) - kept
    more = [f"... and {rest:,} more, which Prefect does not store"] if rest else []
    return [*items[:kept], *more]


_PUBLIC_MODULE = __name__.removesuffix(".runtime.flow_decorator")
"""Module that a deployment names, so that it survives a move of the code within the package."""

_BY_MODULE = {"entrypoint_type": EntrypointType.MODULE_PATH}
"""Prefect's default is the path of the file, which cannot import the package around it."""


class RecordedFlow(Flow[P, R]):
    """Prefect flow that shortens data URIs and long lists in its stored parameters.

    Its deployments find it by its module path, however they are made.
    """

    def serialize_parameters(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """Return the parameters in the form in which Prefect stores them."""
        stored = redact_payload(super().serialize_parameters(parameters), urls=False)
        if len(json.dumps(stored)) <= LONGEST:
            return stored
        return {name: _beginning(value) for name, value in stored.items()}

    def to_deployment(self, *args: Any, **kwargs: Any) -> Any:
        """Return a deployment that imports the flow from the installed package."""
        return super().to_deployment(*args, **_BY_MODULE | kwargs)

    def ato_deployment(self, *args: Any, **kwargs: Any) -> Any:
        """Return a deployment that imports the flow from the installed package."""
        return super().ato_deployment(*args, **_BY_MODULE | kwargs)

    def serve(self, *args: Any, **kwargs: Any) -> None:
        """Serve the flow from the installed package."""
        super().serve(*args, **_BY_MODULE | kwargs)

    def deploy(self, *args: Any, **kwargs: Any) -> Any:
        """Deploy the flow from the installed package."""
        return super().deploy(*args, **_BY_MODULE | kwargs)

    def adeploy(self, *args: Any, **kwargs: Any) -> Any:
        """Deploy the flow from the installed package."""
        return super().adeploy(*args, **_BY_MODULE | kwargs)

    def with_options(self, *args: Any, **kwargs: Any) -> Flow[P, R]:
        """Return a copy with other options that also shortens its stored parameters."""
        copy = super().with_options(*args, **kwargs)
        copy.__class__ = RecordedFlow  # Prefect creates the copy as a plain Flow.
        copy.__module__ = self.__module__
        return copy


RESULTS: "Serializer[Any]" = CompressedSerializer(
    serializer=JSONSerializer(), compressionlib="zlib"
)
"""Serializer of flow results: JSON, compressed with zlib.

Prefect's default compression, LZMA, needs 98 MB of memory however small the result is.
"""


def recorded_flow(name: str) -> Callable[[Callable[P, R]], Flow[P, R]]:
    """Return a decorator that makes a function a flow with a persisted result.

    With a persisted result, a retried parent flow does not run a finished subflow again. The result
    is stored as JSON, and compressed since the result of a batch can be long.
    """

    def decorate(function: Callable[P, R]) -> Flow[P, R]:
        function.__doc__ = with_arguments(function)
        return _as_flow(function, name)

    return decorate


def sync_flow(flow: "Flow[P, CoroutineType[Any, Any, R]]") -> Flow[P, R]:
    """Return the sync twin of an async flow: the same name, parameters and docstring."""
    # By default Prefect hashes the file of the function, which is not the one of the flow.
    return _as_flow(sync_twin(flow.fn), flow.name, flow.version)


def _as_flow(function: Callable[P, R], name: str, version: str | None = None) -> Flow[P, R]:
    flow = RecordedFlow(
        function,
        name=name,
        version=version,
        persist_result=True,
        result_serializer=RESULTS,
        on_cancellation=[release_leases],
        on_crashed=[release_leases],
    )
    flow.__module__ = _PUBLIC_MODULE
    return flow


def with_arguments(function: Callable[..., Any]) -> str:
    """Return a function's docstring with the descriptions of its annotated parameters.

    Prefect shows these descriptions in the form of the UI, but reads them only from the docstring.
    """
    hints = get_type_hints(function, include_extras=True)
    lines = [
        f"    {name}: {detail.description}"
        for name, hint in hints.items()
        for detail in getattr(hint, "__metadata__", ())
        if isinstance(detail, FieldInfo)
    ]
    return "\n".join([inspect.cleandoc(function.__doc__ or ""), "", "Args:", *lines])
