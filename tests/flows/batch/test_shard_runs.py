# SPDX-License-Identifier: Apache-2.0
"""Each run of a shard is followed, restarted, closed or left, and no run buys after its batch."""

import asyncio
from collections.abc import Iterator
from time import monotonic
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.context import FlowRunContext
from prefect.states import Cancelling, Crashed, Running, Scheduled

from prefect_cometapi.flows import agenerate_batch, generate_batch
from prefect_cometapi.flows.batch.cancellation import cancel_shards
from prefect_cometapi.flows.batch.progress import BatchProgress
from prefect_cometapi.flows.batch.shard_files import removable
from prefect_cometapi.flows.batch.shard_follower import ShardFollower
from prefect_cometapi.flows.batch.shard_runs import (
    Liveness,
    Shard,
    Step,
    batch_tag,
    change_state,
    close_crashed,
    digest_of,
    is_active,
    is_attachable,
    liveness,
    next_step,
    read_runs,
    runs_of_batch,
    shard_tag,
    strays,
    tag_run,
)
from prefect_cometapi.flows.runtime.pages import read_pages
from prefect_cometapi.flows.runtime.run_context import new_context
from prefect_cometapi.runway.batch.sharding import ShardOrder, order_name, results_name
from prefect_cometapi.runway.ledger.budget import Budget
from prefect_cometapi.runway.processes import Process, this_process

KINDS = st.sampled_from(StateType)
PROCESSES = st.none() | st.sampled_from(Liveness)
LEASES = st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=6)


def run_in(kind: StateType, tags: list[str] | None = None) -> FlowRun:
    state: State[Any] = State(type=kind)
    return FlowRun(flow_id=uuid4(), state=state, state_type=kind, tags=tags or [])


@given(KINDS, PROCESSES, st.booleans())
def test_a_crashed_run_is_never_left_alone(kind, process, may_restart):
    """A crashed run is restarted or closed, and only a crashed one, and none after a stop."""
    step = next_step(kind, process, may_restart=may_restart)
    assert (step in {Step.RESTART, Step.CLOSE}) == (kind is StateType.CRASHED)
    assert step is not Step.RESTART or may_restart


@given(KINDS, PROCESSES, st.booleans())
def test_a_run_with_a_process_is_only_followed(kind, process, may_restart):
    """A run whose process is alive, or whose leases were not read, is not declared dead."""
    step = next_step(kind, process, may_restart=may_restart)
    if step is Step.MARK_CRASHED:
        assert (kind, process) == (StateType.RUNNING, Liveness.DEAD)
    if step is Step.LEAVE:
        assert kind is StateType.CANCELLING
        assert process in {Liveness.DEAD, Liveness.UNKNOWN}


@given(LEASES, st.sets(st.sampled_from("abc")))
def test_leases_of_former_processes_show_no_death(leases, former):
    """One active lease shows a living process; a dead one is known by a lease of its own only."""
    found = liveness(leases, former)
    assert (found is Liveness.ALIVE) == any(active for _owner, active in leases)
    if found is Liveness.DEAD:
        assert {owner for owner, _active in leases} - former
    if {owner for owner, _active in leases} <= former:
        assert found is not Liveness.DEAD


@given(KINDS)
def test_a_batch_attaches_to_runs_that_will_make_the_shard(kind):
    """A run that has ended, has crashed or is being cancelled does not make its shard."""
    ended = {StateType.COMPLETED, StateType.FAILED, StateType.CANCELLED, StateType.CRASHED}
    assert is_active(run_in(kind)) == (kind not in ended)
    assert is_attachable(run_in(kind)) == (kind not in {*ended, StateType.CANCELLING})


@given(KINDS)
def test_a_crashed_shard_is_not_over_until_it_is_closed(kind):
    """The follower waits for a crashed run, which may start again, until it is closed."""
    order = ShardOrder.model_construct(number=1, of=2)
    shard = Shard(order, "0a", run_in(kind))
    assert shard.is_over == (not is_active(shard.run) and kind is not StateType.CRASHED)
    shard.is_closed = True
    assert shard.is_over


