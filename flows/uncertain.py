# SPDX-License-Identifier: Apache-2.0
"""Submissions of unknown outcome, remembered beyond the task run that made them.

Prefect keeps the results of tasks that completed and forgets those that failed, so a flow with
retries would make a failed submission again. One that was perhaps paid for must stay failed.
"""

from prefect.context import TaskRunContext

from ..runway.errors import SubmissionUncertain
from ..runway.names import step_key
from .display import logger


async def refuse_if_uncertain(key: str) -> None:
    """Do not let a key be submitted again whose earlier submission had no answer.

    Raises:
        SubmissionUncertain: The key had one.
    """
    context = TaskRunContext.get()
    if context and await context.result_store.aexists(step_key("uncertain", key)):
        raise SubmissionUncertain("an earlier attempt sent the request and got no answer")


async def remember_as_uncertain(error: SubmissionUncertain) -> None:
    """Keep the error's key from being submitted again, wherever results are kept."""
    context = TaskRunContext.get()
    if not (context and error.key):
        return
    try:
        await context.result_store.awrite(
            {"what": error.what}, key=step_key("uncertain", error.key)
        )
    except Exception as failure:  # noqa: BLE001 -- the error itself must reach the user
        logger().warning(
            "Could not remember the uncertain submission (%s): do not retry this flow run",
            type(failure).__name__,
        )
