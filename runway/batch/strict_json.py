# SPDX-License-Identifier: Apache-2.0
"""Strict JSON parser, which silently drops nothing that a user wrote."""

import json
from typing import Any


def strict_json(text: str, *, missing_numbers: bool = False) -> Any:
    """Return the value of a JSON text; pure.

    Args:
        text: The text.
        missing_numbers: Whether NaN, which data frames write for a missing value, is null.

    Raises:
        ValueError: It is not valid JSON, names a field of an object twice, or is nested too deeply.
            The message repeats no part of the text.
    """
    try:
        return (_OF_FRAMES if missing_numbers else _DECODER).decode(text.strip())
    except json.JSONDecodeError as error:
        what = error.msg.removesuffix(" at")
        raise ValueError(f"is not valid JSON: {what}, at character {error.pos + 1}") from None
    except RecursionError:
        raise ValueError("is not valid JSON: it is nested too deeply") from None
    except _Refused:
        raise
    except ValueError:  # a number with more digits than Python converts
        raise ValueError("is not valid JSON: a number has too many digits") from None


class _Refused(ValueError):
    """Input that Python's decoder would accept."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):  # Python keeps the last value; the user may mean the first
        raise _Refused("is not valid JSON: an object has a field twice")
    return found


def _no_constant(_name: str) -> Any:
    raise _Refused("is not valid JSON: NaN and Infinity are not allowed")


def _nan_as_null(name: str) -> None:
    if name != "NaN":
        _no_constant(name)


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_no_constant)
_OF_FRAMES = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_nan_as_null)
