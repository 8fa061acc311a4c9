# SPDX-License-Identifier: Apache-2.0
"""One shard makes its part of a batch, and refuses a worker that differs from the others."""

import asyncio
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId
from prefect.client.schemas.objects import StateType
from prefect.deployments import arun_deployment
from prefect.flow_engine import run_flow
from prefect.input.run_input import asend_input
from prefect.states import Crashed, Running, Scheduled

from prefect_cometapi.blocks import CometAPICredentials
from prefect_cometapi.flows import generate_batch_shard
from prefect_cometapi.flows.batch.progress import BatchProgress
from prefect_cometapi.flows.batch.shard_checks import choose_deployment, difference
from prefect_cometapi.flows.batch.shard_runs import batch_tag, shard_tag
from prefect_cometapi.flows.batch.shards import ShardedRun
from prefect_cometapi.flows.runtime.run_context import new_context
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
    split,
)
from prefect_cometapi.runway.errors import StorageError, StorageUnavailable
from prefect_cometapi.runway.ledger.budget import Budget
from prefect_cometapi.runway.models.prices import Price
from prefect_cometapi.runway.processes import this_process
from prefect_cometapi.runway.storage.folder import FolderStorage
from prefect_cometapi.sandbox import Fault

from ... import waiting
from .catalogue import make_batch, rows

pytestmark = pytest.mark.server


def order(ledger_probe: Any, sandbox: Any, count: int = 3, **changes: Any) -> ShardOrder:
    items, _bad = check_rows(rows_of(rows(count)), batch_keys("spring"))
    fields = {
        "idempotency_key": "spring",
        "number": 2,
        "of": 4,
        "total": 12,
        "rows": tuple(map(row_of, items)),
        "base_url": sandbox.url,
        "storage": os.environ["COMETAPI_STORAGE"],
        "ledger": run_sync(ledger_probe.ledger.history.identity()),
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


def test_a_shard_makes_its_items_and_writes_their_results(
    prefect_server, sandbox, ledger_probe, tmp_path
):
    """The items of an order are bought once, also by a second run, and each has its line."""
    given = parameters(order(ledger_probe, sandbox), tmp_path / "videos")
    state = generate_batch_shard(**given, return_state=True)
    assert state.message == state.result() == "3 stored"
    run = str(state.state_details.flow_run_id)
    lines = (tmp_path / "videos" / results_name(given["order"], run)).read_bytes()
    assert [row.id for row in read_rows(lines)] == ["sku-0", "sku-1", "sku-2"]
    assert all(row.uri for row in read_rows(lines))
    assert generate_batch_shard(**given) == "3 stored"
    assert len(sandbox.accepted) == 3


def test_a_shard_keeps_to_the_limit_of_the_batch(prefect_server, sandbox, ledger_probe, tmp_path):
    """Purchases of other shards count against the limit of the batch."""
    ledger_probe.buy("spring/of-another-shard")
    given = parameters(order(ledger_probe, sandbox, max_seconds=15.0), tmp_path / "videos")
    assert generate_batch_shard(**given) == "2 stored, 1 not bought"
    assert len(sandbox.accepted) == 3


def test_a_worker_without_the_storage_buys_nothing(prefect_server, sandbox, ledger_probe, tmp_path):
    """A shard whose worker cannot read the order names the storage, and sends nothing."""
    given = parameters(order(ledger_probe, sandbox), tmp_path / "elsewhere")
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
    prefect_server, sandbox, ledger_probe, tmp_path, changes, error, words
):
    """A shard refuses a worker with another ledger or service before it buys anything."""
    given = parameters(order(ledger_probe, sandbox, **changes), tmp_path / "videos")
    with pytest.raises(error, match=words):
        generate_batch_shard(**given)
    assert not sandbox.accepted


def test_the_same_worker_is_accepted(ledger_probe, sandbox):
    """A worker with the ledger and the service of the batch is not refused."""
    wanted = order(ledger_probe, sandbox)
    assert difference(wanted, wanted.base_url, wanted.ledger, wanted.host) is None


