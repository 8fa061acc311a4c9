# SPDX-License-Identifier: Apache-2.0
"""Signatures for ``help()``: the types of parameters without the details of their validation.

Pydantic keeps a field's description, limits and validators in its type. ``help()`` would print all
of them in the signature, where nobody finds the types any more.
"""

import inspect
from collections.abc import Callable
from functools import reduce
from operator import or_
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel


def plain_type(hint: Any) -> Any:
    """Return a type without the metadata of ``Annotated``, at any depth; pure."""
    origin = get_origin(hint)
    if origin is Annotated:
        return plain_type(hint.__origin__)
    if origin in {None, Literal, Callable}:
        return hint
    arguments = tuple(plain_type(argument) for argument in get_args(hint))
    if origin in {Union, UnionType}:
        return reduce(or_, arguments)
    return origin[arguments]


def plain_signature(signature: inspect.Signature) -> inspect.Signature:
    """Return a signature with plain types; pure."""
    return signature.replace(
        parameters=[
            parameter.replace(annotation=plain_type(parameter.annotation))
            for parameter in signature.parameters.values()
        ],
        return_annotation=plain_type(signature.return_annotation),
    )


class _PlainSignature:
    """Attribute of a model with the signature that pydantic found, in plain types."""

    def __init__(self, found: Any) -> None:
        self._found = found

    def __get__(self, instance: object, owner: type) -> inspect.Signature:
        return plain_signature(self._found.__get__(instance, owner))


def _is_internal(name: str) -> bool:
    return name.startswith("__pydantic_") or name in {
        "__annotations__",
        "__signature__",
        "model_computed_fields",
        "model_fields",
    }


if TYPE_CHECKING:  # a type checker knows the fields of a model by this class, and not by subclasses
    from pydantic._internal._model_construction import ModelMetaclass

    PlainHelp = ModelMetaclass
else:

    class PlainHelp(type(BaseModel)):
        """Metaclass of models for which ``help()`` prints a plain signature and no internals."""

        def __setattr__(self, name: str, value: Any) -> None:
            """Set an attribute of the model; its signature gets plain types."""
            # Pydantic sets it when it has built a class, and again if it builds the class again.
            plain = _PlainSignature(value) if name == "__signature__" else value
            super().__setattr__(name, plain)

        def __dir__(self) -> list[str]:
            """Return the names that are of use to a reader."""
            return [name for name in super().__dir__() if not _is_internal(name)]
