# SPDX-License-Identifier: Apache-2.0
"""Flow decorator that keeps large parameters out of Prefect's database.

Prefect stores the parameters of a run as they were given, and its server refuses more than 512 kB.
A data URI in a plain dict, or a list of many requests, would be stored in full. The flows in this
package store a shortened copy. The run itself gets the original parameters.
"""

import inspect
import json
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from functools import wraps
from itertools import accumulate
from types import CoroutineType
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast, get_type_hints

from prefect import Flow
from prefect.blocks.core import Block
from prefect.serializers import CompressedSerializer, JSONSerializer, Serializer
from prefect.types.entrypoint import EntrypointType
from pydantic.fields import FieldInfo

from ...blocks.credentials import CometAPICredentials
from ...runway.models.python_sources import quiet, recordable
from ...runway.models.requests import GenerationRequest
from ...runway.plain_help import plain_signature
from ...runway.redact import RedactingFilter, redact_payload
from .assets import follow_from_subflow
from .caller_arguments import as_location, shown_block
from .failures import failed_state
from .hooks import release_leases
from .identity import passing_tags_on
from .run_names import name_run
from .sync import sync_twin

# Prefect logs invalid parameters in full, and they may contain secrets.
logging.getLogger("prefect.flows").addFilter(RedactingFilter())

P = ParamSpec("P")
R = TypeVar("R")


CancellationHook = Callable[..., Awaitable[None] | None]
"""Hook of a cancelled run, which takes the flow, the run and its state."""

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


def _recordable(value: Any) -> Any:
    """Return a parameter without bytes, and without the content of a storage block."""
    if isinstance(value, Block) and not isinstance(value, CometAPICredentials):
        return shown_block(value)
    return recordable(value)


def _as_json(value: Any) -> Any:
    """Return a request as Prefect stores it, and any other parameter unchanged.

    Prefect's own conversion imports FastAPI, which takes a tenth of a second before the first run.
    """
    is_request = isinstance(value, GenerationRequest)
    return value.model_dump(mode="json", by_alias=True) if is_request else value


def _is_plain(value: Any) -> bool:
    """Return whether a value is JSON as it is; pure."""
    if isinstance(value, dict):
        return all(type(name) is str and _is_plain(item) for name, item in value.items())
    if isinstance(value, list):
        return all(map(_is_plain, value))
    return value is None or type(value) in {str, int, float, bool}


def _without_content(value: Any) -> Any:
    """Return a parameter of which no repr shows bytes, long texts or the content of a block."""
    if isinstance(value, Block) and not isinstance(value, CometAPICredentials):
        return as_location(value)
    return quiet(value)


_PUBLIC_MODULE = __name__.removesuffix(".runtime.flow_decorator")
"""Module that a deployment names, so that it survives a move of the code within the package."""

TAG = "cometapi"
"""Tag of the runs to which the automations of this package apply."""


