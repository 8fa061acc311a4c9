# SPDX-License-Identifier: Apache-2.0
"""Signatures that `help()` prints."""

import inspect
from collections.abc import Callable
from typing import Annotated, Any, Literal, Optional

import pytest
from pydantic import BaseModel, Field

from prefect_cometapi.runway.plain_help import PlainHelp, plain_type

Positive = Annotated[int, Field(gt=0)]


@pytest.mark.parametrize(
    ("hint", "plain"),
    [
        (int, int),
        (Positive, int),
        (Annotated[Positive | None, Field()], int | None),
        (Optional[Positive], int | None),  # noqa: UP045 -- older code has it
        (Positive | Literal["all"], int | Literal["all"]),
        (list[Positive], list[int]),
        (dict[str, Annotated[tuple[Positive, ...], Field()]], dict[str, tuple[int, ...]]),
        (Callable[[int], str], Callable[[int], str]),
        (Any, Any),
        ("later", "later"),
    ],
)
def test_a_plain_type_has_no_metadata(hint, plain):
    """Descriptions, limits and validators are left out of a type at any depth."""
    assert plain_type(hint) == plain


def test_a_model_that_is_built_again_keeps_its_plain_help():
    """A rebuilt model and its subclasses have plain signatures; the model validates as before."""

    class Model(BaseModel, metaclass=PlainHelp):
        count: Positive = 1

    class Special(Model):
        name: Annotated[str, Field(description="Name.")] = ""

    Special.model_rebuild(force=True)
    assert str(inspect.signature(Special)) == "(*, count: int = 1, name: str = '') -> None"
    assert {"count", "model_dump"} <= {*dir(Special), *Special.model_fields}
    assert "model_fields" not in dir(Special)
    with pytest.raises(ValueError, match="greater than 0"):
        Special(count=0)
    with pytest.raises(AttributeError):
        _ = Special().__signature__
