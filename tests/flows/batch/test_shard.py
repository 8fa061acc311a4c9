# SPDX-License-Identifier: Apache-2.0
"""One shard makes its part of a batch, and refuses a worker that differs from the others."""

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId
from prefect.client.schemas.objects import StateType
from prefect.context import FlowRunContext
from prefect.deployments import run_deployment
from prefect.flow_engine import run_flow
from prefect.input.run_input import asend_input
from prefect.states import Cancelling, Crashed

from prefect_cometapi.blocks import CometAPICredentials
from prefect_cometapi.flows import agenerate_batch, generate_batch, generate_batch_shard
from prefect_cometapi.flows.batch.cancellation import cancel_shards
from prefect_cometapi.flows.batch.shard_checks import choose_deployment, difference
from prefect_cometapi.flows.runtime.sync import run_sync
from prefect_cometapi.runway import (
    BatchFailed,
    InvalidEnvironment,
    InvalidRequest,
    LedgerUnavailable,
)
from prefect_cometapi.runway.batch.rows import batch_keys, check_rows, rows_of
from prefect_cometapi.runway.batch.sharding import (
    FOLDER,
    ShardOrder,
    order_name,
    read_rows,
    results_name,
    row_of,
)
from prefect_cometapi.runway.errors import StorageUnavailable
from prefect_cometapi.runway.processes import this_process

from ... import waiting
from .catalogue import make_batch, rows

pytestmark = pytest.mark.server


def order(book: Any, sandbox: Any, count: int = 3, **changes: Any) -> ShardOrder:
    items, _bad = check_rows(rows_of(rows(count)), batch_keys("spring"))
    fields = {
        "idempotency_key": "spring",
        "number": 2,
        "of": 4,
        "total": 12,
        "rows": tuple(map(row_of, items)),
        "base_url": sandbox.url,
        "ledger": run_sync(book.ledger.history.identity()),
        "host": this_process().host,
        "max_in_flight": 2,
    }
    return ShardOrder.model_validate(fields | changes)


def parameters(order: ShardOrder, videos: Path) -> dict[str, str]:
    """Write an order where a batch writes it, and return the parameters of its run."""
    digest, content = order.packed()
    path = videos / order_name(digest)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return {"idempotency_key": order.idempotency_key, "shard": order.name, "order": digest}


def test_a_shard_makes_its_items_and_writes_their_results(prefect_server, sandbox, book, tmp_path):
    """The items of an order are bought once, also by a second run, and each has its line."""
    given = parameters(order(book, sandbox), tmp_path / "videos")
    state = generate_batch_shard(**given, return_state=True)
    assert state.message == state.result() == "3 stored"
    run = str(state.state_details.flow_run_id)
    lines = (tmp_path / "videos" / results_name(given["order"], run)).read_bytes()
    assert [row.id for row in read_rows(lines)] == ["sku-0", "sku-1", "sku-2"]
    assert all(row.uri for row in read_rows(lines))
    assert generate_batch_shard(**given) == "3 stored"
    assert len(sandbox.accepted) == 3


def test_a_shard_keeps_to_the_limit_of_the_batch(prefect_server, sandbox, book, tmp_path):
    """Purchases of other shards count against the limit of the batch."""
    book.buy("spring/of-another-shard")
    given = parameters(order(book, sandbox, max_seconds=15.0), tmp_path / "videos")
    assert generate_batch_shard(**given) == "2 stored, 1 not bought"
    assert len(sandbox.accepted) == 3


def test_a_worker_without_the_storage_buys_nothing(prefect_server, sandbox, book, tmp_path):
    """A shard whose worker cannot read the order names the storage, and sends nothing."""
    given = parameters(order(book, sandbox), tmp_path / "elsewhere")
    with pytest.raises(StorageUnavailable, match="All workers of a batch need the same storage"):
        generate_batch_shard(**given)
    assert not sandbox.accepted


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"ledger": "0a1b"}, LedgerUnavailable, "does not have the ledger of the machine"),
        ({"host": "another"}, LedgerUnavailable, "of the machine another that"),
        ({"host": None}, LedgerUnavailable, "does not have the ledger that the batch"),
        ({"base_url": "https://api.cometapi.com"}, InvalidEnvironment, "was started for https"),
    ],
)
def test_a_worker_that_differs_buys_nothing(
    prefect_server, sandbox, book, tmp_path, changes, error, words
):
    """A shard refuses a worker with another ledger or service before it buys anything."""
    given = parameters(order(book, sandbox, **changes), tmp_path / "videos")
    with pytest.raises(error, match=words):
        generate_batch_shard(**given)
    assert not sandbox.accepted


