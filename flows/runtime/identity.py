# SPDX-License-Identifier: Apache-2.0
"""Identity of the current run: its name, its number of starts, and the keys that it derives."""

from collections.abc import Iterator
from contextvars import Token

from prefect.client.schemas.objects import TaskRun, TaskRunResult
from prefect.context import TaskRunContext
from prefect.runtime import flow_run

from ...runway.errors import InvalidRequest, TooManyRunAttempts
from ...runway.models.keys import check_key, default_key
from ...runway.models.requests import GenerationRequest


def this_run() -> str:
    """Return the name of the current run for the ledger: the flow run id, or ``a script``."""
    return str(flow_run.id or "a script")


def check_starts(most: int) -> None:
    """Check that this flow run was not started too often.

    A run that kills its worker would otherwise be started again and again.

    Args:
        most: Maximum number of starts.

    Raises:
        TooManyRunAttempts: The run was started more often than that.
    """
    starts = flow_run.run_count
    if starts > most:
        raise TooManyRunAttempts(
            f"this flow run was started {starts} times, and may be {most} times"
        )


def resolve_key(
    key: str | None, request: GenerationRequest, variation: int = 1, task_id: str | None = None
) -> str:
    """Return the user's own idempotency key, or the key of this request in the current run.

    Args:
        key: The user's own key.
        request: Request to submit.
        variation: Number of this video among several for the same request in one run.
        task_id: Id of a generation to adopt, so that nothing is bought.

    Raises:
        InvalidRequest: No key is given, and no run keeps its id across retries to derive one from.
        ValueError: The key is not valid, or a key and a ``variation`` are given together.
    """
    if key is not None:
        if variation != 1:
            raise ValueError("give a key of your own or a variation, not both")
        return check_key(key)
    if run := lasting_run_id():
        return default_key(run, request, variation)
    if task_id is not None:
        return f"task-{task_id}"
    raise InvalidRequest(
        "the parameter idempotency_key is missing: the call is made outside of any flow run or "
        "task run of yours, so a repeated call would be paid for again. Pass a key of your own "
        "(idempotency_key='sku-17'), or make the call in a flow"
    )


def lasting_run_id() -> str | None:
    """Return the id of the outermost run, which stays the same across its retries.

    That is the outermost flow run, or a user's task run around it. Subflows and tasks within them
    get new ids at each retry. There is no such run, and the result is None, for a step of this
    package that is called alone, and in a thread without Prefect's context.
    """
    around = [context.task_run for context in _task_contexts() if not _is_step(context)]
    if around and around[-1].flow_run_id is None:
        return _outermost(around[-1])
    return flow_run.root_flow_run_id


def _task_contexts() -> Iterator[TaskRunContext]:
    """Yield the contexts of the task runs around this call, the innermost first.

    Prefect keeps only the innermost. Each context has the token that restores the outer one.
    """
    context = TaskRunContext.get()
    while context is not None:
        yield context
        token = context._token  # noqa: SLF001 -- Prefect offers no other way to it
        around = token.old_value if token else None
        context = None if around is Token.MISSING else around


def _is_step(context: TaskRunContext) -> bool:
    flows = __name__.partition(".runtime.")[0]
    return str(getattr(context.task.fn, "__module__", "")).startswith(f"{flows}.")


def _outermost(task_run: TaskRun) -> str:
    """Return the id of a task run, or of its parent if the parent is in another process."""
    parents = task_run.task_inputs.get("__parents__") or ()
    ids = (parent.id for parent in parents if isinstance(parent, TaskRunResult))
    return str(next(ids, task_run.id))