def test_strays_are_active_runs_of_other_orders():
    """Active runs whose order is not one of the batch's are found, and no others."""
    runs = [
        run_in(kind, [shard_tag(digest)])
        for kind in (StateType.RUNNING, StateType.COMPLETED)
        for digest in ("0a", "0b")
    ]
    assert strays(runs, {"0a"}) == [runs[1]]
    assert [digest_of(run) for run in runs] == ["0a", "0b"] * 2
    assert digest_of(run_in(StateType.RUNNING, [batch_tag("spring")])) is None


@given(st.sets(st.sampled_from("abcd")), st.sets(st.sampled_from("abcd")))
def test_only_files_of_given_orders_are_removed(digests, unread):
    """Files of other orders stay, and so do results that were not read."""
    orders = {order_name(digest) for digest in "abcd"}
    results = {digest: results_name(digest, "run") for digest in "abcd"}
    kept = {results[digest] for digest in unread}
    found = set(removable({*orders, *results.values()}, digests, kept))
    wanted = {order_name(digest) for digest in digests}
    assert found == wanted | {results[digest] for digest in digests - unread}


@given(st.integers(0, 1001))
async def test_all_pages_are_read(total):
    """A list of any length is read completely, in its order."""

    async def read(limit: int, offset: int) -> list[int]:
        return list(range(total))[offset : offset + limit]

    assert await read_pages(read) == list(range(total))


class Runs:
    """Flow runs of shards on Prefect's server, which no worker starts."""

    def __init__(self, client: SyncPrefectClient) -> None:
        self.client = client
        self.deployment = client.create_deployment(
            client.create_flow_from_name("generate-batch-shard"), f"runs-{uuid4().hex[:6]}"
        )

    def add(self, key: str, state: State[Any], digest: str = "0a") -> FlowRun:
        """Create a run of a shard in a state."""
        run = self.client.create_flow_run_from_deployment(
            self.deployment, tags=[batch_tag(key), shard_tag(digest)], name=f"{key} 1/2"
        )
        self.client.set_flow_run_state(run.id, state, force=True)
        return self.client.read_flow_run(run.id)

    def kind(self, run: FlowRun) -> StateType | None:
        return self.client.read_flow_run(run.id).state_type


@pytest.fixture
def runs(prefect_server) -> Iterator[Runs]:
    with get_client(sync_client=True) as client:
        yield Runs(client)


def cancel_a_batch(key: str) -> None:
    """Run a batch with a key, and call the hook of its cancellation."""

    @flow
    def batch() -> None:
        context = FlowRunContext.get()
        assert context
        assert context.flow_run
        asyncio.run(tag_run(context.flow_run.id, batch_tag(key)))
        cancel_shards(batch, context.flow_run, Cancelling())

    batch()


def messages(run: UUID) -> list[str]:
    with get_client(sync_client=True) as client:
        found = client.filter_flow_run_input(run, key_prefix="str", limit=9, exclude_keys=set())
    return [one.value for one in found]


@pytest.mark.server
def test_a_cancelled_batch_cancels_its_shards(runs, monkeypatch):
    """The hook cancels active and crashed shards on all pages, also those that it attached to."""
    monkeypatch.setattr("prefect_cometapi.flows.runtime.pages.PAGE_SIZE", 2)
    key = f"spring-{uuid4().hex}"
    ours = [runs.add(key, state) for state in (Running(), Scheduled(), Crashed(), Running())]
    ended = runs.add(key, State(type=StateType.COMPLETED))
    others = runs.add("autumn", Running())

    cancel_a_batch(key)
    stopped = {StateType.CANCELLING, StateType.CANCELLED}
    assert all(runs.kind(run) in stopped for run in ours)
    assert all(messages(run.id) for run in ours)
    assert runs.kind(ours[2]) is StateType.CANCELLED
    assert runs.kind(ended) is StateType.COMPLETED
    assert runs.kind(others) is StateType.RUNNING
    assert not messages(others.id)
    for hooked in (generate_batch, agenerate_batch):
        assert cancel_shards in hooked.on_cancellation_hooks