@pytest.mark.heavy
def test_a_shard_stops_when_the_batch_is_stopped(
    prefect_server,
    sandbox,
    ledger_probe,
    tmp_path,
    history,
    finish_rendering,
    wait_until,
    monkeypatch,
):
    """After a message of the batch nothing more is bought, and what is in flight is delivered."""
    monkeypatch.setattr("prefect_cometapi.flows.batch.shard.LISTEN_INTERVAL", 0.2)
    given = parameters(order(ledger_probe, sandbox, count=6), tmp_path / "videos")
    with ThreadPoolExecutor(1) as pool:
        ended = pool.submit(copy_context().run, generate_batch_shard, **given)
        wait_until(lambda: len(sandbox.accepted) == 2 or None)
        run = ledger_probe.all()[0].flow_run_id
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
        ({}, LedgerUnavailable, "starts a container for each run, which cannot use the ledger"),
    ],
)
def test_what_cannot_be_made_in_shards_is_refused(
    prefect_server, sandbox, deployed, options, error, words
):
    """A mistake that the first run sees is refused before any shard starts."""
    with pytest.raises(error, match=words):
        make_batch(rows(4), **{"shards": 4, "shard_deployment": deployed, **options})
    assert not sandbox.requests


def _new_key() -> str:
    """Return a key of a batch with which each of two shards gets some of the first four rows."""
    while True:
        key = f"spring-{uuid4().hex[:6]}"
        items, _bad = check_rows(rows_of(rows(4)), batch_keys(key))
        if all(split(items, 2)):
            return key


class WorkerHere:
    """Worker in a thread of the test, which runs what Prefect has scheduled for a deployment."""

    def __init__(self) -> None:
        self.pool = f"here-{uuid4().hex[:6]}"
        self.key = _new_key()
        self.to_crash = 0
        self.to_delete = 0
        self.is_paused = threading.Event()
        self._resumes: Callable[[], bool] = lambda: False
        self.names: list[str] = []
        with get_client(sync_client=True) as client:
            client.create_work_pool(WorkPoolCreate(name=self.pool, type="process"))
            flow = client.create_flow_from_name("generate-batch-shard")
            self.deployment = client.create_deployment(flow, self.pool, work_pool_name=self.pool)

    def resume_after(self, condition: Callable[[], bool]) -> None:
        """End a pause once a condition is true."""
        self._resumes = condition

    def work(self, ended: threading.Event) -> None:
        """Run what is scheduled until an event is set, and let the first runs crash."""
        chosen = DeploymentFilter(id=DeploymentFilterId(any_=[self.deployment]))
        with get_client(sync_client=True) as client:
            while not ended.wait(0.1):
                if self._resumes():
                    self.is_paused.clear()
                if self.is_paused.is_set():
                    continue
                for run in client.read_flow_runs(deployment_filter=chosen):
                    if run.state_type is not StateType.SCHEDULED:
                        continue
                    if self.to_crash:
                        self.to_crash -= 1
                        client.set_flow_run_state(run.id, Crashed(), force=True)
                        continue
                    if self.to_delete:
                        self.to_delete -= 1
                        client.delete_flow_run(run.id)
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
    monkeypatch.setattr("prefect_cometapi.flows.batch.shard_follower.POLL_INTERVAL", 0.1)
    worker, ended = WorkerHere(), threading.Event()
    with ThreadPoolExecutor(1) as pool:
        working = pool.submit(copy_context().run, worker.work, ended)
        yield worker
        ended.set()
        working.result(waiting.GRACE)


def test_shards_make_one_batch(worker_here, sandbox, tmp_path):
    """A batch in shards has each video once, one result, and leaves no files of its shards."""
    options = {"shards": 2, "shard_deployment": worker_here.pool}
    result = make_batch(rows(5), idempotency_key=worker_here.key, max_seconds=20, **options)
    assert [item.id for item in result.results] == [f"sku-{n}" for n in range(5)]
    assert (result.succeeded, result.not_bought, len(sandbox.accepted)) == (4, 1, 4)
    assert sorted(worker_here.names) == [f"{worker_here.key} 1/2", f"{worker_here.key} 2/2"]
    assert result.spending.run_seconds == 20
    assert not list((tmp_path / "videos" / FOLDER).iterdir())


