# SPDX-License-Identifier: Apache-2.0
"""Failures of this package in the states and logs of Prefect.

An error of this package explains itself, so its run ends with a state of one line, and its log has
the complete text in place of a stack trace. Any other exception keeps its trace.
"""

import logging
import re
import sys
import traceback
from types import TracebackType
from typing import Any

from prefect.client.schemas.objects import State
from prefect.states import Failed, exception_to_failed_state

from ...runway.errors import CometAPIError
from ...runway.redact import hide_secrets
from . import log

_DETAILS = re.compile(r"(?:\\n| )(?:Generation|Money|Next|Support): .*(?=['\"]\)$)")
"""Details of an error, as Prefect writes them with its state into one line of the log."""

_HIDDEN = {"prefect", "prefect_cometapi"} | sys.stdlib_module_names
"""Packages whose frames say nothing about an error that explains itself."""


def in_one_line(error: CometAPIError) -> str:
    """Return the error, its generation, the effect on the money and the next step; pure."""
    which = hide_secrets(error.generation())
    details = [
        ("Generation", which and f"{which}."),
        ("Money", error.money),
        ("Next", error.hint()),
    ]
    known = [f"{name}: {text}" for name, text in details if text]
    summary = f"{type(error).__name__}: {error.summary().rstrip('.')}."
    return " ".join(" ".join([summary, *known]).split())


async def failed_state(error: Exception) -> State[Any]:
    """Log an error, and return the state of the run that it ends.

    Prefect raises the error from the state, so the caller of the flow sees no difference. A flow
    must not raise one error and return the state of another: if Prefect repeats it within the
    process, the error of the first attempt would be raised in place of the last one.
    """
    if isinstance(error, CometAPIError):
        log.logger().error("%s: %s", type(error).__name__, error)
        return Failed(message=in_one_line(error), data=error)
    log.logger().error("Encountered exception during execution: %r", error, exc_info=error)
    return await exception_to_failed_state(error, message="Flow run encountered an exception:")


class _ExpectedFailureFilter(logging.Filter):
    """Logging filter that shortens the records in which Prefect reports an error of this package.

    Of a stack trace it leaves the lines of the user's own code.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Let every record pass, without the parts that say nothing."""
        error = record.exc_info[1] if record.exc_info else None
        if record.exc_info and isinstance(error, CometAPIError):
            record.exc_text = _users_frames(record.exc_info[2])
            record.exc_info = None
        # Prefect formats this message before it logs it.
        if isinstance(record.msg, str) and record.msg.startswith("Finished in state Failed("):
            record.msg = _DETAILS.sub("", record.msg)
        return True


def _users_frames(trace: TracebackType | None) -> str | None:
    """Return the lines of a stack trace that are in the user's code, or None if there are none."""
    frames = [
        summary
        for (frame, _line), summary in zip(
            traceback.walk_tb(trace), traceback.extract_tb(trace), strict=True
        )
        if _package(frame.f_globals) not in _HIDDEN
    ]
    return "".join(traceback.format_list(frames)).rstrip() or None


def _package(names: dict[str, Any]) -> str:
    """Return the top-level package of a frame's module, also of one that runs as a script."""
    spec = names.get("__spec__")
    return (spec.name if spec else names.get("__name__", "")).partition(".")[0]


for _name in ("prefect.flow_runs", "prefect.task_runs"):
    logging.getLogger(_name).addFilter(_ExpectedFailureFilter())
