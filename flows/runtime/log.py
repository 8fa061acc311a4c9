# SPDX-License-Identifier: Apache-2.0
"""Log lines of a run, and how much of a batch is told."""

import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any, ParamSpec

from prefect.context import FlowRunContext, TaskRunContext
from prefect.exceptions import MissingContextError
from prefect.logging import get_run_logger

P = ParamSpec("P")

in_batch: ContextVar[bool] = ContextVar("in_batch", default=False)
"""Whether the generation is one of many: a batch shows them as a whole."""

is_quiet: ContextVar[bool] = ContextVar("is_quiet", default=False)
"""Whether only what went wrong is logged, and only the end of a generation told by an event:
thousands of lines and events help nobody, and Prefect's server has to keep them all."""


class _Hush(logging.Filter):
    """Keeps the usual course of a large batch out of the log."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is for the log."""
        return record.levelno >= logging.WARNING or not is_quiet.get()


logging.getLogger("prefect.task_runs").addFilter(_Hush())


def logger() -> "logging.Logger | logging.LoggerAdapter[Any]":
    """The run's logger, or a plain one outside of a run."""
    try:
        return get_run_logger()
    except MissingContextError:
        return logging.getLogger("prefect_cometapi")


@contextmanager
def as_batch(*, quiet: bool) -> Iterator[None]:
    """Show the generations within the block as parts of a batch; quiet says little of each."""
    shown = in_batch.set(True)
    hushed = is_quiet.set(quiet or is_quiet.get())
    try:
        yield
    finally:
        in_batch.reset(shown)
        is_quiet.reset(hushed)


def tell(message: str, *args: object) -> None:
    """Log the usual course of a generation."""
    if not is_quiet.get():  # its logger would let it fall, but making one takes a while
        logger().info(message, *args)


def harmless(show: Callable[P, Awaitable[None]]) -> Callable[P, Awaitable[None]]:
    """Have something shown within a run only, and its failure logged in place of raised."""

    @wraps(show)
    async def shown_or_logged(*args: P.args, **kwargs: P.kwargs) -> None:
        if not (FlowRunContext.get() or TaskRunContext.get()):
            return
        try:
            await show(*args, **kwargs)
        except Exception as error:  # noqa: BLE001 -- what is only shown must not cost a video
            logger().debug("Could not show it in the UI: %s", type(error).__name__)

    return shown_or_logged