def test_a_crashed_shard_is_scheduled_again(worker_here, sandbox):
    """A shard whose run crashed is made by the same run, which a worker starts again."""
    worker_here.to_crash = 2
    options = {"shards": 2, "shard_deployment": worker_here.pool}
    result = make_batch(rows(4), idempotency_key=worker_here.key, **options)
    assert result.succeeded == len(sandbox.accepted) == 4
    assert sorted(worker_here.names) == [f"{worker_here.key} 1/2", f"{worker_here.key} 2/2"]


def test_a_shard_that_keeps_crashing_fails_the_batch(worker_here, sandbox, monkeypatch):
    """Its items are not bought, the others are stored, and the error names the shard."""
    monkeypatch.setenv("COMETAPI_MAX_RUN_ATTEMPTS", "1")
    worker_here.to_crash = 9
    options = {"shards": 2, "shard_deployment": worker_here.pool}
    with pytest.raises(BatchFailed, match=r"4 not bought; shard ./2 ended as Crashed"):
        make_batch(rows(4), idempotency_key=worker_here.key, **options)
    assert not sandbox.accepted


def test_a_stopped_run_that_starts_again_buys_nothing(worker_here, sandbox, ledger_probe, tmp_path):
    """A run whose batch was stopped while it had no process reads that before it buys anything."""
    given = parameters(order(ledger_probe, sandbox), tmp_path / "videos")
    with get_client(sync_client=True) as client:
        run = client.create_flow_run_from_deployment(
            worker_here.deployment, parameters=given, state=Crashed()
        )
        asyncio.run(asend_input("the batch was cancelled", run.id))
        client.set_flow_run_state(run.id, Scheduled(), force=True)
        ended = waiting.until(lambda: _final(client, run.id), "the end of the run", 60)
    assert ended.message == "3 not bought; the batch was cancelled"
    assert not sandbox.accepted


def _final(client: SyncPrefectClient, run: UUID) -> Any:
    state = client.read_flow_run(run).state
    return state if state and state.is_final() else None


def test_shards_of_another_version_of_a_batch_are_refused(worker_here, sandbox):
    """Active shards with other orders are named, and nothing starts beside them."""
    with get_client(sync_client=True) as client:
        other = client.create_flow_run_from_deployment(
            worker_here.deployment,
            tags=[batch_tag(worker_here.key), shard_tag("0a1b")],
            state=Running(),
            name=f"{worker_here.key} 1/3",
        )
    options = {"shards": 2, "shard_deployment": worker_here.pool}
    with pytest.raises(InvalidRequest, match=rf"are active \({worker_here.key} 1/3\)") as caught:
        make_batch(rows(4), idempotency_key=worker_here.key, **options)
    assert "cancel them in Prefect" in str(caught.value)
    assert not sandbox.accepted
    with get_client(sync_client=True) as client:
        client.delete_flow_run(other.id)


def test_a_shard_that_cannot_start_stops_the_others(worker_here, sandbox, monkeypatch):
    """Those that have started are stopped, and the error names the one that has not."""
    started: list[Any] = []
    worker_here.is_paused.set()

    async def start(*given: Any, **options: Any) -> Any:
        if started:
            raise RuntimeError("Failed to reach API")
        started.append(await arun_deployment(*given, **options))
        return started[0]

    async def send(why: str, run: UUID) -> None:
        await asend_input(why, run)
        worker_here.is_paused.clear()

    monkeypatch.setattr("prefect_cometapi.flows.batch.shards.arun_deployment", start)
    monkeypatch.setattr("prefect_cometapi.flows.batch.shard_follower.asend_input", send)
    options = {"shards": 2, "shard_deployment": worker_here.pool}
    with pytest.raises(BatchFailed, match=r"4 not bought; shard 2/2 could not be started"):
        make_batch(rows(4), idempotency_key=worker_here.key, **options)
    assert not sandbox.accepted


