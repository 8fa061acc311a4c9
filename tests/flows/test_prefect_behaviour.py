# SPDX-License-Identifier: Apache-2.0
"""Behaviour of Prefect that this package relies on, pinned so that an upgrade shows a change."""

import asyncio
import inspect
from collections.abc import Callable
from contextvars import ContextVar
from pathlib import Path
from typing import Any, SupportsIndex
from uuid import UUID, uuid4

import pytest
from prefect import flow, get_client, task
from prefect.client.schemas.objects import State
from prefect.context import TaskRunContext
from prefect.exceptions import CrashedRun
from prefect.runner._hook_runner import HookRunner
from prefect.runtime import flow_run
from prefect.settings import get_current_settings
from prefect.states import Cancelling, Crashed
from pydantic import BaseModel

from prefect_cometapi.flows.runtime.hooks import release_leases
from prefect_cometapi.flows.runtime.sync import run_sync

pytestmark = pytest.mark.server


class Diary(list[tuple[str, int | None]]):
    """Record of the calls in order, each with the task run of its context."""

    def note(self, what: str) -> None:
        context = TaskRunContext.get()
        self.append((what, id(context.task_run) if context else None))


class Delays(list[float]):
    """Delays of a task that record each access."""

    def __init__(self, diary: Diary) -> None:
        super().__init__([0.01])
        self.diary = diary

    def __getitem__(self, index: SupportsIndex | slice) -> Any:
        self.diary.note("delay")
        return super().__getitem__(index)


def troubled(diary: Diary, *, isasync: bool) -> Callable[[], Any]:
    """Return a flow over a task that fails twice and then works."""

    def condition(_task: Any, task_run: Any, _state: State[Any]) -> bool:
        diary.note("condition")
        diary.append(("given", id(task_run)))
        return True

    def body() -> None:
        diary.note("attempt")
        if [what for what, _run in diary].count("attempt") < 3:
            raise ValueError("not yet")

    options: dict[str, Any] = {
        "retries": 5,
        "retry_condition_fn": condition,
        "retry_delay_seconds": lambda _retries: Delays(diary),
    }

    @task(**options)
    async def astep() -> None:
        body()

    @task(**options)
    def step() -> None:
        body()

    @flow
    async def arun() -> None:
        await astep()

    @flow
    def run() -> None:
        step()

    return (lambda: asyncio.run(arun())) if isasync else run


@pytest.mark.parametrize("isasync", [False, True], ids=["sync", "async"])
def test_the_condition_is_asked_before_the_delay_is_taken(prefect_server, isasync):
    """Prefect calls the retry condition before it reads the delay, so the condition can set it."""
    diary = Diary()
    troubled(diary, isasync=isasync)()
    failed = ["attempt", "condition", "given", "delay"]
    assert [what for what, _run in diary] == [*failed, *failed, "attempt"]


@pytest.mark.parametrize("isasync", [False, True], ids=["sync", "async"])
def test_one_task_run_is_one_object_from_attempt_to_attempt(prefect_server, isasync):
    """Attempts, condition and delays see the same task run object, so it can carry state."""
    diary = Diary()
    troubled(diary, isasync=isasync)()
    assert len({run for _what, run in diary}) == 1
    assert None not in {run for _what, run in diary}


def test_two_task_runs_are_two_objects(prefect_server):
    """Two calls of one task have two task run objects, so they share no state."""
    seen: list[Any] = []

    @task
    def step() -> None:
        context = TaskRunContext.get()
        assert context
        seen.append(context.task_run)

    @flow
    def run() -> None:
        step()
        step()

    run()
    assert seen[0] is not seen[1]
    assert seen[0].id != seen[1].id


def test_a_retried_flow_keeps_its_id_and_its_subflows_do_not(prefect_server):
    """The id of the outermost run, from which keys are made, is the only one that a retry keeps."""
    outer: list[UUID] = []
    inner: list[UUID] = []
    roots: list[UUID] = []

    @flow
    def child() -> None:
        inner.append(flow_run.id)
        roots.append(flow_run.root_flow_run_id)
        if len(inner) == 1:
            raise RuntimeError("at first")

    @flow(retries=1)
    def parent() -> None:
        outer.append(flow_run.id)
        roots.append(flow_run.root_flow_run_id)
        child()

    parent()
    assert outer[0] == outer[1]
    assert inner[0] != inner[1]
    assert set(roots) == {outer[0]}