def _deployed(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options of a deployment, with the tag, and found by its module path.

    Prefect's default is the path of the file, which cannot import the package around it.
    """
    tags = list(dict.fromkeys([*(options.get("tags") or ()), TAG]))
    return {"entrypoint_type": EntrypointType.MODULE_PATH, **options, "tags": tags}


class RecordedFlow(Flow[P, R]):
    """Prefect flow that shortens data URIs and long lists in its stored parameters.

    Its deployments find it by its module path and have the tag of the automations, however they
    are made.
    """

    __signature__: inspect.Signature

    def serialize_parameters(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """Return the parameters in the form in which Prefect stores them."""
        recorded = {name: _as_json(_recordable(value)) for name, value in parameters.items()}
        if not all(_is_plain(value) for value in recorded.values()):
            recorded = super().serialize_parameters(recorded)
        stored = redact_payload(recorded, urls=False)
        if len(json.dumps(stored)) <= LONGEST:
            return stored
        return {name: _beginning(value) for name, value in stored.items()}

    def validate_parameters(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """Return the parameters as the flow takes them.

        If they are not valid, Prefect logs all of them. So they are passed on without a repr of
        their content.
        """
        return super().validate_parameters(
            {name: _without_content(value) for name, value in parameters.items()}
        )

    if not TYPE_CHECKING:  # a type checker sees the overloads of Prefect's own method

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            """Run the flow, and follow its videos as assets into the tasks of a parent flow."""
            with passing_tags_on():
                outcome = super().__call__(*args, **kwargs)
            if inspect.iscoroutine(outcome):
                return _followed(outcome)
            follow_from_subflow(outcome)
            return outcome

    def to_deployment(self, *args: Any, **kwargs: Any) -> Any:
        """Return a deployment that imports the flow from the installed package."""
        return super().to_deployment(*args, **_deployed(kwargs))

    def ato_deployment(self, *args: Any, **kwargs: Any) -> Any:
        """Return a deployment that imports the flow from the installed package."""
        return super().ato_deployment(*args, **_deployed(kwargs))

    def serve(self, *args: Any, **kwargs: Any) -> None:
        """Serve the flow from the installed package."""
        super().serve(*args, **_deployed(kwargs))

    def deploy(self, *args: Any, **kwargs: Any) -> Any:
        """Deploy the flow from the installed package."""
        return super().deploy(*args, **_deployed(kwargs))

    def adeploy(self, *args: Any, **kwargs: Any) -> Any:
        """Deploy the flow from the installed package."""
        return super().adeploy(*args, **_deployed(kwargs))

    def with_options(self, *args: Any, **kwargs: Any) -> Flow[P, R]:
        """Return a copy with other options that also shortens its stored parameters."""
        copy = super().with_options(*args, **kwargs)
        copy.__class__ = RecordedFlow  # Prefect creates the copy as a plain Flow.
        copy.__module__ = self.__module__
        vars(copy)["__signature__"] = self.__signature__
        return copy


async def _followed(outcome: Coroutine[Any, Any, R]) -> R:
    with passing_tags_on():
        result = await outcome
    follow_from_subflow(result)
    return result


RESULTS: "Serializer[Any]" = CompressedSerializer(
    serializer=JSONSerializer(), compressionlib="zlib"
)
"""Serializer of flow results: JSON, compressed with zlib.

Prefect's default compression, LZMA, needs 98 MB of memory however small the result is.
"""


def recorded_flow(
    name: str, *, on_cancellation: Sequence[CancellationHook] = ()
) -> "Callable[[Callable[P, Coroutine[Any, Any, R]]], Flow[P, CoroutineType[Any, Any, R]]]":
    """Return a decorator that makes an async function a flow with a persisted result.

    Its runs are named after what they make, and an error of this package ends them with a state of
    one line.

    With a persisted result, a retried parent flow does not run a finished subflow again. The result
    is stored as JSON, and compressed since the result of a batch can be long.

    Args:
        name: Name of the flow.
        on_cancellation: Hooks for a cancelled run, after the one that releases its leases.
    """

    def decorate(
        function: Callable[P, Coroutine[Any, Any, R]],
    ) -> "Flow[P, CoroutineType[Any, Any, R]]":
        @wraps(function)
        async def named(*args: P.args, **kwargs: P.kwargs) -> R:
            await name_run()
            try:
                return await function(*args, **kwargs)
            except TimeoutError:  # Prefect names the state after it
                raise
            except Exception as error:  # noqa: BLE001 -- Prefect raises it from the state
                return cast("R", await failed_state(error))

        named.__doc__ = with_arguments(function)
        return _as_flow(named, name, (release_leases, *on_cancellation))

    return decorate


def sync_flow(flow: "Flow[P, CoroutineType[Any, Any, R]]") -> Flow[P, R]:
    """Return the sync twin of an async flow: the same name, parameters and docstring."""
    # By default Prefect hashes the file of the function, which is not the one of the flow.
    return _as_flow(sync_twin(flow.fn), flow.name, flow.on_cancellation_hooks, flow.version)


def _as_flow(
    function: Callable[P, R],
    name: str,
    on_cancellation: Sequence[CancellationHook],
    version: str | None = None,
) -> Flow[P, R]:
    flow = RecordedFlow(
        function,
        name=name,
        version=version,
        persist_result=True,
        result_serializer=RESULTS,
        on_cancellation=[*on_cancellation],
        on_crashed=[release_leases],
    )
    flow.__module__ = _PUBLIC_MODULE
    flow.__signature__ = plain_signature(inspect.signature(function))
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
        if isinstance(detail, FieldInfo) and detail.description
    ]
    return "\n".join([inspect.cleandoc(function.__doc__ or ""), "", "Args:", *lines])
