# SPDX-License-Identifier: Apache-2.0
"""Results of flow calls, as the checker reads them."""

from collections.abc import Awaitable

from prefect_cometapi.runway.errors import CometAPIError

from .checker import Ending

LONGEST_TEXT = 300


async def await_ending(key: str, call: Awaitable[object], expected: tuple[str, ...] = ()) -> Ending:
    """Await the call of a flow, and return its result.

    Args:
        key: Key of the generation.
        call: Awaitable of the flow.
        expected: Prefixes of other modules whose errors are allowed.
    """
    try:
        await call
    except CometAPIError as error:
        return Ending(key, type(error).__name__, text=error.message)
    except Exception as error:  # noqa: BLE001 -- the checker reports an unexpected type
        kind = type(error)
        typed = kind.__module__.startswith(expected)
        return Ending(key, kind.__qualname__, typed=typed, text=str(error)[:LONGEST_TEXT])
    return Ending(key)