@pytest.mark.parametrize("submitted", [False, True], ids=["called", "submitted"])
@pytest.mark.heavy
def test_a_task_knows_the_outermost_run(prefect_server, submitted):
    """A task knows the outermost run, even below a subflow and in a task runner's thread."""
    seen: list[UUID] = []

    @task
    def step() -> None:
        seen.append(flow_run.root_flow_run_id)

    @flow
    def child() -> None:
        step.submit().result() if submitted else step()

    @flow
    def parent() -> UUID:
        child()
        return flow_run.id

    assert seen == [parent()]


def test_outside_of_a_flow_there_is_no_run(prefect_server):
    """A task outside of a flow has no outermost run."""

    @task
    def step() -> Any:
        return flow_run.root_flow_run_id, flow_run.id

    assert step() == (None, None)


# Hooks


def test_the_engine_calls_hooks_by_position(prefect_server):
    """In the flow's own process, a hook gets flow, flow run and state by position."""
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def hook(*args: Any, **kwargs: Any) -> None:
        calls.append((args, kwargs))

    @flow(on_crashed=[hook])
    def doomed() -> None:
        raise KeyboardInterrupt

    with pytest.raises((KeyboardInterrupt, CrashedRun)):
        doomed()
    ((args, kwargs),) = calls
    assert [type(given).__name__ for given in args] == ["Flow", "FlowRun", "State"]
    assert kwargs == {}


async def test_a_runner_calls_hooks_by_keyword(prefect_server):
    """In a fresh process, a hook gets flow, flow run and state by these names."""
    calls: list[dict[str, Any]] = []

    def note(**kwargs: Any) -> None:
        calls.append(kwargs)

    hook: Any = note

    @flow(on_crashed=[hook], on_cancellation=[hook])
    def doomed() -> None: ...

    async with get_client() as client:
        run = await client.create_flow_run(doomed)

    async def resolve(_run: Any) -> Any:
        return doomed

    runner = HookRunner(resolve_flow=resolve)
    await runner.run_crashed_hooks(run, Crashed())
    await runner.run_cancellation_hooks(run, Cancelling())
    assert [list(call) for call in calls] == [["flow", "flow_run", "state"]] * 2
    assert list(inspect.signature(release_leases).parameters) == list(calls[0])


# Results


def test_a_damaged_record_is_no_record(prefect_server):
    """Prefect runs a step again if its record is unreadable, so a record proves no purchase."""
    key = f"cometapi-pin-{uuid4()}"
    calls: list[int] = []

    @task(persist_result=True, result_serializer="json", cache_key_fn=lambda *_: key)
    def step() -> int:
        calls.append(1)
        return len(calls)

    assert (step(), step()) == (1, 1)
    record = Path(get_current_settings().results.local_storage_path) / key
    assert record.exists()
    record.write_bytes(record.read_bytes()[:10])
    assert step() == 2


class Model(BaseModel):
    """A small result."""

    uri: str
    size: int


@pytest.mark.parametrize("serializer", ["compressed/json", "json"])
@pytest.mark.heavy
def test_a_subflows_result_comes_back_as_a_model(prefect_server, serializer):
    """A stored result of a subflow is restored as a model, by either serializer."""
    made: list[Model] = []
    got: list[Any] = []

    @flow(persist_result=True, result_serializer=serializer)
    def child() -> Model:
        made.append(Model(uri="/videos/a.mp4", size=1000))
        return made[-1]

    @flow(retries=1)
    def parent() -> None:
        got.append(child())
        if len(got) == 1:
            raise RuntimeError("after the subflow")

    parent()
    assert len(made) == 1
    assert got == [made[0], made[0]]
    assert type(got[1]) is Model


# Context


told: ContextVar[str] = ContextVar("told", default="nothing")


async def heard() -> str:
    return told.get()


@task
def hears() -> str:
    """Return the context variable's value in a task and in an event loop of its own."""
    return run_sync(heard())


@task
async def ahears() -> str:
    return await heard()


@flow
def calls_both() -> list[str]:
    return [asyncio.run(heard()), hears(), hears.submit().result()]


@flow
async def awaits_both() -> list[str]:
    return [await heard(), await ahears()]


@pytest.fixture
def something_told():
    token = told.set("something")
    yield
    told.reset(token)


def test_context_variables_reach_sync_flows_and_their_loops(prefect_server, something_told):
    """A context variable of the caller is visible in a sync flow, its tasks and their loops."""
    assert calls_both() == ["something"] * 3


def test_context_variables_reach_async_flows(prefect_server, something_told):
    """A context variable of the caller is visible in an async flow and its tasks."""
    assert asyncio.run(awaits_both()) == ["something"] * 2