def test_the_same_worker_is_accepted(book, sandbox):
    """A worker with the ledger and the service of the batch is not refused."""
    wanted = order(book, sandbox)
    assert difference(wanted, wanted.base_url, wanted.ledger, wanted.host) is None


@pytest.mark.heavy
def test_a_shard_stops_when_the_batch_is_stopped(
    prefect_server, sandbox, book, tmp_path, history, finish_rendering, wait_until, monkeypatch
):
    """After a message of the batch nothing more is bought, and what is in flight is delivered."""
    monkeypatch.setattr("prefect_cometapi.flows.batch.shard.LISTEN_EVERY", 0.2)
    given = parameters(order(book, sandbox, count=6), tmp_path / "videos")
    with ThreadPoolExecutor(1) as pool:
        ended = pool.submit(copy_context().run, generate_batch_shard, **given)
        wait_until(lambda: len(sandbox.accepted) == 2 or None)
        run = book.all()[0].flow_run_id
        asyncio.run(asend_input("3 items failed, but at most 2 may fail", run))
        history.logs(run, until="The batch is stopped")
        finish_rendering()
        assert ended.result(60) == "2 stored, 4 not bought; 3 items failed, but at most 2 may fail"
    assert len(sandbox.accepted) == 2


@pytest.mark.parametrize(
    ("named", "found", "chosen"),
    [
        (None, ["shard"], "shard"),
        ("big", ["shard", "big"], "big"),
        ("generate-batch-shard/big", ["shard", "big"], "big"),
        (None, [], "prefect-cometapi deploy makes it"),
        ("big", [], "prefect-cometapi deploy makes it"),
        ("big", ["shard"], "there is no deployment generate-batch-shard/big, but there is shard"),
        (None, ["shard", "big"], "choose one deployment for the shards .*: big, shard"),
    ],
)
def test_the_deployment_is_the_only_one_or_the_named_one(named, found, chosen):
    """A missing deployment, and a choice between several, is an error that names them."""
    if chosen in found:
        assert choose_deployment(named, found) == chosen
        return
    with pytest.raises(InvalidRequest, match=chosen):
        choose_deployment(named, found)


@pytest.fixture
def deployed(prefect_server) -> str:
    """Deploy the shards to a work pool of containers, and return the name of the deployment."""
    name = f"containers-{uuid4().hex[:6]}"
    with get_client(sync_client=True) as client:
        assert isinstance(client, SyncPrefectClient)
        client.create_work_pool(WorkPoolCreate(name=name, type="docker"))
        client.create_deployment(
            client.create_flow_from_name("generate-batch-shard"), name, work_pool_name=name
        )
    return name


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"max_in_flight": 3}, InvalidRequest, "4 shards need max_in_flight .* at least 4"),
        (
            {"credentials": CometAPICredentials.model_construct(api_key="sk-unsaved")},
            InvalidRequest,
            "the credentials are not saved",
        ),
        ({"shard_deployment": "missing"}, InvalidRequest, "no deployment generate-batch-shard/mis"),
        ({}, LedgerUnavailable, "of the type docker, whose workers cannot use the ledger"),
    ],
)
def test_what_cannot_be_made_in_shards_is_refused(
    prefect_server, sandbox, deployed, options, error, words
):
    """A mistake that the first run sees is refused before any shard starts."""
    with pytest.raises(error, match=words):
        make_batch(rows(4), **{"shards": 4, "shard_deployment": deployed, **options})
    assert not sandbox.requests