@pytest.mark.server
def test_one_shard_that_cannot_be_cancelled_does_not_keep_the_others(runs, monkeypatch, caplog):
    """The hook names a shard that could not be cancelled, and cancels the rest."""
    key = f"spring-{uuid4().hex}"
    first, second = runs.add(key, Running()), runs.add(key, Running())

    async def refuse_one(client: Any, run: FlowRun, state: State[Any]) -> tuple[FlowRun, bool]:
        if run.id == first.id:
            raise RuntimeError("Failed to reach API")
        return await change_state(client, run, state)

    monkeypatch.setattr("prefect_cometapi.flows.batch.shard_runs.change_state", refuse_one)

    cancel_a_batch(key)
    assert (runs.kind(first), runs.kind(second)) == (StateType.RUNNING, StateType.CANCELLING)
    assert "could not be cancelled and may continue to buy" in caplog.text


@pytest.mark.server
async def test_a_state_that_changed_meanwhile_is_not_overwritten(runs):
    """A run that an automation has scheduled again is not closed as a crashed one."""
    crashed = runs.add("spring", Crashed())
    runs.client.set_flow_run_state(crashed.id, Scheduled(), force=True)
    now = await close_crashed(crashed, "stopped")
    assert now.state_type is StateType.SCHEDULED
    assert not messages(crashed.id)


@pytest.mark.server
async def test_a_closed_run_is_cancelled_and_has_the_reason(runs):
    """A crashed run that is closed says why, and gets the message that stops it."""
    crashed = runs.add("spring", Crashed())
    now = await close_crashed(crashed, "the batch is stopped")
    assert now.state
    assert (now.state.type, now.state.message) == (StateType.CANCELLED, "the batch is stopped")
    assert "the batch is stopped" in messages(crashed.id)[0]


@pytest.mark.server
async def test_runs_are_read_in_pages_and_deleted_ones_are_missing(runs, monkeypatch):
    """More runs than a page has are all read, and a deleted run is not among them."""
    for module in ("batch.shard_runs", "runtime.pages"):
        monkeypatch.setattr(f"prefect_cometapi.flows.{module}.PAGE_SIZE", 2)
    key = f"spring-{uuid4().hex}"
    added = [runs.add(key, Running()) for _ in range(5)]
    assert {run.id for run in await runs_of_batch(batch_tag(key))} == {run.id for run in added}
    runs.client.delete_flow_run(added[0].id)
    assert set(await read_runs([run.id for run in added])) == {run.id for run in added[1:]}


@pytest.mark.server
async def test_leases_of_a_former_process_do_not_end_a_run(runs, sandbox, ledger_probe):
    """Leases that were dead when a run was first read count once it has run for long enough."""
    await asyncio.to_thread(ledger_probe.buy, "spring/sku-0")
    run = runs.add("spring", Running())
    here = this_process()
    dead = Process(here.host, here.space, pid=2**22 + 1, started="1")
    leases = ledger_probe.ledger.leases
    assert await leases.acquire("spring/sku-0", f"{dead}|{run.id}")
    deployment: Any = None
    follower = ShardFollower(new_context(None, None), BatchProgress(Budget("spring/")), deployment)
    shard = Shard(ShardOrder.model_construct(number=1, of=2), "0a", run)
    await follower._watch(shard)
    assert await follower._liveness(shard) is Liveness.UNKNOWN
    shard.watched_since -= 2 * leases.duration
    assert await follower._liveness(shard) is Liveness.DEAD
    seen_alive = Shard(shard.order, "0a", run, watched=run.state_id, watched_since=monotonic())
    await follower._watch(seen_alive)
    assert await follower._liveness(seen_alive) is Liveness.DEAD
