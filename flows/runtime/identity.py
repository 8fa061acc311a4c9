# SPDX-License-Identifier: Apache-2.0
"""Identity of the current run: its name, its number of starts, and the keys that it derives."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar, Token
from typing import NamedTuple

from prefect.client.schemas.objects import TaskRun, TaskRunResult
from prefect.context import FlowRunContext, TagsContext, TaskRunContext
from prefect.runtime import deployment, flow_run

from ...runway.errors import InvalidRequest, TooManyRunAttempts
from ...runway.models.keys import check_key, default_key
from ...runway.models.requests import GenerationRequest
from ...runway.redact import hide_secrets


def this_run() -> str:
    """Return the name of the current run for the ledger: the flow run id, or ``a script``."""
    return str(flow_run.id or "a script")


class Deployment(NamedTuple):
    """Deployment of a run.

    Attributes:
        id: Id, or None if the run belongs to no deployment.
        name: Name without that of the flow, or None if the process that started the run did not
            pass it on.
    """

    id: str | None = None
    name: str | None = None


def this_deployment() -> Deployment:
    """Return the deployment of the outermost flow run, without a request to Prefect's server.

    Workers and served flows name the run and the deployment in the environment of its process. For
    a run without a deployment, Prefect would ask its server, so a run that was started in any other
    way is not looked up.
    """
    if "PREFECT__FLOW_RUN_ID" not in os.environ:
        context = FlowRunContext.get()
        own = context.flow_run.deployment_id if context and context.flow_run else None
        return Deployment(str(own)) if own else Deployment()
    try:
        found = deployment.id
    except Exception:  # noqa: BLE001 -- what only reports need must not stop a purchase
        return Deployment()
    return Deployment(found, os.environ.get("PREFECT__DEPLOYMENT_NAME")) if found else Deployment()


_outer_tags: ContextVar[tuple[str, ...]] = ContextVar("outer_tags", default=())
"""Tags of the flow runs around the current one. Prefect gives a subflow run only the tags of
``with tags(…)``, and not those of its parent or of its deployment."""


def current_tags() -> tuple[str, ...]:
    """Return the tags of the flow runs around a call, and those of ``with tags(…)``, sorted.

    A secret in a tag is hidden.
    """
    context = FlowRunContext.get()
    of_run = context.flow_run.tags if context and context.flow_run else []
    around = {*_outer_tags.get(), *of_run, *TagsContext.get().current_tags}
    return tuple(sorted(map(hide_secrets, around)))


@contextmanager
def passing_tags_on() -> Iterator[None]:
    """Let a subflow within the block know the tags of its parent."""
    token = _outer_tags.set(current_tags())
    try:
        yield
    finally:
        _outer_tags.reset(token)


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
            f"this flow run was started {starts} times, and at most {most} are allowed"
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
            raise ValueError("pass a key of your own or a variation, not both")
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