class WorkerHere:
    """Worker in a thread of the test, which runs what Prefect has scheduled for a deployment."""

    def __init__(self) -> None:
        self.pool = f"here-{uuid4().hex[:6]}"
        self.to_crash = 0
        self.names: list[str] = []
        with get_client(sync_client=True) as client:
            client.create_work_pool(WorkPoolCreate(name=self.pool, type="process"))
            flow = client.create_flow_from_name("generate-batch-shard")
            self.deployment = client.create_deployment(flow, self.pool, work_pool_name=self.pool)

    def work(self, ended: threading.Event) -> None:
        """Run what is scheduled until an event is set, and let the first runs crash."""
        chosen = DeploymentFilter(id=DeploymentFilterId(any_=[self.deployment]))
        with get_client(sync_client=True) as client:
            while not ended.wait(0.1):
                for run in client.read_flow_runs(deployment_filter=chosen):
                    if run.state_type is not StateType.SCHEDULED:
                        continue
                    if self.to_crash:
                        self.to_crash -= 1
                        client.set_flow_run_state(run.id, Crashed(), force=True)
                        continue
                    self.names.append(run.name)
                    run_flow(
                        generate_batch_shard,
                        flow_run=run,
                        parameters=run.parameters,
                        return_type="state",
                    )


@pytest.fixture
def worker_here(prefect_server, sandbox, monkeypatch) -> Iterator[WorkerHere]:
    monkeypatch.setattr("prefect_cometapi.flows.batch.shards.LOOK_EVERY", 0.1)
    worker, ended = WorkerHere(), threading.Event()
    with ThreadPoolExecutor(1) as pool:
        working = pool.submit(copy_context().run, worker.work, ended)
        yield worker
        ended.set()
        working.result(waiting.GRACE)


def test_shards_make_one_batch(worker_here, sandbox, tmp_path):
    """A batch in shards has each video once, one result, and leaves no files of its shards."""
    options = {"shards": 2, "shard_deployment": worker_here.pool}
    result = make_batch(rows(5), idempotency_key="spring", max_seconds=20, **options)
    assert [item.id for item in result.results] == [f"sku-{n}" for n in range(5)]
    assert (result.succeeded, result.not_bought, len(sandbox.accepted)) == (4, 1, 4)
    assert sorted(worker_here.names) == ["spring 1/2", "spring 2/2"]
    assert result.spending.run_seconds == 20
    assert not list((tmp_path / "videos" / FOLDER).iterdir())


def test_a_crashed_shard_is_scheduled_again(worker_here, sandbox):
    """A shard whose run crashed is made by the same run, which a worker starts again."""
    worker_here.to_crash = 2
    options = {"shards": 2, "shard_deployment": worker_here.pool}
    result = make_batch(rows(4), idempotency_key="spring", **options)
    assert result.succeeded == len(sandbox.accepted) == 4
    assert sorted(worker_here.names) == ["spring 1/2", "spring 2/2"]


def test_a_shard_that_keeps_crashing_fails_the_batch(worker_here, sandbox, monkeypatch):
    """Its items are not bought, the others are stored, and the error names the shard."""
    monkeypatch.setenv("COMETAPI_MAX_RUN_ATTEMPTS", "1")
    worker_here.to_crash = 9
    options = {"shards": 2, "shard_deployment": worker_here.pool}
    with pytest.raises(BatchFailed, match=r"4 not bought; shard ./2 ended as Crashed"):
        make_batch(rows(4), idempotency_key="spring", **options)
    assert not sandbox.accepted


def test_a_cancelled_batch_cancels_its_shards(prefect_server, sandbox):
    """The hook of a cancelled batch cancels its shards, and no run of anybody else."""
    deployment = WorkerHere().deployment

    @flow
    def batch() -> list[UUID]:
        started: list[Any] = [
            run_deployment(deployment, timeout=0, as_subflow=is_ours) for is_ours in (True, False)
        ]
        context = FlowRunContext.get()
        assert context
        assert context.flow_run
        cancel_shards(batch, context.flow_run, Cancelling())
        return [run.id for run in started]

    with get_client(sync_client=True) as client:
        ours, others = (client.read_flow_run(run).state_type for run in batch())
    assert ours in {StateType.CANCELLING, StateType.CANCELLED}
    assert others is StateType.SCHEDULED
    for hooked in (generate_batch, agenerate_batch):
        assert cancel_shards in hooked.on_cancellation_hooks
