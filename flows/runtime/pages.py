# SPDX-License-Identifier: Apache-2.0
"""Lists that Prefect's server returns in pages."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")

PAGE_SIZE = 200
"""Number of objects that Prefect's server returns at a time, at most."""


async def read_pages(read: Callable[[int, int], Awaitable[list[T]]]) -> list[T]:
    """Return all objects of a list.

    Args:
        read: Function that returns one page, of the limit and the offset in its arguments. Its
            order must not change between two calls.
    """
    found: list[T] = []
    while True:
        page = await read(PAGE_SIZE, len(found))
        found += page
        if len(page) < PAGE_SIZE:
            return found