def test_a_stop_is_sent_until_it_arrives(worker_here, sandbox, monkeypatch, caplog):
    """A stop that Prefect did not accept is sent again, and the log says so once."""
    tried: list[UUID] = []
    follower = "prefect_cometapi.flows.batch.shard_follower"

    async def send(why: str, run: UUID) -> None:
        tried.append(run)
        if len(tried) <= 3:
            raise RuntimeError("Failed to reach API")
        await asend_input(why, run)

    monkeypatch.setattr(f"{follower}.asend_input", send)
    monkeypatch.setattr(f"{follower}.reason_to_stop_shards", lambda _results, _most: "too much")
    worker_here.is_paused.set()
    worker_here.resume_after(lambda: len(tried) == 5)
    options = {"shards": 2, "shard_deployment": worker_here.pool}
    with pytest.raises(BatchFailed, match="4 not bought; too much"):
        make_batch(rows(4), idempotency_key=worker_here.key, **options)
    assert len(tried) == 5
    assert caplog.text.count("could not be stopped yet") == 1
    assert not sandbox.accepted


def test_a_deleted_run_ends_its_shard(worker_here, sandbox):
    """A shard whose run was deleted is over, and the error says so."""
    worker_here.to_delete = 1
    options = {"shards": 2, "shard_deployment": worker_here.pool}
    with pytest.raises(BatchFailed, match="its flow run was deleted") as caught:
        make_batch(rows(4), idempotency_key=worker_here.key, **options)
    assert caught.value.result
    assert caught.value.result.succeeded == len(sandbox.accepted) > 0


def test_results_that_cannot_be_read_are_kept(worker_here, sandbox, tmp_path, monkeypatch, caplog):
    """The log names the file with the reasons of failed items, and the file stays."""
    sandbox.add_fault(Fault.parse("create:invalid-request:times=1"))
    read = FolderStorage.read

    def denied(self: FolderStorage, name: str) -> bytes:
        if name.endswith(".results.jsonl"):
            raise StorageError("the storage does not answer")
        return read(self, name)

    monkeypatch.setattr(FolderStorage, "read", denied)
    options = {"shards": 2, "shard_deployment": worker_here.pool}
    with pytest.raises(BatchFailed, match="its results could not be read"):
        make_batch(rows(4), idempotency_key=worker_here.key, **options)
    left = [path.name for path in (tmp_path / "videos" / FOLDER).iterdir()]
    assert len(left) == 2
    assert all(name.endswith(".results.jsonl") and name in caplog.text for name in left)
    monkeypatch.undo()


def test_another_price_makes_another_order_only_with_a_limit(ledger_probe, sandbox, monkeypatch):
    """The order of a shard has prices if the spending is limited, and only those of its models."""
    items, _bad = check_rows(rows_of(rows(3)), batch_keys("spring"))
    prices = {"gen3a_turbo": Price(0.32), "gen4_turbo": Price(0.05, per_second=True)}

    def digests(most: float | None, **changed: Price) -> set[str]:
        budget = Budget("spring/", prices | changed, max_spend=most)
        context = new_context(None, None)
        deployment: Any = None
        run = ShardedRun(context, BatchProgress(budget), budget, deployment, 2, 4)
        return {order.packed()[0] for order in run_sync(run._orders(items))}

    assert digests(None) == digests(None, gen3a_turbo=Price(0.4))
    assert digests(9.0) == digests(9.0, gen4_turbo=Price(0.4))
    assert digests(9.0).isdisjoint(digests(9.0, gen3a_turbo=Price(0.4)))
    before = digests(None)
    monkeypatch.setenv("COMETAPI_STORAGE", "s3://elsewhere/videos")
    assert before.isdisjoint(digests(None))
