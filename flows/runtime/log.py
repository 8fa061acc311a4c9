# SPDX-License-Identifier: Apache-2.0
"""Loggers of a run, and control of how much a batch logs."""

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
"""True for a generation in a batch; the batch has artifacts for all of its items together."""

is_quiet: ContextVar[bool] = ContextVar("is_quiet", default=False)
"""True if only problems are logged, and only the end of a generation is an event.

In a large batch, thousands of log lines and events are not useful, and Prefect's server has to
store all of them.
"""


class _QuietFilter(logging.Filter):
    """Logging filter that drops routine messages of a large batch."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether the record is logged."""
        return record.levelno >= logging.WARNING or not is_quiet.get()


logging.getLogger("prefect.task_runs").addFilter(_QuietFilter())


def logger() -> "logging.Logger | logging.LoggerAdapter[Any]":
    """Return the logger of the run, or a plain one outside of a run."""
    try:
        return get_run_logger()
    except MissingContextError:
        return logging.getLogger("prefect_cometapi")


@contextmanager
def as_batch(*, quiet: bool) -> Iterator[None]:
    """Treat the generations within the block as items of a batch.

    Args:
        quiet: Whether to log only problems.
    """
    batch_token = in_batch.set(True)
    quiet_token = is_quiet.set(quiet or is_quiet.get())
    try:
        yield
    finally:
        in_batch.reset(batch_token)
        is_quiet.reset(quiet_token)


def log_progress(message: str, *args: object) -> None:
    """Log a routine message about a generation, unless the batch is quiet."""
    # The filter would drop the message, but creating the logger takes time.
    if not is_quiet.get():
        logger().info(message, *args)


wait_listener: ContextVar[Callable[[str], None] | None] = ContextVar("wait_listener", default=None)
"""Callback with what a run waits for; the command line shows it beside its progress bar."""


def show_waiting(reason: str) -> None:
    """Report what the run waits for from now on."""
    if listener := wait_listener.get():
        listener(reason)


def best_effort(show: Callable[P, Awaitable[None]]) -> Callable[P, Awaitable[None]]:
    """Decorate a display function so that its errors are logged and not raised.

    Outside of a flow run or task run the function does nothing.
    """

    @wraps(show)
    async def shown_or_logged(*args: P.args, **kwargs: P.kwargs) -> None:
        if not (FlowRunContext.get() or TaskRunContext.get()):
            return
        try:
            await show(*args, **kwargs)
        except Exception as error:  # noqa: BLE001 -- what is only shown must not cost a video
            logger().debug("Could not update the UI: %s", type(error).__name__)

    return shown_or_logged
